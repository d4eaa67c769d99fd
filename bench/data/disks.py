"""A raw disk with an ext4 file system, before and after some of its files were changed.

`mkfs.ext4 -d` and `debugfs` need neither root nor a mount: no loop device is ever made.
"""

import os
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.data import contained, trees
from bench.data.pair import MB, NEW_TIME_S, OLD_TIME_S, PAGE_BYTES, Facts, check, differing_pages
from bench.data.workshop import Workshop

MIB = 1 << 20
SEED = 20240303
UUID = "5f1d7f0e-0d5c-4c0b-9a52-3a3d2b8f9a11"
LEAST_MB = 17
JOURNAL_BYTES = 8 * MIB
FULL = 0.6
"""Share of the disk, less about what the file system needs for itself, that the tree's files fill."""


def build(workshop: Workshop, folder: Path, size_mb: int) -> Facts:
    """Lay a sample of the cold tree on a disk; then overwrite blocks inside files, replace, delete and add files."""
    contained.need("mkfs.ext4", "debugfs", "e2fsck")
    old, new = folder / "old" / "disk.raw", folder / "new" / "disk.raw"
    for path in (old, new):
        path.parent.mkdir()
    size = size_mb * MB // MIB * MIB
    tree = folder / "tree"
    trees.sample(workshop.pair("cold-tree", None).new, tree, int((size - JOURNAL_BYTES) * FULL))
    with old.open("wb") as image:
        image.truncate(size)
    _tool("mkfs.ext4", "-q", "-F", "-b", str(PAGE_BYTES), "-U", UUID, "-E", f"hash_seed={UUID},lazy_itable_init=0",
          "-d", str(tree), str(old))  # fmt: skip
    subprocess.run(["cp", "--sparse=always", str(old), str(new)], check=True)
    rng = random.Random(SEED)
    files = [path for path in trees.file_paths(tree) if (tree / path).stat().st_size >= PAGE_BYTES]
    files.sort(key=lambda path: (tree / path).stat().st_size)
    large, rest = files[-20:], files[:-20]
    rng.shuffle(rest)
    count = max(3, len(rest) // 100)
    overwritten = _overwrite(new, tree, [str(path) for path in large + rest[: 4 * count]], rng)
    changes = _replace(new, tree, [str(path) for path in rest[4 * count : 5 * count]], rng)
    shutil.rmtree(tree)
    for image_path in (old, new):
        _tool("e2fsck", "-f", "-n", str(image_path))
    differ, pages = differing_pages(old, new)
    check(overwritten + changes <= differ <= pages // 5, f"ext4: {differ} of {pages} blocks were rewritten")
    os.utime(old, (OLD_TIME_S, OLD_TIME_S))
    os.utime(new, (NEW_TIME_S, NEW_TIME_S))
    return {"blocks": pages, "rewritten_blocks": differ, "overwritten_in_place": overwritten, "changed_files": changes}


def _overwrite(image: Path, tree: Path, paths: list[str], rng: random.Random) -> int:
    """Overwrite about a tenth of the blocks of each file where they lie, with content of other files.

    Returns:
        Number of blocks.
    """
    listing = _debugfs(image, [f'blocks "/{path}"' for path in paths])
    donors = [(tree / path).read_bytes() for path in paths[:50]]
    count = 0
    with image.open("r+b") as disk:
        for blocks in block_lists(listing):
            for block in rng.sample(blocks, max(1, len(blocks) // 10)):
                donor = rng.choice(donors)
                at = rng.randrange(len(donor) - PAGE_BYTES + 1)
                disk.seek(block * PAGE_BYTES)
                disk.write(donor[at : at + PAGE_BYTES])
                count += 1
    check(count >= len(paths), f"ext4: {count} blocks of {len(paths)} files were overwritten")
    return count


def block_lists(listing: str) -> list[list[int]]:
    """The blocks of each file, from what debugfs prints; holes are no blocks."""
    found = []
    for line in listing.splitlines():
        if line.strip() and not line.startswith("debugfs"):
            blocks = [int(number) for number in line.split() if number != "0"]
            if blocks:
                found.append(blocks)
    return found


def _replace(image: Path, tree: Path, paths: list[str], rng: random.Random) -> int:
    """Delete a third of the files, write a third anew with other content, and add as many.

    Returns:
        Number of changed files.
    """
    commands = []
    for number, path in enumerate(paths):
        donor = tree / rng.choice(paths)
        if number % 3 == 0:
            commands.append(f'rm "/{path}"')
        elif number % 3 == 1:
            commands += [f'rm "/{path}"', f'write "{donor}" "/{path}"']
        else:
            commands.append(f'write "{donor}" "/added-{number}"')
    _debugfs(image, commands, write=True)
    return len(commands)


def _debugfs(image: Path, commands: list[str], *, write: bool = False) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".debugfs") as script:
        script.write("\n".join(commands) + "\n")
        script.flush()
        return _tool("debugfs", *(("-w",) if write else ()), "-f", script.name, str(image))


def _tool(name: str, *arguments: str) -> str:
    path = contained.find(name)
    assert path is not None
    # A fixed clock: an image made again is the same.
    environment = {**os.environ, "E2FSPROGS_FAKE_TIME": str(OLD_TIME_S), "LC_ALL": "C"}
    done = subprocess.run([path, *arguments], env=environment, capture_output=True, text=True, check=False)
    check(done.returncode == 0, f"{name}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout
