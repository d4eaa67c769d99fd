"""Disks of the virtual machines: the base's, and an application's as what differs from it.

`debugfs` writes into images without root and without a mount: no loop device is ever made, and inode numbers and all
times are the same each time, which neither a mount nor `mke2fs -d` can do. A file that the base has not goes into
blocks that the base leaves empty, so the application's disk, a qcow2 over the base's, has hardly more than the
application's files.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.data import contained
from bench.data.pair import OLD_TIME_S, Unavailable
from bench.data.workshop import Workshop

DISK = "disk.qcow2"
SIZE_BYTES = 2 << 30
INODES = 1 << 16
UUID = "b6a1d3b0-64c2-4f0e-8d61-0c9a2f4f7a55"
CLUSTER_BYTES = 1 << 16
_ENVIRONMENT = {"E2FSPROGS_FAKE_TIME": str(OLD_TIME_S), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def base(workshop: Workshop, tree: Path, disk: Path) -> None:
    """Make the base's disk, with the files of `tree`."""
    contained.need("mkfs.ext4", "debugfs", "e2fsck", "qemu-img")
    scratch = workshop.scratch("disk")
    try:
        raw = scratch / "raw"
        with raw.open("wb") as image:
            image.truncate(SIZE_BYTES)
        _run("mkfs.ext4", "-q", "-F", "-b", "4096", "-U", UUID, "-N", str(INODES), "-O", "^has_journal,^resize_inode",
             "-m", "0", "-E", f"hash_seed={UUID},lazy_itable_init=1,nodiscard", str(raw))  # fmt: skip
        empty = scratch / "empty"
        empty.mkdir()
        _fill(raw, tree, empty, scratch / "script")
        _run("qemu-img", "convert", "-O", "qcow2", "-o", f"cluster_size={CLUSTER_BYTES}", str(raw), str(disk))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def app(workshop: Workshop, base_disk: Path, base_tree: Path, upper: Path, disk: Path) -> None:
    """Make an application's disk: the base's with the files of an overlay's upper folder, as what differs.

    Args:
        base_tree: what is on the base's disk.
    """
    contained.need("debugfs", "e2fsck", "qemu-img")
    scratch = workshop.scratch("disk")
    try:
        raw, whole, script, made = (scratch / name for name in ("raw", "whole", "script", "made"))
        _run("qemu-img", "convert", "-O", "raw", str(base_disk), str(raw))
        _run("cp", "--sparse=always", str(raw), str(whole))
        _fill(whole, upper, base_tree, script)
        form = ("-q", "-f", "qcow2")
        _run(
            "qemu-img", "create", *form, "-o", f"cluster_size={CLUSTER_BYTES}", "-b", str(whole), "-F", "raw", str(made)
        )
        _run("qemu-img", "rebase", *form, "-b", str(raw), "-F", "raw", str(made))
        # The name stands for the base's disk, wherever that lies: engines say where.
        _run("qemu-img", "rebase", *form, "-u", "-b", DISK, "-F", "qcow2", str(made))
        shutil.move(made, disk)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fill(image: Path, upper: Path, base_tree: Path, script: Path) -> None:
    script.write_text("".join(f"{line}\n" for line in commands(upper, base_tree)))
    said = _run("debugfs", "-w", "-f", str(script), str(image), errors=True).splitlines()
    if len(said) > 1:  # the first line is the program's version
        raise Unavailable(f"debugfs: {said[1]}")
    _run("e2fsck", "-f", "-n", str(image))


def commands(upper: Path, base_tree: Path) -> Iterator[str]:
    """What debugfs is to do so that a file system of `base_tree` gets what an overlay's upper folder holds."""
    linked: dict[int, list[Path]] = {}
    for top, folders, files in os.walk(upper):
        folders.sort()
        inner = Path(top).relative_to(upper)
        yield f"cd {_quoted('/' / inner)}"
        for name in sorted([*folders, *files]):
            path, old = upper / inner / name, base_tree / inner / name
            status = path.lstat()
            if _gone(status):
                yield from _removal(Path("/") / inner / name, old)
            elif stat.S_ISDIR(status.st_mode) and stat.S_ISDIR(_mode(old)) and not _opaque(path):
                yield from _facts(name, status)
            else:
                if _mode(old):
                    yield from _removal(Path("/") / inner / name, old)
                names = linked.setdefault(status.st_ino, []) if _is_linked(status) else []
                names.append(Path("/") / inner / name)
                if len(names) > 1:
                    yield f"link {_quoted(names[0])} {_quoted(name)}"
                    yield f"set_inode_field {_quoted(name)} links_count {len(names)}"
                    continue
                yield _creation(path, name, status)
                if not path.is_symlink():
                    yield from _facts(name, status)


def _creation(path: Path, name: str, status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return f"mkdir {_quoted(name)}"
    if stat.S_ISLNK(status.st_mode):
        return f"symlink {_quoted(name)} {_quoted(os.readlink(path))}"
    if stat.S_ISREG(status.st_mode):
        return f"write {_quoted(path)} {_quoted(name)}"
    raise Unavailable(f"a disk's layer cannot hold {path}: it is no file, folder or link")


def _facts(name: str, status: os.stat_result) -> Iterator[str]:
    quoted = _quoted(name)
    yield f"set_inode_field {quoted} mode 0{status.st_mode:o}"
    yield f"set_inode_field {quoted} uid {status.st_uid}"
    yield f"set_inode_field {quoted} gid {status.st_gid}"
    yield f"set_inode_field {quoted} mtime @{int(status.st_mtime)}"


def _removal(path: Path, old: Path) -> Iterator[str]:
    """Remove what the base has at `path`, which is `old` in its tree."""
    if stat.S_ISDIR(_mode(old)):
        for name in sorted(os.listdir(old)):
            yield from _removal(path / name, old / name)
        yield f"rmdir {_quoted(path)}"
    else:
        yield f"rm {_quoted(path)}"


def _is_linked(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink > 1


def _gone(status: os.stat_result) -> bool:
    """What overlayfs marks a removed file with."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _opaque(path: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(path)


def _mode(path: Path) -> int:
    """Type and permissions; 0 if there is nothing."""
    return path.lstat().st_mode if os.path.lexists(path) else 0


def _quoted(name: str | Path) -> str:
    return '"' + str(name).replace('"', '""') + '"'


def _run(*command: str, errors: bool = False) -> str:
    """Run a tool; returns what it prints, on its error output if `errors`."""
    tool = contained.find(command[0]) or command[0]
    done = subprocess.run([tool, *command[1:]], env=_ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stderr if errors else done.stdout
