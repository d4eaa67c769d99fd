"""The folder in which a tree grows until it is whole.

Theory of operation
-------------------
A checkout to DIR works in `.DIR.p2player-partial/tree` beside it. Nobody but its owner may enter the outer folder, so
nobody meets the tree before it has its final attributes. When it is complete and on disk, one rename puts it in
its place: whoever looks at DIR sees nothing, or everything. A killed checkout leaves the staging folder, and the
next one goes on in it. A lock on the outer folder keeps a second checkout out.

Where DIR exists and cannot be replaced (it is a mount point, some process works in it, or its parent may not be
written), the staging folder lies inside DIR, and what is in the tree moves up at the end, entry by entry. That
is not atomic, but it is resumed like the rest: entries that moved already are taken back first.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from chunkstore.attributes import handle, strip_acls
from chunkstore.beneath import Beneath
from chunkstore.manifest import Manifest
from chunkstore.places import is_replaceable
from chunkstore.tree_errors import CheckoutRefused

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SUFFIX = b".p2player-partial"
_TREE = b"tree"
_MAX_NAME_BYTES = 255
_MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)

_libc = ctypes.CDLL(None, use_errno=True)


class Staging(Protocol):
    """A locked staging folder."""

    root: Beneath
    """The top folder of the tree."""
    resumed: bool
    """Whether it was there before, with whatever an earlier checkout left."""

    def settle(self) -> Beneath:
        """Everything but the attributes of folders is done: give the root under which these are to be set."""

    def publish(self, finish_top: Callable[[int], None]) -> None:
        """Put the tree in its place, durably.

        Args:
            finish_top: sets the attributes of the top folder, given its descriptor.

        Raises:
            CheckoutRefused: something else stands in its place by now.
            OSError: the system refused.
        """

    def close(self) -> None:
        """Unlock. What was not published stays for the next checkout."""

    def __enter__(self) -> "Staging": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_staging(dest: Path, manifest: Manifest) -> Staging:
    """Find or make, and lock, the staging folder for a checkout of `manifest` to `dest`.

    Args:
        dest: absent or an empty folder; parents are made, symlinks followed.
        manifest: says which entries inside `dest` can be those of an earlier, killed checkout.

    Raises:
        CheckoutRefused: `dest` is something else, another checkout is at work, or the rights do not suffice.
    """
    place = os.fsencode(dest.resolve())
    parent, name = os.path.split(place)
    if not name:
        raise CheckoutRefused(place, "it is not empty")
    partial = b"." + name[: _MAX_NAME_BYTES - 1 - len(_SUFFIX)] + _SUFFIX
    try:
        os.makedirs(parent, exist_ok=True)
    except OSError as error:
        raise CheckoutRefused(place, f"its parent cannot be made: {error.strerror}") from None
    try:
        exists = _check_place(place, partial, manifest)
        if exists and (partial in os.listdir(place) or not is_replaceable(place, parent)):
            return _Inside(place, partial)
        try:
            return _Beside(place, partial)
        except OSError as error:
            if not exists or error.errno not in _MAY_NOT:
                raise
            return _Inside(place, partial)
    except OSError as error:
        raise CheckoutRefused(place, error.strerror or str(error)) from None


class _Locked:
    """The outer folder at `partial`, our own and closed to others, and the tree in it; both found or made."""

    def __init__(self, place: bytes, within: bytes, partial: bytes) -> None:
        self._place = place
        self._partial = partial
        with contextlib.ExitStack() as opened:
            self._within = _opened(opened, within, None)
            with contextlib.suppress(FileExistsError):
                os.mkdir(partial, 0o700, dir_fd=self._within)
            self._outer = _opened(opened, partial, self._within)
            self._lock()
            self.resumed = _has_tree(self._outer)
            tree = _opened(opened, _TREE, self._outer)
            strip_acls(tree)
            opened.pop_all()
        self.root = Beneath(tree)

    def __enter__(self) -> "_Locked":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.root.close()
        os.close(self._outer)
        os.close(self._within)

    def _lock(self) -> None:
        if os.fstat(self._outer).st_uid != os.geteuid():
            raise CheckoutRefused(self._place, "its staging folder belongs to somebody else")
        try:
            fcntl.flock(self._outer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckoutRefused(self._place, "another checkout is writing to it") from None
        status = os.stat(self._partial, dir_fd=self._within, follow_symlinks=False)
        if not os.path.samestat(status, os.fstat(self._outer)):  # published by another checkout since it was opened
            raise CheckoutRefused(self._place, "another checkout was writing to it")
        os.fchmod(self._outer, 0o700)  # also takes away what an inherited ACL may grant

    def _remove(self) -> None:
        """The outer folder has served; it stays if somebody put something into it."""
        with contextlib.suppress(OSError):
            os.rmdir(self._partial, dir_fd=self._within)


def _opened(stack: contextlib.ExitStack, name: bytes, folder: int | None) -> int:
    """Open a folder; the stack closes it. Only the first, which the user named, may be a symlink."""
    fd = os.open(name, _OPEN if folder is not None else _OPEN & ~os.O_NOFOLLOW, dir_fd=folder)
    stack.callback(os.close, fd)
    return fd


def _has_tree(outer: int) -> bool:
    """Find or make the tree's top folder, open to us whatever its attributes were; tells whether it was there."""
    try:
        os.mkdir(_TREE, 0o700, dir_fd=outer)
    except FileExistsError:
        with handle(_TREE, outer) as file:
            if stat.S_ISDIR(os.stat(file).st_mode):
                os.chmod(file, 0o700)
        return True
    return False


