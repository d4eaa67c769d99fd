"""The files, mounts and network of one container of runc, and what runc and CRIU say of it.

state/upper     what the application wrote            run/bundle      config.json, and the mount point of the root
state/images    CRIU's, where its memory is saved     run/images.new  a dump that is being made; .old: an earlier one
                                                      run/runc        runc's own notes: what container there is
                                                      run/criu        logs and statistics; run/netns its network
                                                      run/dumping     who makes a dump; run/tmp is CRIU's /tmp
"""

import contextlib
import hashlib
import json
import os
import signal
import time
from pathlib import Path

from backends import appnet, criu, memory, oci, overlay, procfs, tcprepair
from backends.base import AppLayout, EngineSettings, Workspace
from backends.command import IN_CONTAINER, RUN_MARK
from backends.dumps import Dumps
from backends.errors import StopFailed
from backends.folders import remove_tree
from backends.packetlock import PacketLock
from backends.procfs import ProcessId
from backends.runccli import EngineFailed, Runc, limit_s, tail

_SWEEP_TIMEOUT_S = 5.0
_CLOSING = "tcp-close\n"
_CRIU_OPTIONS = "ghost-limit 1073741824\nlink-remap\n"  # open files without a name, up to 1 GiB each
_CGROUPS = Path("/sys/fs/cgroup")


