"""Find old bytes that a changed part of a target differs from in little.

Theory of operation
-------------------
What remains between two matches is a *gap*. The page of memory whose counter moved, the database row with a new date,
the function that calls what was moved: such a gap faces its own old version, on the diagonal of the match in front of
it or of the one behind it (they differ if something was inserted in between). A chunk in which nothing matched at all,
because every page of it changed, faces an old chunk of its own length; a sample of bytes says which.

Piece by piece, the bytes that face it on either diagonal are compared with the new ones. The better ones are taken if
not too many bytes differ, counted against those that are other than zero in the piece itself, which cost little
anyway. What is sent is the difference, mostly zeros.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from chunkstore.delta.bytewise import count_equal
from chunkstore.delta.matching import Match
from chunkstore.delta.ops import Kind, Op

_MOST_CHANGED: Final = 0.65
"""Measured on recompiled programs and on memory images: from 0.5 to 0.8 the patch hardly changes its size."""
_SAMPLES: Final = 64
_ALIKE: Final = 1 / 4  # of a sample's bytes must be equal to look further; unrelated text has about 1/16
_HARDLY: Final = 8  # of so many bytes less than one changed: no other place is looked at
_CHUNK_SAMPLES: Final = 256
_CHUNK_ALIKE: Final = 1 / 3
_MAX_CANDIDATES: Final = 64


class Gaps:
    """Makes the ops for what no match covers.

    Args:
        data, relative: target and relative, each in one piece.
        pieces: lengths of the target's fine pieces.
        targets, olds: lengths of the chunks of either.
    """

    def __init__(
        self, data: bytes, relative: bytes, pieces: Sequence[int], targets: Sequence[int], olds: Sequence[int]
    ) -> None:
        self._data = data
        self._relative = relative
        self._ends = list(accumulate(pieces))
        self._chunk_ends = list(accumulate(targets))
        self._old_starts: dict[int, list[int]] = {}
        at = 0
        for length in olds:
            self._old_starts.setdefault(length, []).append(at)
            at += length
        self._same_place: dict[int, int | None] = {}  # chunk -> diagonal to the old chunk that it resembles

    def ops(self, at: int, end: int, before: Match | None, behind: Match | None) -> Iterator[Op]:
        """Ops for the bytes from `at` to `end`, given the matches in front of them and behind them, if any."""
        diagonals = {match.diagonal: None for match in (before, behind) if match is not None}
        pending = Op(Kind.LITERAL, 0)
        while at < end:
            slot_end = min(end, self._ends[bisect_right(self._ends, at)])
            op = self._slot(at, slot_end, [*diagonals, *self._chunk_diagonal(at, before, behind)])
            if op.kind is pending.kind and op.offset == pending.offset + (op.kind is Kind.CHANGE) * pending.length:
                pending = Op(op.kind, pending.length + op.length, pending.offset)
            else:
                if pending.length:
                    yield pending
                pending = op
            at = slot_end
        if pending.length:
            yield pending

    def _slot(self, at: int, end: int, diagonals: Sequence[int]) -> Op:
        piece = self._data[at:end]
        length = end - at
        least, best = length, -1
        for diagonal in diagonals:
            offset = at + diagonal
            if offset < 0 or offset + length > len(self._relative):
                continue
            old = self._relative[offset : offset + length]
            if not _alike(piece, old):
                continue
            left = length - count_equal(piece, old)
            if left < least:
                least, best = left, offset
                if left * _HARDLY < length:
                    break
        if best < 0 or least > _MOST_CHANGED * (length - piece.count(0)):
            return Op(Kind.LITERAL, length)
        return Op(Kind.CHANGE, length, best)

    def _chunk_diagonal(self, at: int, before: Match | None, behind: Match | None) -> list[int]:
        """The diagonal to the old chunk that the chunk at `at` resembles, if no match lies in that chunk."""
        chunk = bisect_right(self._chunk_ends, at)
        end = self._chunk_ends[chunk]
        start = self._chunk_ends[chunk - 1] if chunk else 0
        if (before is not None and before.end > start) or (behind is not None and behind.at < end):
            return []
        if chunk not in self._same_place:
            self._same_place[chunk] = self._find_chunk(start, end)
        diagonal = self._same_place[chunk]
        return [] if diagonal is None else [diagonal]

    def _find_chunk(self, start: int, end: int) -> int | None:
        length = end - start
        step = _step(length, _CHUNK_SAMPLES)
        some = self._data[start:end:step]
        most, best = _CHUNK_ALIKE * len(some), None
        for offset in self._old_starts.get(length, [])[:_MAX_CANDIDATES]:
            alike = count_equal(some, self._relative[offset : offset + length : step])
            if alike > most:
                most, best = alike, offset - start
        return best


def _alike(left: bytes, right: bytes) -> bool:
    """Whether a sample of both is."""
    if len(left) <= _SAMPLES:
        return True
    step = _step(len(left), _SAMPLES)
    some = left[::step]
    return count_equal(some, right[::step]) >= _ALIKE * len(some)


def _step(length: int, samples: int) -> int:
    """How far samples are apart: an odd number, as the bytes of a word differ in kind."""
    return length // samples | 1
