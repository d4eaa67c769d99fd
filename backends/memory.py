"""How much memory of processes an engine will have to save."""

from collections.abc import Iterable
from pathlib import Path


def anonymous_bytes(pids: Iterable[int]) -> int:
    """What is in the memory of these processes and in no file: about the size of an image of it.

    Pages that several share count for each. A process that is gone, or not ours to look at, counts nothing.
    """
    return sum(map(_anonymous_bytes, pids))


def _anonymous_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_bytes()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith(b"Anonymous:"):
            return int(line.split()[1]) << 10
    return 0


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files in a folder; 0 where there is none."""
    if path.is_dir():
        return sum(size_of(entry) for entry in path.iterdir())
    try:
        return path.lstat().st_size
    except OSError:
        return 0
