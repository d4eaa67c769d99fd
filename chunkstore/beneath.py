"""Reach the folders of a tree by descriptor, so that no path and no swapped symlink leads outside it.

A name is only ever used relative to the open descriptor of its folder, and a folder is opened with
`openat2(2)` under RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS: the kernel refuses any step that leaves the root
or follows a link, whoever changes the tree meanwhile. Kernels before 5.6 get the same by a walk, one
component at a time, with O_NOFOLLOW. The descriptors of the last few folders are kept, since a tree is walked
in order of path.
"""

import ctypes
import errno
import os
from collections import OrderedDict
from types import TracebackType

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_FOLDERS = 32

_SYS_OPENAT2 = 437  # the same number on every architecture but alpha
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RACES = 100


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_HOW = _OpenHow(_FOLDER, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)


class Beneath:
    """Folders under one root, by their path relative to it."""

    def __init__(self, root: int, *, openat2: bool = True) -> None:
        """Take over `root`, the descriptor of a folder: `close` closes it.

        Args:
            root: open for reading.
            openat2: use the system call where the kernel has it.
        """
        self.root = root
        self._openat2 = openat2 and _has_openat2(root)
        self._kept: OrderedDict[bytes, int] = OrderedDict()

    def __enter__(self) -> "Beneath":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every descriptor, the root's included."""
        self.forget()
        os.close(self.root)

    def forget(self) -> None:
        """Close the descriptors of all folders but the root, whose paths may have changed."""
        while self._kept:
            os.close(self._kept.popitem()[1])

    def folder(self, path: bytes) -> int:
        """The descriptor of the folder at `path`, open for reading; it stays open for the next few calls.

        Raises:
            OSError: there is no folder, or a component of its path is a symlink.
        """
        if not path:
            return self.root
        fd = self._kept.get(path)
        if fd is not None:
            self._kept.move_to_end(path)
            return fd
        fd = self._open(path)
        self._kept[path] = fd
        if len(self._kept) > _KEPT_FOLDERS:
            os.close(self._kept.popitem(last=False)[1])
        return fd

    def locate(self, path: bytes) -> tuple[int, bytes]:
        """The descriptor of the folder that `path` is in, and its last component (a dot for the root itself).

        Raises:
            OSError: as `folder`.
        """
        _refuse_escape(path)
        parent, _, name = path.rpartition(b"/")
        return self.folder(parent), name or b"."

    def _open(self, path: bytes) -> int:
        _refuse_escape(path)
        return _open_beneath(self.root, path) if self._openat2 else _walk(self.root, path)


def _refuse_escape(path: bytes) -> None:
    """The kernel guards every look-up but the last component; and it would read only up to a NUL."""
    if (b".." in path and b".." in path.split(b"/")) or path.startswith(b"/") or 0 in path:
        raise OSError(errno.EXDEV, "the path leads outside", path)


def _open_beneath(root: int, path: bytes) -> int:
    for _ in range(_RACES):
        fd: int = _libc.syscall(_SYS_OPENAT2, root, path, ctypes.byref(_HOW), ctypes.sizeof(_HOW))
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: something was renamed during the look-up
            break
    raise OSError(number, os.strerror(number), path)


def _walk(root: int, path: bytes) -> int:
    fd = os.dup(root)
    try:
        for component in path.split(b"/"):
            inner = os.open(component, _FOLDER, dir_fd=fd)
            os.close(fd)
            fd = inner
    except OSError:
        os.close(fd)
        raise
    return fd


def _has_openat2(root: int) -> bool:
    """Whether the kernel has the call and no sandbox forbids it."""
    try:
        os.close(_open_beneath(root, b"."))
    except OSError:
        return False
    return True
