"""The embedded backend: an application is a child process, and moves by its own cooperation.

Theory of operation
-------------------
`start` spawns a shim (`shim`), which executes the application and outlives the node; the files of the run folder
(`rundir`) say who runs and how it ended. Nothing is remembered here: a node that was killed reads the same files.

*Suspend* is SIGTERM to the main process, which writes what it must to its state folder and exits 0 within
`stop_timeout_s`. Any other exit aborts: the application is started again where it was. One that does not end in time
keeps running; should it end later after all, `status` tells that it had been asked to (`Exit.asked`), and the node
starts it again. *Restore* is a start in the state folder that has arrived, and so is *resume*.

*Stop* is a signal to the shim, which does the rest even when the node dies meanwhile: SIGTERM, then SIGKILL to all
that descends from the application, also what left its session.

A LOST run: the boot id changed, or the shim was killed. The kernel then killed the main process with it; its children
may live on, and are recognised by the mark of the run in their environment (`P2P_RUN`).
"""

import os
import secrets
import signal
import time
from collections.abc import Mapping, Sequence

from backends import applog, procfs, shim, supervised
from backends.base import (
    AppLayout,
    Capabilities,
    Checkpoint,
    EngineState,
    Moment,
    Probe,
    Started,
    Status,
    Workspace,
)
from backends.command import RUN_MARK, Folders, arguments, environment
from backends.errors import (
    AlreadyRunning,
    ConfigError,
    HookFailed,
    NotRunning,
    StartFailed,
    StopFailed,
    SuspendFailed,
)
from backends.folders import remove_tree
from backends.hooks import run_hook
from backends.procfs import ProcessId
from backends.rundir import Ended, Live, RunDir

VERSION = "1"  # of what shim, run folder and node agree on

_SWEEP_TIMEOUT_S = 5.0
_TAIL_BYTES = 2048


