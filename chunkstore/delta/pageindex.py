"""Where pages of a guest's memory lie in layers that both ends of a transfer hold.

Theory of operation
-------------------
A guest keeps what it read of its disk in its memory, page by page, and finds its kernel there where it was loaded. All
of that came from files in layers that everybody has: disk images, kernels. So a quarter of the memory of a freshly
booted machine is at the destination already, scattered over a hundred megabytes. Within those files it begins at
multiples of a page, so one fingerprint for each page of them finds it.

The memory side is that of `finecuts.record_cuts`: chunks of QEMU's stream. For any other chunk nothing is looked up.

An index grows step by step, as long as it may, and is of use from the first step on. A fingerprint is only a hint:
whoever makes a patch compares bytes.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from chunkstore.content import Content
from chunkstore.delta.finecuts import PAGE_BYTES, record_cuts
from chunkstore.delta.signature import fingerprint
from chunkstore.digest import Buffer, ChunkId
from chunkstore.entries import EXTENT, Kind
from chunkstore.manifest import Manifest
from chunkstore.pinning import hold

MAX_PAGES: Final = 1 << 19
"""That are looked at: 2 GiB of layers; about 60 MB of memory. What comes after them is not found."""

_WINDOW_BYTES: Final = 4 << 20
_LEAST_PAGES: Final = 2
_LEAST_SHARE: Final = 32
_ZEROS: Final = bytes(PAGE_BYTES)


class PageIndex:
    """The pages of the files of some layers. Chunks are numbered by layer, then as their manifest has them.

    One thread at a time may let it grow, while others ask.

    Attributes:
        lengths: of the chunks, in bytes.
    """

    def __init__(self, max_pages: int = MAX_PAGES) -> None:
        self.lengths: list[int] = []
        self._places: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        self._left = max_pages

    def grow(self, manifest: Manifest, content: Content) -> Iterator[None]:
        """Look at the pages of one more layer, a few megabytes at each step; chunks that are not here are passed over.

        Raises:
            StoreError: it cannot be read.
        """
        known = manifest.chunks()
        positions = {chunk: at for at, chunk in enumerate(known, len(self.lengths))}
        self.lengths += known.values()
        for entry in manifest.entries:
            if entry.kind is Kind.REGULAR and entry.size >= PAGE_BYTES:
                for window in _windows(entry.table):
                    if self._left <= 0:
                        return
                    self._add_window(window, positions, content)
                    yield

    def positions(self, chunk: Buffer) -> set[int]:
        """The chunks that have pages of this one; none where that is too little to be worth a patch."""
        view = memoryview(chunk)
        hits: dict[int, int] = {}
        found, at = 0, 0
        for length in record_cuts(chunk):
            if length == PAGE_BYTES:
                place = self._places.get(fingerprint(view[at : at + PAGE_BYTES]))
                if place is not None:
                    found += 1
                    for position in (place >> 1, (place >> 1) + (place & 1)):
                        hits[position] = hits.get(position, 0) + 1
            at += length
        return set(hits) if found >= _LEAST_PAGES and found * PAGE_BYTES * _LEAST_SHARE >= len(view) else set()

    def cuts(self, positions: Sequence[int]) -> list[int]:
        """The lengths of the pages of these chunks one after the other, and of what lies between them.

        Args:
            positions: ascending.
        """
        cuts, open_bytes, before = list[int](), 0, -2
        for position in positions:
            start, length = self._starts.get(position, 0), self.lengths[position]
            if position != before + 1 or open_bytes + start != PAGE_BYTES:  # no page goes on from one to the other
                cuts.append(open_bytes)
                open_bytes = 0
            cuts.append(open_bytes + start)
            cuts += [PAGE_BYTES] * ((length - start) // PAGE_BYTES)
            open_bytes = (length - start) % PAGE_BYTES
            before = position
        return [length for length in (*cuts, open_bytes) if length]

    def _add_window(self, window: list[tuple[int, ChunkId]], positions: dict[ChunkId, int], content: Content) -> None:
        """Look at the pages of some chunks of a file, each given with its offset; one seen before is passed over."""
        fresh = [chunk for _, chunk in window if positions[chunk] not in self._starts]
        held = hold(content.read(list(dict.fromkeys(fresh))), 2 * _WINDOW_BYTES) if fresh else {}
        tail, tail_position, due = b"", -2, 0
        for offset, chunk in window:
            position, data = positions[chunk], held.get(chunk)
            if data is None or position in self._starts:
                continue
            view = memoryview(data)
            start = self._starts[position] = min(-offset % PAGE_BYTES, len(view))
            if tail and due == offset and position == tail_position + 1:
                self._add(tail + view[:start], tail_position, 1)
            end = len(view) - (len(view) - start) % PAGE_BYTES
            for at in range(start, end, PAGE_BYTES):
                self._add(view[at : at + PAGE_BYTES], position, 0)
            self._left -= 1 + len(view) // PAGE_BYTES
            tail, tail_position, due = bytes(view[end:]), position, offset + len(view)

    def _add(self, page: Buffer, position: int, spans: int) -> None:
        """`spans`: 1 if the page ends in the next chunk."""
        if len(page) == PAGE_BYTES and page != _ZEROS:
            self._places.setdefault(fingerprint(page), position << 1 | spans)


def _windows(table: bytes) -> Iterator[list[tuple[int, ChunkId]]]:
    """The chunks of a file in its order, each with its offset, some megabytes at a time."""
    window: list[tuple[int, ChunkId]] = []
    offset = window_bytes = 0
    for length, raw in EXTENT.iter_unpack(table):
        if length > 0:
            window.append((offset, ChunkId(raw)))
            window_bytes += length
        offset += abs(length)
        if window_bytes >= _WINDOW_BYTES:
            yield window
            window, window_bytes = [], 0
    if window:
        yield window
