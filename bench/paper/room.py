"""A folder for everything that is made, which is gone afterwards, whatever was mounted below it."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.folders import remove_tree

PREFIX = "p2paper-"


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """A folder of its own below `folder`, while the block runs; what killed benches left there is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            clear(left)
    made = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=folder))
    try:
        yield made
    finally:
        clear(made)


def clear(folder: Path) -> None:
    """Unmount what is mounted below a folder, the last one first, and delete it."""
    for place in reversed(mounts_below(folder)):
        subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)
    remove_tree(folder)


def mounts_below(folder: Path) -> list[Path]:
    """Mount points below a folder, or the folder itself, in the order in which they were mounted."""
    top = os.fsencode(folder.resolve())
    rows = Path("/proc/self/mountinfo").read_bytes().splitlines()
    places = [row.split(b" ")[4].decode("unicode_escape").encode("latin-1") for row in rows]
    return [Path(os.fsdecode(place)) for place in places if place == top or place.startswith(top + b"/")]
