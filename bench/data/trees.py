"""Trees of files: a Debian root, and the same with a third of it renamed and moved."""

import hashlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench.data import contained, debs
from bench.data.pair import MB, Facts, Unavailable, check
from bench.data.workshop import Workshop

SUITE = "bookworm"
INCLUDE = "python3,perl,openssl,ca-certificates,less"
FULL_MB = 300
"""More than the whole tree has."""
WHOLE_TREE_FILES = 7000
SEED = 20240229


def cold(workshop: Workshop, folder: Path, size_mb: int) -> Facts:
    """A freshly installed small Debian root; smaller variants are an even sample of its files."""
    new = folder / "new"
    if size_mb < FULL_MB:
        whole = workshop.pair("cold-tree", None).new
        return {"sampled": sample(whole, new, size_mb * MB)}
    _debootstrap(workshop, new)
    files = len(file_paths(new))
    check(files >= WHOLE_TREE_FILES, f"cold-tree: {files} files only")
    return {"suite": SUITE}


def renamed(workshop: Workshop, folder: Path, size_mb: int) -> Facts:
    """The root with a third of its files under other paths, some by moved folders, some one by one."""
    tree = workshop.pair("cold-tree", size_mb).new
    old, new = folder / "old", folder / "new"
    subprocess.run(["cp", "-a", str(tree), str(old)], check=True)
    subprocess.run(["cp", "-a", str(tree), str(new)], check=True)
    paths = file_paths(new)
    plan = plan_moves(paths, random.Random(SEED))
    for source, target in plan.folders:
        _move(new, source, target)
    for source, target in plan.files:
        _move(new, source, target)
    found = file_paths(new)
    gone = len(set(paths) - set(found))
    check(len(found) == len(paths), "renamed: files were lost")
    check(0.3 <= gone / len(paths) <= 0.37, f"renamed: {gone} of {len(paths)} files have another path, not a third")
    check(_contents(old, paths) == _contents(new, found), "renamed: contents changed")
    return {"renamed_files": gone, "moved_folders": len(plan.folders), "files": len(paths)}


@dataclass(frozen=True)
class Moves:
    """What is renamed: folders first, then files, each a pair of the path before and after."""

    folders: list[tuple[PurePosixPath, PurePosixPath]]
    files: list[tuple[PurePosixPath, PurePosixPath]]


def plan_moves(paths: Iterable[PurePosixPath], rng: random.Random) -> Moves:
    """Choose a third of the files: half of it by moving and renaming whole folders, the rest one by one.

    Of the single files every second stays in its folder under another name, the others also move to another folder.
    """
    paths = sorted(paths)
    members: dict[PurePosixPath, int] = {}
    for path in paths:
        for parent in path.parents:
            members[parent] = members.get(parent, 0) + 1
    third = len(paths) // 3
    candidates = [path for path, count in members.items() if len(path.parts) >= 2 and count <= max(1, third // 6)]
    rng.shuffle(candidates)
    folders: list[tuple[PurePosixPath, PurePosixPath]] = []
    taken: set[PurePosixPath] = set()
    covered = 0
    for path in candidates:
        family = {path, *path.parents}
        if covered >= third // 2:
            break
        if family & taken or any(path in other.parents for other in taken):
            continue
        folders.append((path, PurePosixPath("srv", f"moved-{len(folders):03}", path.name + "-renamed")))
        taken.add(path)
        covered += members[path]
    staying = [path for path in paths if not taken.intersection(path.parents)]
    homes = sorted({path.parent for path in staying})
    files = []
    for number, path in enumerate(rng.sample(staying, min(len(staying), third - covered))):
        home = path.parent if number % 2 == 0 else rng.choice(homes)
        files.append((path, home / f"renamed-{number:05}-{path.name}"))
    return Moves(folders, files)


def sample(whole: Path, target: Path, size_bytes: int) -> int:
    """Copy an even sample of the files of a tree, at most `size_bytes` of them, with the folders that they are in.

    Returns:
        Number of copied files and symbolic links.
    """
    status = whole.lstat()
    share = min(1.0, size_bytes / max(1, sum(path.lstat().st_size for path in _entries(whole))))
    total = copied = 0
    for path in _entries(whole):
        relative = path.relative_to(whole)
        lot = int.from_bytes(hashlib.blake2b(os.fsencode(relative), digest_size=4).digest()) / (1 << 32)
        size = path.lstat().st_size
        if lot >= share or total + size > size_bytes:
            continue
        for parent in reversed(relative.parents):
            if not (target / parent).is_dir():
                (target / parent).mkdir()
                shutil.copystat(whole / parent, target / parent)
        shutil.copy2(path, target / relative, follow_symlinks=False)
        if os.geteuid() == 0:
            owner = path.lstat()
            os.chown(target / relative, owner.st_uid, owner.st_gid, follow_symlinks=False)
        total, copied = total + size, copied + 1
    check(copied > 0, "cold-tree: no file is small enough for this size")
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    return copied


def _debootstrap(workshop: Workshop, target: Path) -> None:
    contained.need_root("debootstrap makes a root file system")
    contained.need("debootstrap")
    tool = contained.find("debootstrap")
    assert tool is not None
    log = workshop.path / "debootstrap.log"
    log.unlink(missing_ok=True)
    command = [tool, "--variant=minbase", f"--include={INCLUDE}", SUITE, str(target), debs.mirror()]
    if contained.run(command, log) != 0:
        raise Unavailable(f"debootstrap failed: {contained.tail(log)}")
    # What differs from run to run or is no file: the packages themselves, lists, logs, devices.
    for pattern in ("var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*", "dev/*", "proc/*", "sys/*", "run/*"):
        for path in target.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _entries(whole: Path) -> list[Path]:
    """Regular files and symbolic links of a tree, sorted."""
    found = [path for path in whole.rglob("*") if stat.S_IFMT(path.lstat().st_mode) in (stat.S_IFREG, stat.S_IFLNK)]
    return sorted(found)


def file_paths(whole: Path) -> list[PurePosixPath]:
    """Paths of the regular files of a tree, relative to it, sorted."""
    return [PurePosixPath(path.relative_to(whole)) for path in _entries(whole) if not path.is_symlink()]


def _move(tree: Path, source: PurePosixPath, target: PurePosixPath) -> None:
    (tree / target).parent.mkdir(parents=True, exist_ok=True)
    (tree / source).rename(tree / target)


def _contents(tree: Path, paths: Iterable[PurePosixPath]) -> list[bytes]:
    return sorted(hashlib.blake2b((tree / path).read_bytes(), digest_size=16).digest() for path in paths)
