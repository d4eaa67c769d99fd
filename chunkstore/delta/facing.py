"""Which part of an old file faces each part of a new one.

Theory of operation
-------------------
Chunks that both files have, once and in the same order, are *anchors* (see `anchors`). What lies between two anchors
in the new file is a *gap* and faces what lies between the same two in the old one; the ends of the files are anchors
too.

    new   ====AAAA----------BBBB====
              |    gap      |
    old   ====AAAA-------BBBB====

Within a gap, a chunk faces

- the whole old gap when that is small, or when it fits a relative and nothing tells more,
- its own slot and a little on either side when both gaps have the same length in bytes, or have as good as the
  same count of chunks which are as good as equally long (memory images, cut into equal segments),
- the proportional part of a larger old gap, with a margin,
- old chunks around the place when the old gap is empty: what is inserted often resembles what is beside it.

An old file is *laid out* once, as arrays over its chunks in file order; all results are ranges of those.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from chunkstore.delta.anchors import Anchor, ascending, once, supported
from chunkstore.digest import ChunkId
from chunkstore.entries import EXTENT

RELATIVE_BYTES: Final = 8 << 20
"""Of a relative: what both ends read and index for one patch."""

RELATIVE_CHUNKS: Final = 1024

SMALL_GAP_BYTES: Final = 1 << 20
MARGIN_BYTES: Final = 1 << 20
MARGIN_PART: Final = 4
BESIDE_BYTES: Final = (256 << 10) - 1
AROUND: Final = 2
_DRIFT: Final = 8
_CACHED_FROM: Final = 16

Range = tuple[int, int]


class Piece(NamedTuple):
    """One chunk's place in the new file.

    Attributes:
        start, length: in bytes of the file, holes included.
        old: the chunk's position in the old layer, -1 if it has none.
        want: its position in the new layer if a window is sought for it, else -1.
    """

    start: int
    length: int
    old: int
    want: int


@dataclass(frozen=True, slots=True)
class _Gap:
    """Pieces `first` to `last` of a new file, and the laid-out chunks `lo` to `hi` that they face (ends excluded).

    The other two are lengths in bytes, holes included, the bytes of which begin at `begin` and `old_begin`.
    """

    first: int
    last: int
    begin: int
    length: int
    lo: int
    hi: int
    old_begin: int
    old_length: int


class Layout:
    """Old files, laid out one behind the other.

    Attributes:
        places: old position of each chunk.
        sums: bytes of all chunks before each one, and of all at the end.

    Args:
        positions: of the old layer's chunks.
    """

    def __init__(self, positions: dict[ChunkId, int]) -> None:
        self.places = array("I")
        self.sums = array("Q", [0])
        self._starts = array("Q")
        self._positions = positions
        self._files: dict[int, tuple[int, int, int]] = {}
        self._once: dict[int, dict[int, int]] = {}

    def face(self, file: int, table: bytes, pieces: Sequence[Piece]) -> Iterator[tuple[int, Range]]:
        """Find the windows of the wanted pieces of a new file.

        Args:
            file: index of the old file, any number that stands for it.
            table: the old file's extents.
            pieces: the new file's chunks in file order.

        Yields:
            The want, and its range of `places`; nothing where an old file has no chunks.
        """
        lo, hi, size = self._lay(file, table)
        if lo == hi:
            return
        if self.sums[hi] - self.sums[lo] <= SMALL_GAP_BYTES and all(piece.old < 0 for piece in pieces):
            window = self._clip(lo, hi, lo)
            yield from ((piece.want, window) for piece in pieces if piece.want >= 0)
            return
        ends = _Gap(0, len(pieces), 0, pieces[-1].start + pieces[-1].length, lo, hi, 0, size)
        for gap in self._gaps(ends, self._anchors(file, ends, pieces)):
            if any(piece.want >= 0 for piece in pieces[gap.first : gap.last]):
                yield from self._windows(gap, ends, pieces)

    def _lay(self, file: int, table: bytes) -> tuple[int, int, int]:
        """The range of a file's chunks, and its size."""
        if file in self._files:
            return self._files[file]
        lo, at, total = len(self.places), 0, self.sums[-1]
        for length, chunk in EXTENT.iter_unpack(table):
            if length > 0:
                self.places.append(self._positions[ChunkId(chunk)])
                self._starts.append(at)
                total += length
                self.sums.append(total)
            at += abs(length)
        laid = self._files[file] = (lo, len(self.places), at)
        return laid

    def _anchors(self, file: int, ends: _Gap, pieces: Sequence[Piece]) -> list[Anchor]:
        """What both files share and can be relied on."""
        if all(piece.old < 0 for piece in pieces):
            return []
        lo, hi = ends.lo, ends.hi
        held = self._once.get(file)
        if held is None:
            held = once(self.places[lo:hi], lo)
            if hi - lo >= _CACHED_FROM:
                self._once[file] = held
        pairs = [(at, held[old]) for old, at in once([piece.old for piece in pieces], 0).items() if old in held]
        shared = [
            Anchor(at, chunk, pieces[at].start, self._starts[chunk], pieces[at].length)
            for at, chunk in ascending(pairs)
        ]
        return supported(shared, ends.old_length - ends.length)

    def _gaps(self, ends: _Gap, anchors: Sequence[Anchor]) -> Iterator[_Gap]:
        first, begin, lo, old_begin = ends.first, ends.begin, ends.lo, ends.old_begin
        for anchor in anchors:
            start, old_start = anchor.start, anchor.old_start
            if first < anchor.piece:
                yield _Gap(
                    first, anchor.piece, begin, start - begin, lo, anchor.chunk, old_begin, old_start - old_begin
                )
            first, begin = anchor.piece + 1, start + anchor.length
            lo, old_begin = anchor.chunk + 1, old_start + anchor.length
        if first < ends.last:
            yield _Gap(
                first, ends.last, begin, ends.length - begin, lo, ends.hi, old_begin, ends.old_length - old_begin
            )

    def _windows(self, gap: _Gap, ends: _Gap, pieces: Sequence[Piece]) -> Iterator[tuple[int, Range]]:
        old_bytes = self.sums[gap.hi] - self.sums[gap.lo]
        drift = (gap.hi - gap.lo) - (gap.last - gap.first)
        even = gap.length == gap.old_length and old_bytes > SMALL_GAP_BYTES
        slots = not even and old_bytes > SMALL_GAP_BYTES and self._alike(gap, drift, pieces)
        new_bytes = sum(piece.length for piece in pieces[gap.first : gap.last])
        around = AROUND if not old_bytes else int(2 * old_bytes < new_bytes)
        whole = self._clip(max(ends.lo, gap.lo - around), min(ends.hi, gap.hi + around), gap.lo)
        for at in range(gap.first, gap.last):
            piece = pieces[at]
            if piece.want < 0:
                continue
            if even:
                window = self._around(gap, piece.start - gap.begin, piece.length, BESIDE_BYTES)
            elif slots:
                slot = gap.lo + at - gap.first
                lo, hi = min(slot, slot + drift) - 1, max(slot, slot + drift) + 2
                window = self._clip(max(gap.lo, lo), min(gap.hi, hi), slot)
            elif old_bytes <= RELATIVE_BYTES:
                window = whole
            else:
                window = self._proportional(gap, piece)
            yield piece.want, window

    def _alike(self, gap: _Gap, drift: int, pieces: Sequence[Piece]) -> bool:
        """Whether the chunks of both gaps are as good as equally long, one by one, from the left or from the right."""
        if abs(drift) > _DRIFT:
            return False
        alike = 0
        for at in range(gap.first, gap.last):
            length = pieces[at].length
            slot = gap.lo + at - gap.first
            alike += any(
                gap.lo <= old < gap.hi and abs(self.sums[old + 1] - self.sums[old] - length) * 8 <= length
                for old in (slot, slot + drift)
            )
        return 4 * alike >= 3 * (gap.last - gap.first)

    def _proportional(self, gap: _Gap, piece: Piece) -> Range:
        begin = (piece.start - gap.begin) * gap.old_length // gap.length
        length = max(1, piece.length * gap.old_length // gap.length)
        return self._around(gap, begin, length, length // MARGIN_PART + MARGIN_BYTES)

    def _around(self, gap: _Gap, begin: int, length: int, margin: int) -> Range:
        """The old chunks of a gap from `margin` bytes before `begin` to as many after `begin + length`.

        Where there is a hole, the chunks on either side of it.
        """
        lo, hi = self._overlapped(gap, begin - margin, length + 2 * margin)
        middle = self._overlapped(gap, begin + length // 2, 1)[0]
        return self._clip(max(gap.lo, lo - (lo == hi)), min(gap.hi, hi + (lo == hi)), middle)

    def _overlapped(self, gap: _Gap, begin: int, length: int) -> Range:
        """The old chunks of a gap with bytes between `begin` and `begin + length` of it."""
        start = gap.old_begin + begin
        lo = max(gap.lo, bisect_right(self._starts, start, gap.lo, gap.hi) - 1)
        if lo < gap.hi and self._starts[lo] + self.sums[lo + 1] - self.sums[lo] <= start:
            lo += 1
        return lo, max(lo, bisect_left(self._starts, start + length, gap.lo, gap.hi))

    def _clip(self, lo: int, hi: int, middle: int) -> Range:
        """As much of the range, on either side of `middle`, as a relative may have."""
        if hi - lo > RELATIVE_CHUNKS:
            lo = max(lo, min(middle - RELATIVE_CHUNKS // 2, hi - RELATIVE_CHUNKS))
            hi = lo + RELATIVE_CHUNKS
        if self.sums[hi] - self.sums[lo] > RELATIVE_BYTES:
            begin = min(self.sums[middle] - RELATIVE_BYTES // 2, self.sums[hi] - RELATIVE_BYTES)
            lo = bisect_left(self.sums, begin, lo, hi)
            hi = bisect_right(self.sums, self.sums[lo] + RELATIVE_BYTES, lo, hi + 1) - 1
        return lo, hi
