"""A regular file whose content is stored already, read by offset or from front to back."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from chunkstore.digest import Buffer, ChunkId
from chunkstore.entries import unpack_extents
from chunkstore.errors import ChunkMissing
from chunkstore.holes import Window, mapped_windows

Fetch = Callable[[Sequence[ChunkId]], Mapping[ChunkId, Buffer]]


class StoredFile:
    """Holds the extents of one file; chunks are fetched for each read."""

    def __init__(self, table: bytes, fetch: Fetch) -> None:
        """`table` as in `Entry`; `fetch` gives those of some chunks that are stored."""
        self._extents = list(unpack_extents(table))
        self._starts = list(accumulate((extent.length for extent in self._extents), initial=0))
        self._fetch = fetch

    @property
    def size(self) -> int:
        """In bytes, holes included."""
        return self._starts[-1]

    def read_at(self, offset: int, length: int) -> bytes:
        """That many bytes, fewer at the end of the file.

        Raises:
            ChunkMissing: a chunk is not stored.
            StoreError: what `fetch` raises.
        """
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        first = bisect_right(self._starts, offset) - 1
        wanted: list[ChunkId] = []
        for extent, start in zip(self._extents[first:], self._starts[first:], strict=False):
            if start >= end:
                break
            if extent.chunk is not None:
                wanted.append(extent.chunk)
        chunks = self._fetch(wanted)
        found = bytearray()
        for at in range(first, len(self._extents)):
            start, (size, chunk) = self._starts[at], self._extents[at]
            if start >= end:
                break
            low, high = max(offset - start, 0), min(end - start, size)
            if chunk is None:
                found += bytes(high - low)
            elif chunk in chunks:
                found += memoryview(chunks[chunk])[low:high]
            else:
                raise ChunkMissing(chunk)
        return bytes(found)

    def windows(self) -> Iterator[Window]:
        """The whole content, see `holes`; raises as `read_at`."""
        data = (
            (start, start + extent.length)
            for start, extent in zip(self._starts, self._extents, strict=False)
            if extent.chunk is not None
        )
        return mapped_windows(self.size, data, self.read_at)
