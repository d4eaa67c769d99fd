"""Load a machine and let it go: what `start`, `restore` and `resume` have in common.

A machine is loaded without executing an instruction, so until then everything can be taken back. Then saved memory is
deleted, and only then the machine is let go: there is never saved memory beside a disk that went on.
"""

from collections.abc import Callable

from backends.base import Started, Workspace
from backends.errors import BackendError, StartFailed
from backends.libvirt import console, savefile
from backends.libvirt.connection import LibvirtSilent
from backends.libvirt.instance import Instance
from backends.libvirt.notes import Note, Phase

_TAIL_LINES = 5
_TAIL_BYTES = 2048


def bring_up(instance: Instance, load: Callable[[], None], healthy_after_s: float) -> Started:
    """Load a machine, and let it go.

    Args:
        load: has libvirt make the machine, held.

    Raises:
        StartFailed: nothing runs; unless it was executed, all is as before.
    """
    before = instance.note()
    try:
        make_folders(instance.workspace)
        instance.remember(Note.fresh(Phase.LOADING))
        load()
    except (BackendError, OSError) as error:
        if isinstance(error, LibvirtSilent):
            instance.destroy()
        instance.remember(before)
        raise StartFailed(f"cannot start {instance.name}: {error}", executed=False) from error
    return let_go(instance, healthy_after_s)


def let_go(instance: Instance, healthy_after_s: float) -> Started:
    """Execute a machine that is held, and wait until it has lived for `healthy_after_s`.

    Raises:
        StartFailed: nothing runs.
    """
    executed = False
    run_dir = instance.workspace.run_dir
    printed = console.size(run_dir)
    try:
        process = instance.machine.process()
        savefile.discard(instance.workspace)
        note = Note.fresh(Phase.RUNNING).of(process)
        executed = True
        instance.machine.let_go()
        instance.remember(note)
    except (BackendError, OSError) as error:
        instance.destroy()
        raise StartFailed(f"cannot start {instance.name}: {error}", executed=executed) from error
    instance.wait_end(healthy_after_s)
    status = instance.status()
    if status.executing:
        return instance.started()
    raise StartFailed(
        f"{instance.name} ended within {healthy_after_s:g} s: {status.exit or status.reason}",
        executed=True,
        exit=status.exit,
        log_tail=_last_lines(console.since(run_dir, printed, _TAIL_BYTES)),
    )


def make_folders(workspace: Workspace) -> None:
    """The run folder and the state folder."""
    for folder in (workspace.run_dir, workspace.state_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _last_lines(output: bytes) -> str:
    """The last few lines, as one line for an error message."""
    text = "".join(letter if letter.isprintable() else "\n" for letter in output.decode(errors="replace"))
    lines = [line.strip() for line in text.split("\n")]
    return " / ".join([line for line in lines if line][-_TAIL_LINES:])
