"""What one tree has beside another, as the upper folder of an overlay.

The result holds what is new or changed, with its owners, modes, times and extended attributes, a *whiteout* (a
character device 0/0) for each name that is gone, and is *opaque* (`trusted.overlay.opaque`) where a folder has nothing
in common with the one below it. Times alone make no difference: a layer should hold what differs, not what was touched.
"""

import errno
import os
import stat
from pathlib import Path

from backends.errors import BackendError

_OPAQUE = "trusted.overlay.opaque"
_OVERLAY = "trusted.overlay."
_BLOCK_BYTES = 1 << 20
_MODE = 0o7777


def difference(lower: Path, tree: Path, out: Path) -> None:
    """Make `out` such that an overlay of `out` over `lower` shows what `tree` holds. Needs root.

    Args:
        out: a folder that is empty or does not exist.

    Raises:
        BackendError: a file could not be read or written, or `tree` holds a whiteout itself.
    """
    try:
        out.mkdir(exist_ok=True)
        if any(out.iterdir()):
            raise BackendError(f"{out} is not empty")
        _Difference(os.fspath(lower), os.fspath(tree), os.fspath(out)).run()
    except OSError as error:
        raise BackendError(f"cannot compare {tree} with {lower}: {error}") from error


class _Difference:
    def __init__(self, lower: str, tree: str, out: str) -> None:
        self._lower, self._tree, self._out = lower, tree, out
        self._links: dict[tuple[int, int], str] = {}  # first copy of a file with several names
        self._made = {""}

    def run(self) -> None:
        self._folder("")
        self._dress("")

    def _folder(self, place: str) -> None:
        """Compare one folder that both have."""
        below = _entries(os.path.join(self._lower, place))
        here = _entries(os.path.join(self._tree, place))
        if place and below and not below & here:
            self._make(place)
            os.setxattr(os.path.join(self._out, place), _OPAQUE, b"y")
            for name in sorted(here):
                self._copy(os.path.join(place, name))
            return
        for name in sorted(below - here):
            self._make(place)
            os.mknod(os.path.join(self._out, place, name), stat.S_IFCHR, os.makedev(0, 0))
        for name in sorted(here):
            path = os.path.join(place, name)
            if name not in below:
                self._copy(path)
                continue
            old = os.lstat(os.path.join(self._lower, path))
            new = os.lstat(os.path.join(self._tree, path))
            if not stat.S_ISDIR(new.st_mode) or not stat.S_ISDIR(old.st_mode):
                if not self._same(path, old, new):
                    self._copy(path)
                    if stat.S_ISDIR(new.st_mode):
                        os.setxattr(os.path.join(self._out, path), _OPAQUE, b"y")
                continue
            if not self._same_attributes(path, old, new):
                self._make(path)
            self._folder(path)

    def _same(self, path: str, old: os.stat_result, new: os.stat_result) -> bool:
        if not self._same_attributes(path, old, new):
            return False
        lower, tree = os.path.join(self._lower, path), os.path.join(self._tree, path)
        if stat.S_ISREG(new.st_mode):
            return old.st_size == new.st_size and (os.path.samestat(old, new) or _same_content(lower, tree))
        if stat.S_ISLNK(new.st_mode):
            return os.readlink(lower) == os.readlink(tree)
        return old.st_rdev == new.st_rdev

    def _same_attributes(self, path: str, old: os.stat_result, new: os.stat_result) -> bool:
        if (old.st_mode, old.st_uid, old.st_gid) != (new.st_mode, new.st_uid, new.st_gid):
            return False
        return _attributes(os.path.join(self._lower, path)) == _attributes(os.path.join(self._tree, path))

    def _make(self, place: str) -> None:
        """Have this folder and those above it in `out`."""
        if place in self._made:
            return
        self._make(os.path.dirname(place))
        os.mkdir(os.path.join(self._out, place))
        self._made.add(place)
        self._dress(place)

    def _copy(self, path: str) -> None:
        """Copy an entry whole."""
        self._make(os.path.dirname(path))
        source, target = os.path.join(self._tree, path), os.path.join(self._out, path)
        found = os.lstat(source)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            self._make(path)
            for name in sorted(os.listdir(source)):
                self._copy(os.path.join(path, name))
            self._dress(path)
            return
        if found.st_nlink > 1:
            first = self._links.setdefault((found.st_dev, found.st_ino), target)
            if first != target:
                os.link(first, target, follow_symlinks=False)
                return
        if kind == stat.S_IFREG:
            _copy_content(source, target)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(source), target)
        elif kind == stat.S_IFCHR and found.st_rdev == 0:
            raise BackendError(f"{source} is a whiteout: the tree to compare must be whole")
        else:
            os.mknod(target, kind | 0o600, found.st_rdev)
        self._dress(path)

    def _dress(self, path: str) -> None:
        """Give an entry of `out` the owner, mode, attributes and times that it has in the tree."""
        source, target = os.path.join(self._tree, path), os.path.join(self._out, path)
        found = os.lstat(source)
        os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(target, found.st_mode & _MODE)
        for name, value in _attributes(source).items():
            os.setxattr(target, name, value, follow_symlinks=False)
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def _entries(folder: str) -> set[str]:
    return set(os.listdir(folder))


def _attributes(path: str) -> dict[str, bytes]:
    """Extended attributes, without the overlay's own."""
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names if not name.startswith(_OVERLAY)}


def _same_content(one: str, other: str) -> bool:
    with open(one, "rb", buffering=0) as first, open(other, "rb", buffering=0) as second:
        while True:
            left, right = first.read(_BLOCK_BYTES), second.read(_BLOCK_BYTES)
            if left != right:
                return False
            if not left:
                return True


def _copy_content(source: str, target: str) -> None:
    """Copy a file, holes as holes."""
    with open(source, "rb", buffering=0) as old, open(target, "xb", buffering=0) as new:
        size = os.fstat(old.fileno()).st_size
        os.truncate(new.fileno(), size)
        place = 0
        while place < size:
            try:
                place = os.lseek(old.fileno(), place, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    return
                raise
            end = os.lseek(old.fileno(), place, os.SEEK_HOLE)
            os.lseek(old.fileno(), place, os.SEEK_SET)
            os.lseek(new.fileno(), place, os.SEEK_SET)
            while place < end:
                data = old.read(min(_BLOCK_BYTES, end - place))
                if not data:
                    return
                new.write(data)
                place += len(data)
