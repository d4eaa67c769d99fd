"""Write the regular files of a tree, in batches of chunks; holes stay holes; what is there already is kept.

Theory of operation
-------------------
Files are taken in order of path, which is the order in which an import stored their chunks. A *batch* names
up to 8 MiB of distinct chunks and the places they go to. While one batch is written, two threads read the next
ones from the content, which may give chunks in any order; three batches are in memory at most. A large file spans
many batches and stays open between them.

A file that is there before (left by a killed checkout, or cloned from an older tree) is taken extent by
extent: what has the right digest stays, and only the rest is wanted. So resuming needs no marks that could
lie.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

from chunkstore.attributes import AttributeWriter
from chunkstore.beneath import Beneath
from chunkstore.content import Content
from chunkstore.digest import Buffer, ChunkId
from chunkstore.entries import Entry
from chunkstore.leftovers import Leftover, Leftovers
from chunkstore.progress import Meter
from chunkstore.tree_errors import ContentMissing, ManifestInvalid, printable, writing

_READERS = 2
_BATCH_BYTES = 8 << 20
_PINNED_BYTES = 12 << 20
_BATCH_PIECES = 2048
_BATCH_WRITES = 16384
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Piece:
    """The part of a file that one batch writes: (offset, length, chunk) each; `last` if it completes the file."""

    entry: Entry
    fresh: bool
    first: bool
    writes: list[tuple[int, int, ChunkId]] = field(default_factory=list)
    last: bool = False


@dataclass(slots=True)
class _Batch:
    pieces: list[_Piece] = field(default_factory=list)
    wanted: dict[ChunkId, int] = field(default_factory=dict)
    wanted_bytes: int = 0
    writes: int = 0

    def has_room(self, chunk: ChunkId, length: int) -> bool:
        more = 0 if chunk in self.wanted else length
        return self.writes < _BATCH_WRITES and self.wanted_bytes + more <= _BATCH_BYTES

    def want(self, offset: int, length: int, chunk: ChunkId) -> None:
        self.pieces[-1].writes.append((offset, length, chunk))
        self.writes += 1
        if chunk not in self.wanted:
            self.wanted[chunk] = length
            self.wanted_bytes += length


class FileWriter:
    """Writes regular files under `root`, whose folders exist."""

    def __init__(
        self,
        content: Content,
        root: Beneath,
        attributes: AttributeWriter,
        meter: Meter,
        leftovers: Leftovers | None,
    ) -> None:
        self._content = content
        self._root = root
        self._attributes = attributes
        self._meter = meter
        self._leftovers = leftovers
        self._fd = -1  # of a file that goes on in the next batch

    def write(self, files: Iterable[Entry]) -> None:
        """Make every file complete, with its attributes.

        Raises:
            ContentMissing: a chunk is not stored here.
            CheckoutFailed: the system refused.
            ManifestInvalid: a chunk has another length than the manifest says.
        """
        workers = ThreadPoolExecutor(_READERS, thread_name_prefix="checkout")
        try:
            ahead: deque[tuple[_Batch, Future[dict[ChunkId, Buffer]]]] = deque()
            for batch in self._batches(files):
                ahead.append((batch, workers.submit(self._fetch, batch)))
                if len(ahead) > _READERS:
                    self._write_batch(*ahead.popleft())
            while ahead:
                self._write_batch(*ahead.popleft())
        finally:
            workers.shutdown(cancel_futures=True)
            self._close()

    def _batches(self, files: Iterable[Entry]) -> Iterator[_Batch]:
        batch = _Batch()
        for entry in files:
            leftover = None
            if self._leftovers is not None:
                with writing(entry.path):
                    leftover = self._leftovers.find(entry)
            if len(batch.pieces) >= _BATCH_PIECES:
                yield batch
                batch = _Batch()
            batch.pieces.append(_Piece(entry, leftover is None, first=True))
            for offset, length, chunk in self._places(entry, leftover):
                if not batch.has_room(chunk, length):
                    yield batch
                    batch = _Batch([_Piece(entry, leftover is None, first=False)])
                batch.want(offset, length, chunk)
            batch.pieces[-1].last = True
        if batch.pieces:
            yield batch

    def _places(self, entry: Entry, leftover: Leftover | None) -> Iterator[tuple[int, int, ChunkId]]:
        """Where which chunk must be written; what needs no writing is counted as done."""
        offset = 0
        try:
            for length, chunk in entry.extents:
                if chunk is None or (leftover is not None and self._has(entry, leftover, offset, length, chunk)):
                    self._meter.advance(length)
                else:
                    yield offset, length, chunk
                offset += length
        finally:
            if leftover is not None:
                leftover.close()

    def _has(self, entry: Entry, leftover: Leftover, offset: int, length: int, chunk: ChunkId) -> bool:
        with writing(entry.path):
            return leftover.has(offset, length, chunk)

    def _fetch(self, batch: _Batch) -> dict[ChunkId, Buffer]:
        """The chunks of a batch: as views of their groups while those are mostly wanted, else as copies.

        A view keeps its whole group in memory, of which a batch may want one chunk only.
        """
        chunks: dict[ChunkId, Buffer] = {}
        groups: set[int] = set()
        pinned_bytes = 0
        for chunk, data in self._content.read(list(batch.wanted)):
            group = cast("bytes", data.obj)
            if id(group) not in groups and pinned_bytes + len(group) > _PINNED_BYTES:
                chunks[chunk] = bytes(data)
                continue
            if id(group) not in groups:
                groups.add(id(group))
                pinned_bytes += len(group)
            chunks[chunk] = data
        return chunks

    def _write_batch(self, batch: _Batch, fetched: "Future[dict[ChunkId, Buffer]]") -> None:
        chunks = fetched.result()
        for piece in batch.pieces:
            for _, length, chunk in piece.writes:
                if chunk not in chunks:
                    raise ContentMissing(chunk, piece.entry.path)
                if len(chunks[chunk]) != length:
                    raise ManifestInvalid(f"{printable(piece.entry.path)}: a chunk with another length")
            with writing(piece.entry.path):
                self._write_piece(piece, chunks)
            self._meter.advance(sum(length for _, length, _ in piece.writes))

    def _write_piece(self, piece: _Piece, chunks: dict[ChunkId, Buffer]) -> None:
        if piece.first:
            folder, name = self._root.locate(piece.entry.path)
            self._fd = os.open(name, _CREATE if piece.fresh else _REOPEN, 0o600, dir_fd=folder)
        fd = self._fd
        end = 0
        for offset, length, chunk in piece.writes:
            _write_all(fd, chunks[chunk], offset)
            end = offset + length
        if piece.last:
            size = piece.entry.size
            if end != size or not piece.fresh:
                os.ftruncate(fd, size)
            self._attributes.apply(fd, piece.entry, fresh=piece.fresh)
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _write_all(fd: int, data: Buffer, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)
