"""List a tree by folder descriptors, and tell later whether it is still the same."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType

from chunkstore.beneath import Beneath
from chunkstore.tree_errors import SourceUnsupported, TreeUnreadable
from chunkstore.treecheck import MAX_PATH_BYTES

_GONE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE))

Looks = tuple[int, int, int, int, int]


def looks(status: os.stat_result) -> Looks:
    """What changes whenever the content or an attribute of a file or folder does, as far as a filesystem tells."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Moved(Exception):
    """`path` (relative to the tree) is no longer what the scan saw."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path)
        self.path = path


class Source:
    """The tree being read: its place for messages, and its folders by descriptor."""

    def __init__(self, place: bytes, root: Beneath) -> None:
        self.place = place
        self.root = root

    def absolute(self, path: bytes) -> bytes:
        """A path of the tree as the user would name it."""
        return os.path.join(self.place, path) if path else self.place

    def blame(self, path: bytes) -> "_Blame":
        """A context that turns a system error into `Moved` where `path` vanished, else into `TreeUnreadable`."""
        return _Blame(self, path)


class _Blame:
    __slots__ = ("_path", "_source")

    def __init__(self, source: Source, path: bytes) -> None:
        self._source = source
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            if error.errno in _GONE:
                raise Moved(self._path) from None
            raise TreeUnreadable(self._source.absolute(self._path), error.strerror or str(error)) from None


@dataclass(frozen=True, slots=True)
class Scan:
    """Paths in bytewise order, bytes of all regular files (hard links once), and how every folder looked."""

    paths: list[bytes]
    total_bytes: int
    folders: dict[bytes, Looks]


def scan_tree(source: Source, *, live: bool = False) -> Scan:
    """List everything below the root.

    Args:
        live: names come and go meanwhile; what vanishes need not be listed.

    Raises:
        Moved: something vanished meanwhile.
        TreeUnreadable: a folder may not be listed.
        SourceUnsupported: a path is too long for a manifest.
    """
    paths = [b""]
    folders: dict[bytes, Looks] = {}
    linked: dict[tuple[int, int], int] = {}
    total = 0
    ahead = [b""]
    while ahead:
        folder = ahead.pop()
        with source.blame(folder), _vanishing(live and folder != b""):
            fd = source.root.folder(folder)
            folders[folder] = looks(os.fstat(fd))
            with os.scandir(fd) as items:
                for item in items:
                    path = os.path.join(folder, os.fsencode(item.name))
                    if len(path) > MAX_PATH_BYTES:
                        reason = f"its path has more than {MAX_PATH_BYTES} bytes"
                        raise SourceUnsupported(source.absolute(path), reason)
                    paths.append(path)
                    if item.is_dir(follow_symlinks=False):
                        ahead.append(path)
                    elif item.is_file(follow_symlinks=False):
                        try:
                            status = item.stat(follow_symlinks=False)
                        except OSError as error:
                            if live and error.errno in _GONE:
                                continue
                            raise
                        total += status.st_size
                        if status.st_nlink > 1:
                            linked[status.st_dev, status.st_ino] = status.st_size
                            total -= status.st_size
    paths.sort()
    if live:  # a folder that changes while it is listed may tell a name twice
        paths = [path for path, _ in groupby(paths)]
    return Scan(paths, total + sum(linked.values()), folders)


@contextmanager
def _vanishing(allowed: bool) -> Iterator[None]:
    """Something may vanish meanwhile, where that is allowed: what was under way with it ends."""
    try:
        yield
    except OSError as error:
        if not allowed or error.errno not in _GONE:
            raise


def check_folders(source: Source, scan: Scan) -> None:
    """Compare every folder with how the scan saw it.

    Raises:
        Moved: one was changed, replaced or removed.
        TreeUnreadable: one can no longer be opened.
    """
    source.root.forget()
    for path, before in scan.folders.items():
        with source.blame(path):
            status = os.fstat(source.root.folder(path))
        if looks(status) != before:
            raise Moved(path)
