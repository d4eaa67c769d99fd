"""The folder in which a tree grows until it is whole.

Theory of operation
-------------------
A checkout to DIR works in `.DIR.p2player-partial` beside it, which only its owner may enter, and takes its
place in one rename when it is complete and on disk: whoever looks at DIR sees nothing, or everything. A
killed checkout leaves the staging folder, and the next one goes on in it. A lock on the folder keeps a second
checkout out.

Where DIR exists and cannot be replaced (it is a mount point, some process works in it, or its parent may not
be written), the staging folder lies inside DIR, and what is in it moves up at the end, entry by entry. That
is not atomic, but it is resumed like the rest: entries that moved already are taken back first.
"""

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
from chunkstore.tree_errors import CheckoutRefused

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SUFFIX = b".p2player-partial"
_MAX_NAME_BYTES = 255
_MAY_NOT = (errno.EACCES, errno.EPERM, errno.EROFS)

_libc = ctypes.CDLL(None, use_errno=True)


class Staging(Protocol):
    """A locked staging folder."""

    root: Beneath
    """The folder itself."""
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
    """Find or make the staging folder for a checkout of `manifest` to `dest`.

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
        exists = _check_place(place, partial, manifest)
        if exists and (partial in os.listdir(place) or not _is_replaceable(place, parent)):
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
    """A folder of our own, closed to others, found or made at `partial`."""

    def __init__(self, place: bytes, within: bytes, partial: bytes) -> None:
        self._place = place
        self._partial = partial
        self._within = os.open(within, _OPEN & ~os.O_NOFOLLOW)
        try:
            self.root, self.resumed = self._open()
        except BaseException:
            os.close(self._within)
            raise

    def __enter__(self) -> "_Locked":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.root.close()
        os.close(self._within)

    def _open(self) -> tuple[Beneath, bool]:
        resumed = False
        try:
            os.mkdir(self._partial, 0o700, dir_fd=self._within)
        except FileExistsError:
            resumed = True
        fd = os.open(self._partial, _OPEN, dir_fd=self._within)
        try:
            if os.fstat(fd).st_uid != os.geteuid():
                raise CheckoutRefused(self._place, "its staging folder belongs to somebody else")
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CheckoutRefused(self._place, "another checkout is writing to it") from None
            self._check_still_there(fd)
            os.fchmod(fd, 0o700)
            strip_acls(fd)
        except BaseException:
            os.close(fd)
            raise
        return Beneath(fd), resumed

    def _check_still_there(self, fd: int) -> None:
        """Another checkout may have published, or a stranger moved, the folder since it was opened."""
        try:
            status = os.stat(self._partial, dir_fd=self._within, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        if status is None or not os.path.samestat(status, os.fstat(fd)):
            raise CheckoutRefused(self._place, "its staging folder was moved away")


class _Beside(_Locked):
    """Staging next to the destination; published by one rename."""

    def __init__(self, place: bytes, partial: bytes) -> None:
        super().__init__(place, os.path.dirname(place), partial)

    def __enter__(self) -> "_Beside":
        return self

    def settle(self) -> Beneath:
        return self.root

    def publish(self, finish_top: Callable[[int], None]) -> None:
        finish_top(self.root.root)
        sync_filesystem(self.root.root)
        self._check_still_there(self.root.root)
        name = os.path.basename(self._place)
        try:
            os.rename(self._partial, name, src_dir_fd=self._within, dst_dir_fd=self._within)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY):
                raise CheckoutRefused(self._place, "it is no longer an empty folder") from None
            raise
        os.fsync(self._within)


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
        os.rmdir(self._partial, dir_fd=self._within)
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


def _is_replaceable(place: bytes, parent: bytes) -> bool:
    """Whether a rename may put another folder in the place of this one without pulling it from under somebody."""
    status, above = os.stat(place), os.stat(parent)
    euid = os.geteuid()
    if above.st_mode & stat.S_ISVTX and euid not in (0, above.st_uid, status.st_uid):
        return False
    return not (os.path.ismount(place) or place in _mount_points() or _is_working_folder(status))


def _mount_points() -> set[bytes]:
    """Every mount point of this process, bind mounts included."""
    try:
        table = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return set()
    # The kernel writes space, tab, newline and backslash as octal escapes.
    return {line.split(b" ")[4].decode("unicode_escape").encode("latin-1") for line in table.splitlines()}


def _is_working_folder(status: os.stat_result) -> bool:
    """Whether a process that this user may see has it as its working folder."""
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return False
    for process in processes:
        try:
            if os.path.samestat(os.stat(f"/proc/{process}/cwd"), status):
                return True
        except OSError:  # gone, or not ours
            continue
    return False
