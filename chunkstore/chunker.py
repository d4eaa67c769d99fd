"""Cut bytes where their content says so.

Theory of operation
-------------------
FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage
Systems", IEEE TPDS 2020; here with normalisation level 1, through pyfastcdc) rolls a gear hash and cuts where
masked bits are zero, so that an insertion moves only the cuts next to it. A cut depends on nothing before the
previous cut and on at most `maximum` bytes after it. Hence bytes can be fed in windows of any size: a chunk
is final as soon as `maximum` bytes from its start were seen, and what is left is carried to the next window.

The content of a regular file is cut run by run: holes (see `holes`) are taken out first, and each run of data
between them is cut by itself. Images of memory and disks are cut where their layout says (see `images`): each
run of data in a segment of the guest is one chunk, and plain stretches are cut by content. A layer's identity
rests on these cuts: the golden vectors in the tests pin them.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pyfastcdc import FastCDC

from chunkstore.holes import Window, split_holes
from chunkstore.images.layout import Forgiving, Layout, Segment
from chunkstore.images.recognise import by_head


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


def cut_file(windows: Iterable[Window], layout: Layout | None = None) -> Iterator[memoryview | int]:
    """Cut a regular file, see `holes` for what windows are.

    Args:
        layout: where to cut an image whose segments are known otherwise; without it, those that show in their
        first bytes are recognised.

    Yields:
        In file order, a view of each chunk or the length of each maximal hole; nothing for an empty file.
    """
    if layout is None:
        windows, layout = by_head(windows)
    if layout is not None:
        yield from _ImageCutter(Forgiving(layout)).cut(windows)
        return
    chunker = Chunker(CONTENT)
    for piece in split_holes(windows):
        if isinstance(piece, int):
            yield from chunker.finish()
            yield piece
        else:
            yield from chunker.feed(piece)
    yield from chunker.finish()


class _ImageCutter:
    """Cuts one file by its layout. Pieces wait while the layout must see more to know where their segment ends."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._waiting: deque[memoryview | int] = deque()
        self._at = 0  # offset of the file where the first piece that waits begins
        self._segment = Segment(0, 0, None)
        self._held: list[memoryview] = []  # of a segment that becomes one chunk
        self._plain = Chunker(CONTENT)

    def cut(self, windows: Iterable[Window]) -> Iterator[memoryview | int]:
        """What `cut_file` yields."""
        for piece in split_holes(self._shown(windows)):
            self._waiting.append(piece)
            yield from self._work()
        yield from self._work()
        yield from self._end_run()

    def _shown(self, windows: Iterable[Window]) -> Iterator[Window]:
        for window in windows:
            self._layout.feed(window)
            yield window
        self._layout.finish()

    def _work(self) -> Iterator[memoryview | int]:
        while self._waiting:
            piece = self._waiting[0]
            if isinstance(piece, int):
                yield from self._end_run()
                yield piece
                self._at += piece
                self._waiting.popleft()
                continue
            if self._at >= self._segment.end:
                segment = self._layout.segment_at(self._at)
                if segment is None:
                    return
                if segment.key is not None or self._segment.key is not None:
                    yield from self._end_run()
                self._segment = segment
            part = piece[: self._segment.end - self._at]
            if self._segment.key is None:
                yield from self._plain.feed(part)
            else:
                self._held.append(part)
            self._at += len(part)
            if len(part) < len(piece):
                self._waiting[0] = piece[len(part) :]
            else:
                self._waiting.popleft()

    def _end_run(self) -> Iterator[memoryview]:
        if self._held:
            yield self._held[0] if len(self._held) == 1 else memoryview(b"".join(self._held))
            self._held = []
        yield from self._plain.finish()
