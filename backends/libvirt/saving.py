"""Write the memory of a running machine into its state folder: once and for all, or as a pre-copy round."""

import contextlib
import time

from backends.base import Checkpoint, EngineState, Moment
from backends.errors import BackendError, SuspendFailed
from backends.libvirt import savefile
from backends.libvirt.connection import LibvirtSilent
from backends.libvirt.description import disk_of, mark_final
from backends.libvirt.instance import Instance
from backends.libvirt.machine import Seen, VirtualMachine
from backends.libvirt.notes import Note, Phase

_CALL_OFF_S = 30.0
_LOOK_S = 0.05


def save(instance: Instance) -> Checkpoint:
    """Save the memory and end the machine. Both its files are then complete: QEMU flushed the disk.

    Raises:
        SuspendFailed: it could not be saved; it executes on, unless that tells otherwise.
        LibvirtSilent: it is unknown what became of it. Nothing was undone: if it was saved, it can be resumed.
    """
    machine = instance.machine
    note = instance.running_note()
    new = savefile.new_path_of(instance.workspace)
    at = Moment.now()
    try:
        new.unlink(missing_ok=True)
        description = mark_final(machine.description(portable=True))
        instance.remember(note.now(Phase.SAVING))
        at = Moment.now()
        machine.save(new, description)
        savefile.accept(instance.workspace)
        instance.remember(note.now(Phase.SAVED))
    except (BackendError, OSError) as error:
        _call_off(machine, error)
        if not _answered(machine):
            raise LibvirtSilent(f"it is unknown whether {instance.name} was saved: {error}") from error
        if machine.look() is not Seen.GONE:
            _go_on(instance, note)
            raise SuspendFailed(f"{instance.name} could not be saved: {error}", running=True) from error
        if instance.status().state is not EngineState.SUSPENDED:  # else only the answer was lost
            raise SuspendFailed(f"{instance.name} could not be saved, and is gone: {error}", running=False) from error
    return Checkpoint(at, paused_s=time.monotonic() - at.monotonic_s)


def snapshot(instance: Instance) -> Checkpoint:
    """Write the memory beside a machine that executes on, in place of that of an earlier round.

    Raises:
        BackendError: it failed; the file of the earlier round is as it was.
    """
    machine = instance.machine
    new = savefile.new_path_of(instance.workspace)
    new.unlink(missing_ok=True)
    at = Moment.now()
    try:
        paused_s = machine.snapshot(new, disk_of(machine.description()))
        savefile.accept(instance.workspace)
    except (BackendError, OSError) as error:
        _call_off(machine, error)
        new.unlink(missing_ok=True)
        raise
    return Checkpoint(at, paused_s)


def _go_on(instance: Instance, note: Note) -> None:
    """Back to where a save began that failed."""
    if instance.machine.look() is Seen.HELD:
        instance.machine.let_go()
    instance.remember(note.now(Phase.RUNNING))
    savefile.new_path_of(instance.workspace).unlink(missing_ok=True)


def _answered(machine: VirtualMachine) -> bool:
    """Wait until what was asked of it, and given up, has ended: only then a save neither fails nor succeeds later."""
    deadline = time.monotonic() + _CALL_OFF_S
    while machine.unanswered():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True


def _call_off(machine: VirtualMachine, error: Exception) -> None:
    """End a save that took too long; there is nothing to end after any other error."""
    if isinstance(error, LibvirtSilent):
        with contextlib.suppress(BackendError):
            machine.abort()
