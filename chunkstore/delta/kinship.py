"""Which old chunks each missing chunk of a new layer is worth comparing with.

Theory of operation
-------------------
The two manifests alone decide, so that nothing is read for nothing. A missing chunk is looked up in the first file
that it occurs in: `pairing` finds the old file that this one came from, `facing` the part of the old file that faces
the chunk. That part is the chunk's *window*, the relative against which it can be carried as a patch. A chunk that
occurs in several files gets the first window that any of them has for it.

Neighbouring chunks have windows that overlap, so what is asked for is cut into *units*: chunks that are encoded
together against the union of their windows.

Positions are indices in `list(manifest.chunks())`, of the new layer or of the old one.

Time is O(n log n) in the number of extents of both layers, whatever ids repeat; the result takes about 60 bytes for
a chunk of either.
"""

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from chunkstore.delta.facing import RELATIVE_BYTES, RELATIVE_CHUNKS, Layout, Piece
from chunkstore.delta.pairing import OldFiles
from chunkstore.digest import ChunkId
from chunkstore.entries import EXTENT, Entry
from chunkstore.manifest import Manifest

__all__ = ["RELATIVE_BYTES", "RELATIVE_CHUNKS", "UNIT_BYTES", "UNIT_CHUNKS", "Kinship", "Unit"]

UNIT_BYTES: Final = 4 << 20
UNIT_CHUNKS: Final = 1024


@dataclass(frozen=True, slots=True)
class Unit:
    """Wanted chunks that are carried together.

    Attributes:
        wants: new positions, in the order in which they were asked for.
        relative: old positions, ascending and distinct; none means that the chunks have no relative.
    """

    wants: tuple[int, ...]
    relative: tuple[int, ...]


class Kinship:
    """The windows of a new layer's missing chunks in an old layer; made by `between`.

    Attributes:
        covered_bytes: of missing chunks that have a window.
    """

    def __init__(self, search: "_Search") -> None:
        self.covered_bytes = search.covered_bytes
        self._lengths = search.lengths
        self._lo = search.lo
        self._hi = search.hi
        self._places = search.layout.places
        self._sums = search.layout.sums

    @classmethod
    def between(cls, new: Manifest, old: Manifest, missing: Collection[ChunkId]) -> "Kinship":
        """Find the windows.

        Args:
            new: the layer that is wanted.
            old: the layer that is held.
            missing: chunks of `new` that are not held; others get no window.
        """
        search = _Search(new, old, missing)
        for entry in new.entries:
            if entry.table:
                search.take(entry)
        return cls(search)

    def window(self, position: int) -> tuple[int, ...]:
        """The old positions that the chunk at a new position is compared with, in the old file's order.

        At most `RELATIVE_BYTES` and `RELATIVE_CHUNKS`; empty where there is no relative. A chunk that the old file
        repeats is there once.

        Raises:
            IndexError: the new layer has no such position.
        """
        return tuple(dict.fromkeys(self._places[self._lo[position] : self._hi[position]]))

    def covers(self, position: int) -> bool:
        """Whether the chunk at a new position has a window; costs less than to make it.

        Raises:
            IndexError: the new layer has no such position.
        """
        return self._hi[position] > 0

    def units(self, wants: Sequence[int]) -> list[Unit]:
        """Cut wanted positions into units.

        Neighbours in `wants` are together while they have `UNIT_BYTES` and `UNIT_CHUNKS` at most, and their relative
        has `RELATIVE_BYTES` and `RELATIVE_CHUNKS` at most. Chunks with a relative and chunks without one do not mix.

        Raises:
            IndexError: the new layer has no such position.
        """
        units: list[Unit] = []
        taken: list[int] = []
        relative = _Union(self._sums)
        size = 0
        for want in wants:
            lo, hi, length = self._lo[want], self._hi[want], self._lengths[want]
            if taken and (
                size + length > UNIT_BYTES
                or len(taken) == UNIT_CHUNKS
                or bool(relative.ranges) != (lo < hi)
                or not relative.fits(lo, hi)
            ):
                units.append(Unit(tuple(taken), relative.positions(self._places)))
                taken, relative, size = [], _Union(self._sums), 0
            taken.append(want)
            size += length
            relative.add(lo, hi)
        if taken:
            units.append(Unit(tuple(taken), relative.positions(self._places)))
        return units


