"""What has become of a container that does not run: LXD's word and the node's note together."""

import signal

from backends import procfs
from backends.base import EngineState, Exit, Status, Workspace
from backends.lxd import inside, volume
from backends.lxd.instance import Row
from backends.lxd.notes import Note, Phase


def without_container(note: Note) -> Status:
    """LXD has no such container."""
    match note.phase:
        case Phase.STARTING:
            return without_container(note.before) if note.before else Status(EngineState.ABSENT)
        case Phase.SHELVED:
            return Status(EngineState.SUSPENDED, started=note.started, exit=note.exit)
        case Phase.STOPPED:
            return Status(EngineState.EXITED, started=note.started, exit=note.exit)
        case _:
            return Status(EngineState.LOST, started=note.started, reason="LXD knows its container no more")


def not_running(workspace: Workspace, note: Note, row: Row) -> Status:
    """LXD has the container, and it does not run."""
    phase = note.phase
    if phase is Phase.STARTING:
        if row.used_at == note.used_at or (note.memory and row.stateful):
            # Nothing of it executed: all is as it was before.
            return not_running(workspace, note.before, row) if note.before else Status(EngineState.ABSENT)
        phase = Phase.RUNNING
    started = note.started
    if phase is Phase.SHELVED or (row.stateful and phase in (Phase.SUSPENDED, Phase.SUSPENDING)):
        return Status(EngineState.SUSPENDED, started=started, exit=note.exit)
    if phase is Phase.STOPPED:
        return Status(EngineState.EXITED, started=started, exit=note.exit)
    if phase is Phase.SUSPENDED:
        return Status(EngineState.LOST, started=started, reason="LXD holds its memory no more")
    if note.boot != procfs.boot_id():
        return Status(EngineState.LOST, started=started, reason="the machine restarted")
    if phase is Phase.STOPPING:
        return Status(EngineState.EXITED, started=started, exit=asked_exit(workspace, forced=False))
    return Status(EngineState.EXITED, started=started, exit=_told(workspace) or Exit(None, None))


def asked_exit(workspace: Workspace, *, forced: bool) -> Exit:
    """The end of one that was told to end; without a command nobody says with which code."""
    found = _told(workspace)
    if forced and found is None:
        return Exit(None, signal.SIGKILL, asked=True, forced=True)
    found = found or Exit(None, None)
    return Exit(found.code, found.signal, asked=True, forced=forced)


def _told(workspace: Workspace) -> Exit | None:
    return inside.ended(volume.root_of(workspace)) if workspace.config.command else None
