"""The STATE folder: making it, refusing strange ones, its lock, and writes that survive a crash."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from p2player.errors import Refused
from p2player.statedir import StateDir, default_root, locked, write_atomic


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_private_and_has_a_format(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "deep" / "state")
    assert mode(state.root) == 0o700
    assert state.format.read_text() == "1\n"
    assert StateDir.open(state.root) == state


def test_a_relative_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StateDir.open(Path("state")).root == tmp_path / "state"


def test_the_mode_that_an_operator_chose_stays(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state")
    state.root.chmod(0o750)
    StateDir.open(state.root)
    assert mode(state.root) == 0o750


@pytest.mark.parametrize("content", ["2\n", "", "one", "1 1"])
def test_another_format_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "format").write_text(content)
    with pytest.raises(Refused, match="state format"):
        StateDir.open(tmp_path)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(Refused, match=r"thesis\.txt"):
        StateDir.open(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_settings_may_lie_there_before_the_node(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("warm_auto = true\n")
    assert StateDir.open(tmp_path).config.exists()


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match="cannot use"):
        StateDir.open(tmp_path / "file")


def test_the_lock_is_for_one(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state")
    told = rf"already running on {state.root} \(pid {os.getpid()}\)"
    with locked(state), pytest.raises(Refused, match=told), locked(state):
        pytest.fail("two hold the lock")
    with locked(state):
        pass


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom p2player.statedir import StateDir, locked\n"
        "with locked(StateDir(Path(sys.argv[1]))):\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(state.root)], check=False)
    assert done.returncode == -9
    with locked(state):
        assert state.lock.read_text() == f"{os.getpid()}\n"


def test_a_write_replaces_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old and longer")
    write_atomic(path, b"new", 0o640)
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def broken(fd: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_default_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert default_root({}) == Path("/home/ann/.local/state/p2player")
    assert default_root({"XDG_STATE_HOME": "relative"}) == Path("/home/ann/.local/state/p2player")
    assert default_root({"XDG_STATE_HOME": "/var/state"}) == Path("/var/state/p2player")
