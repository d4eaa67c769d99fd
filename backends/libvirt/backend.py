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

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from backends import applog
from backends.base import (
    Adopted,
    AppLayout,
    Capabilities,
    Checkpoint,
    EngineSettings,
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
    SuspendFailed,
)
from backends.folders import remove_tree
from backends.hooks import run_hook
from backends.libvirt import (
    adopt,
    console,
    description,
    disks,
    domain,
    facts,
    savefile,
    saving,
    starting,
    stopping,
    table,
)
from backends.libvirt.connection import Connection
from backends.libvirt.facts import Host
from backends.libvirt.instance import Instance
from backends.libvirt.kvm import KvmProbe, Verdict
from backends.libvirt.machine import Seen
from backends.libvirt.place import boot_files, place_of


class LibvirtBackend:
    """See `backends.base.Backend`.

    Args:
        settings: `libvirt_uri` says where libvirtd is.
        healthy_after_s: a machine that lives shorter counts as failed.
    """

    name = "libvirt"
    capabilities = Capabilities(live=True, cooperative=False, leave_running=True, root=True, guest_memory=True)

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
        if machine.cmdline and boot_files(layout)[0] is None:
            raise ConfigError("libvirt.cmdline", "the layers hold no vmlinuz, so the words go nowhere")
        starting.make_folders(layout)

    def start(self, layout: AppLayout) -> Started:
        """Boot it; memory that was saved is dropped."""
        instance = self._instance(layout)
        if self._not_running(instance) is Seen.HELD:
            instance.destroy()
        return self._boot(instance, layout)

    def stop(self, workspace: Workspace) -> None:
        """Press the power button; destroy it when it takes too long."""
        stopping.stop(self._instance(workspace))

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> Checkpoint:
        """A snapshot of the memory, or a save."""
        instance = self._instance(layout)
        if instance.look() is not Seen.EXECUTING:
            raise NotRunning(f"{layout.name} is not running")
        return saving.snapshot(instance) if leave_running else saving.save(instance)

    def obstacles(self, layout: AppLayout) -> Sequence[str]:
        """Devices that were plugged in, and work on the disk's images."""
        machine = self._instance(layout).machine
        text = machine.description()
        found = description.foreign(description.parse(text))
        if not found and machine.block_job(description.disk_of(text)):
            found.append("its disk's images are being copied or joined by libvirt")
        return found

    def facts(self, layout: AppLayout) -> Mapping[str, str]:
        """See `backends.libvirt.facts`."""
        instance = self._instance(layout)
        if instance.look() is Seen.GONE:
            saved = instance.saved()
            return {} if saved is None else facts.of_machine(description.parse(saved), self._host())
        found = facts.of_machine(description.parse(instance.machine.description(portable=True)), self._host())
        there = savefile.size_bytes(layout)
        return {**found, "memory_bytes": str(max(0, instance.machine.memory_bytes() - there))}

    def mismatches(self, facts_there: Mapping[str, str]) -> Sequence[str]:
        """Compare versions, machine types and processors; and find out whether KVM works, where that is asked for."""
        try:
            found = facts.differences(facts_there, self._host(), self._connection)
            if facts.kind_of(facts_there) == "kvm" and not (verdict := self.kvm()).works:
                found.insert(0, f"the application runs with KVM, which does not work here: {verdict.reason}")
        except BackendError as error:
            return [str(error)]
        return found

    def suspend(self, layout: AppLayout, *, memory: bool = True) -> Checkpoint:
        """`before_suspend`, then a save; without `memory` a stop."""
        instance = self._instance(layout)
        if instance.look() is not Seen.EXECUTING:
            status = instance.status()
            how = f" ({status.exit})" if status.exit else ""
            raise SuspendFailed(f"{layout.name} is not running{how}", running=status.executing)
        try:
            run_hook("before_suspend", layout)
        except HookFailed as error:
            raise SuspendFailed(f"{layout.name}: {error}", running=True) from error
        return saving.save(instance) if memory else stopping.stop_to_resume(instance)

    def resume(self, layout: AppLayout) -> Started:
        """Continue from the saved memory, or start afresh where there is none."""
        instance = self._instance(layout)
        seen = instance.look()
        if seen is Seen.EXECUTING:
            return instance.started()
        if seen is Seen.HELD and not instance.never_let_go():
            starting.execute(instance)
            return instance.started()
        return self._continue(instance, layout, seen)

    def restore(self, layout: AppLayout) -> Started:
        """The same, for an instance folder that has arrived."""
        instance = self._instance(layout)
        return self._continue(instance, layout, self._not_running(instance))

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
        """See `Instance.status`."""
        return self._instance(workspace).status()

    def adopt(self, source: str, into: Path, base: Path | None) -> Adopted:
        """A machine of libvirt's own that is shut off, by its name or UUID; see `backends.libvirt.adopt`."""
        return adopt.adopt(self._connection, source, into, base)

    def kvm(self) -> Verdict:
        """Whether KVM works here, found out once a boot of the host; see `backends.libvirt.kvm`."""
        return self._kvm.verdict()

    def _not_running(self, instance: Instance) -> Seen:
        """GONE, or HELD and never let go.

        Raises:
            AlreadyRunning: it is there otherwise.
        """
        seen = instance.look()
        if seen is Seen.EXECUTING or (seen is Seen.HELD and not instance.never_let_go()):
            raise AlreadyRunning(f"{instance.name} is running already, as {instance.called}")
        return seen

    def _boot(self, instance: Instance, layout: AppLayout) -> Started:
        def load() -> None:
            wanted = table.read(layout.config)
            host = self._host()
            kind, place = self._kind(wanted), place_of(layout, host)
            machine_type = wanted.machine or host.default_machine
            instance.machine.create(domain.describe(layout.app_id, wanted, kind, machine_type, place))

        return starting.bring_up(instance, load, self._healthy_after_s)

    def _continue(self, instance: Instance, layout: AppLayout, seen: Seen) -> Started:
        """Load the saved memory; without any, boot."""
        if seen is Seen.HELD:
            return starting.let_go(instance, self._healthy_after_s)
        try:
            saved = instance.saved()
        except (BackendError, OSError) as error:
            raise StartFailed(f"cannot continue {layout.name}: {error}", executed=False) from error
        if saved is None:
            return self._boot(instance, layout)

        def load() -> None:
            place = place_of(layout, self._host())
            fitted = domain.fit(saved, layout.app_id, table.read(layout.config), place)
            instance.machine.restore(savefile.path_of(layout), fitted)

        return starting.bring_up(instance, load, self._healthy_after_s)

    def _instance(self, workspace: Workspace) -> Instance:
        return Instance(self._connection, workspace)

    def _host(self) -> Host:
        host = facts.read_host(self._connection)
        if host is None:
            raise BackendUnavailable("libvirt has no QEMU for x86_64 machines here: install qemu-system-x86")
        return host

    def _kind(self, wanted: table.Machine) -> domain.Kind:
        if wanted.kvm is False:
            return "qemu"
        verdict = self.kvm()
        if wanted.kvm and not verdict.works:
            raise BackendUnavailable(f"KVM is asked for and does not work: {verdict.reason}")
        return "kvm" if verdict.works else "qemu"
