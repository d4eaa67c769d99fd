"""What backends have in common whose applications run under a shim: starting, ending and asking after one run.

Everything is read from the run folder (`rundir`) and asked of the kernel. What a backend must add is which processes a
run left behind whose shim is gone: `Leftovers`.
"""

import sys
from collections.abc import Callable

from backends import procfs, shim, spawn
from backends.base import EngineState, Exit, Moment, Status, Workspace
from backends.errors import AlreadyRunning, StartFailed, StopFailed
from backends.procfs import ProcessId
from backends.rundir import Ended, Live, RunDir

SHIM_SLACK_S = 5.0
END_TIMEOUT_S = shim.LINGER_S + shim.GIVE_UP_S + SHIM_SLACK_S
"""How long a shim may need from the end of the main process to its own."""

SUSPENDING = "suspend"
"""Intent of a node that asked the application to save itself and to end: exit code 0 tells that it did."""

SUSPENDED = "suspended"
"""Intent of a node that knows."""

_TAIL_LINES = 5

Leftovers = Callable[[Live, Ended | None], list[ProcessId]]


def launch(workspace: Workspace, spec: shim.Spec, *, timeout_s: float | None = None) -> tuple[Live, spawn.Report]:
    """Start a shim and wait for its report, which may tell of a problem.

    Raises:
        AlreadyRunning: another shim supervises this application.
        StartFailed: there is no shim, and nothing was executed.
    """
    run_dir = RunDir(str(workspace.run_dir))
    try:
        report = spawn.spawn(spec, timeout_s=timeout_s)
    except OSError as error:
        raise StartFailed(f"cannot run {sys.executable}: {error.strerror}", executed=False) from error
    if report.problem == shim.LOCKED:
        raise AlreadyRunning(f"{workspace.name} has a supervisor already")
    live = run_dir.live()
    if live is None or live.run != spec.run:
        raise StartFailed(f"cannot start {workspace.name}: {report.problem}", executed=False)
    return live, report


def end(workspace: Workspace) -> None:
    """Have the shim end the application and itself; what a dead shim left is the caller's.

    Raises:
        StopFailed: the shim survived.
    """
    run_dir = RunDir(str(workspace.run_dir))
    live = run_dir.live()
    if live is None or not procfs.alive(live.shim):
        return
    if run_dir.ended(live.run) is None:
        run_dir.write_intent(live.run, "stop")
    procfs.send(live.shim, shim.STOP)
    if not procfs.wait_end(live.shim, workspace.config.stop_timeout_s + shim.GIVE_UP_S + SHIM_SLACK_S):
        procfs.send(live.shim, shim.KILL)
        if not procfs.wait_end(live.shim, SHIM_SLACK_S):
            pids = (live.shim.pid, live.app.pid)
            raise StopFailed(f"the supervisor of {workspace.name} cannot be killed: {pids}", pids)


def status(workspace: Workspace, leftovers: Leftovers) -> Status:
    """What is known of the latest run; SUSPENDED by intent alone is the backend's to judge."""
    run_dir = RunDir(str(workspace.run_dir))
    live = run_dir.live()
    if live is None:
        return Status(EngineState.ABSENT)
    started = Moment(live.wall_s, live.monotonic_s)
    same_boot = live.boot == procfs.boot_id()
    if same_boot and procfs.alive(live.shim):
        return Status(EngineState.RUNNING, live.app.pid, started)
    if same_boot:
        procfs.reap(live.shim)
    # Read after the shim was seen dead: it writes this before it ends.
    ended = run_dir.ended(live.run)
    intent = run_dir.intent(live.run)
    left = tuple(process.pid for process in leftovers(live, ended)) if same_boot else ()
    if ended is not None:
        exit = Exit(ended.code, ended.signal, ended.asked or intent is not None, ended.forced)
        if intent == SUSPENDED or (intent == SUSPENDING and exit.code == 0):
            return Status(EngineState.SUSPENDED, started=started, exit=exit, leftovers=left)
        if same_boot or intent == "stop":
            return Status(EngineState.EXITED, started=started, exit=exit, leftovers=left)
    reason = "its supervisor was killed" if same_boot else "the machine restarted"
    return Status(EngineState.LOST, started=started, leftovers=left, reason=reason)


def last_lines(output: bytes) -> str:
    """The last few lines, as one line for an error message."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line][-_TAIL_LINES:])
