"""Running `runc`, with the CRIU that it is to use, and what it says when it fails.

A restore makes a folder in /tmp, by a path that is fixed in CRIU, to build the mounts of the container in. When CRIU is
killed it stays. So a restore is given a mount namespace of its own, where /tmp is a folder of the application's, which
goes with the rest. All else that CRIU makes is below its work folder.

Whatever runs for one purpose bears a mark in its environment, so that all of it can be found and ended, also by
another node than the one that started it.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from backends import criu, procfs
from backends.base import EngineSettings
from backends.command import RUN_MARK
from backends.errors import BackendError, BackendUnavailable

TIMEOUT_S = 600.0
"""For whatever does not depend on the size of the memory, however slow the machine."""

_TMP = Path("/tmp")
_SLOWEST = 8 << 20  # bytes of memory a second, to and from a disk that others use too
_END_TIMEOUT_S = 10.0
_POLL_S = 0.05
_TAIL_BYTES = 16 << 10
_MAX_MESSAGE = 400


class EngineFailed(BackendError):
    """runc or CRIU refused; the text says why."""


def limit_s(memory_bytes: int) -> float:
    """For how long a dump or restore of so much memory may go on."""
    return TIMEOUT_S + memory_bytes / _SLOWEST


class Runc:
    """The command line of runc for one application.

    Args:
        run: the run folder.
        settings: which CRIU to use.
        node: the network namespace to run it in, when not that of this process.
    """

    def __init__(self, run: Path, settings: EngineSettings, node: Path | None) -> None:
        self.notes = run / "runc"
        self._message = run / "runc.log"
        self._bin = run / "bin"
        self.tmp = run / "tmp"
        self._settings = settings
        self._node = node

    def command(self, *words: str | Path) -> list[str]:
        """The argv of a command of runc about this node's containers."""
        log = ["--log", str(self._message), "--log-format", "json"]
        return ["runc", "--root", str(self.notes), *log, *map(str, words)]

    def restoring(self, *words: str | Path) -> list[str]:
        """As `command`, for a restore.

        It has the machine's /tmp where nothing can be mounted there, and where that would hide what it needs.
        """
        needed = [self.notes, *filter(None, (criu.find(self._settings),))]
        if any(_TMP in path.resolve().parents for path in needed):
            return self.command("restore", *words)
        self.tmp.mkdir(mode=0o700, exist_ok=True)
        script = 'mount --bind "$1" /tmp 2>/dev/null; shift; exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "restore", str(self.tmp), *self.command("restore", *words)]

    def entered(self, command: list[str]) -> list[str]:
        """`command`, in the node's network."""
        return command if self._node is None else ["nsenter", f"--net={self._node}", *command]

    def environment(self, mark: str | None = None) -> dict[str, str]:
        """For runc, which looks for `criu` in PATH; and the mark of what it is run for."""
        path = os.environ.get("PATH", os.defpath)
        if (program := criu.find(self._settings)) is not None:
            self._bin.mkdir(mode=0o700, exist_ok=True)
            link = self._bin / "criu"
            if not link.is_symlink() or os.readlink(link) != str(program):
                link.unlink(missing_ok=True)
                link.symlink_to(program)
            path = f"{self._bin}:{path}"
        return {"PATH": path} if mark is None else {"PATH": path, RUN_MARK: mark}

    def run(
        self,
        *words: str | Path,
        mark: str | None = None,
        memory_bytes: Callable[[], int] = lambda: 0,
        spare: Callable[[], bool] = lambda: False,
        undo: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a command of runc to its end; in a session of its own, so that it survives a node that is killed.

        What is still at work after `limit_s` is ended, with all that it started.

        Args:
            mark: in the environment of runc and CRIU.
            memory_bytes: how much memory it works on; asked only when it takes long.
            spare, undo: as for `end_marked`.

        Raises:
            EngineFailed: it did not do it, in runc's words.
            BackendUnavailable: runc is gone.
        """
        self.forget_message()
        try:
            process = subprocess.Popen(
                self.entered(self.command(*words)),
                env=self.environment(mark),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise BackendUnavailable(f"runc cannot be run: {error.strerror}") from error
        limit, began = TIMEOUT_S, time.monotonic()
        try:
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                limit = limit_s(memory_bytes())
                code = process.wait(max(0.0, began + limit - time.monotonic()))
            problem = "" if code == 0 else self.message() or f"runc {words[0]}: exit code {code}"
        except subprocess.TimeoutExpired:
            problem = f"runc {words[0]} did not end within {limit:g} s"
        # CRIU may be at work still, also when runc was killed.
        if problem and not (mark is not None and end_marked(mark, spare, undo)):
            process.kill()
            process.wait()
            raise EngineFailed(problem)
        process.wait()

    def forget_message(self) -> None:
        self._message.unlink(missing_ok=True)

    def message(self) -> str:
        """The last error of runc, without its preamble."""
        for line in reversed(tail(self._message).splitlines()):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                if record["level"] in ("error", "fatal"):
                    text = re.sub(r"^runc \w+ failed: ", "", str(record["msg"]).split("\n")[0])
                    return text[:_MAX_MESSAGE]
        return ""


def end_marked(mark: str, spare: Callable[[], bool] = lambda: False, undo: Callable[[], None] = lambda: None) -> bool:
    """End all that bears this mark.

    All of it is held first, so that nothing of it can happen between the question whether to spare it and its end.

    Args:
        spare: whether it has passed the point of no return; it is given more time then.
        undo: takes back what it has begun; before its end, for then the application goes on at once.

    Returns:
        Whether it was spared, and has ended by itself since.
    """
    held: set[procfs.ProcessId] = set()
    while new := set(procfs.marked(RUN_MARK, mark)) - held:
        for process in new:
            procfs.send(process, signal.SIGSTOP)
            _wait_stopped(process)
        held |= new
    if held and spare():
        for process in held:
            procfs.send(process, signal.SIGCONT)
        if wait_marked(mark, _END_TIMEOUT_S):
            return True
    if held:
        undo()
    deadline = time.monotonic() + _END_TIMEOUT_S
    while (left := procfs.marked(RUN_MARK, mark)) and time.monotonic() < deadline:
        for process in left:
            procfs.send(process, signal.SIGKILL)
            procfs.wait_end(process, 0.1)
    return False


def _wait_stopped(process: procfs.ProcessId) -> None:
    """Wait until what a process was doing when SIGSTOP came is done."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while (found := procfs.stat(process.pid)) and found.process == process and found.state not in "TtZX":
        if time.monotonic() > deadline:
            return
        procfs.wait_end(process, 0.001)


def wait_marked(mark: str, timeout_s: float) -> bool:
    """Wait until nothing bears this mark any more."""
    deadline = time.monotonic() + timeout_s
    while left := procfs.marked(RUN_MARK, mark):
        if time.monotonic() > deadline:
            return False
        procfs.wait_end(left[0], _POLL_S)
    return True


def tail(path: Path) -> str:
    """The end of a log."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""
