"""Whether a folder of CRIU's images can be restored, as far as can be told without CRIU.

CRIU reads the pages of memory last, in the restored processes themselves, and may do so for ever when their file is
too short. So that is looked at before. Other damage CRIU finds by itself, and says so.
"""

import os
from pathlib import Path

from chunkstore.images import criu
from chunkstore.images.errors import ImageInvalid
from chunkstore.images.layout import PAGE_BYTES


def damage(images: Path) -> str | None:
    """What is wrong with the memory pages of these images, in one line; None when nothing is."""
    try:
        names = sorted(os.listdir(images))
    except OSError as error:
        return f"{images.name}: {error.strerror}"
    for name in names:
        if not criu.is_map_name(os.fsencode(name)):
            continue
        try:
            number, wanted = _pages_of(images / name)
        except ImageInvalid:
            continue  # it may be newer than what is known here
        except OSError as error:
            return f"{name}: {error.strerror}"
        pages = images / f"pages-{number}.img"
        try:
            size = pages.stat().st_size
        except OSError as error:
            return f"{pages.name}: {error.strerror}"
        if size < wanted:
            return f"{pages.name} is truncated: it has {size} of {wanted} bytes"
    return None


def _pages_of(pagemap: Path) -> tuple[int, int]:
    """The number of the pages file that belongs to a pagemap, and how many bytes must be in it."""
    with open(pagemap, "rb") as file:
        found = criu.Pagemap(lambda at, size: os.pread(file.fileno(), size, at))
        return found.pages_number, sum(run.pages for run in found.runs() if run.stored) * PAGE_BYTES
