"""Pack files: append-only files of records.

A pack is only ever appended to or deleted as a whole, and numbers are never used twice, so a place denotes one record
for ever: a reader that looked it up a moment ago finds that record or nothing, never other bytes.

Writes belong to one thread at a time (the store's writer lock); reads may come from any thread. A reader keeps the
file it reads open, so deleting a pack under it is harmless.
"""

import errno
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

from chunkstore.codec import Group
from chunkstore.errors import BadRecord, DiskFull, StoreDamaged
from chunkstore.records import MAGIC, MAX_RECORD_BYTES, Place, at, decode, encode, offset_of, pack_of, record_bytes

PACK_BYTES = 256 << 20

_READ_BYTES = 4 << 20  # neighbouring records are fetched by one read of at most this
_GAP_BYTES = 64 << 10  # reading over an unwanted gap of this size is cheaper than a second read
_OPEN_PACKS = 64
_IOV_MAX = 1024
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Lost(Enum):
    """Why a record could not be fetched."""

    GONE = "its pack was deleted"
    DAMAGED = "its record is damaged"


class _PackFile:
    """An open pack; closed when nobody refers to it any more, so that readers outlive a deletion."""

    def __init__(self, path: Path, flags: int) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self.fd)


class PackFiles:
    """The pack files of one folder, and the place where the next record goes."""

    def __init__(self, folder: Path, *, pack_bytes: int = PACK_BYTES) -> None:
        """Use `folder`, which exists; nothing is read until `resume`.

        Args:
            folder: holds NNNNNN.pack files and nothing else.
            pack_bytes: a pack that has reached this size is followed by a new one. Below 4 GiB.
        """
        self._folder = folder
        self._pack_bytes = pack_bytes
        self._end = at(1, 0)
        self._open: OrderedDict[int, _PackFile] = OrderedDict()
        self._open_lock = threading.Lock()
        self._unsynced: dict[int, _PackFile] = {}
        self._failed = False

    @property
    def end(self) -> Place:
        """Where the next record goes."""
        return self._end

    def sizes(self) -> dict[int, int]:
        """Pack number -> bytes on disk, in order."""
        found = {}
        for entry in os.scandir(self._folder):
            stem, _, kind = entry.name.partition(".")
            if kind == "pack" and stem.isdecimal():
                with suppress(FileNotFoundError):  # deleted at this very moment
                    found[int(stem)] = entry.stat().st_size
        return dict(sorted(found.items()))

    def resume(self, end: Place) -> int:
        """Append from `end` on; what its pack holds after that is cut off.

        Returns:
            Bytes cut off.
        """
        self._end = end
        size = self.sizes().get(pack_of(end), 0)
        if size <= offset_of(end):
            if size < offset_of(end):
                self.roll()  # shorter than what was once durable: leave its remains to verify
            return 0
        self._cut(end)
        return size - offset_of(end)

    def append(self, groups: Sequence[Group]) -> list[Place]:
        """Write one record a group; they can be read at once and are durable after `sync`.

        Raises:
            BadGroup: a group breaks a limit; nothing was written.
            DiskFull: nothing was written.
            StoreDamaged: an earlier `sync` failed.
        """
        self._check()
        if offset_of(self._end) >= self._pack_bytes:
            self.roll()
        start = end = self._end
        places: list[Place] = []
        buffers: list[bytes] = []
        for group in groups:
            places.append(end)
            buffers += encode(group, end)
            end = Place(end + record_bytes(group))
        try:
            write_all(self._writable(pack_of(start)).fd, buffers, offset_of(start))
        except OSError as error:
            self._cut(start)
            if error.errno in NO_ROOM:
                raise DiskFull(self._folder, sum(map(len, buffers)), 0) from error
            raise
        self._end = end
        return places

    def rewind(self, end: Place) -> None:
        """Take back what was appended since `end` was the end, none of it being referred to by anyone."""
        if pack_of(end) == pack_of(self._end):
            self._cut(end)

    def roll(self) -> None:
        """Let the next record begin a new pack."""
        self._end = at(pack_of(self._end) + 1, 0)

    def unsynced(self) -> list[_PackFile]:
        """Hand over the packs written since the last call; they are durable once `sync` returns."""
        files, self._unsynced = list(self._unsynced.values()), {}
        return files

    def files(self, packs: Iterable[int]) -> list[_PackFile]:
        """These packs, to be given to `sync`."""
        return [self._file(pack) for pack in packs]

    def sync(self, files: Iterable[_PackFile]) -> None:
        """Make everything that was appended to `files` durable. Any thread, without the writer lock.

        Raises:
            OSError: the disk failed. The kernel may have dropped the pages, so nothing may be appended from now on:
                reopening the store re-verifies what is really there.
        """
        self._check()
        try:
            for file in files:
                os.fdatasync(file.fd)
            sync_folder(self._folder)  # next to free when no pack was made since
        except OSError:
            self._failed = True
            raise

    def read(self, place: Place, length: int) -> bytes | None:
        """`length` bytes from `place` on, fewer at the end of the pack; None when there is no such pack."""
        try:
            file = self._file(pack_of(place))
        except FileNotFoundError:
            return None
        return os.pread(file.fd, length, offset_of(place))

    def fetch(self, wanted: Sequence[tuple[Place, int]]) -> Iterator[tuple[Place, Group | Lost]]:
        """Read records, neighbours by one read.

        Args:
            wanted: places and record sizes, in order of place.
        """
        for run in _runs(wanted):
            start = run[0][0]
            try:
                data = self.read(start, run[-1][0] + run[-1][1] - start)
            except OSError:  # a bad sector: it need not be in each of these records
                yield from ((place, self._fetch_one(place, size)) for place, size in run)
                continue
            for place, size in run:
                if data is None:
                    yield place, Lost.GONE
                else:
                    yield place, _decode_all(memoryview(data)[place - start : place - start + size], place)

    def _fetch_one(self, place: Place, size: int) -> Group | Lost:
        try:
            data = self.read(place, size)
        except OSError:
            return Lost.DAMAGED
        return Lost.GONE if data is None else _decode_all(memoryview(data), place)

    def scan(self, start: Place) -> Iterator[tuple[Place, int, Group]]:
        """Every sound record of one pack from `start` on, with its size, whatever lies between them.

        Holds one window of a few MiB. Digests are not checked.
        """
        place = start
        while data := self.read(place, 2 * MAX_RECORD_BYTES):
            view = memoryview(data)
            begin = 0
            # A record that begins in the first half of the window lies in it as a whole.
            while begin < min(len(view), MAX_RECORD_BYTES):
                try:
                    group, size = decode(view[begin:], Place(place + begin))
                except BadRecord:
                    found = data.find(MAGIC, begin + 1)
                    begin = found if found >= 0 else max(begin + 1, len(data) - len(MAGIC) + 1)
                    continue
                yield Place(place + begin), size, group
                begin += size
            place = Place(place + begin)

    def remove(self, pack: int) -> int:
        """Delete a pack; readers in the middle of it finish. Returns its size in bytes."""
        path = self._path(pack)
        self._unsynced.pop(pack, None)
        with self._open_lock:
            self._open.pop(pack, None)
            size = path.stat().st_size
            path.unlink()
        return size

    def close(self) -> None:
        """Let go of every file."""
        with self._open_lock:
            self._open.clear()
        self._unsynced.clear()

    def _path(self, pack: int) -> Path:
        return self._folder / f"{pack:06d}.pack"

    def _check(self) -> None:
        if self._failed:
            raise StoreDamaged(self._folder, "the disk failed to write; reopen the store to verify it")

    def _file(self, pack: int) -> _PackFile:
        with self._open_lock:
            file = self._open.get(pack)
            if file is None:
                file = self._open[pack] = _PackFile(self._path(pack), os.O_RDONLY)
                while len(self._open) > _OPEN_PACKS:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(pack)
            return file

    def _writable(self, pack: int) -> _PackFile:
        file = self._unsynced.get(pack)
        if file is None:
            file = self._unsynced[pack] = _PackFile(self._path(pack), os.O_RDWR | os.O_CREAT)
        return file

    def _cut(self, end: Place) -> None:
        self._end = end
        if self._path(pack_of(end)).exists():
            os.ftruncate(self._writable(pack_of(end)).fd, offset_of(end))


