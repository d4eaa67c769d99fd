"""Overlay file systems: read-only layers below, what an application writes above them.

Theory of operation
-------------------
An application's root is an overlay of its layers with the instance's `upper` folder on top. The upper folder must mean
the same on any machine that has the same layers, so every option that stores file handles, inode numbers or paths of
this machine in it is switched off (`PORTABLE`).

Mounts are made by a thread of their own, which sheds the process's working folder and root (`unshare(CLONE_FS)`) and
may then enter the mount namespace of another process, as a node's engine may have one of its own. Nothing of it is
left in the calling process. The kernel takes all options of a mount in one page of text: where absolute paths do not
fit, they are given relative to the deepest folder that they have in common.
"""

import ctypes
import errno
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from backends.errors import BackendError
from backends.overlaydiff import difference

__all__ = ["OverlayError", "difference", "is_mounted", "lower_of", "mount", "unmount", "unmount_beneath"]

PORTABLE = "index=off,metacopy=off,redirect_dir=off,xino=off"

_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_MNT_DETACH = 2
_PAGE_BYTES = 4096
_OCTAL = re.compile(r"\\([0-7]{3})")

_libc = ctypes.CDLL(None, use_errno=True)


class OverlayError(BackendError):
    """An overlay could not be mounted or unmounted."""


def lower_of(layer: Path) -> Path:
    """Where the file system of a layer is: below `rootfs/`, as images of LXD and OCI bundles have it, or at the top."""
    inner = layer / "rootfs"
    return inner if inner.is_dir() and not inner.is_symlink() else layer


def mount(lowers: Sequence[Path], upper: Path, work: Path, target: Path, *, mount_ns_pid: int | None = None) -> None:
    """Mount `upper` over `lowers` (the topmost first) on `target`; one that is mounted there already is left alone.

    Args:
        work: an empty folder on the file system of `upper`, for the kernel's own use.
        mount_ns_pid: a process in whose mount namespace to do it.

    Raises:
        OverlayError: the kernel refused, or a folder is missing.
    """
    if is_mounted(target, mount_ns_pid=mount_ns_pid):
        return
    for folder in (upper, work):
        folder.mkdir(mode=0o755, exist_ok=True)
        if folder.is_symlink():  # of a peer, whose instance it was: all that is written would go where that leads
            raise OverlayError(f"{folder} is a symbolic link")

    def act() -> None:
        base, options = _options(lowers, upper, work)
        destination = os.path.abspath(target)
        os.chdir(base)
        _check(_libc.mount(b"overlay", os.fsencode(destination), b"overlay", 0, options), f"mount on {target}")

    _apart(act, mount_ns_pid)


def unmount(target: Path, *, mount_ns_pid: int | None = None, hurry: bool = False) -> None:
    """Undo `mount`; the mount goes at once even where something below is in use. Idempotent.

    Args:
        hurry: do not wait until the kernel has written back what is dirty on the disk, of whomever, as it does when a
            file system goes; it is gone from `target` nevertheless.

    Raises:
        OverlayError: the kernel refused.
    """
    while is_mounted(target, mount_ns_pid=mount_ns_pid):
        path = os.fsencode(os.path.abspath(target))
        held: list[int] = []

        def act(path: bytes = path, held: list[int] = held) -> None:
            if hurry:
                held.append(os.open(path, os.O_PATH | os.O_CLOEXEC))  # the file system lives on until this is closed
            # "Invalid" is one that somebody else has just undone.
            if _libc.umount2(path, _MNT_DETACH) != 0 and ctypes.get_errno() != errno.EINVAL:
                _check(-1, f"unmount {target}")

        try:
            _apart(act, mount_ns_pid)
        finally:
            for handle in held:
                threading.Thread(target=os.close, args=(handle,), name="unmount").start()


def is_mounted(target: Path, *, mount_ns_pid: int | None = None) -> bool:
    """Whether an overlay is mounted on `target`."""
    wanted = os.path.realpath(target)
    return any(kind == "overlay" and point == wanted for point, kind in _mounts(mount_ns_pid))


def unmount_beneath(folder: Path) -> None:
    """Undo every mount of whatever kind at or below `folder`.

    Raises:
        OverlayError: the kernel refused.
    """
    top = os.path.realpath(folder)
    points = [point for point, _ in _mounts(None) if point == top or point.startswith(top + os.sep)]
    for point in reversed(points):  # the latest first
        if _libc.umount2(os.fsencode(point), _MNT_DETACH) != 0 and ctypes.get_errno() != errno.EINVAL:
            _check(-1, f"unmount {point}")


def _mounts(mount_ns_pid: int | None) -> Iterator[tuple[str, str]]:
    """Place and kind of each mount, in the order in which they were made."""
    process = "self" if mount_ns_pid is None else str(mount_ns_pid)
    try:
        with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            rows = file.read().split("\n")
    except OSError as error:
        raise OverlayError(f"cannot read the mounts of process {process}: {error.strerror}") from error
    for row in rows:
        fields = row.split(" ")
        if len(fields) > 9:
            yield _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]), fields[fields.index("-") + 1]


def _options(lowers: Sequence[Path], upper: Path, work: Path) -> tuple[str, bytes]:
    """The folder to be in, and the option text, absolute where that fits."""
    paths = [os.path.abspath(path) for path in (*lowers, upper, work)]
    for base in ("/", os.path.commonpath(paths)):
        shown = paths if base == "/" else [os.path.relpath(path, base) for path in paths]
        below = ":".join(_escaped(path, ",:\\") for path in shown[:-2])
        above, aside = (_escaped(path, ",\\") for path in shown[-2:])
        text = os.fsencode(f"lowerdir={below},upperdir={above},workdir={aside},{PORTABLE}")
        if len(text) < _PAGE_BYTES:
            return base, text
    raise OverlayError(f"{len(lowers)} layers with paths as long as {paths[0]} are too many for one mount")


def _escaped(path: str, special: str) -> str:
    return "".join(f"\\{letter}" if letter in special else letter for letter in path)


def _apart(act: Callable[[], None], mount_ns_pid: int | None) -> None:
    """Run `act` in a thread with a working folder of its own, in the mount namespace of a process."""
    problem: list[BaseException] = []

    def body() -> None:
        try:
            _check(_libc.unshare(_CLONE_FS), "unshare")
            if mount_ns_pid is not None:
                handle = os.open(f"/proc/{mount_ns_pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _check(_libc.setns(handle, _CLONE_NEWNS), f"enter the mounts of process {mount_ns_pid}")
                finally:
                    os.close(handle)
            act()
        except (BackendError, OSError) as error:
            problem.append(error)

    thread = threading.Thread(target=body, name="overlay")
    thread.start()
    thread.join()
    for error in problem:
        if isinstance(error, BackendError):
            raise error
        raise OverlayError(f"overlay: {error}") from error


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OverlayError(f"cannot {what}: {os.strerror(code)}")
