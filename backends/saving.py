"""Saving the memory of an application in a container of runc, and what became of it when that did not go well.

Before a final dump the node notes its intent, for it may be killed while CRIU goes on. Its successor finds one of
three things: CRIU still at work; the application ended and its dump whole, which counts then; or neither, and the
application goes on as before.
"""

import threading
import time

from backends import oci, procfs, supervised
from backends.base import AppLayout, Checkpoint, Moment, Workspace
from backends.container import Container
from backends.errors import BackendError, SuspendFailed
from backends.rundir import Live, RunDir

SAVING = "save"
"""Intent of a node that has CRIU save the application, and does not know yet how that went."""

_taking = threading.Lock()


def save_and_go_on(layout: AppLayout, container: Container, options: oci.Options) -> Checkpoint:
    """A dump that leaves the application running."""
    live = _ready(layout, container)
    RunDir(str(layout.run_dir)).clear_intent()  # of a node that was killed in a final dump: this one is none
    at = Moment.now()
    try:
        container.dump(options, live.run, live.app, leave_running=True)
        took_s = time.monotonic() - at.monotonic_s
        container.dumps.take()
    except (BackendError, OSError) as error:
        raise _not_saved(layout, live, container, error) from error
    paused_s = container.dumps.paused_s()
    return Checkpoint(at, paused_s=took_s if paused_s is None else paused_s)


def save_and_end(layout: AppLayout, container: Container, options: oci.Options) -> Checkpoint:
    """The final dump."""
    run_dir, live = RunDir(str(layout.run_dir)), _ready(layout, container)
    run_dir.write_intent(live.run, SAVING)
    at = Moment.now()
    try:
        container.dump(options, live.run, live.app, leave_running=False)
    except (BackendError, OSError) as error:
        run_dir.clear_intent()
        raise _not_saved(layout, live, container, error) from error
    procfs.wait_end(live.shim, supervised.END_TIMEOUT_S)
    procfs.reap(live.shim)
    if not take_final_dump(layout, container):
        raise SuspendFailed(f"{layout.name} has ended, and its memory was not saved", running=False)
    container.clear()
    return Checkpoint(at, paused_s=time.monotonic() - at.monotonic_s)


def take_final_dump(workspace: Workspace, container: Container) -> bool:
    """Let a final dump count, if there is a whole one and its container is gone; again, it changes nothing.

    Whoever asks for the status may come between the end of a container and the note of that.
    """
    run_dir = RunDir(str(workspace.run_dir))
    with _taking:
        live = run_dir.live()
        assert live is not None
        if run_dir.intent(live.run) == SAVING and container.dumps.is_whole():
            container.dumps.take_final()
            run_dir.write_intent(live.run, supervised.SUSPENDED)
            container.dumps.forget_old()
        return run_dir.intent(live.run) == supervised.SUSPENDED


def settle(workspace: Workspace, container: Container, *, interrupt: bool = False) -> None:
    """Have an application go on whose dump was killed together with its node, unless it was saved.

    Args:
        interrupt: end a dump that goes on.
    """
    run_dir = RunDir(str(workspace.run_dir))
    live = run_dir.live()
    if live is None:
        return
    final = run_dir.intent(live.run) == SAVING
    if container.settle_dump(live.app, final=final, interrupt=interrupt) and final:
        run_dir.clear_intent()


def _ready(layout: AppLayout, container: Container) -> Live:
    """Have nothing of another dump left before a new one; that may have been about to end the application."""
    settle(layout, container, interrupt=True)
    live = RunDir(str(layout.run_dir)).live()
    assert live is not None
    if not procfs.alive(live.app):
        raise SuspendFailed(f"{layout.name} has ended", running=False)
    container.dumps.forget()
    return live


def _not_saved(layout: AppLayout, live: Live, container: Container, error: Exception) -> SuspendFailed:
    """What became of an application that could not be saved."""
    container.dumps.forget()
    running = procfs.alive(live.app) and procfs.alive(live.shim)
    return SuspendFailed(f"{layout.name} could not be saved: {error}", running=running)
