"""Supervise one application for as long as it runs, whatever becomes of the node.

Theory of operation
-------------------
The node starts `python -I -S` with `BOOT` and gives a `Spec` on standard input. The shim moves to a session of its own,
holds nothing of the node's but one pipe, and reports on it once whether the application could be executed. It is a
child of the node that started it, so that this one reaps it; when the node is killed it goes on unchanged.

The shim is a *subreaper*: processes that the application leaves behind become its children, so it can find and end all
of them, and no zombie stays. It ends when the last one has ended, and then tells how the main process did, in the
file `exit` (`rundir`). The kernel kills the main process should the shim itself be killed.

                         main process ended                   no children left
    running ------------------------------------> lingering --------------------> write `exit`, end
       | SIGTERM to the shim                        | SIGTERM to what is left; SIGKILL after LINGER_S
       v                                            |
    stopping: SIGTERM to the main process; after stop_timeout_s SIGKILL to all

An engine may start the main process in the shim's place: with `Spec.pid_file`, the command is a *launcher* that
starts (or restores) a container, writes the pid of its first process to that file, and ends. The container, orphaned
so, becomes a child of the shim, which supervises it as any other; its output comes through the same pipe, that
the launcher passed on. Until the launcher has ended, `live` names the launcher: should all be killed at that moment,
the engine knows whether there is a container.

Output comes through one pipe, which the shim copies into the bounded log. Everything is imported before the
application starts, so that an upgrade of the files under a running shim does it no harm.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import sys
import time
import traceback
from typing import NamedTuple, NoReturn

from backends import procfs
from backends.applog import BLOCK_BYTES, AppLog
from backends.rundir import Ended, Live, RunDir

# Appended, not prepended: nothing beside this package may hide a module of the standard library.
BOOT = "import sys; sys.path.append(sys.argv[1]); from backends import shim; shim.main()"

LOCKED = "another supervisor runs"
LINGER_S = 1.0
GIVE_UP_S = 10.0  # a process in an uninterruptible wait survives even SIGKILL; do not wait for ever
_KILL_PAUSE_S = 0.02
STOP, KILL = signal.SIGTERM, signal.SIGKILL

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36


class Spec(NamedTuple):
    """What to run and how; travels as JSON. `pid_file` is empty unless `argv` is a launcher."""

    run: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    run_dir: str
    log_path: str
    log_limit_bytes: int
    stop_timeout_s: float
    pid_file: str = ""


def main() -> None:
    """Entry point: detach, read the spec, supervise."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what the node itself had inherited
    os.setsid()
    os.chdir("/")
    spec = Spec(**json.load(sys.stdin))
    report = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    shim = Shim(spec, report)
    try:
        shim.run()
    except BaseException as error:
        # There is nobody to raise to: leave the reason where people look, and no process behind.
        shim.abandon(error)
        raise


