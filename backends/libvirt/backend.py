"""The libvirt backend: an application is a virtual machine of QEMU, and moves with its memory.

Theory of operation
-------------------
Machines are *transient*: libvirt forgets them when they end, so nothing starts a second copy after the host restarted.
The instance folder holds the overlay of the disk and, when suspended, the memory (`savefile`); the run folder holds the
note of the run and what the machine printed.

    LOADING -> RUNNING -> SAVING -> SAVED           phases of the note (`notes`)
                  |-----> STOPPING -> ENDED

*Start* and *restore* load the machine without executing it; then saved memory is deleted, and only then it is let go. A
node that is killed at any point finds either a machine that was never executed, or one that executes and has no saved
memory beside it. *Suspend* is libvirt's save, which stops the machine, writes its memory, flushes its disk and ends it.
A pre-copy round is a live snapshot of the memory alone: the disk's chain does not grow, and the file, which fits no
disk, serves only as the basis of a delta.
"""

import contextlib
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from backends import applog, procfs
from backends.base import (
    Adopted,
    AppLayout,
    Capabilities,
    Checkpoint,
    EngineSettings,
    EngineState,
    Exit,
    Moment,
    Probe,
    Started,
    Status,
    Workspace,
)
from backends.errors import (
    AlreadyRunning,
    BackendError,
    BackendUnavailable,
    ConfigError,
    HookFailed,
    NotRunning,
    StartFailed,
    StopFailed,
    SuspendFailed,
)
from backends.folders import remove_tree
from backends.hooks import run_hook
from backends.libvirt import adopt, console, disks, domain, ending, facts, notes, savefile, table
from backends.libvirt.connection import Connection, LibvirtSilent
from backends.libvirt.facts import Host
from backends.libvirt.kvm import KvmProbe, Verdict
from backends.libvirt.machine import Seen, VirtualMachine
from backends.libvirt.notes import Note, Phase

_TAIL_LINES = 5
_TAIL_BYTES = 2048
_GONE_S = 10.0


