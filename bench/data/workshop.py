"""The work folder: finished pairs and shared ingredients, each made once and moved into place when whole."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.data.pair import Facts, Maker, Pair, check, measure

MANIFEST = "pair.json"


class Workshop:
    """A work folder that this process has to itself; see `opened`."""

    def __init__(self, path: Path, cases: "dict[str, Maker]") -> None:
        self.path = path
        self._cases = cases

    def pair(self, name: str, size_mb: int | None) -> Pair:
        """The data of a case, made now if it is not there."""
        maker = self._cases[name]
        size_mb = maker.variant(size_mb)
        found = finished(self.path, name, size_mb)
        if found is not None:
            return found
        if maker.same is not None:
            other = self.pair(maker.same, size_mb)
            made = Pair(name, other.new, other.new, other.size, other.files, maker.image)
            folder = self._place(name, size_mb)
            folder.mkdir(exist_ok=True)
            self._note(folder, made, {})
            return made
        build = maker.build
        assert build is not None
        with self._making(self._place(name, size_mb)) as folder:
            facts = build(self, folder, size_mb or maker.size_mb)
            check((folder / "new").is_dir(), f"{name}: nothing was made")
            files, size = measure(folder / "new")
            check(files > 0, f"{name}: no files were made")
            place = self._place(name, size_mb)
            old = place / "old" if (folder / "old").is_dir() else None
            made = Pair(name, old, place / "new", size, files, maker.image)
            self._note(folder, made, facts)
        return made

    def ingredient(self, name: str, build: Callable[[Path], None]) -> Path:
        """A folder that several cases share; `build` fills an empty one the first time."""
        place = self.path / "ingredients" / name
        if not place.is_dir():
            place.parent.mkdir(exist_ok=True)
            with self._making(place) as folder:
                build(folder)
        return place

    def scratch(self, name: str) -> Path:
        """An empty folder for the time of one maker, which removes it; what an interrupted run left there is gone."""
        folder = self.path / f".{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def _place(self, name: str, size_mb: int | None) -> Path:
        return self.path / folder_name(name, size_mb)

    @contextmanager
    def _making(self, place: Path) -> Iterator[Path]:
        folder = place.parent / f".making-{place.name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
            folder.rename(place)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _note(self, folder: Path, made: Pair, facts: Facts) -> None:
        manifest = {
            "name": made.name,
            "old": None if made.old is None else os.path.relpath(made.old, self.path),
            "new": os.path.relpath(made.new, self.path),
            "size": made.size,
            "files": made.files,
            "image": made.image,
            "facts": dict(facts),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def folder_name(name: str, size_mb: int | None) -> str:
    """Name of a pair's folder in the work folder."""
    return name if size_mb is None else f"{name}-{size_mb}mb"


def finished(work: Path, name: str, size_mb: int | None) -> Pair | None:
    """The pair if it was made before and is still there."""
    try:
        manifest = json.loads((work / folder_name(name, size_mb) / MANIFEST).read_text())
    except FileNotFoundError:
        return None
    old, new = manifest["old"], work / manifest["new"]
    pair = Pair(name, None if old is None else work / old, new, manifest["size"], manifest["files"], manifest["image"])
    return pair if new.is_dir() and (pair.old is None or pair.old.is_dir()) else None


def noted(work: Path, name: str, size_mb: int | None) -> Facts:
    """What the maker found out about a finished pair."""
    found: Facts = json.loads((work / folder_name(name, size_mb) / MANIFEST).read_text())["facts"]
    return found


@contextmanager
def opened(work: Path, cases: "dict[str, Maker]") -> Iterator[Workshop]:
    """Have the work folder to oneself; waits for another process that is making data there."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Workshop(work, cases)