class Shim:
    """One supervised run; `run` returns when nothing of the application is left."""

    def __init__(self, spec: Spec, report_fd: int) -> None:
        self._spec = spec
        self._report_fd = report_fd
        self._dir = RunDir(spec.run_dir)
        self._log = AppLog(spec.log_path, spec.log_limit_bytes)
        self._libc = ctypes.CDLL(None)
        self._asked = False  # a SIGTERM arrived
        self._told = False  # and was passed on, so that the end is not the application's own doing
        self._forced = False
        self._executed = False  # or may have been: told with every report
        self._wait_status: int | None = None  # of the main process, once it ended
        self._pid = 0

    def run(self) -> None:
        """Start the application, wait for its end, write `exit`."""
        lock = os.open(self._dir.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._report(LOCKED)
            return
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._libc.prctl(_PR_SET_NAME, b"p2player-shim", 0, 0, 0)
        wake = self._catch_signals()
        output, problem = self._launch()
        if not problem and self._spec.pid_file:
            problem = self._follow_launcher(wake, output)
        if not problem:
            self._report(None)
        left = self._supervise(wake, output)
        self._copy(output)
        self._log.close()
        self._dir.write_ended(self._ended(left))
        self._report(problem)  # after `exit`: the node finds a settled state when it reads this

    def _ended(self, left: list[procfs.ProcessId]) -> Ended:
        status = self._wait_status
        code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
        return Ended(
            run=self._spec.run,
            code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            asked=self._told,
            forced=self._forced,
            left=tuple(left),
        )

    def abandon(self, error: BaseException) -> None:
        """Kill what runs, and write down why."""
        for process in procfs.descendants(os.getpid()):
            procfs.send(process, signal.SIGKILL)
        text = "".join(traceback.format_exception(error))
        self._log.write(f"p2player: the supervisor failed\n{text}".encode(errors="replace"))
        with contextlib.suppress(OSError):
            self._report(f"the supervisor failed: {type(error).__name__}: {error}")

    def _report(self, problem: str | None) -> None:
        """Tell the node, once, how the start went; it may have been killed meanwhile."""
        if self._report_fd < 0:
            return
        with contextlib.suppress(BrokenPipeError):
            os.write(self._report_fd, json.dumps({"problem": problem, "executed": self._executed}).encode())
        os.close(self._report_fd)
        self._report_fd = -1

    def _catch_signals(self) -> int:
        """Make SIGTERM and SIGCHLD wake the poll; shrug off what a terminal sends. Returns the fd to poll."""
        wake, write = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        return wake

    def _on_sigterm(self, *_: object) -> None:
        self._asked = True

    def _launch(self) -> tuple[int, str | None]:
        """Fork and execute the application. Returns the read end of its output, and what went wrong or None.

        The child waits until `live` is written: no application executes that the next node could not find.
        """
        output, output_write = os.pipe()
        gate, gate_write = os.pipe()
        failure, failure_write = os.pipe()
        shim = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(gate_write)
            self._become_application(shim, gate, output_write, failure_write)
        os.close(gate)
        os.close(output_write)
        os.close(failure_write)
        self._write_live()
        self._executed = True
        with contextlib.suppress(BrokenPipeError):
            os.write(gate_write, b"go")
        os.close(gate_write)
        # Ends without a byte when exec closed the pipe, that is, when it succeeded.
        with open(failure, "rb") as pipe:
            problem = pipe.read(4096).decode(errors="replace")
        if problem:
            self._executed = False
        os.set_blocking(output, False)
        return output, problem or None

    def _write_live(self) -> None:
        me, child = procfs.stat(os.getpid()), procfs.stat(self._pid)
        assert me is not None
        assert child is not None  # at worst a zombie, as nobody has reaped it
        self._dir.write_live(
            Live(
                run=self._spec.run,
                boot=procfs.boot_id(),
                shim=me.process,
                app=child.process,
                wall_s=time.time(),
                monotonic_s=time.monotonic(),
            )
        )

    def _follow_launcher(self, wake: int, output: int) -> str | None:
        """Wait for the launcher's end; its container is the main process from here on. Returns what went wrong."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(output, select.POLLIN)
        while not (ended := os.waitpid(self._pid, os.WNOHANG))[0]:
            for fd, event in poll.poll():
                if fd == wake:
                    os.read(wake, 4096)
                elif event & select.POLLIN:
                    self._log.write(os.read(output, BLOCK_BYTES))
                else:
                    poll.unregister(output)
        code = os.waitstatus_to_exitcode(ended[1])
        if code == 0:
            try:
                with open(self._spec.pid_file, encoding="ascii") as file:
                    self._pid = int(file.read(32))
                self._write_live()
                return None
            except (OSError, ValueError, AssertionError) as error:
                self._wait_status = ended[1]
                return f"{self._spec.argv[0]} does not tell the process that it started: {error}"
        self._wait_status = ended[1]
        return f"{self._spec.argv[0]}: " + (f"exit code {code}" if code > 0 else f"killed by signal {-code}")

    def _become_application(self, shim: int, gate: int, output: int, failure: int) -> NoReturn:
        """In the child: shed everything of the shim's, then execute. Never returns."""
        spec = self._spec
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            self._libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != shim or os.read(gate, 2) != b"go":
                os._exit(127)  # the shim was killed before it could tell of us
            os.umask(0o022)
            os.chdir(spec.cwd)
            os.dup2(output, 1)
            os.dup2(output, 2)
            # The rest is closed by exec: Python makes no descriptor inheritable, and the node passed none on.
            # What is ignored stays ignored through exec; an application expects the defaults.
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.execvpe(spec.argv[0], spec.argv, spec.env)
        except BaseException as error:  # noqa: ASYNC103 - a forked child: nothing may leave this function
            text = error.strerror if isinstance(error, OSError) else None
            os.write(failure, f"{spec.argv[0]}: {text or error}".encode(errors="replace"))
        os._exit(127)

    def _supervise(self, wake: int, output: int) -> list[procfs.ProcessId]:
        """Copy output and reap children until none is left. Returns what could not be killed."""
        poll = select.poll()
        poll.register(wake, select.POLLIN)
        poll.register(output, select.POLLIN)
        kill_at = give_up_at = float("inf")
        while self._reap():
            now = time.monotonic()
            if self._asked and not self._told and self._wait_status is None:
                self._told = True
                kill_at = now + self._spec.stop_timeout_s
                os.kill(self._pid, signal.SIGTERM)
                os.kill(self._pid, signal.SIGCONT)
            if self._wait_status is not None and give_up_at == float("inf"):
                kill_at = min(kill_at, now + LINGER_S)
                give_up_at = kill_at + GIVE_UP_S
                self._signal_all(signal.SIGTERM)
                self._signal_all(signal.SIGCONT)
            if now >= kill_at:
                self._forced = self._forced or self._wait_status is None
                if give_up_at == float("inf"):
                    give_up_at = now + GIVE_UP_S
                if now >= give_up_at:
                    return procfs.descendants(os.getpid())
                self._signal_all(signal.SIGKILL)
            wait_s = _KILL_PAUSE_S if now >= kill_at else kill_at - now
            for fd, event in poll.poll(None if wait_s == float("inf") else wait_s * 1000):
                if fd == wake:
                    os.read(wake, 4096)
                elif event & select.POLLIN:
                    self._log.write(os.read(output, BLOCK_BYTES))
                else:
                    poll.unregister(output)  # every writer is gone
        return []

    def _reap(self) -> bool:
        """Collect ended children. False when there are no children at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._pid:
                self._wait_status = status

    def _signal_all(self, number: signal.Signals) -> None:
        for process in procfs.descendants(os.getpid()):
            procfs.send(process, number)

    def _copy(self, output: int) -> None:
        """Store what is still in the pipe."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(output, BLOCK_BYTES):
                self._log.write(data)
