"""The script that runs a command in a container, run on the host; and reading what a container may have put there."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from backends.base import Exit
from backends.lxd import inside
from tests.support.apps import eventually


class Box:
    """A root folder whose script runs as any process does: not as the first one, so it must not signal all others."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / inside.FOLDER
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        text = inside.script(command, env or {}, str(self.root / "state"))
        inside.write_script(self.root, text)
        text = text.replace(f"/{inside.FOLDER}", str(self.folder)).replace("kill -TERM -1", "true")
        text = text.replace("chmod 1777", ": chmod").replace("/proc/[0-9]*", "one")
        (self.folder / "init").write_text(text)
        self.close()
        command = ["/bin/sh", str(self.folder / "init")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        return self._process

    def run(self, command: Sequence[str], env: dict[str, str] | None = None) -> int:
        return self.start(command, env).wait(10)

    def close(self) -> None:
        """End it with all that it left: in a container the kernel does that when the first process has ended."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path)
    yield made
    made.close()


def log(box: Box) -> bytes:
    return inside.tail(box.root, 1 << 20)


def test_output_and_exit_code_are_kept(box: Box) -> None:
    assert box.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]) == 3
    eventually(lambda: log(box) == b"out\nerr\n")
    assert inside.ended(box.root) == Exit(3, None)
    assert not inside.absent(box.root)


def test_words_and_variables_arrive_as_they_are(box: Box) -> None:
    box.run(["/bin/sh", "-c", 'printf "%s|" "$0" "$A" "$PWD"', "it's $HOME *"], {"A": "x\n'y' \\"})
    eventually(lambda: log(box) == f"it's $HOME *|x\n'y' \\|{box.root / 'state'}|".encode())


def test_a_death_by_signal_is_told(box: Box) -> None:
    box.run(["/bin/sh", "-c", "kill -KILL $$"])
    assert inside.ended(box.root) == Exit(None, signal.SIGKILL)


def test_a_command_that_does_not_exist_was_not_executed(box: Box) -> None:
    assert box.run(["/nowhere/program"]) == 127
    assert inside.absent(box.root)
    assert inside.ended(box.root) is None
    eventually(lambda: log(box) == b"/nowhere/program: No such file or directory\n")


def test_a_sigterm_is_passed_on(box: Box) -> None:
    process = box.start(["/bin/sh", "-c", 'trap "echo bye; exit 0" TERM; echo ready; while :; do sleep 0.02; done'])
    eventually(lambda: log(box) == b"ready\n")
    process.terminate()
    assert process.wait(10) == 0
    assert inside.ended(box.root) == Exit(0, None)
    eventually(lambda: log(box) == b"ready\nbye\n")


def test_the_process_of_the_command_is_found_among_the_children(box: Box) -> None:
    process = box.start(["/bin/sh", "-c", "echo ready; while :; do sleep 0.02; done"])
    eventually(lambda: log(box) == b"ready\n")
    found = inside.main_process(box.root, process.pid)
    assert found is not None
    assert b"echo ready" in Path(f"/proc/{found}/cmdline").read_bytes()
    (box.folder / "pid").write_text("1")
    assert inside.main_process(box.root, process.pid) is None
    os.kill(found, signal.SIGKILL)
    process.wait(10)
    assert inside.main_process(box.root, process.pid) is None


def test_a_log_that_was_taken_goes_on(box: Box) -> None:
    box.start(["/bin/sh", "-c", "echo one; while [ ! -e go ]; do sleep 0.02; done; echo two"])
    eventually(lambda: log(box) == b"one\n")
    assert inside.take_log(box.root, 100) == b"one\n"
    assert log(box) == b""
    (box.root / "state" / "go").touch()
    eventually(lambda: log(box) == b"two\n")


def test_a_new_start_forgets_how_the_last_one_ended(box: Box) -> None:
    box.run(["false"])
    assert inside.ended(box.root) == Exit(1, None)
    inside.write_script(box.root, "x")
    assert inside.ended(box.root) is None


@pytest.mark.parametrize("text", ["", "abc", "-1", "99999999999999999999", "٣"])
def test_any_text_for_an_exit_is_bearable(tmp_path: Path, text: str) -> None:
    (tmp_path / inside.FOLDER).mkdir()
    (tmp_path / inside.FOLDER / "exit").write_text(text)
    found = inside.ended(tmp_path)
    assert found is None or found.code in range(256)


def test_links_are_not_followed(tmp_path: Path) -> None:
    root, secret = tmp_path / "root", tmp_path / "secret"
    (root / inside.FOLDER).mkdir(parents=True)
    secret.mkdir()
    (secret / "log").write_text("secret")
    (root / inside.FOLDER / "log").symlink_to(secret / "log")
    assert inside.tail(root, 100) == b""
    assert inside.take_log(root, 100) == b""
    (root / inside.FOLDER / "init").symlink_to(secret / "log")
    inside.write_script(root, "script")
    assert (secret / "log").read_text() == "secret"
    (root / inside.FOLDER / "log").unlink()
    (root / inside.FOLDER / "init").unlink()
    (root / inside.FOLDER).rmdir()
    (root / inside.FOLDER).symlink_to(secret)
    assert inside.tail(root, 100) == b""
    inside.write_script(root, "script")
    assert (root / inside.FOLDER / "init").read_text() == "script"
    assert [path.name for path in secret.iterdir()] == ["log"]


def test_a_pipe_in_place_of_the_log_does_not_block(tmp_path: Path) -> None:
    (tmp_path / inside.FOLDER).mkdir()
    os.mkfifo(tmp_path / inside.FOLDER / "log")
    begun = time.monotonic()
    assert inside.tail(tmp_path, 100) == b""
    assert time.monotonic() - begun < 5
