"""Small root file systems for containers in tests, made of this machine's own files in a second or two."""

import fcntl
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
PYTHON = "/usr/bin/python3"
"""Python's place inside of `python_rootfs`."""

_FOLDERS = (
    "bin",
    "dev",
    "etc",
    "proc",
    "root",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "var/lib",
    "var/tmp",
)
_UNUSED = shutil.ignore_patterns(
    "__pycache__", "test", "tests", "idlelib", "lib2to3", "ensurepip", "config-*", "tkinter"
)
_LIBRARY = re.compile(r"(/\S+) \(0x")


def busybox_rootfs(folder: Path) -> Path:
    """Fill an empty or absent folder with busybox and its commands; needs Debian's busybox-static."""
    for name in _FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    names = subprocess.run([BUSYBOX, "--list"], capture_output=True, check=True, text=True).stdout.split()
    for name in names:
        if not (folder / "bin" / name).exists():
            (folder / "bin" / name).symlink_to("busybox")
    return folder


def python_rootfs(cache: Path) -> Path:
    """A root file system with busybox and the distribution's Python 3; made once in the folder `cache`, then shared.

    It is to be read only: tests mount overlays of it. Several processes may ask at once.
    """
    version = os.path.basename(os.path.realpath(PYTHON))
    ready = cache / f"rootfs-{version}"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            making = cache / "making"
            shutil.rmtree(making, ignore_errors=True)
            _fill(making, version)
            making.rename(ready)
    return ready


def _fill(folder: Path, version: str) -> None:
    busybox_rootfs(folder)
    library = Path("/usr/lib") / version
    if not library.is_dir():
        raise AssertionError(f"{sysconfig.get_platform()}: {PYTHON} keeps its library elsewhere than in {library}")
    shutil.copytree(library, folder / "usr/lib" / version, ignore=_UNUSED, symlinks=True, ignore_dangling_symlinks=True)
    shutil.copy(PYTHON, folder / "usr/bin" / version)
    for name in ("python3", "python"):
        (folder / "usr/bin" / name).symlink_to(version)
    binaries = [Path(PYTHON), *(library / "lib-dynload").glob("*.so")]
    printed = subprocess.run(["ldd", *binaries], capture_output=True, check=False, text=True).stdout
    for path in sorted(set(_LIBRARY.findall(printed))):
        target = folder / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
