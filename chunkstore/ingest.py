"""Put what an importer reads into content, while the importer reads on.

Theory of operation
-------------------
The importer's thread reads, finds holes, cuts and hashes. Chunks gather in a batch of some MiB; a full batch
goes to one worker thread, which asks the content what of it is missing, compresses only that, in groups of
neighbours (which may span batches), and adds it. At most `_BATCHES_AHEAD` batches wait, so memory is bounded
whatever the tree. The one worker also makes every other call to the content, in order, so that a question is
answered after all batches before it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from chunkstore.chunker import MANIFEST, cut, cut_file
from chunkstore.codec import Packer
from chunkstore.content import Content
from chunkstore.digest import Buffer, ChunkId, LayerId, chunk_id, layer_id
from chunkstore.entries import Entry, Extent, pack_extents
from chunkstore.holes import Window
from chunkstore.images.layout import Layout
from chunkstore.manifest import Manifest, count_chunks
from chunkstore.manifest_codec import TreeEncoder

_BATCH_BYTES = 4 << 20
_BATCH_CHUNKS = 4096
_BATCHES_AHEAD = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Imported:
    """A tree that is now in content, durably; nothing refers to it yet.

    Attributes:
        size: bytes of file content, holes included.
        content: the distinct chunks of all files in order of first use, with their lengths in bytes.
        encoded: the manifest.
    """

    layer_id: LayerId
    size: int
    content: Mapping[ChunkId, int]
    encoded: bytearray
    manifest_chunks: tuple[ChunkId, ...]

    @property
    def chunks(self) -> int:
        """How many distinct content chunks there are."""
        return len(self.content)

    @property
    def manifest_size(self) -> int:
        """Bytes of the manifest's encoding."""
        return len(self.encoded)

    @property
    def manifest(self) -> Manifest:
        """The manifest, decoded anew at each access: of many files it is large."""
        return Manifest.decode(self.encoded)


class Ingest:
    """One import's way into `content`. Leaving the context without `finish` drops what is under way."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._key = content.key
        self._batch: dict[ChunkId, Buffer] = {}
        self._batch_bytes = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ingest")
        self._ahead: deque[Future[int | None]] = deque()
        self._packer = Packer()

    def __enter__(self) -> "Ingest":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(cancel_futures=True)

    def add_file(self, windows: Iterable[Window], layout: Layout | None = None) -> bytes:
        """Take the content of a regular file (see `holes`), cut by `layout` or as its content says (`cut_file`).

        Returns:
            Its extents for `Entry.table`.

        Raises:
            StoreError: an earlier batch could not be stored.
            Exception: whatever reading `windows` raises.
        """
        return pack_extents(self._extents(windows, layout))

    def missing(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Those of `ids` that are not in the content, after every whole batch so far."""
        return self._call(lambda: self._content.missing(ids) - self._packer.held)

    def settle(self) -> None:
        """Put everything that was taken so far into the content, so that it can be read back."""
        self._flush()
        self._ahead.append(self._worker.submit(self._complete))
        while self._ahead:
            self._ahead.popleft().result()

    def read(self, ids: Sequence[ChunkId]) -> dict[ChunkId, Buffer]:
        """Chunks that are in the content; absent ones are left out."""
        return self._call(lambda: dict(self._content.read(ids)))

    def finish(self, entries: Iterable[Entry]) -> Imported:
        """Take `entries` (in order of path), store their manifest and make everything durable.

        They are encoded as they come, and not kept; they may come from a generator that calls `add_file` meanwhile.

        Raises:
            ManifestInvalid: they are not a possible tree, or exceed a limit.
            StoreError: something could not be stored.
        """
        encoder = TreeEncoder()
        found: dict[ChunkId, int] = {}
        for entry in entries:
            encoder.take(entry)
            count_chunks(found, entry)
        encoded, size = encoder.finish()
        self._flush()
        self._ahead.append(self._worker.submit(self._complete))  # the manifest's chunks begin a group of their own
        manifest_chunks = tuple(self._add_chunk(piece) for piece in cut(memoryview(encoded), MANIFEST))
        layer = layer_id(encoded, self._key)
        self.settle()
        self._call(self._content.commit)
        return Imported(layer, size, found, encoded, manifest_chunks)

    def _extents(self, windows: Iterable[Window], layout: Layout | None) -> Iterator[Extent]:
        for piece in cut_file(windows, layout):
            if isinstance(piece, int):
                yield Extent(piece, None)
            else:
                yield Extent(len(piece), self._add_chunk(piece))

    def _add_chunk(self, data: Buffer) -> ChunkId:
        name = chunk_id(data, self._key)
        if name not in self._batch:
            self._batch[name] = data
            self._batch_bytes += len(data)
            if self._batch_bytes >= _BATCH_BYTES or len(self._batch) >= _BATCH_CHUNKS:
                self._flush()
        return name

    def _flush(self) -> None:
        if not self._batch:
            return
        while len(self._ahead) >= _BATCHES_AHEAD:
            self._ahead.popleft().result()
        self._ahead.append(self._worker.submit(self._store, self._batch))
        self._batch = {}
        self._batch_bytes = 0

    def _store(self, batch: dict[ChunkId, Buffer]) -> int:
        """Add what the content lacks; in the worker thread. The last, incomplete group waits for the next batch."""
        missing = self._content.missing(batch)
        return self._content.add(self._packer.take((name, data) for name, data in batch.items() if name in missing))

    def _complete(self) -> None:
        """Add the group that waits; in the worker thread."""
        self._content.add(self._packer.finish())

    def _call(self, function: Callable[[], T]) -> T:
        return self._worker.submit(function).result()
