"""What a machine printed on its serial port: files in the run folder, of bounded size.

QEMU appends to `console`. Where libvirt hands that file to virtlogd (its default), virtlogd keeps it at some MB, and
the files before it as `console.0` (the younger) to `console.2`. Elsewhere it grows, and is cut here (`trim`), copied to
`console.0` first: QEMU opened it for appending, so it goes on at the new end.
"""

import contextlib
import os
import shutil
from pathlib import Path

LIMIT_BYTES = 4 << 20

_NAMES = ("console", "console.0", "console.1", "console.2")


def path_of(run_dir: Path) -> Path:
    return run_dir / _NAMES[0]


def trim(run_dir: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Cut the file when it is larger than `limit_bytes`. What is printed in that very moment may be lost."""
    path = path_of(run_dir)
    with contextlib.suppress(OSError):
        if path.stat().st_size > limit_bytes:
            shutil.copyfile(path, run_dir / _NAMES[1])
            os.truncate(path, 0)


def size(run_dir: Path) -> int:
    """Where it ends now, for `since`."""
    try:
        return path_of(run_dir).stat().st_size
    except FileNotFoundError:
        return 0


def since(run_dir: Path, start: int, max_bytes: int) -> bytes:
    """The last `max_bytes` of what was printed after `size` gave `start`."""
    grown = size(run_dir) - start
    return tail(run_dir, max_bytes if grown < 0 else min(max_bytes, grown))


def tail(run_dir: Path, max_bytes: int) -> bytes:
    """The last `max_bytes` of all."""
    data = b""
    for name in _NAMES:
        want = max_bytes - len(data)
        if want <= 0:
            break
        with contextlib.suppress(FileNotFoundError), (run_dir / name).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - want))
            data = file.read(want) + data
    return data