class _Search:
    """Numbers the chunks of a new layer file by file, and finds a window for each missing one.

    Attributes:
        lengths: bytes of the chunk at each position.
        lo, hi: each window as a range of the layout's places; `hi` is 0 where there is none.
        covered_bytes: of chunks with a window.
    """

    def __init__(self, new: Manifest, old: Manifest, missing: Collection[ChunkId]) -> None:
        self.lengths = array("Q")
        self.lo = array("I")
        self.hi = array("I")
        self.covered_bytes = 0
        self._missing = missing if isinstance(missing, (set, frozenset, dict)) else frozenset(missing)
        self._positions: dict[ChunkId, int] = {}
        self._files = OldFiles(old, lambda: (entry.path for entry in new.entries))
        self.layout = Layout(self._files.positions)

    def take(self, entry: Entry) -> None:
        """Go on with the next file."""
        wants: set[int] = set()
        for length, chunk in EXTENT.iter_unpack(entry.table):
            if length > 0:
                position = self._positions.setdefault(chunk, len(self._positions))
                if position == len(self.lengths):
                    self.lengths.append(length)
                    self.lo.append(0)
                    self.hi.append(0)
                if chunk in self._missing and not self.hi[position]:
                    wants.add(position)
        if wants:
            self._find(entry, wants)

    def _find(self, entry: Entry, wants: set[int]) -> None:
        known = self._files.positions
        pieces: list[Piece] = []
        at = 0
        for length, chunk in EXTENT.iter_unpack(entry.table):
            if length > 0:
                position = self._positions[ChunkId(chunk)]
                pieces.append(Piece(at, length, known.get(ChunkId(chunk), -1), position if position in wants else -1))
                wants.discard(position)
            at += abs(length)
        file = self._files.relative(entry, at, [piece.old for piece in pieces if piece.old >= 0])
        if file is None:
            return
        for want, (lo, hi) in self.layout.face(file, self._files.files[file].table, pieces):
            if lo < hi:
                self.lo[want], self.hi[want] = lo, hi
                self.covered_bytes += self.lengths[want]


class _Union:
    """Ranges of laid-out chunks, the last of which grows as long as the next one touches it."""

    def __init__(self, sums: Sequence[int]) -> None:
        self.ranges: list[tuple[int, int]] = []
        self._sums = sums
        self._bytes = 0
        self._chunks = 0

    def _grown(self, lo: int, hi: int) -> tuple[int, int, bool]:
        """The range to keep, and whether it replaces the last one."""
        if self.ranges and lo <= self.ranges[-1][1] and self.ranges[-1][0] <= hi:
            return min(lo, self.ranges[-1][0]), max(hi, self.ranges[-1][1]), True
        return lo, hi, False

    def _with(self, lo: int, hi: int) -> tuple[int, int]:
        """Bytes and chunks with one more range."""
        lo, hi, grows = self._grown(lo, hi)
        size, count = self._bytes + self._sums[hi] - self._sums[lo], self._chunks + hi - lo
        if grows:
            last_lo, last_hi = self.ranges[-1]
            size, count = size - (self._sums[last_hi] - self._sums[last_lo]), count - (last_hi - last_lo)
        return size, count

    def fits(self, lo: int, hi: int) -> bool:
        size, count = self._with(lo, hi)
        return size <= RELATIVE_BYTES and count <= RELATIVE_CHUNKS

    def add(self, lo: int, hi: int) -> None:
        if lo == hi:
            return
        self._bytes, self._chunks = self._with(lo, hi)
        lo, hi, grows = self._grown(lo, hi)
        if grows:
            self.ranges[-1] = (lo, hi)
        else:
            self.ranges.append((lo, hi))

    def positions(self, places: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted({place for lo, hi in self.ranges for place in places[lo:hi]}))
