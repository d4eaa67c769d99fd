"""What is there before a checkout writes: remains of a killed one, and files of an older tree to share data with.

Either is only *proposed*. The bytes of a proposed file are compared with the digests of its extents, and what
differs is written anew; so a half-written page, a file of another layer, or an older tree that somebody
edited costs time and nothing else. From an older tree, data is cloned (FICLONE) or copied inside the kernel
(`copy_file_range`), never hard-linked: writing to one tree must not change the other.
"""

import errno
import fcntl
import os
import stat

from chunkstore.attributes import handle, strip_acls
from chunkstore.beneath import Beneath
from chunkstore.digest import ChunkId, chunk_id
from chunkstore.entries import Entry, Kind
from chunkstore.manifest import Manifest

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FICLONE = 0x40049409
_NO_CLONE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL)
_SCAN_BYTES = 1 << 20
_STAYS = {Kind.REGULAR: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR}


def prune(root: Beneath, manifest: Manifest) -> None:
    """Keep those regular files and folders that the tree has at the same path; all else is cheap to make again.

    Hard links go as well, so that every file that stays can be written without changing another one.

    Raises:
        OSError: something cannot be listed or removed.
    """
    doomed: list[tuple[bytes, bool]] = []
    ahead = [b""]
    while ahead:
        folder = ahead.pop()
        fd = root.folder(folder)
        strip_acls(fd)
        for name in map(os.fsencode, os.listdir(fd)):
            path = os.path.join(folder, name)
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            entry = manifest.find(path)
            is_folder = stat.S_ISDIR(status.st_mode)
            if entry is None or _STAYS.get(entry.kind) != stat.S_IFMT(status.st_mode):
                doomed.append((path, is_folder))
            if is_folder:
                os.chmod(name, 0o700, dir_fd=fd)  # within a folder that nobody else can enter
                ahead.append(path)
    for path, is_folder in reversed(doomed):  # what is in a folder was found after it
        fd, name = root.locate(path)
        (os.rmdir if is_folder else os.unlink)(name, dir_fd=fd)
    root.forget()


class Leftover:
    """A file that stands where an entry's file should be, open for reading."""

    def __init__(self, fd: int, key: bytes | None) -> None:
        self._fd = fd
        self._key = key

    def has(self, offset: int, length: int, chunk: ChunkId) -> bool:
        """Whether these bytes of it are the chunk.

        Raises:
            OSError: they cannot be read.
        """
        data = os.pread(self._fd, length, offset)
        return len(data) == length and chunk_id(data, self._key) == chunk

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether these bytes of it are zeros or behind its end; what the filesystem knows to be a hole is not read.

        Raises:
            OSError: they cannot be read.
        """
        at, end = offset, offset + length
        while at < end:
            try:
                at = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return True
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
            data = os.pread(self._fd, max(0, min(_SCAN_BYTES, end - at)), at)
            if data.count(0) != len(data):
                return False
            if not data:
                return True
            at += len(data)
        return True

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Leftovers:
    """Finds what a file may start from."""

    def __init__(self, root: Beneath, key: bytes | None, *, resumed: bool, older: Beneath | None) -> None:
        """Look in two places.

        Args:
            root: the tree being written.
            key: of the content's ids.
            resumed: whether `root` may hold files of an earlier checkout, pruned.
            older: another checked-out tree to clone from; closed by its owner.
        """
        self._root = root
        self._key = key
        self._resumed = resumed
        self._older = older

    def find(self, entry: Entry) -> Leftover | None:
        """A file at the entry's path to start from, its holes checked; where there is None, no file is left either.

        Raises:
            OSError: it cannot be opened or read.
        """
        folder, name = self._root.locate(entry.path)
        fd = self._adopt(folder, name) if self._resumed else -1
        if fd < 0:
            fd = self._clone(entry, folder, name)
        if fd < 0:
            return None
        leftover = Leftover(fd, self._key)
        offset = 0
        for length, chunk in entry.extents:
            if chunk is None and not leftover.is_hole(offset, length):
                leftover.close()
                os.unlink(name, dir_fd=folder)
                return None
            offset += length
        return leftover

    def _adopt(self, folder: int, name: bytes) -> int:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            return -1
        if status.st_nlink != 1:
            os.unlink(name, dir_fd=folder)
            return -1
        if status.st_mode & 0o600 != 0o600:
            with handle(name, folder) as file:
                os.chmod(file, 0o600)
        return os.open(name, _READ, dir_fd=folder)

    def _clone(self, entry: Entry, folder: int, name: bytes) -> int:
        """Share the data of the file at the same path in the older tree, if size and time agree."""
        if self._older is None or not entry.table:
            return -1
        try:
            old_folder, old_name = self._older.locate(entry.path)
            source = os.open(old_name, _READ, dir_fd=old_folder)
        except OSError:
            return -1
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
                return -1
            fd = os.open(name, _CREATE, 0o600, dir_fd=folder)
            try:
                _share(source, fd, entry)
            except OSError:  # another filesystem, or one without such calls: so it is for all files
                self._older = None
                os.close(fd)
                os.unlink(name, dir_fd=folder)
                return -1
            return fd
        finally:
            os.close(source)


def _share(source: int, fd: int, entry: Entry) -> None:
    """Reflink the whole file, or copy its data and leave its holes."""
    try:
        fcntl.ioctl(fd, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
    offset = 0
    for length, chunk in entry.extents:
        at, end = offset, offset + (0 if chunk is None else length)
        while at < end:
            copied = os.copy_file_range(source, fd, end - at, at, at)
            if copied == 0:
                return
            at += copied
        offset += length
