"""End a container: asked first, then killed."""

from backends.errors import StopFailed
from backends.lxd import instance, verdict
from backends.lxd.application import Application, await_monitor
from backends.lxd.daemon import LxdError, StillAtWork
from backends.lxd.notes import Phase


def stop(app: Application) -> None:
    """Ask its first process to end, then kill it; then the volume is unmounted. Idempotent.

    Raises:
        StopFailed: it cannot be ended, or may be started yet.
    """
    container, workspace = app.container, app.workspace
    try:
        app.await_idle(instance.OP_TIMEOUT_S)
    except StillAtWork as error:
        if (row := container.row()) is not None and row.stopped:  # it may be started yet
            raise StopFailed(f"{app.name} cannot be ended: {error}", ()) from error
    row = container.row()
    note = app.note()
    if row is not None and not row.stopped:
        running = note if note is not None else app.unnoted()
        app.begun(running.to(Phase.STOPPING))
        try:
            forced = container.stop(workspace.config.stop_timeout_s)
        except LxdError as error:
            pid = container.pid()
            raise StopFailed(f"{app.name} cannot be ended: {error}", () if pid is None else (pid,)) from error
        await_monitor(running)
        app.remember(running.to(Phase.STOPPED, verdict.asked_exit(workspace, forced=forced)))
    elif row is not None and note is not None and note.phase in (Phase.STOPPING, Phase.SUSPENDING):
        app.remember(note.to(Phase.STOPPED, verdict.asked_exit(workspace, forced=False)))
    if row is not None:
        app.volume.unmount()
