"""What a case of the benchmark is made of."""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.data.workshop import Workshop

MB = 1_000_000
PAGE_BYTES = 4096
OLD_TIME_S = 1_700_000_000
"""Modification time of made files; those of the new side are an hour younger, or rsync would skip same-sized ones."""
NEW_TIME_S = OLD_TIME_S + 3600

Facts = Mapping[str, int | float | str]


class Unavailable(Exception):
    """This machine lacks something that the data is made with; the text says what."""


class Spoiled(Exception):
    """What a maker made is not what the case is about: the text says which check failed."""


@dataclass(frozen=True)
class Pair:
    """One case's data.

    Attributes:
        name: of the case.
        old: folder with what the destination holds already; None for a cold case. `new` itself for the no-op.
        new: folder with what the source has.
        size: bytes of the regular files of `new`.
        files: number of regular files of `new`.
        image: made of pages or blocks: compare with `rsync -B 4096` too, its best form there.
    """

    name: str
    old: Path | None
    new: Path
    size: int
    files: int
    image: bool


@dataclass(frozen=True)
class Maker:
    """How a case's data comes into being.

    Attributes:
        build: called with the workshop, an empty folder and a size in MB; makes `new` and, unless cold, `old` in it
            and returns facts for the pair's manifest.
        size_mb: the case's full size; a smaller one may be asked for.
        least_mb: no variant is smaller.
        image: see `Pair.image`.
        same: the no-op: `old` is `new`, which is the pair of this other case.
    """

    build: "Callable[[Workshop, Path, int], Facts] | None"
    size_mb: int
    image: bool = False
    same: str | None = None
    least_mb: int = 1

    def variant(self, size_mb: int | None) -> int | None:
        """The size that is made when `size_mb` is asked for; None for the full one."""
        return None if size_mb is None or size_mb >= self.size_mb else max(size_mb, self.least_mb)


def measure(folder: Path) -> tuple[int, int]:
    """Number of regular files below `folder`, and their bytes."""
    files = size = 0
    for top, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(top, name))
            if stat.S_ISREG(status.st_mode):
                files, size = files + 1, size + status.st_size
    return files, size


def differing_pages(old: Path, new: Path) -> tuple[int, int]:
    """Number of pages of `new` that are not equal to the page at the same offset of `old`, and of all its pages."""
    differ = total = 0
    step = PAGE_BYTES * 256
    with old.open("rb") as left, new.open("rb") as right:
        while fresh := right.read(step):
            held = left.read(step)
            pages = range(0, len(fresh), PAGE_BYTES)
            total += len(pages)
            if held != fresh:
                differ += sum(held[at : at + PAGE_BYTES] != fresh[at : at + PAGE_BYTES] for at in pages)
    return differ, total


def check(sound: bool, text: str) -> None:
    """Refuse what was made, with `text`, unless it is `sound`."""
    if not sound:
        raise Spoiled(text)
