"""Where pages of a guest's memory lie in layers that both ends of a transfer hold.

Theory of operation
-------------------
A guest keeps what it read of its disk in its memory, page by page, and finds its kernel there where it was loaded. All
of that came from files in layers that everybody has: disk images, kernels. So a quarter of the memory of a freshly
booted machine is at the destination already, scattered over a hundred megabytes. Within those files it begins at
multiples of a page, so one fingerprint for each page of them finds it.

The memory side is that of `finecuts.record_cuts`: chunks of QEMU's stream. For any other chunk nothing is looked up.

A fingerprint is only a hint: whoever makes a patch compares bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from chunkstore.content import Content
from chunkstore.delta.finecuts import PAGE_BYTES, record_cuts
from chunkstore.delta.signature import fingerprint
from chunkstore.digest import Buffer, ChunkId
from chunkstore.entries import EXTENT, Kind
from chunkstore.manifest import Manifest
from chunkstore.pinning import hold

MAX_PAGES: Final = 1 << 19
"""Of 2 GiB of layers; about 60 MB of memory. What comes after them is not found."""

_WINDOW_BYTES: Final = 8 << 20
_LEAST_PAGES: Final = 2
_LEAST_SHARE: Final = 32
_ZEROS: Final = bytes(PAGE_BYTES)


class PageIndex:
    """The pages of the files of some layers. Chunks are numbered by layer, then as their manifest has them.

    Attributes:
        lengths: of the chunks, in bytes.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self._places: dict[int, int] = {}
        self._starts: dict[int, int] = {}

    def add_layer(self, manifest: Manifest, content: Content) -> None:
        """Look at all pages of one more layer; chunks that are not in `content` are passed over.

        Raises:
            StoreError: it cannot be read.
        """
        known = manifest.chunks()
        positions = {chunk: at for at, chunk in enumerate(known, len(self.lengths))}
        self.lengths += known.values()
        for entry in manifest.entries:
            if entry.kind is Kind.REGULAR and entry.size >= PAGE_BYTES and len(self._places) < MAX_PAGES:
                self._add_file(_pieces(entry.table, positions, content))

    def positions(self, chunk: Buffer) -> set[int]:
        """The chunks that have pages of this one; none where that is too little to be worth a patch."""
        view = memoryview(chunk)
        found, hits, at = set[int](), 0, 0
        for length in record_cuts(chunk):
            if length == PAGE_BYTES:
                place = self._places.get(fingerprint(view[at : at + PAGE_BYTES]))
                if place is not None:
                    found.update((place >> 1, (place >> 1) + (place & 1)))
                    hits += 1
            at += length
        return found if hits >= _LEAST_PAGES and hits * PAGE_BYTES * _LEAST_SHARE >= len(view) else set()

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

    def _add_file(self, pieces: Iterable[tuple[int, int, Buffer]]) -> None:
        """Look at the pages of a file, given as (offset, position, content) of its chunks."""
        tail, tail_position, due = b"", 0, 0
        for offset, position, data in pieces:
            view = memoryview(data)
            start = min(-offset % PAGE_BYTES, len(view))
            self._starts.setdefault(position, start)
            if tail and due == offset and position == tail_position + 1:
                self._add(tail + view[:start], tail_position, 1)
            end = len(view) - (len(view) - start) % PAGE_BYTES
            for at in range(start, end, PAGE_BYTES):
                self._add(view[at : at + PAGE_BYTES], position, 0)
            tail, tail_position, due = bytes(view[end:]), position, offset + len(view)

    def _add(self, page: Buffer, position: int, spans: int) -> None:
        """`spans`: 1 if the page ends in the next chunk."""
        if len(page) == PAGE_BYTES and page != _ZEROS:
            self._places.setdefault(fingerprint(page), position << 1 | spans)


def is_memory(chunk: Buffer) -> bool:
    """Whether a chunk is a sequence of QEMU's records, so that an index has anything to say of it."""
    return bool(record_cuts(chunk))


def _pieces(table: bytes, positions: dict[ChunkId, int], content: Content) -> Iterator[tuple[int, int, Buffer]]:
    """Offset, position and content of the chunks of a file, in its order."""
    window: list[tuple[int, ChunkId]] = []
    offset = window_bytes = 0
    for length, raw in EXTENT.iter_unpack(table):
        if length > 0:
            window.append((offset, ChunkId(raw)))
            window_bytes += length
        offset += abs(length)
        if window_bytes >= _WINDOW_BYTES:
            yield from _read(window, positions, content)
            window, window_bytes = [], 0
    yield from _read(window, positions, content)


def _read(
    window: list[tuple[int, ChunkId]], positions: dict[ChunkId, int], content: Content
) -> Iterator[tuple[int, int, Buffer]]:
    held = hold(content.read([chunk for _, chunk in window]), 2 * _WINDOW_BYTES)
    for offset, chunk in window:
        if chunk in held:
            yield offset, positions[chunk], held[chunk]