def write_all(fd: int, buffers: Sequence[bytes], offset: int) -> None:
    """Write buffers one after the other at `offset`, all of them or raise.

    Raises:
        OSError: some of it may have been written.
    """
    for first in range(0, len(buffers), _IOV_MAX):
        some = buffers[first : first + _IOV_MAX]
        total = sum(map(len, some))
        done = os.pwritev(fd, some, offset)
        if done < total:
            rest = memoryview(b"".join(some))
            while done < total:
                done += os.pwrite(fd, rest[done:], offset + done)
        offset += total


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def require_room(folder: Path, needed_bytes: int, reserve_bytes: int) -> None:
    """Refuse to write `needed_bytes` where less than `reserve_bytes` would remain.

    Raises:
        DiskFull: with what may still be used.
    """
    room = free_bytes(folder, reserve_bytes)
    if needed_bytes > room:
        raise DiskFull(folder, needed_bytes, room)


def free_bytes(folder: Path, reserve_bytes: int) -> int:
    """What may still be written to the file system of `folder`."""
    status = os.statvfs(folder)
    return max(0, status.f_bavail * status.f_frsize - reserve_bytes)


def _decode_all(view: memoryview, place: Place) -> Group | Lost:
    """The group of the record that fills `view`."""
    try:
        group, size = decode(view, place)
    except BadRecord:
        return Lost.DAMAGED
    return group if size == len(view) else Lost.DAMAGED


def _runs(wanted: Sequence[tuple[Place, int]]) -> Iterator[list[tuple[Place, int]]]:
    """Cut ordered records into runs that one read each can fetch."""
    run: list[tuple[Place, int]] = []
    for place, size in wanted:
        if run:
            reached = run[-1][0] + run[-1][1]
            near = pack_of(place) == pack_of(run[0][0]) and place - reached <= _GAP_BYTES
            if not near or place + size - run[0][0] > _READ_BYTES:
                yield run
                run = []
        run.append((place, size))
    if run:
        yield run
