"""Write the regular files of a tree, in batches of chunks; holes stay holes; what is there already is kept.

Theory of operation
-------------------
Files are taken in order of path, which is the order in which an import stored their chunks. A *batch* names
up to 8 MiB of distinct chunks and the places they go to. While one batch is written, a thread reads the next
ones from the content, which may give chunks in any order; three batches are in memory at most. More readers only wait
for each other and the writer, whose many short system calls all want the interpreter. A large file spans many batches
and stays open between them; chunks that follow each other are written by one call. The disk gets large parts at once,
for whoever asked for the tree waits until all of it is there.

A file that is there before (left by a killed checkout, or cloned from an older tree) is taken extent by
extent: what has the right digest stays, and only the rest is wanted. So resuming needs no marks that could
lie.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from chunkstore.attributes import AttributeWriter
from chunkstore.beneath import Beneath
from chunkstore.content import Content
from chunkstore.digest import Buffer, ChunkId
from chunkstore.entries import EXTENT, Entry
from chunkstore.leftovers import Leftover, Leftovers
from chunkstore.pinning import hold
from chunkstore.progress import Meter
from chunkstore.tree_errors import CheckoutFailed, ContentMissing, ManifestInvalid, printable, writing
from chunkstore.writeback import begin_write_back

_AHEAD = 2
_BATCH_BYTES = 8 << 20
_PINNED_BYTES = 12 << 20
_BATCH_PIECES = 2048
_WRITE_BACK_BYTES = 1 << 20
_BATCH_WRITES = 16384
_IOV_MAX = 1024
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Piece:
    """The part of a file that one batch writes, as runs of chunks that follow each other; `last` completes the file."""

    entry: Entry
    fresh: bool
    first: bool
    runs: list[tuple[int, list[ChunkId]]] = field(default_factory=list)
    """(offset, chunks) each."""
    end: int = 0
    """Where the last run ends."""
    bytes: int = 0
    last: bool = False


@dataclass(slots=True)
class _Batch:
    pieces: list[_Piece] = field(default_factory=list)
    wanted: dict[ChunkId, int] = field(default_factory=dict)
    wanted_bytes: int = 0
    writes: int = 0

    def takes(self, chunk: ChunkId, length: int) -> bool:
        """Want a chunk of `length` bytes for the last piece; whether there is room for it.

        Raises:
            ManifestInvalid: the same chunk has another length elsewhere.
        """
        if self.writes >= _BATCH_WRITES:
            return False
        known = self.wanted.get(chunk)
        if known is None:
            if self.wanted_bytes + length > _BATCH_BYTES:
                return False
            self.wanted[chunk] = length
            self.wanted_bytes += length
        elif known != length:
            raise _odd(self.pieces[-1].entry)
        self.writes += 1
        return True


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
        reader = ThreadPoolExecutor(1, thread_name_prefix="checkout")
        try:
            ahead: deque[tuple[_Batch, Future[dict[ChunkId, Buffer]]]] = deque()
            for batch in self._batches(files):
                ahead.append((batch, reader.submit(self._fetch, batch)))
                if len(ahead) > _AHEAD:
                    self._write_batch(*ahead.popleft())
            while ahead:
                self._write_batch(*ahead.popleft())
        finally:
            reader.shutdown(cancel_futures=True)
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
            piece = _Piece(entry, leftover is None, first=True)
            batch.pieces.append(piece)
            for offset, length, chunk in self._places(entry, leftover):
                if not batch.takes(chunk, length):
                    yield batch
                    piece = _Piece(entry, leftover is None, first=False)
                    batch = _Batch([piece])
                    batch.takes(chunk, length)
                if piece.runs and piece.end == offset:
                    piece.runs[-1][1].append(chunk)
                else:
                    piece.runs.append((offset, [chunk]))
                piece.end = offset + length
                piece.bytes += length
            piece.last = True
        if batch.pieces:
            yield batch

    def _places(self, entry: Entry, leftover: Leftover | None) -> Iterator[tuple[int, int, ChunkId]]:
        """Where which chunk must be written; what needs no writing is counted as done."""
        offset = 0
        try:
            for length, chunk in EXTENT.iter_unpack(entry.table):
                if length < 0:
                    length = -length
                    self._meter.advance(length)
                elif leftover is not None and self._has(entry, leftover, offset, length, chunk):
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
        """The chunks of a batch: as views of their groups while those are mostly wanted, else as copies."""
        return hold(self._checked(batch), _PINNED_BYTES)

    def _checked(self, batch: _Batch) -> Iterator[tuple[ChunkId, memoryview]]:
        wanted = batch.wanted
        for chunk, data in self._content.read(list(wanted)):
            if len(data) != wanted[chunk]:
                raise _odd(next(piece.entry for piece in batch.pieces if any(chunk in ids for _, ids in piece.runs)))
            yield chunk, data

    def _write_batch(self, batch: _Batch, fetched: "Future[dict[ChunkId, Buffer]]") -> None:
        chunks = fetched.result()
        lacking = len(chunks) < len(batch.wanted)
        for piece in batch.pieces:
            if lacking:
                for chunk in (chunk for _, ids in piece.runs for chunk in ids if chunk not in chunks):
                    raise ContentMissing(chunk, piece.entry.path)
            try:
                self._write_piece(piece, chunks)
            except OSError as error:
                raise CheckoutFailed(piece.entry.path, error.strerror or str(error)) from None
            self._meter.advance(piece.bytes)

    def _write_piece(self, piece: _Piece, chunks: Mapping[ChunkId, Buffer]) -> None:
        if piece.first:
            folder, name = self._root.locate(piece.entry.path)
            self._fd = os.open(name, _CREATE if piece.fresh else _REOPEN, 0o600, dir_fd=folder)
        fd = self._fd
        for offset, ids in piece.runs:
            if len(ids) == 1:
                _write_all(fd, chunks[ids[0]], offset)
            else:
                _write_run(fd, [chunks[chunk] for chunk in ids], offset)
        if piece.bytes >= _WRITE_BACK_BYTES:
            begin_write_back(fd, piece.runs[0][0], piece.end - piece.runs[0][0])
        if piece.last:
            if not piece.fresh or _ends_in_hole(piece.entry.table):
                os.ftruncate(fd, piece.entry.size)
            self._attributes.apply(fd, piece.entry, fresh=piece.fresh)
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _ends_in_hole(table: bytes) -> bool:
    return len(table) > 0 and EXTENT.unpack_from(table, len(table) - EXTENT.size)[0] < 0


def _odd(entry: Entry) -> ManifestInvalid:
    return ManifestInvalid(f"{printable(entry.path)}: a chunk with another length")


def _write_run(fd: int, buffers: list[Buffer], offset: int) -> None:
    for first in range(0, len(buffers), _IOV_MAX):
        some = buffers[first : first + _IOV_MAX]
        total = sum(map(len, some))
        written = os.pwritev(fd, some, offset)
        if written < total:
            _write_all(fd, memoryview(b"".join(some))[written:], offset + written)
        offset += total


def _write_all(fd: int, data: Buffer, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)