class ProcessBackend:
    """See `backends.base.Backend`.

    Args:
        healthy_after_s: a command that lives shorter counts as failed.
        log_limit_bytes: size at which an application's log is rotated.
    """

    name = "process"
    capabilities = Capabilities(live=False, cooperative=True, leave_running=True, root=False)

    def __init__(self, *, healthy_after_s: float = 1.0, log_limit_bytes: int = applog.LIMIT_BYTES) -> None:
        self._healthy_after_s = healthy_after_s
        self._log_limit_bytes = log_limit_bytes

    def probe(self) -> Probe:
        """Needs Linux with /proc and pidfds."""
        try:
            me = procfs.stat(os.getpid())
            procfs.boot_id()
            os.close(os.pidfd_open(os.getpid()))
        except (OSError, AttributeError) as error:
            return Probe(self.name, False, None, f"needs Linux with /proc and pidfd_open: {error}")
        if me is None:
            return Probe(self.name, False, None, "/proc does not show this process")
        return Probe(self.name, True, VERSION)

    def create(self, layout: AppLayout) -> None:
        """Needs `command`."""
        if not layout.config.command:
            raise ConfigError("command", "the process backend needs a command")
        _make_folders(layout)

    def start(self, layout: AppLayout) -> Started:
        """Spawn, and wait until the application has lived for `healthy_after_s`."""
        if not layout.config.command:
            raise ConfigError("command", "the process backend needs a command")
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            raise AlreadyRunning(f"{layout.name} is running already, as process {status.pid}")
        try:
            _make_folders(layout)
        except OSError as error:
            raise StartFailed(f"cannot start {layout.name}: {error}", executed=False) from error
        self._sweep(layout)

        log_mark = applog.mark(str(layout.log_path))
        live = self._spawn(layout)
        if not procfs.wait_end(live.app, self._healthy_after_s):
            return Started(live.app.pid, Moment(live.wall_s, live.monotonic_s))
        procfs.wait_end(live.shim, supervised.END_TIMEOUT_S)
        self.stop(layout)
        ended = self.status(layout).exit
        raise StartFailed(
            f"{layout.name} ended within {self._healthy_after_s:g} s: {ended or 'its supervisor was killed'}",
            executed=True,
            exit=ended,
            log_tail=supervised.last_lines(applog.since(str(layout.log_path), log_mark, _TAIL_BYTES)),
        )

    def stop(self, workspace: Workspace) -> None:
        """Ask the shim to end everything; if it is stuck, do it from here."""
        supervised.end(workspace)
        self._sweep(workspace)  # which also reaps the shim

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> Checkpoint:
        """With `leave_running` the `save` hook; else SIGTERM and a clean exit."""
        status = self.status(layout)
        if status.state is not EngineState.RUNNING:
            raise NotRunning(f"{layout.name} is not running")
        if leave_running:
            at = Moment.now()
            return Checkpoint(at, saved=run_hook("save", layout, pid=status.pid))
        return self._end_cleanly(layout)

    def obstacles(self, layout: AppLayout) -> Sequence[str]:
        """None: the application does it itself."""
        return ()

    def facts(self, layout: AppLayout) -> Mapping[str, str]:
        """None: it starts afresh."""
        return {}

    def mismatches(self, facts: Mapping[str, str]) -> Sequence[str]:
        """None, likewise."""
        return ()

    def suspend(self, layout: AppLayout, *, memory: bool = True) -> Checkpoint:
        """`before_suspend`, SIGTERM, exit 0 in time; there is no memory to keep."""
        status = self.status(layout)
        if status.state is not EngineState.RUNNING:
            how = f" ({status.exit})" if status.exit else ""
            raise SuspendFailed(f"{layout.name} is not running{how}", running=False)
        try:
            run_hook("before_suspend", layout, pid=status.pid)
        except HookFailed as error:
            raise SuspendFailed(f"{layout.name}: {error}", running=True) from error
        return self.checkpoint(layout, leave_running=False)

    def resume(self, layout: AppLayout) -> Started:
        """Start again, unless it runs."""
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            assert status.pid is not None
            assert status.started is not None
            return Started(status.pid, status.started)
        return self.start(layout)

    def restore(self, layout: AppLayout) -> Started:
        """A start: all that was running state is in the state folder."""
        return self.start(layout)

    def destroy(self, workspace: Workspace) -> None:
        """Stop, then delete run folder, state folder and log."""
        self.stop(workspace)
        for folder in (workspace.run_dir, workspace.state_dir):
            remove_tree(folder)
        applog.remove(str(workspace.log_path))

    def logs(self, workspace: Workspace, max_bytes: int) -> bytes:
        """Both files of the log, oldest first."""
        return applog.tail(str(workspace.log_path), max_bytes)

    def status(self, workspace: Workspace) -> Status:
        """Read the run folder and ask the kernel."""
        return supervised.status(workspace, _leftovers)

    def _spawn(self, layout: AppLayout) -> Live:
        """Start a shim and wait for its report."""
        run = secrets.token_hex(16)
        run_dir = RunDir(str(layout.run_dir))
        spec = shim.Spec(
            run=run,
            argv=arguments(layout.config.command, Folders.of(layout)),
            env=environment(layout, {RUN_MARK: run}),
            cwd=str(layout.state_dir),
            run_dir=run_dir.path,
            log_path=str(layout.log_path),
            log_limit_bytes=self._log_limit_bytes,
            stop_timeout_s=layout.config.stop_timeout_s,
        )
        live, report = supervised.launch(layout, spec)
        if report.problem is not None:
            self._sweep(layout)
            raise StartFailed(f"cannot start {layout.name}: {report.problem}", executed=report.executed)
        return live

    def _end_cleanly(self, layout: AppLayout) -> Checkpoint:
        """SIGTERM to the main process and exit 0 in time; else the application is back and SuspendFailed raised."""
        run_dir = RunDir(str(layout.run_dir))
        live = run_dir.live()
        assert live is not None
        timeout_s = layout.config.stop_timeout_s
        run_dir.write_intent(live.run, supervised.SUSPENDING)
        at = Moment.now()
        procfs.send(live.app, signal.SIGTERM)
        if not procfs.wait_end(live.app, timeout_s):
            raise SuspendFailed(f"{layout.name} did not exit within {timeout_s:g} s of SIGTERM", running=True)
        # The shim now ends what the main process left behind.
        procfs.wait_end(live.shim, supervised.END_TIMEOUT_S)
        status = self.status(layout)
        if status.state is EngineState.SUSPENDED and not status.leftovers:
            return Checkpoint(at, paused_s=time.monotonic() - at.monotonic_s)
        problem = f"{layout.name} did not exit cleanly on SIGTERM ({status.exit or status.reason})"
        try:
            self.start(layout)
        except StartFailed as error:
            raise SuspendFailed(f"{problem}, and did not start again: {error}", running=False) from error
        raise SuspendFailed(f"{problem}; it was started again", running=True)

    def _sweep(self, workspace: Workspace) -> None:
        """Kill what a dead shim left of its run.

        Raises:
            StopFailed: something did not die.
        """
        run_dir = RunDir(str(workspace.run_dir))
        live = run_dir.live()
        if live is None or live.boot != procfs.boot_id():
            return
        procfs.reap(live.shim)
        deadline = time.monotonic() + _SWEEP_TIMEOUT_S
        while left := _leftovers(live, run_dir.ended(live.run)):
            if time.monotonic() > deadline:
                pids = tuple(process.pid for process in left)
                raise StopFailed(f"processes of {workspace.name} cannot be killed: {pids}", pids)
            for process in left:
                procfs.send(process, signal.SIGKILL)
                procfs.wait_end(process, 0.1)


def _leftovers(live: Live, ended: Ended | None) -> list[ProcessId]:
    """What still executes of a run whose shim is gone: what that could not kill, or all when it was killed itself."""
    if ended is None:
        return procfs.marked(RUN_MARK, live.run)
    return [process for process in ended.left if procfs.alive(process)]


def _make_folders(workspace: Workspace) -> None:
    for folder in (workspace.run_dir, workspace.state_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
