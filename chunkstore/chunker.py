"""Cut bytes where their content says so.

Theory of operation
-------------------
FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage
Systems", IEEE TPDS 2020; here with normalisation level 1, through pyfastcdc) rolls a gear hash and cuts where
masked bits are zero, so that an insertion moves only the cuts next to it. A cut depends on nothing before the
previous cut and on at most `maximum` bytes after it. Hence bytes can be fed in windows of any size: a chunk
is final as soon as `maximum` bytes from its start were seen, and what is left is carried to the next window.

The content of a regular file is cut run by run: holes (see `holes`) are taken out first, and each run of data
between them is cut by itself. A layer's identity rests on these cuts: the golden vectors in the tests pin
them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pyfastcdc import FastCDC

from chunkstore.holes import Window, split_holes


@dataclass(frozen=True, slots=True)
class ChunkSizes:
    """Bounds of a chunk in bytes; `average` is the point where cutting becomes easier, not the mean."""

    minimum: int
    average: int
    maximum: int


CONTENT = ChunkSizes(16 << 10, 64 << 10, 256 << 10)
"""For the content of files."""

MANIFEST = ChunkSizes(4 << 10, 16 << 10, 64 << 10)
"""For encoded manifests: finer, because two versions of a layer differ in single rows."""


class Chunker:
    """Cuts one run of bytes after another; each run arrives in windows of any size."""

    def __init__(self, sizes: ChunkSizes = CONTENT) -> None:
        self._sizes = sizes
        self._cdc = FastCDC(sizes.average, min_size=sizes.minimum, max_size=sizes.maximum)
        self._carry: memoryview | None = None

    def feed(self, window: bytes | memoryview) -> list[memoryview]:
        """Take more bytes of the run.

        Returns:
            The chunks that are final now; views that keep the fed buffer alive.
        """
        data = window if self._carry is None else b"".join((self._carry, window))
        return self._cut(memoryview(data), final=False)

    def finish(self) -> list[memoryview]:
        """End the run and return its last chunks (none for an empty run); the next `feed` begins a new one."""
        if self._carry is None:
            return []
        return self._cut(self._carry, final=True)

    def _cut(self, data: memoryview, *, final: bool) -> list[memoryview]:
        chunks: list[memoryview] = []
        at = 0
        enough = len(data) if final else len(data) - self._sizes.maximum
        if final and len(data) <= self._sizes.minimum:  # what the algorithm says, without asking it
            chunks.append(data)
            at = len(data)
        elif enough >= 0:
            for chunk in self._cdc.cut_buf(data):
                if at > enough:
                    break
                chunks.append(chunk.data)
                at += chunk.length
        self._carry = data[at:] if at < len(data) else None
        return chunks


def cut(data: bytes | memoryview, sizes: ChunkSizes) -> list[memoryview]:
    """Cut bytes that are in memory as a whole; no bytes give no chunks."""
    chunker = Chunker(sizes)
    return [*chunker.feed(data), *chunker.finish()] if len(data) else []


def cut_file(windows: Iterable[Window]) -> Iterator[memoryview | int]:
    """Cut a regular file, see `holes` for what windows are.

    Yields:
        In file order, a view of each chunk or the length of each maximal hole; nothing for an empty file.
    """
    chunker = Chunker(CONTENT)
    for piece in split_holes(windows):
        if isinstance(piece, int):
            yield from chunker.finish()
            yield piece
        else:
            yield from chunker.feed(piece)
    yield from chunker.finish()
