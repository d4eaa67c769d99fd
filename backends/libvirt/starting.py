"""Load a machine and let it go: what `start`, `restore` and `resume` have in common.

A machine is loaded without executing an instruction, so until then everything can be taken back. Then saved memory is
deleted, and only then the machine is let go: there is never saved memory beside a disk that went on.

When libvirtd does not answer, what was asked for may happen yet:

- A load that was given up has failed for good. If libvirtd completes it, the machine is ended again, by the call that
  was left behind (`machine`) or, after a restart of the node, by the next look at it (`instance`); and none is loaded
  before that call has ended. It never executes.
- Of a machine that was let go, libvirtd is asked anew. If it is held no longer, that is what was wanted. As its saved
  memory is deleted by then, it is not ended only because nobody answers: that it is unknown whether it executes is the
  error, and `resume` goes on from whatever is found.
"""

import contextlib
from collections.abc import Callable

from backends.base import Started, Workspace
from backends.errors import BackendError, StartFailed
from backends.libvirt import console, savefile
from backends.libvirt.connection import LibvirtFailed, LibvirtSilent
from backends.libvirt.instance import Instance
from backends.libvirt.machine import Seen
from backends.libvirt.notes import Note, Phase

_TAIL_LINES = 5
_TAIL_BYTES = 2048


def bring_up(instance: Instance, load: Callable[[], None], healthy_after_s: float) -> Started:
    """Load a machine, and let it go.

    Args:
        load: has libvirt make the machine, held.

    Raises:
        StartFailed: nothing runs, or as `let_go` says; unless it was executed, all is as before.
    """
    _check_settled(instance)
    before = instance.note()
    try:
        make_folders(instance.workspace)
        instance.remember(Note.fresh(Phase.LOADING))
        load()
    except (BackendError, OSError) as error:
        with contextlib.suppress(BackendError):  # that is then done later, see the module
            instance.destroy()
        instance.remember(before)
        raise StartFailed(f"cannot start {instance.name}: {error}", executed=False) from error
    return let_go(instance, healthy_after_s)


def let_go(instance: Instance, healthy_after_s: float) -> Started:
    """Execute a machine that is held, and wait until it has lived for `healthy_after_s`.

    Raises:
        StartFailed: nothing runs; or it is unknown whether it does, which the text says.
    """
    _check_settled(instance)
    executed = False
    run_dir = instance.workspace.run_dir
    printed = console.size(run_dir)
    try:
        process = instance.machine.process()
        savefile.discard(instance.workspace)
        note = Note.fresh(Phase.RUNNING).of(process)
        executed = True
        execute(instance)
        instance.remember(note)
    except LibvirtSilent as error:
        raise _unknown(instance, error) from error
    except (BackendError, OSError) as error:
        instance.destroy()
        raise StartFailed(f"cannot start {instance.name}: {error}", executed=executed) from error
    try:
        instance.wait_end(healthy_after_s)
        status = instance.status()
    except BackendError as error:
        raise _unknown(instance, error) from error
    if status.executing:
        return instance.started()
    raise StartFailed(
        f"{instance.name} ended within {healthy_after_s:g} s: {status.exit or status.reason}",
        executed=True,
        exit=status.exit,
        log_tail=_last_lines(console.since(run_dir, printed, _TAIL_BYTES)),
    )


def execute(instance: Instance) -> None:
    """Let a machine go that is held. Where libvirtd did not say that it did, look whether it did.

    Raises:
        LibvirtSilent: it is unknown whether it will execute.
        BackendError: it does not.
    """
    try:
        instance.machine.let_go()
    except (LibvirtSilent, LibvirtFailed):
        if instance.machine.look() is Seen.HELD:
            raise


def make_folders(workspace: Workspace) -> None:
    """The run folder and the state folder."""
    for folder in (workspace.run_dir, workspace.state_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _check_settled(instance: Instance) -> None:
    if instance.machine.unanswered():
        raise StartFailed(
            f"cannot start {instance.name}: libvirtd has not answered an earlier call that concerns {instance.called}",
            executed=False,
        )


def _unknown(instance: Instance, error: BackendError) -> StartFailed:
    return StartFailed(f"it is unknown whether {instance.name} runs: {error}", executed=True)


def _last_lines(output: bytes) -> str:
    """The last few lines, as one line for an error message."""
    text = "".join(letter if letter.isprintable() else "\n" for letter in output.decode(errors="replace"))
    lines = [line.strip() for line in text.split("\n")]
    return " / ".join([line for line in lines if line][-_TAIL_LINES:])