class _Beside(_Locked):
    """Staging next to the destination; published by one rename."""

    def __init__(self, place: bytes, partial: bytes) -> None:
        super().__init__(place, os.path.dirname(place), partial)

    def __enter__(self) -> "_Beside":
        return self

    def settle(self) -> Beneath:
        return self.root

    def publish(self, finish_top: Callable[[int], None]) -> None:
        tree = self.root.root
        finish_top(tree)
        sync_filesystem(tree)
        try:
            self._rename(tree)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY):
                raise CheckoutRefused(self._place, "it is no longer an empty folder") from None
            raise
        os.fsync(self._within)
        self._remove()

    def _rename(self, tree: int) -> None:
        name = os.path.basename(self._place)
        try:
            os.rename(_TREE, name, src_dir_fd=self._outer, dst_dir_fd=self._within)
        except PermissionError:  # an ordinary user must be able to write to a folder that moves to another parent
            mode = stat.S_IMODE(os.fstat(tree).st_mode)
            os.fchmod(tree, mode | stat.S_IWUSR)
            os.rename(_TREE, name, src_dir_fd=self._outer, dst_dir_fd=self._within)
            os.fchmod(tree, mode)


class _Inside(_Locked):
    """Staging within the destination; published by moving every entry up."""

    def __init__(self, place: bytes, partial: bytes) -> None:
        super().__init__(place, place, partial)
        self._final: Beneath | None = None
        try:
            self._take_back()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "_Inside":
        return self

    def close(self) -> None:
        if self._final is not None:
            self._final.close()
        super().close()

    def _take_back(self) -> None:
        """Undo what a checkout that was killed while it published had moved up."""
        for name in map(os.fsencode, os.listdir(self._within)):
            if name != self._partial:
                with handle(name, self._within) as file:
                    if stat.S_ISDIR(os.stat(file).st_mode):  # moving a folder takes the right to write to it
                        os.chmod(file, 0o700)
                os.rename(name, name, src_dir_fd=self._within, dst_dir_fd=self.root.root)

    def settle(self) -> Beneath:
        self.root.forget()
        for name in os.listdir(self.root.root):
            os.rename(name, name, src_dir_fd=self.root.root, dst_dir_fd=self._within)
        self._final = Beneath(os.dup(self._within))
        return self._final

    def publish(self, finish_top: Callable[[int], None]) -> None:
        os.rmdir(_TREE, dir_fd=self._outer)
        self._remove()
        finish_top(self._within)
        sync_filesystem(self._within)


def sync_filesystem(fd: int) -> None:
    """Wait until everything on the filesystem of `fd` is on disk: one call instead of one for each file.

    Raises:
        OSError: it could not be written.
    """
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _check_place(place: bytes, partial: bytes, manifest: Manifest) -> bool:
    """Whether the destination exists; refuse it unless it is empty or holds what a killed checkout left."""
    try:
        if not stat.S_ISDIR(os.stat(place).st_mode):
            raise CheckoutRefused(place, "it is no folder")
    except FileNotFoundError:
        return False
    inside = set(os.listdir(place))
    if inside and not (partial in inside and all(name == partial or manifest.find(name) for name in inside)):
        raise CheckoutRefused(place, "it is not empty")
    if manifest.find(partial):
        raise CheckoutRefused(place, "the tree has an entry with the name of the staging folder")
    return True