class LibvirtBackend:
    """See `backends.base.Backend`.

    Args:
        settings: `libvirt_uri` says where libvirtd is.
        healthy_after_s: a machine that lives shorter counts as failed.
    """

    name = "libvirt"
    capabilities = Capabilities(live=True, cooperative=False, leave_running=True, root=True)

    def __init__(self, settings: EngineSettings | None = None, *, healthy_after_s: float = 1.0) -> None:
        self._connection = Connection(None if settings is None else settings.libvirt_uri)
        self._kvm = KvmProbe(self._connection)
        self._healthy_after_s = healthy_after_s

    def probe(self) -> Probe:
        """Needs libvirt-python, libvirtd, QEMU and qemu-img."""
        version = None
        try:
            number = self._connection.run(lambda hypervisor: int(hypervisor.getLibVersion()))
            version = f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"
            host = self._host()
            version += " with QEMU {}.{}.{}".format(*host.qemu)
            if shutil.which("qemu-img") is None:
                raise BackendUnavailable("needs qemu-img, of the package qemu-utils")
            if os.geteuid() != 0 and not (self._connection.uri or "").endswith("/session"):
                raise BackendUnavailable("needs root: QEMU's files are root's")
        except BackendError as error:
            return Probe(self.name, False, version, str(error))
        return Probe(self.name, True, version)

    def create(self, layout: AppLayout) -> None:
        """Check the table and the layers; the disk is made by the first start."""
        machine = table.read(layout.config)
        disks.layers_of(layout.base, layout.app)
        if machine.cmdline and _kernel(layout)[0] is None:
            raise ConfigError(
                "libvirt.cmdline", "the layers hold no vmlinuz: the machine's own boot loader has the words"
            )
        _make_folders(layout)

    def start(self, layout: AppLayout) -> Started:
        """Boot it; memory that was saved is dropped."""
        machine = self._machine(layout)
        match machine.look():
            case Seen.EXECUTING:
                raise AlreadyRunning(f"{layout.name} is running already, as {domain.name_of(layout.app_id)}")
            case Seen.HELD | Seen.CRASHED if not self._held_before_start(layout):
                self.status(layout)
                if machine.look() is not Seen.GONE:
                    raise AlreadyRunning(f"{layout.name} is there already, as {domain.name_of(layout.app_id)}")
            case Seen.HELD:
                machine.destroy()

        def load() -> None:
            wanted = table.read(layout.config)
            host = self._host()
            kind = self._kind(wanted)
            place = self._place(layout, host)
            description = domain.describe(layout.app_id, wanted, kind, wanted.machine or host.default_machine, place)
            machine.create(description)

        return self._bring_up(layout, machine, load)

    def stop(self, workspace: Workspace) -> None:
        """Press the power button; destroy it when it takes too long."""
        machine = self._machine(workspace)
        note = notes.read(workspace.run_dir) or Note.fresh(Phase.RUNNING)
        match machine.look():
            case Seen.GONE | Seen.CRASHED:
                self.status(workspace)
                return
            case Seen.HELD if note.phase is Phase.LOADING:
                self._destroy(workspace, machine)
                saved = savefile.description(self._connection, savefile.path_of(workspace)) is not None
                ended = note.now(Phase.SAVED) if saved else note.now(Phase.ENDED, Exit(0, None, asked=True))
                notes.write(workspace.run_dir, ended)
                return
            case Seen.HELD:
                willing = False  # nobody in there would notice the button
            case Seen.EXECUTING:
                willing = True
        notes.write(workspace.run_dir, note.now(Phase.STOPPING))
        forced = not (willing and machine.shut_down(workspace.config.stop_timeout_s))
        if forced:
            self._destroy(workspace, machine)
        exit = Exit(None, signal.SIGKILL, asked=True, forced=True) if forced else Exit(0, None, asked=True)
        notes.write(workspace.run_dir, note.now(Phase.ENDED, exit))

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> Checkpoint:
        """A snapshot of the memory, or a save."""
        machine = self._machine(layout)
        if machine.look() is not Seen.EXECUTING:
            raise NotRunning(f"{layout.name} is not running")
        if not leave_running:
            return self._save(layout, machine)
        new = savefile.new_path_of(layout)
        new.unlink(missing_ok=True)
        at = Moment.now()
        try:
            paused_s = machine.snapshot(new, domain.disk_of(machine.description()))
            savefile.accept(layout)
        except (BackendError, OSError) as error:
            _call_off(machine, error)
            new.unlink(missing_ok=True)
            raise
        return Checkpoint(at, paused_s)

    def kvm(self) -> Verdict:
        """Whether KVM works here, found out once a boot of the host; see `backends.libvirt.kvm`."""
        return self._kvm.verdict()

    def obstacles(self, layout: AppLayout) -> Sequence[str]:
        """Devices that were plugged in, and work on the disk's images."""
        machine = self._machine(layout)
        root = domain.parse(machine.description())
        found = domain.foreign(root)
        if not found and machine.block_job(domain.disk_of(machine.description())):
            found.append("its disk's images are being copied or joined by libvirt")
        return found

    def facts(self, layout: AppLayout) -> Mapping[str, str]:
        """See `backends.libvirt.facts`."""
        machine = self._machine(layout)
        if machine.look() is Seen.GONE:
            saved = savefile.description(self._connection, savefile.path_of(layout))
            return {} if saved is None else facts.of_machine(domain.parse(saved), self._host())
        found = facts.of_machine(domain.parse(machine.description(portable=True)), self._host())
        there = savefile.size_bytes(layout)
        return {**found, "memory_bytes": str(max(0, machine.memory_bytes() - there))}

    def mismatches(self, facts_there: Mapping[str, str]) -> Sequence[str]:
        """Compare versions, machine types and processors; and find out whether KVM works, where that is asked for."""
        try:
            found = facts.differences(facts_there, self._host(), self._connection)
            if facts.kind_of(facts_there) == "kvm" and not (verdict := self._kvm.verdict()).works:
                found.insert(0, f"the application runs with KVM, which does not work here: {verdict.reason}")
        except BackendError as error:
            return [str(error)]
        return found

    def suspend(self, layout: AppLayout, *, memory: bool = True) -> Checkpoint:
        """`before_suspend`, then a save; without `memory` a stop."""
        machine = self._machine(layout)
        if machine.look() is not Seen.EXECUTING:
            status = self.status(layout)
            how = f" ({status.exit})" if status.exit else ""
            raise SuspendFailed(f"{layout.name} is not running{how}", running=status.executing)
        try:
            run_hook("before_suspend", layout)
        except HookFailed as error:
            raise SuspendFailed(f"{layout.name}: {error}", running=True) from error
        if memory:
            return self._save(layout, machine)
        at = Moment.now()
        try:
            self.stop(layout)
        except BackendError as error:
            raise SuspendFailed(f"{layout.name}: {error}", running=True) from error
        savefile.discard(layout)
        note = notes.read(layout.run_dir)
        assert note is not None
        notes.write(layout.run_dir, note.now(Phase.SAVED, note.exit))
        return Checkpoint(at, paused_s=time.monotonic() - at.monotonic_s)

    def resume(self, layout: AppLayout) -> Started:
        """Continue from the saved memory, or start afresh where there is none."""
        machine = self._machine(layout)
        match machine.look():
            case Seen.HELD if not self._held_before_start(layout):
                machine.let_go()
                return self._started(layout)
            case Seen.EXECUTING:
                return self._started(layout)
        return self._continue(layout, machine)

    def restore(self, layout: AppLayout) -> Started:
        """The same, for an instance folder that has arrived."""
        machine = self._machine(layout)
        seen = machine.look()
        if seen is Seen.EXECUTING or (seen is Seen.HELD and not self._held_before_start(layout)):
            raise AlreadyRunning(f"{layout.name} is running already, as {domain.name_of(layout.app_id)}")
        return self._continue(layout, machine)

    def destroy(self, workspace: Workspace) -> None:
        """Stop, then delete run folder, state folder and log."""
        self.stop(workspace)
        for folder in (workspace.run_dir, workspace.state_dir):
            remove_tree(folder)
        applog.remove(str(workspace.log_path))

    def logs(self, workspace: Workspace, max_bytes: int) -> bytes:
        """What hooks printed, at most half of it, then the serial console."""
        hooks = applog.tail(str(workspace.log_path), max_bytes // 2)
        return hooks + console.tail(workspace.run_dir, max_bytes - len(hooks))

    def status(self, workspace: Workspace) -> Status:
        """Ask libvirt; of a machine that is gone, find out how it ended, and note that."""
        machine = self._machine(workspace)
        note = notes.read(workspace.run_dir)
        seen = machine.look()
        console.trim(workspace.run_dir)
        if seen is Seen.HELD and note is not None and note.phase is Phase.LOADING:
            return Status(EngineState.SUSPENDED, started=note.at)
        if seen in (Seen.HELD, Seen.EXECUTING):
            note = self._caught_up(workspace, machine, note)
            return Status(EngineState.RUNNING, None if note.process is None else note.process.pid, note.at)
        if note is None:
            return Status(EngineState.ABSENT)
        if seen is Seen.CRASHED:
            self._destroy(workspace, machine)
            note = note.now(Phase.ENDED, Exit(None, signal.SIGABRT))
            notes.write(workspace.run_dir, note)
        return self._end_of(workspace, note)

    def adopt(self, source: str, into: Path, base: Path | None) -> Adopted:
        """A machine of libvirt's own that is shut off, by its name or UUID; see `backends.libvirt.adopt`."""
        return adopt.adopt(self._connection, source, into, base)

    def _end_of(self, workspace: Workspace, note: Note) -> Status:
        """The status of a machine that is gone."""
        match note.phase:
            case Phase.RUNNING if note.this_boot:
                note = note.now(
                    Phase.ENDED, _exit_of(ending.reason(self._connection.uri, _name(workspace), note.wall_s))
                )
            case Phase.STOPPING:
                note = note.now(Phase.ENDED, Exit(0, None, asked=True))
            case Phase.SAVING | Phase.LOADING if self._is_saved(workspace):
                note = note.now(Phase.SAVED)
            case Phase.SAVING if note.this_boot:
                note = note.now(Phase.ENDED)
        if note != notes.read(workspace.run_dir):
            notes.write(workspace.run_dir, note)
        if note.phase is Phase.SAVED:
            return Status(EngineState.SUSPENDED, started=note.at, exit=note.exit)
        if note.exit is not None and (note.this_boot or note.exit.asked):
            return Status(EngineState.EXITED, started=note.at, exit=note.exit)
        why = "it is gone, and libvirt does not say why" if note.this_boot else "the machine restarted"
        return Status(EngineState.LOST, started=note.at, reason=why)

    def _is_saved(self, workspace: Workspace) -> bool:
        """Whether there is memory to continue from; also gives it its name where a killed node did not."""
        if savefile.description(self._connection, savefile.new_path_of(workspace)) is not None:
            savefile.accept(workspace)
        return savefile.description(self._connection, savefile.path_of(workspace)) is not None

    def _caught_up(self, workspace: Workspace, machine: VirtualMachine, note: Note | None) -> Note:
        """The note of a machine that is there, also when a killed node had no time to write it."""
        if note is None or note.phase in (Phase.ENDED, Phase.SAVED) or (note.process is None and note.this_boot):
            found = Note.fresh(Phase.RUNNING)
            if note is not None and note.phase not in (Phase.ENDED, Phase.SAVED):
                found = note
            phase = Phase.RUNNING if found.phase is Phase.LOADING else found.phase
            found = Note(phase, found.boot, found.wall_s, found.monotonic_s, machine.process())
            if found != note:
                notes.write(workspace.run_dir, found)
            return found
        return note

    def _continue(self, layout: AppLayout, machine: VirtualMachine) -> Started:
        """Load the saved memory; without any, start."""
        if machine.look() is Seen.HELD:
            return self._let_go(layout, machine)
        try:
            saved = None
            if self._is_saved(layout):
                saved = savefile.description(self._connection, savefile.path_of(layout))
        except (BackendError, OSError) as error:
            raise StartFailed(f"cannot continue {layout.name}: {error}", executed=False) from error
        if saved is None:
            return self.start(layout)

        def load() -> None:
            place = self._place(layout, self._host())
            description = domain.fit(saved, layout.app_id, table.read(layout.config), place)
            machine.restore(savefile.path_of(layout), description)

        return self._bring_up(layout, machine, load)

    def _bring_up(self, layout: AppLayout, machine: VirtualMachine, load: Callable[[], None]) -> Started:
        """Load the machine, note that, and let it go. A failure leaves everything as it was."""
        before = notes.read(layout.run_dir)
        try:
            _make_folders(layout)
            notes.write(layout.run_dir, Note.fresh(Phase.LOADING))
            load()
        except (BackendError, OSError) as error:
            if isinstance(error, LibvirtSilent):
                self._destroy(layout, machine)
            notes.write(layout.run_dir, before)
            raise StartFailed(f"cannot start {layout.name}: {error}", executed=False) from error
        return self._let_go(layout, machine)

    def _let_go(self, layout: AppLayout, machine: VirtualMachine) -> Started:
        """Execute a loaded machine, and wait until it has lived for `healthy_after_s`."""
        printed = console.size(layout.run_dir)
        try:
            savefile.discard(layout)
            fresh = Note.fresh(Phase.RUNNING)
            note = Note(fresh.phase, fresh.boot, fresh.wall_s, fresh.monotonic_s, machine.process())
            machine.let_go()
        except (BackendError, OSError) as error:
            self._destroy(layout, machine)
            raise StartFailed(f"cannot start {layout.name}: {error}", executed=True) from error
        notes.write(layout.run_dir, note)
        self._wait_a_while(machine, note)
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            return self._started(layout)
        raise StartFailed(
            f"{layout.name} ended within {self._healthy_after_s:g} s: {status.exit or status.reason}",
            executed=True,
            exit=status.exit,
            log_tail=_last_lines(console.since(layout.run_dir, printed, _TAIL_BYTES)),
        )

    def _wait_a_while(self, machine: VirtualMachine, note: Note) -> None:
        """For `healthy_after_s`, or until it has ended."""
        deadline = time.monotonic() + self._healthy_after_s
        while time.monotonic() < deadline and machine.look() in (Seen.EXECUTING, Seen.HELD):
            left_s = max(0.0, deadline - time.monotonic())
            if note.process is None:
                time.sleep(min(left_s, 0.1))
            elif procfs.wait_end(note.process, min(left_s, 0.5)):
                _until_gone(machine)

    def _save(self, layout: AppLayout, machine: VirtualMachine) -> Checkpoint:
        """Save its memory and end it; a failure leaves it running."""
        note = self._caught_up(layout, machine, notes.read(layout.run_dir))
        new = savefile.new_path_of(layout)
        at = Moment.now()
        try:
            new.unlink(missing_ok=True)
            description = domain.mark_final(machine.description(portable=True))
            notes.write(layout.run_dir, note.now(Phase.SAVING))
            at = Moment.now()
            machine.save(new, description)
        except (BackendError, OSError) as error:
            _call_off(machine, error)
            if machine.look() is not Seen.GONE:
                self._unsave(layout, machine, note, error)
            if self.status(layout).state is not EngineState.SUSPENDED:
                raise SuspendFailed(f"{layout.name} could not be saved, and is gone: {error}", running=False) from error
        else:
            savefile.accept(layout)
            notes.write(layout.run_dir, note.now(Phase.SAVED))
        return Checkpoint(at, paused_s=time.monotonic() - at.monotonic_s)

    def _unsave(self, layout: AppLayout, machine: VirtualMachine, note: Note, error: Exception) -> None:
        """After a save that failed: it goes on. Always raises."""
        savefile.new_path_of(layout).unlink(missing_ok=True)
        if machine.look() is Seen.HELD:
            machine.let_go()
        notes.write(layout.run_dir, note.now(Phase.RUNNING))
        raise SuspendFailed(f"{layout.name} could not be saved: {error}", running=True) from error

    def _started(self, workspace: Workspace) -> Started:
        status = self.status(workspace)
        assert status.started is not None
        return Started(status.pid or 0, status.started)

    def _held_before_start(self, workspace: Workspace) -> bool:
        """Whether a machine that is held was never let go, as a node was killed meanwhile."""
        note = notes.read(workspace.run_dir)
        return note is not None and note.phase is Phase.LOADING

    def _destroy(self, workspace: Workspace, machine: VirtualMachine) -> None:
        try:
            machine.destroy()
            _until_gone(machine)
            problem = "" if machine.look() is Seen.GONE else "it is there still"
        except BackendError as error:
            problem = str(error)
        if problem:
            found = machine.process()
            pids = () if found is None else (found.pid,)
            raise StopFailed(f"{workspace.name} cannot be ended: {problem}", pids)

    def _machine(self, workspace: Workspace) -> VirtualMachine:
        return VirtualMachine(self._connection, workspace.app_id, workspace.state_dir / disks.INSTANCE)

    def _host(self) -> Host:
        host = facts.read_host(self._connection)
        if host is None:
            raise BackendUnavailable("libvirt has no QEMU for x86_64 machines here: install qemu-system-x86")
        return host

    def _kind(self, wanted: table.Machine) -> domain.Kind:
        if wanted.kvm is False:
            return "qemu"
        verdict = self._kvm.verdict()
        if wanted.kvm and not verdict.works:
            raise BackendUnavailable(f"KVM is asked for and does not work: {verdict.reason}")
        return "kvm" if verdict.works else "qemu"

    def _place(self, layout: AppLayout, host: Host) -> domain.Place:
        kernel, initrd = _kernel(layout)
        return domain.Place(
            images=disks.chain_of(layout),
            kernel=kernel,
            initrd=initrd,
            console=console.path_of(layout.run_dir),
            emulator=host.emulator,
            as_root=host.as_root,
        )


def _kernel(layout: AppLayout) -> tuple[Path | None, Path | None]:
    """Kernel and initrd for direct boot; those of the app layer go first."""
    kernel = _regular(layout.app / "vmlinuz") or _regular(layout.base / "vmlinuz")
    initrd = _regular(layout.app / "initrd") or _regular(layout.base / "initrd")
    return kernel, initrd if kernel is not None else None


def _regular(path: Path) -> Path | None:
    """`path` if that is a file; a symbolic link of a layer could name any file of the host."""
    try:
        return path if stat.S_ISREG(path.lstat().st_mode) else None
    except FileNotFoundError:
        return None


def _exit_of(reason: str | None) -> Exit | None:
    """What libvirt's word for an end means; None when that is unknown."""
    match reason:
        case "shutdown":
            return Exit(0, None)
        case "destroyed":
            return Exit(None, signal.SIGKILL)
        case "crashed" | "failed":
            return Exit(None, signal.SIGABRT)
    return None


def _call_off(machine: VirtualMachine, error: Exception) -> None:
    """End a save that took too long; there is nothing to end after any other error."""
    if isinstance(error, LibvirtSilent):
        with contextlib.suppress(BackendError):
            machine.abort()


def _until_gone(machine: VirtualMachine) -> None:
    """QEMU ended: wait for libvirtd to notice."""
    deadline = time.monotonic() + _GONE_S
    while time.monotonic() < deadline and machine.look() in (Seen.EXECUTING, Seen.HELD):
        time.sleep(0.02)


def _name(workspace: Workspace) -> str:
    return domain.name_of(workspace.app_id)


def _make_folders(workspace: Workspace) -> None:
    for folder in (workspace.run_dir, workspace.state_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _last_lines(output: bytes) -> str:
    """The last few lines, as one line for an error message."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line][-_TAIL_LINES:])
