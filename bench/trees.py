"""Real trees to copy: files that the machine has, up to a wanted size."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

SOURCES = ("/usr/lib", "/usr/share", "/usr/bin")
LARGEST_BYTES = 32 << 20


def build(target: Path, size_bytes: int) -> tuple[int, int]:
    """Copy real files below `target` until their sizes add up to `size_bytes`.

    Returns:
        Number of files, and bytes.
    """
    files = total = 0
    for path in _candidates():
        size = path.stat().st_size
        if total + size > size_bytes:
            continue
        copy = target / path.relative_to("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
        files, total = files + 1, total + size
        if total >= size_bytes * 0.999:
            break
    return files, total


def _candidates() -> Iterator[Path]:
    """Regular files that everybody may read, in an order that is the same in every run."""
    for source in SOURCES:
        for folder, subfolders, names in os.walk(source):
            subfolders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                    continue
                if 0 < path.stat().st_size <= LARGEST_BYTES:
                    yield path