class Container:
    """One application's container; it need not exist yet, or any more.

    Args:
        settings: which CRIU to use.
        node_netns: the network namespace of the node, when not that of this process.
    """

    def __init__(self, workspace: Workspace, settings: EngineSettings, node_netns: Path | None = None) -> None:
        short = workspace.app_id[:12]
        self.id = f"p2p-{short}"
        self._name = workspace.name
        run = workspace.run_dir
        self._run = run
        self._upper = workspace.state_dir / "upper"
        self.bundle = run / "bundle"
        self.pid_file = run / "pid"
        self._root = self.bundle / "rootfs"
        self._restoring = run / "restoring"
        self._unannounced = run / "unannounced"
        self._runc = Runc(run, settings, node_netns)
        self._network = appnet.Namespace(run / "netns", f"p2p{short}", node_netns)
        lock = PacketLock(run / "criu" / "dump.log", node_netns, self._network.place)
        self.dumps = Dumps(workspace, self._runc, lock)
        # Two nodes on one machine may have the same application, one after the other.
        place = hashlib.blake2b(os.fsencode(os.path.abspath(run)), digest_size=4).hexdigest()
        self._cgroup = f"/p2player/{self.id}-{place}"

    # Making and removing

    def furnish(
        self, layout: AppLayout, options: oci.Options, run: str, *, restoring: bool, closing: bool = False
    ) -> None:
        """Mount the root, make the network and write config.json.

        Args:
            restoring: what follows is a restore.
            closing: have it close the open connections.

        Raises:
            BackendError, OSError: something is missing or refused.
        """
        for folder in (self.bundle, self._root, self.dumps.work, self._runc.notes):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        layers = [overlay.lower_of(layout.app), overlay.lower_of(layout.base)]
        overlay.mount(layers, self._upper, self._run / "work", self._root)
        _make_beneath(self._root, IN_CONTAINER.state, options.uid, options.gid)
        if not options.network.host:
            self._network.create(options.network)
        netns = None if options.network.host else self._network.place
        criu_options = self._run / "criu.conf"
        criu_options.write_text(_CRIU_OPTIONS + (_CLOSING if closing else ""))
        document = oci.spec(
            layout, options, extra={RUN_MARK: run}, cgroup=self._cgroup, netns=netns, criu_config=criu_options
        )
        (self.bundle / "config.json").write_text(json.dumps(document, indent=1))
        self._runc.forget_message()
        for leftover in (self.pid_file, self.dumps.work / "restore.log", self._restoring, self._unannounced):
            leftover.unlink(missing_ok=True)
        if options.network.bridge is not None and options.network.ipv4 is not None:
            self._unannounced.write_text(options.network.ipv4)
        if restoring:
            self._restoring.write_text(run)

    def announce(self) -> None:
        """The container runs: tell its neighbours of its address, once.

        Raises:
            NetworkError: the kernel refused.
        """
        try:
            address = self._unannounced.read_text()
        except FileNotFoundError:
            return
        appnet.announce(address, self._network.place)
        self._unannounced.unlink(missing_ok=True)

    def announce_for_another(self, first: ProcessId) -> None:
        """As `announce`, for a node that was killed while this process, or its launcher, was started."""
        with contextlib.suppress(OSError, ValueError, appnet.NetworkError):
            if self._unannounced.exists() and int(self.pid_file.read_text()) == first.pid:
                self.announce()

    def clear(self, run: str | None = None) -> None:
        """Kill what is left of the container, and take away all that was made for it but its files. Idempotent.

        Args:
            run: as for `processes`.

        Raises:
            StopFailed: something did not die.
        """
        self.thaw()
        deadline = time.monotonic() + _SWEEP_TIMEOUT_S
        while left := self.processes(run):
            if time.monotonic() > deadline:
                pids = tuple(process.pid for process in left)
                raise StopFailed(f"processes of {self._name} cannot be killed: {pids}", pids)
            for process in left:
                procfs.send(process, signal.SIGKILL)
                procfs.wait_end(process, 0.1)
        if (self._runc.notes / self.id).exists():
            with contextlib.suppress(EngineFailed):
                self._runc.run("delete", "--force", self.id)
        overlay.unmount_beneath(self._runc.notes)  # of a restore that was killed
        for folder in (self._runc.notes, self._runc.tmp):
            remove_tree(folder)
        for group in self._cgroups():
            _remove_cgroup(group)
        self._network.remove()
        if self._root.exists():
            overlay.unmount(self._root, hurry=True)

    def thaw(self) -> None:
        """Let the processes go on that a dump froze which was killed: not even SIGKILL reaches them before."""
        for group in self._cgroups():
            for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                with contextlib.suppress(OSError):
                    (group / name).write_text(word)

    def processes(self, run: str | None = None) -> list[ProcessId]:
        """Everything that executes in the container, by the kernel's own account.

        Args:
            run: a run whose supervisor was killed; its launcher may not have ended, nor CRIU, which are outside.
        """
        outside = [] if run is None else procfs.marked(RUN_MARK, run)
        for group in self._cgroups():
            try:
                text = (group / "cgroup.procs").read_text()
            except OSError:
                continue
            found = [procfs.stat(int(line)) for line in text.split()]
            if alive := [one.process for one in found if one is not None and one.state not in "ZX"]:
                return alive + [one for one in outside if one not in alive]
        return outside

    def _cgroups(self) -> list[Path]:
        """Its groups in the one hierarchy of version 2, or in each of version 1."""
        inner = self._cgroup.lstrip("/")
        return [path for path in (_CGROUPS / inner, *_CGROUPS.glob(f"*/{inner}")) if path.is_dir()]

    # Launching

    def launcher(self, options: oci.Options, *, restoring: bool) -> list[str]:
        """The argv that starts or restores the container and ends."""
        files: list[str | Path] = ["--detach", "--pid-file", self.pid_file, "--bundle", self.bundle]
        if restoring:
            words = self.dumps.words(self.dumps.images, tcp_established=options.tcp_established)
            command = self._runc.restoring(*files, *words, self.id)
        else:
            command = self._runc.command("run", *files, self.id)
        return self._runc.entered(self._network.connecting(options.network, command))

    def environment(self, run: str) -> dict[str, str]:
        """Of the launcher, which bears the mark of the run."""
        return self._runc.environment(run)

    def launch_limit_s(self, *, restoring: bool) -> float:
        """How long the launcher may take."""
        return limit_s(memory.size_of(self.dumps.images) if restoring else 0)

    def why_not_launched(self, *, restoring: bool) -> tuple[str, bool]:
        """Why the launcher failed, and whether anything may have been executed."""
        message = self._runc.message()
        if not restoring:
            # Said when the first process could not be made or could not execute the command.
            refused = "unable to start container process: "
            return message.removeprefix(refused), not message.startswith(refused)
        if "criu failed" in message:
            message = f"CRIU: {criu.why(self.dumps.work / 'restore.log')}"
        return message, self.resumed()

    def resumed(self) -> bool:
        """Whether the last launch was a restore that let the processes go on."""
        return "Tasks resumed" in tail(self.dumps.work / "restore.log")

    def restore_failed(self, run: str) -> bool:
        """Whether that run, whose supervisor saw its end, was a restore of which nothing executed.

        The images are then as good as before.
        """
        return tail(self._restoring) == run and not self.resumed() and self.dumps.images.exists()

    def lacks_address(self) -> bool:
        """Whether the last restore failed since an address of a connection is not here."""
        return "Can't bind inet socket back: Cannot assign" in tail(self.dumps.work / "restore.log")

    # Saving

    def dump(self, options: oci.Options, run: str, first: ProcessId, *, leave_running: bool) -> None:
        """As `Dumps.make`, of the first process of that run and all others."""
        self.dumps.make(
            self.id,
            run,
            leave_running=leave_running,
            tcp_established=options.tcp_established,
            memory_bytes=lambda: memory.anonymous_bytes(process.pid for process in self.processes()),
            ended=lambda: not procfs.alive(first),
            undo=self._end_repair,
            go_on=self._go_on,
        )

    def settle_dump(self, first: ProcessId, *, final: bool, interrupt: bool = False) -> bool:
        """As `Dumps.settle`, of the run with that first process."""
        return self.dumps.settle(
            ended=lambda: not procfs.alive(first),
            undo=self._end_repair,
            go_on=self._go_on,
            final=final,
            interrupt=interrupt,
        )

    def _end_repair(self) -> None:
        tcprepair.end_repair(process.pid for process in self.processes())

    def _go_on(self) -> None:
        """Undo what a killed dump did to the processes: their connections first, for frozen they cannot use them."""
        self._end_repair()
        self.thaw()
        self.dumps.abandon()


def _remove_cgroup(group: Path) -> None:
    """Remove a group with those that the application made in it; one that is in use stays."""
    for place, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(place)


def _make_beneath(root: Path, path: str, uid: int, gid: int) -> None:
    """Make a folder in a root file system that others wrote: no symbolic link of theirs leads out of it."""
    here = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        made = False
        for part in path.strip("/").split("/"):
            made = False
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
                made = True
            there = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = there
        if made:
            os.chown(f"/proc/self/fd/{here}", uid, gid)
    finally:
        os.close(here)
