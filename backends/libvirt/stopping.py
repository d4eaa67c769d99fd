"""End a machine: by its power button, so that the guest can put its files in order, and by force where it does not."""

import signal
import time

from backends.base import Checkpoint, Exit, Moment
from backends.errors import BackendError, SuspendFailed
from backends.libvirt import savefile
from backends.libvirt.instance import Instance
from backends.libvirt.machine import Seen
from backends.libvirt.notes import Note, Phase


def stop(instance: Instance) -> None:
    """End it. Idempotent; one that was never let go keeps its saved memory.

    Raises:
        StopFailed: it is there still.
        BackendError: libvirt cannot be asked.
    """
    seen = instance.look()
    if seen is Seen.GONE:
        instance.status()  # which notes how it ended
        return
    if seen is Seen.HELD and instance.never_let_go():
        instance.destroy()
        note = instance.note() or Note.fresh(Phase.LOADING)
        saved = instance.saved() is not None
        instance.remember(note.now(Phase.SAVED) if saved else note.now(Phase.ENDED, Exit(0, None, asked=True)))
        return
    note = instance.running_note()
    instance.remember(note.now(Phase.STOPPING))
    # One that is held would not notice the button.
    willing = seen is Seen.EXECUTING and instance.machine.shut_down(instance.workspace.config.stop_timeout_s)
    if not willing:
        instance.destroy()
    exit = Exit(0, None, asked=True) if willing else Exit(None, signal.SIGKILL, asked=True, forced=True)
    instance.remember(note.now(Phase.ENDED, exit))


def stop_to_resume(instance: Instance) -> Checkpoint:
    """End it so that it counts as suspended: without memory, to be booted again.

    Raises:
        SuspendFailed: it could not be ended; that tells whether it runs.
    """
    at = Moment.now()
    try:
        stop(instance)
        savefile.discard(instance.workspace)
    except (BackendError, OSError) as error:
        running = instance.status().executing
        raise SuspendFailed(f"{instance.name}: {error}", running=running) from error
    note = instance.note() or Note.fresh(Phase.SAVED)
    instance.remember(note.now(Phase.SAVED, note.exit))
    return Checkpoint(at, paused_s=time.monotonic() - at.monotonic_s)
