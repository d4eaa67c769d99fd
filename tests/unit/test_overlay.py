"""Overlays: mounted in odd places, and differences that give a tree back. Needs root, for both ask it of the kernel."""

import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backends import overlay
from backends.errors import BackendError

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    folder = tmp_path / ("a,b:c\\d " + "e" * 100)
    folder.mkdir()
    return folder


def layers(folder: Path, count: int) -> list[Path]:
    made = []
    for number in range(count):
        layer = folder / f"{'l' * 60}{number}"
        layer.mkdir()
        (layer / f"file{number}").write_text(str(number))
        made.append(layer)
    return made


@pytest.mark.parametrize("count", [2, 30])
def test_layers_are_seen_and_what_is_written_is_above_them(odd: Path, count: int) -> None:
    (target := odd / "root").mkdir()
    overlay.mount(layers(odd, count), odd / "upper", odd / "work", target)
    try:
        assert overlay.is_mounted(target)
        overlay.mount([], odd / "upper", odd / "work", target)  # is there already
        assert len(list(target.iterdir())) == count
        (target / "file0").write_text("new")
        assert (odd / "upper/file0").read_text() == "new"
    finally:
        overlay.unmount(target)
    assert not overlay.is_mounted(target)
    assert list(target.iterdir()) == []
    overlay.unmount(target)


def test_a_mount_in_the_namespace_of_a_process_is_not_ours(odd: Path) -> None:
    (target := odd / "root").mkdir()
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1) as other:
        assert other.stdout is not None
        other.stdout.readline()
        before = os.getcwd()
        overlay.mount(layers(odd, 1), odd / "upper", odd / "work", target, mount_ns_pid=other.pid)
        assert overlay.is_mounted(target, mount_ns_pid=other.pid)
        assert not overlay.is_mounted(target)
        assert os.getcwd() == before
        overlay.unmount(target, mount_ns_pid=other.pid)
        assert not overlay.is_mounted(target, mount_ns_pid=other.pid)
        other.kill()


def test_a_refusal_has_its_reason(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(overlay.OverlayError, match="No such file"):
        overlay.mount([tmp_path / "none"], tmp_path / "upper", tmp_path / "work", tmp_path / "root")
    with pytest.raises(overlay.OverlayError, match="mounts of process"):
        overlay.is_mounted(tmp_path, mount_ns_pid=2**22 + 1)


def test_the_file_system_of_a_layer_may_be_below_rootfs(tmp_path: Path) -> None:
    assert overlay.lower_of(tmp_path) == tmp_path
    (tmp_path / "rootfs").symlink_to("/")
    assert overlay.lower_of(tmp_path) == tmp_path
    (tmp_path / "rootfs").unlink()
    (tmp_path / "rootfs").mkdir()
    assert overlay.lower_of(tmp_path) == tmp_path / "rootfs"


# Differences


def tree(folder: Path, *changes: Callable[[Path], object]) -> Path:
    folder.mkdir()
    for name in ("same", "gone", "edited", "owned", "marked", "turned"):
        (folder / name).write_text(name)
        os.utime(folder / name, (1, 1))
    for name in ("kept/deep", "emptied", "replaced", "folded"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text(name)
    (folder / "link").symlink_to("same")
    for change in changes:
        change(folder)
    return folder


def changed(folder: Path) -> None:
    (folder / "gone").unlink()
    (folder / "edited").write_text("EDITED")
    os.chown(folder / "owned", 12, 34)
    os.setxattr(folder / "marked", "user.note", b"x")
    (folder / "turned").unlink()
    (folder / "turned").mkdir(mode=0o711)
    (folder / "turned/new").write_text("new")
    (folder / "emptied/file").unlink()
    (folder / "replaced/file").rename(folder / "replaced/other")
    (folder / "folded/file").unlink()
    (folder / "folded").rmdir()
    (folder / "folded").write_text("a file now")
    (folder / "kept/deep").chmod(0o4750)
    (folder / "link").unlink()
    (folder / "link").symlink_to("edited")
    os.mkfifo(folder / "pipe")
    (folder / "one").write_text("twice")
    os.link(folder / "one", folder / "two")
    with open(folder / "holes", "wb") as file:
        file.truncate(10 << 20)
        file.seek(5 << 20)
        file.write(b"data")


def listing(folder: Path) -> dict[str, tuple[object, ...]]:
    rows: dict[str, tuple[object, ...]] = {}
    for path in [folder, *folder.rglob("*")]:
        found = path.lstat()
        content: object = None
        if stat.S_ISREG(found.st_mode):
            content = path.read_bytes()
        elif path.is_symlink():
            content = os.readlink(path)
        attributes = {name for name in os.listxattr(path, follow_symlinks=False) if not name.startswith("trusted.")}
        rows[str(path.relative_to(folder))] = (
            found.st_mode,
            found.st_uid,
            found.st_gid,
            found.st_rdev,
            attributes,
            content,
        )
    return rows


def test_an_upper_folder_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    lower, root, elsewhere = tmp_path / "lower", tmp_path / "root", tmp_path / "elsewhere"
    for folder in (lower, root, elsewhere):
        folder.mkdir()
    (tmp_path / "upper").symlink_to(elsewhere)
    with pytest.raises(overlay.OverlayError, match="symbolic link"):
        overlay.mount([lower], tmp_path / "upper", tmp_path / "work", root)
    assert not overlay.is_mounted(root)


def test_a_difference_gives_the_tree_back(tmp_path: Path) -> None:
    lower, wanted, out = tree(tmp_path / "lower"), tree(tmp_path / "tree", changed), tmp_path / "out"
    (tmp_path / "tree").chmod(0o711)
    overlay.difference(lower, wanted, out)
    assert not {"same", "kept/deep/file"} & listing(out).keys()
    assert stat.S_ISCHR((out / "gone").lstat().st_mode)
    assert os.getxattr(out / "replaced", "trusted.overlay.opaque") == b"y"
    assert (out / "one").samefile(out / "two")
    assert (out / "holes").stat().st_blocks * 512 < 1 << 20
    (root := tmp_path / "root").mkdir()
    overlay.mount([out, lower], tmp_path / "upper", tmp_path / "work", root)
    try:
        shown = listing(root)
    finally:
        overlay.unmount(root)
    expected = listing(wanted)
    assert {name: row for name, row in shown.items() if name != "."} == {
        name: row for name, row in expected.items() if name != "."
    }
    assert out.stat().st_mode == wanted.stat().st_mode


def test_equal_trees_differ_in_nothing(tmp_path: Path) -> None:
    lower = tree(tmp_path / "lower")
    other = tree(tmp_path / "tree", lambda folder: os.utime(folder / "same", (time.time(), 5)))
    overlay.difference(lower, other, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_told_in_a_difference_is_refused(tmp_path: Path) -> None:
    lower = tree(tmp_path / "lower")
    other = tree(tmp_path / "tree", lambda folder: os.mknod(folder / "hidden", stat.S_IFCHR, os.makedev(0, 0)))
    with pytest.raises(BackendError, match="whiteout"):
        overlay.difference(lower, other, tmp_path / "out")
    with pytest.raises(BackendError, match="not empty"):
        overlay.difference(lower, other, tmp_path / "lower")
