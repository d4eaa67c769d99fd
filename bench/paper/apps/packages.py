"""Debian packages installed over a base's tree, so that what they add is a tree of its own.

The base lies below an overlay whose upper folder becomes the application layer: packages are unpacked and configured
by dpkg itself, and what it changes in the base (its list of packages, the linker's cache) is part of the layer, as it
is of an image that was built by hand. That happens in namespaces which end with it, so that nothing stays mounted.
"""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from bench.data import contained
from bench.data.debs import Archive
from bench.data.pair import OLD_TIME_S, Unavailable
from bench.data.workshop import Workshop

SUITE = "bookworm"
CLOCK_S = 1.0
"""The kernel's time of files may be behind the clock's by a tick."""

UNUSED = (
    *(f"usr/share/{name}" for name in ("bash-completion", "doc", "fonts", "gtk-doc", "icons", "info", "lintian")),
    *(f"usr/share/{name}" for name in ("locale", "man", "pixmaps", "X11/locale")),
    # Drivers of graphics cards, for coding video on them.
    "usr/lib/x86_64-linux-gnu/mfx",
    "usr/lib/x86_64-linux-gnu/libmfxhw64.so*",
)
"""Folders and files that nothing here reads."""
PASSING = (
    "var/cache/*",
    "var/log/*",
    "var/lib/apt/*",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock*",
    "var/lib/dpkg/triggers/Lock",
    "etc/*-",
    "dev/*",
    "proc/*",
    "sys/*",
    "run/*",
    "tmp/*",
)
"""What differs from one installation to the next, or is of use only to a later one."""

_PORTABLE = "index=off,metacopy=off,redirect_dir=off,xino=off"
"""Options of an overlay whose upper folder is to be of use elsewhere."""
_POLICY = "usr/sbin/policy-rc.d"
_DPKG = ("--force-depends", "--force-unsafe-io")
_INSTALL = """set -e
root=$1 debs=$2
mount -t overlay overlay -o "$3" "$root"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mkdir "$root/tmp/debs"
mount --bind "$debs" "$root/tmp/debs"
shift 3
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \\
    SOURCE_DATE_EPOCH=1700000000 PYTHONHASHSEED=0 sh -c '
    prepare=$1
    shift
    dpkg "$@" --install /tmp/debs/*.deb || exit
    exec $prepare
    ' sh "$@"
"""


def install(
    workshop: Workshop, base: Path, packages: Sequence[str], without: Sequence[str], prepare: str, upper: Path
) -> None:
    """Install packages and what they depend on over the tree `base`; the difference comes to lie in `upper`.

    Args:
        without: packages that are left out although others depend on them.
        prepare: command line to run there afterwards, if any.
        upper: holds files that lie there already, or does not exist.
    """
    contained.need_root("packages are installed in an overlay")
    began_s = time.time() - CLOCK_S
    contained.need("dpkg", "chroot", "mount")
    scratch = workshop.scratch("install")
    try:
        debs, work, root, made = (scratch / name for name in ("debs", "work", "root", "upper"))
        for folder in (debs, work, root):
            folder.mkdir()
        if upper.exists():
            upper.rename(made)
        Archive.of(workshop, SUITE).fetch(packages, base / "var/lib/dpkg/status", debs, without)
        policy = made / _POLICY
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        options = f"lowerdir={base},upperdir={made},workdir={work},{_PORTABLE}"
        excluded = [f"--path-exclude=/{name if name.endswith('*') else name + '/*'}" for name in UNUSED]
        log = workshop.path / "install.log"
        log.unlink(missing_ok=True)
        command = ["sh", "-c", _INSTALL, "sh", str(root), str(debs), options, prepare, *_DPKG]
        if contained.run([*command, *excluded], log) != 0:
            raise Unavailable(f"installing {' '.join(packages)} failed: {contained.tail(log)}")
        policy.unlink()
        settle(made, began_s, base)
        made.rename(upper)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def settle(tree: Path, began_s: float, base: Path | None = None) -> None:
    """Take what would differ the next time out of a tree: caches, logs, times of making.

    Args:
        began_s: when making the tree began, in seconds since 1970.
        base: with one, `tree` is an overlay's upper folder over it: what is there as in the base goes as well.
    """
    for pattern in (*PASSING, *UNUSED):
        for path in tree.glob(pattern):
            _remove(path)
    for top, folders, files in os.walk(tree, topdown=False):
        for name in files:
            path = Path(top, name)
            if base is not None and _same(path, base / path.relative_to(tree)):
                path.unlink()
        for name in folders:
            path = Path(top, name)
            if base is None or path.is_symlink():
                continue
            if not os.listdir(path) and _same(path, base / path.relative_to(tree)):
                path.rmdir()
    date(tree, began_s)


def date(tree: Path, began_s: float) -> None:
    """Give everything below `tree`, and itself, a time that does not depend on when it was made.

    Files of packages keep theirs, which Python's compiled modules also hold; what is not older than `began_s` was made
    here, and gets a fixed one, as all folders do.
    """
    for top, folders, files in os.walk(tree, topdown=False):
        for name in (*files, *folders):
            path = Path(top, name)
            status = path.lstat()
            if status.st_mtime >= began_s or (path.is_dir() and not path.is_symlink()):
                os.utime(path, (OLD_TIME_S, OLD_TIME_S), follow_symlinks=False)
            _forget(path)
    _forget(tree)
    os.utime(tree, (OLD_TIME_S, OLD_TIME_S))


def _forget(path: Path) -> None:
    """Remove what an overlay has noted of its own lower folders, of this one machine."""
    for attribute in os.listxattr(path, follow_symlinks=False):
        if attribute.startswith("trusted.overlay.") and attribute != "trusted.overlay.opaque":
            os.removexattr(path, attribute, follow_symlinks=False)


def _same(path: Path, other: Path) -> bool:
    """A file, link or folder is what another one is, but for its time."""
    try:
        left, right = path.lstat(), other.lstat()
    except FileNotFoundError:
        return False
    if (left.st_mode, left.st_uid, left.st_gid) != (right.st_mode, right.st_uid, right.st_gid):
        return False
    if path.is_symlink():
        return path.readlink() == other.readlink()
    if path.is_dir():
        return "trusted.overlay.opaque" not in os.listxattr(path)
    return path.is_file() and left.st_size == right.st_size and path.read_bytes() == other.read_bytes()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
