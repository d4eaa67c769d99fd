"""Save the memory of a container, which ends then."""

import contextlib
import time
from dataclasses import replace

from backends import criu, procfs
from backends.base import Checkpoint, Moment
from backends.errors import BackendError, NotRunning, StopFailed, SuspendFailed
from backends.lxd import bridge, ending, volume
from backends.lxd.application import Application, await_monitor
from backends.lxd.daemon import StillAtWork
from backends.lxd.notes import Note, Phase


def save(app: Application) -> Checkpoint:
    """A stateful stop. The connections of what is saved stay silent (see `bridge`).

    Raises:
        SuspendFailed: it could not be saved, and runs on unless that tells otherwise. One that LXD is still saving is
            told to run on too: what becomes of that is seen by `status`, which finds it suspended, or connects it.
    """
    place = app.volume
    # Before the application is stopped: it takes time where there is much.
    place.forget_memory(app.workspace)
    app.take_log(place.seen / "rootfs")
    patience_s = app.patience_s()
    note = app.note()
    if note is None or note.init is None or not procfs.alive(note.init):
        note = app.unnoted()
    if note.init is None:
        raise NotRunning(f"{app.name} is not running")
    outer = app.outer()
    saving = note.to(Phase.SUSPENDING)
    app.begun(saving)
    at = Moment.now()
    try:
        with bridge.kept(app.table, note.init.pid):
            try:
                app.container.save(patience_s)
            except (BackendError, OSError):
                with contextlib.suppress(BackendError):  # it may end yet, when nobody keeps its namespace
                    bridge.disconnect(app.process, app.table, outer)
                raise
            bridge.remove(app.process, app.table, outer)
    except (BackendError, OSError) as error:
        _look_after(app, saving, error)
    return _saved(app, saving, at)


def accept(app: Application) -> Checkpoint:
    """What `save` gives, of memory that LXD has saved without anybody seeing the end of it."""
    note = app.note()
    assert note is not None
    return _saved(app, note, Moment.now())


def call_off(app: Application, note: Note) -> None:
    """Have a container that was not saved serve as before.

    Args:
        note: that of the save.

    Raises:
        BackendError: its network cannot be reached; the note is kept, for `status` to try again.
    """
    app.volume.tidy(app.workspace)
    app.volume.forget_memory(app.workspace)
    if note.init is not None:
        try:
            app.connect(note.init)
        except BackendError:
            app.remember(replace(note, owner=None))
            raise
    app.remember(note.to(Phase.RUNNING))


def shelve(app: Application) -> Checkpoint:
    """End it as by a stop, and keep its files only.

    Raises:
        SuspendFailed: it cannot be ended.
    """
    at = Moment.now()
    try:
        ending.stop(app)
    except StopFailed as error:
        raise SuspendFailed(f"{app.name}: {error}", running=True) from error
    app.volume.forget_memory(app.workspace)
    app.volume.tidy(app.workspace)
    app.take_log(volume.root_of(app.workspace))
    note = app.note()
    assert note is not None
    app.remember(note.to(Phase.SHELVED, note.exit))
    return Checkpoint(at, paused_s=time.monotonic() - at.monotonic_s)


def _look_after(app: Application, saving: Note, error: BackendError | OSError) -> None:
    """See what has become of a container that LXD did not save, or says so.

    Args:
        saving: the note of the save.

    Raises:
        SuspendFailed: see `save`; when nothing is raised, it was saved all the same.
    """
    try:
        row = app.container.row()
    except BackendError:
        app.remember(saving)  # which nobody owns: what has become of it will be seen
        raise
    if row is not None and not row.stopped:
        if isinstance(error, StillAtWork):
            app.remember(saving)
            raise SuspendFailed(f"{app.name} is not saved yet: {error}", running=True) from error
        log = app.volume.seen / volume.STATE / "dump.log"
        reason = criu.why(log) if log.exists() else str(error)
        with contextlib.suppress(BackendError):  # the first trouble is the one to tell of; `status` tries again
            call_off(app, saving)
        raise SuspendFailed(f"{app.name} cannot be saved: {reason}", running=True) from error
    if row is None or not row.stateful:
        raise SuspendFailed(f"{app.name} ended while it was saved: {error}", running=False) from error


def _saved(app: Application, note: Note, at: Moment) -> Checkpoint:
    paused_s = time.monotonic() - at.monotonic_s
    app.volume.tidy(app.workspace)
    await_monitor(note)
    app.remember(note.to(Phase.SUSPENDED))
    return Checkpoint(at, paused_s)
