"""Find the parts of a target that occur in its relative.

Theory of operation
-------------------
Target and relative are cut into fine pieces (see `finecuts`). A piece of the target is first compared with what faces
it on the *diagonal* of the last match, that is, where it stands if nothing was inserted or removed since; only if that
fails its fingerprint is looked up among those of the relative. So content that was changed in place, and a zero page
among thousands, is matched with its own old version, and most pieces cost one comparison. Where the relative's bytes
are at hand, they decide and not the fingerprint, and each run of matching pieces then grows byte by byte at both ends
into the gaps beside it. Against a signature, matches end where pieces do.

A match is of consecutive bytes on both sides; matches are in the target's order and do not overlap in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from chunkstore.delta.finecuts import PAGE_BYTES, content_cuts, fine_cuts, sector_cuts
from chunkstore.delta.signature import Signature, fingerprint
from chunkstore.digest import Buffer

_SHORTEST: Final = 32
"""Pieces below this length are not looked up: to name where they are costs almost what they do."""


@dataclass(slots=True)
class Match:
    """`length` bytes at `at` in the target that are those at `offset` in the relative."""

    at: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """Where the match ends in the target."""
        return self.at + self.length

    @property
    def diagonal(self) -> int:
        """How much further its bytes stand in the relative than in the target."""
        return self.offset - self.at


class HeldRelative:
    """A relative whose bytes are at hand: where each of its pieces is.

    Args:
        pages: as for `fine_cuts`.
        cuts: the lengths of the pieces of all of it, if they are known.
    """

    def __init__(self, relative: Sequence[Buffer], *, pages: bool = False, cuts: Sequence[int] = ()) -> None:
        self.data = b"".join(relative)
        self._places: dict[int, int] = {}
        view = memoryview(self.data)
        at = 0
        if cuts:
            self._index(view, at, cuts)
            return
        for chunk in relative:
            self._index(view, at, fine_cuts(chunk, pages=pages))
            at += len(chunk)

    def knows(self, chunk: Buffer) -> bool:
        """Whether at least a quarter of the pages of a chunk occur here, at whatever place."""
        view = memoryview(chunk)
        starts = range(0, len(chunk), PAGE_BYTES)
        known = sum(fingerprint(view[at : at + PAGE_BYTES]) in self._places for at in starts)
        return 4 * known >= len(starts)

    def _index(self, view: memoryview, at: int, cuts: Sequence[int]) -> None:
        places = self._places
        for length in cuts:
            if length >= _SHORTEST:
                places.setdefault(fingerprint(view[at : at + length]), at)
            at += length

    def matches(self, data: bytes, pieces: Sequence[int]) -> list[Match]:
        """The parts of `data`, cut into `pieces`, that occur here."""
        return list(self._grown(data, self._found(data, pieces)))

    def _found(self, data: bytes, pieces: Sequence[int]) -> Iterator[Match]:
        """Runs of pieces that occur here."""
        held, places = self.data, self._places
        view = memoryview(data)
        run = Match(0, 0, 0)
        diagonal = at = 0
        for length in pieces:
            end = at + length
            piece = data[at:end]
            offset = at + diagonal
            if offset < 0 or held[offset : offset + length] != piece or (length < _SHORTEST and run.end != at):
                if length < _SHORTEST:
                    at = end
                    continue
                place = places.get(fingerprint(view[at:end]))
                if place is None or held[place : place + length] != piece:
                    at = end
                    continue
                offset = place
                diagonal = place - at
            if run.end == at and run.diagonal == diagonal:
                run.length += length
            else:
                if run.length:
                    yield run
                run = Match(at, offset, length)
            at = end
        if run.length:
            yield run

    def _grown(self, data: bytes, runs: Iterable[Match]) -> Iterator[Match]:
        """The runs, each grown into the gaps beside it."""
        before: Match | None = None
        for run in runs:
            floor = 0
            if before is not None:
                gap = min(run.at - before.end, len(self.data) - before.offset - before.length)
                before.length += _common_prefix(data, before.end, self.data, before.offset + before.length, gap)
                yield before
                floor = before.end
            gap = min(run.at - floor, run.offset)
            back = _common_suffix(data, run.at, self.data, run.offset, gap)
            before = Match(run.at - back, run.offset - back, run.length + back)
        if before is not None:
            gap = min(len(data) - before.end, len(self.data) - before.offset - before.length)
            before.length += _common_prefix(data, before.end, self.data, before.offset + before.length, gap)
            yield before


def cuts_for_signature(targets: Iterable[Buffer], relative: Signature) -> list[int]:
    """Lengths of the pieces of all targets, in order, cut like the relative; pages only if that has any."""
    cuts_of = sector_cuts if relative.paged else content_cuts
    return [length for chunk in targets for length in cuts_of(chunk)]


def matches_by_signature(data: bytes, pieces: Sequence[int], relative: Signature) -> list[Match]:
    """The parts of `data`, cut into `pieces`, that have the fingerprints of pieces of the relative."""
    places: dict[int, int] = {}
    offsets: list[int] = []
    offset = 0
    for place, (number, length) in enumerate(zip(relative.fingerprints, relative.lengths, strict=True)):
        offsets.append(offset)
        offset += length
        if length >= _SHORTEST:
            places.setdefault(number, place)
    view = memoryview(data)
    matches: list[Match] = []
    at = due = 0  # `due`: the piece of the relative behind the last match
    for length in pieces:
        end = at + length
        number = fingerprint(view[at:end])
        if due < len(offsets) and relative.fingerprints[due] == number and relative.lengths[due] == length:
            index: int | None = due
        else:
            index = places.get(number) if length >= _SHORTEST else None
        if index is not None and relative.lengths[index] == length:
            last = matches[-1] if matches else None
            if last is not None and last.end == at and last.diagonal == offsets[index] - at:
                last.length += length
            else:
                matches.append(Match(at, offsets[index], length))
            due = index + 1
        else:
            due += 1  # most changes leave the number of pieces as it was
        at = end
    return matches


def _common_prefix(left: bytes, at: int, right: bytes, offset: int, most: int) -> int:
    """How many bytes, up to `most`, are equal from `at` and `offset` on."""
    step, done = 32, 0
    while done < most:
        step = min(step, most - done)
        if left[at + done : at + done + step] != right[offset + done : offset + done + step]:
            break
        done += step
        step *= 4
    else:
        return done
    while step > 1:  # the first difference is among the next `step` bytes
        half = step // 2
        if left[at + done : at + done + half] == right[offset + done : offset + done + half]:
            done += half
            step -= half
        else:
            step = half
    return done


def _common_suffix(left: bytes, at: int, right: bytes, offset: int, most: int) -> int:
    """How many bytes, up to `most`, are equal in front of `at` and `offset`."""
    step, done = 32, 0
    while done < most:
        step = min(step, most - done)
        if left[at - done - step : at - done] != right[offset - done - step : offset - done]:
            break
        done += step
        step *= 4
    else:
        return done
    while step > 1:
        half = step // 2
        if left[at - done - half : at - done] == right[offset - done - half : offset - done]:
            done += half
            step -= half
        else:
            step = half
    return done
