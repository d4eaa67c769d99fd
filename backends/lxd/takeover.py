"""Finish what a node had begun that was killed then, or that it had given up while LXD was still at it.

LXD goes on by itself, but not with what comes after: a container that it started, or could not save, has no network
until somebody puts it on its bridge. A note tells which process begins something (`Note.owner`); only once that is
gone may another finish it.
"""

import contextlib

from backends import procfs
from backends.errors import BackendError
from backends.lxd import bridge, notes, saving
from backends.lxd.application import Application
from backends.lxd.notes import Note, Phase


def pending(note: Note | None) -> bool:
    """Whether something was begun that nobody is about to finish."""
    return (
        note is not None
        and note.phase in (Phase.STARTING, Phase.SUSPENDING)
        and (note.owner is None or not procfs.alive(note.owner))
    )


def finish(app: Application, note: Note) -> None:
    """Connect a running container, once LXD is done with it. What cannot be done now is left for the next time.

    Args:
        note: one that is `pending`.
    """
    with contextlib.suppress(BackendError, OSError), notes.held(app.workspace):
        # `status` is asked at any time: others may have finished it, or begun something else.
        if app.note() == note and not app.container.busy():
            _finish(app, note)


def _finish(app: Application, note: Note) -> None:
    running = app.unnoted()
    if running.init is None:  # it has ended
        return
    if note.phase is Phase.SUSPENDING:
        saving.call_off(app, note if note.init == running.init else running.to(Phase.SUSPENDING))
        return
    app.connect(running.init)
    app.remember(running)
    if note.memory:
        bridge.remove_spare(app.process, app.table)
