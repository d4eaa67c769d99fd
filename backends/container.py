"""The files, mounts and network of one container of runc, and what runc and CRIU say of it.

state/upper     what the application wrote            run/bundle      config.json, and the mount point of the root
state/images    CRIU's, where its memory is saved     run/images.new  a dump that is being made; .old: an earlier one
                                                      run/runc        runc's own notes: what container there is
                                                      run/criu        logs and statistics; run/netns its network
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from backends import appnet, criu, oci, overlay, procfs
from backends.base import AppLayout, EngineSettings, Workspace
from backends.command import IN_CONTAINER, RUN_MARK
from backends.errors import BackendError, BackendUnavailable, StopFailed
from backends.folders import remove_tree
from backends.packetlock import PacketLock
from backends.procfs import ProcessId

ENGINE_TIMEOUT_S = 600.0
"""For memory of many gigabytes, to and from a slow disk."""

_SWEEP_TIMEOUT_S = 5.0
_TAIL_BYTES = 16 << 10
_MAX_MESSAGE = 400
_CLOSING = "tcp-close\n"
_CRIU_OPTIONS = "ghost-limit 1073741824\nlink-remap\n"  # open files without a name, up to 1 GiB each
_CGROUPS = Path("/sys/fs/cgroup")
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


class EngineFailed(BackendError):
    """runc or CRIU refused; the text says why."""


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
        self._settings = settings
        self._node_netns = node_netns
        run = workspace.run_dir
        self._run = run
        self._upper = workspace.state_dir / "upper"
        self.images = workspace.state_dir / "images"
        self._new_images = run / "images.new"
        self._old_images = run / "images.old"
        self.bundle = run / "bundle"
        self.pid_file = run / "pid"
        self._root = self.bundle / "rootfs"
        self._notes = run / "runc"
        self._work = run / "criu"
        self._message = run / "runc.log"
        self._restoring = run / "restoring"
        self._network = appnet.Namespace(run / "netns", f"p2p{short}", node_netns)
        self._lock = PacketLock(run / "packetlock", node_netns)
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
        for folder in (self.bundle, self._root, self._work, self._notes):
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
        for leftover in (self._message, self.pid_file, self._work / "restore.log", self._restoring):
            leftover.unlink(missing_ok=True)
        if restoring:
            self._restoring.write_text(run)

    def announce(self, options: oci.Options) -> None:
        """The container runs: tell its neighbours."""
        if not options.network.host:
            self._network.announce(options.network)

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
        if (self._notes / self.id).exists():
            with contextlib.suppress(EngineFailed):
                self.run("delete", "--force", self.id)
        overlay.unmount_beneath(self._notes)  # of a restore that was killed
        remove_tree(self._notes)
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

    # runc

    def command(self, *words: str | Path) -> list[str]:
        """The argv of a command of runc about this node's containers."""
        log = ["--log", str(self._message), "--log-format", "json"]
        return ["runc", "--root", str(self._notes), *log, *map(str, words)]

    def environment(self, run: str | None = None) -> dict[str, str]:
        """For runc, which looks for `criu` in PATH; with the mark of a run, to find both again."""
        path = os.environ.get("PATH", os.defpath)
        if (program := criu.find(self._settings)) is not None:
            place = self._run / "bin"
            place.mkdir(mode=0o700, exist_ok=True)
            link = place / "criu"
            if not link.is_symlink() or os.readlink(link) != str(program):
                link.unlink(missing_ok=True)
                link.symlink_to(program)
            path = f"{place}:{path}"
        return {"PATH": path} if run is None else {"PATH": path, RUN_MARK: run}

    def run(self, *words: str | Path) -> None:
        """Run a command of runc to its end; in a session of its own, so that it survives a node that is killed.

        Raises:
            EngineFailed: it did not do it, in runc's words.
            BackendUnavailable: runc is gone.
        """
        self._message.unlink(missing_ok=True)
        try:
            done = subprocess.run(
                self._entered(self.command(*words)),
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                timeout=ENGINE_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EngineFailed(f"runc {words[0]} did not end within {ENGINE_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise BackendUnavailable(f"runc cannot be run: {error.strerror}") from error
        if done.returncode != 0:
            raise EngineFailed(self.message() or f"runc {words[0]}: exit code {done.returncode}")

    def message(self) -> str:
        """The last error of runc, without its preamble."""
        for line in reversed(_tail(self._message).splitlines()):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                if record["level"] in ("error", "fatal"):
                    text = re.sub(r"^runc \w+ failed: ", "", str(record["msg"]).split("\n")[0])
                    return text[:_MAX_MESSAGE]
        return ""

    def launcher(self, options: oci.Options, *, restoring: bool) -> list[str]:
        """The argv that starts or restores the container and ends."""
        files: list[str | Path] = ["--detach", "--pid-file", self.pid_file, "--bundle", self.bundle]
        if restoring:
            command = self.command("restore", *files, *self._criu_words(self.images, options), self.id)
        else:
            command = self.command("run", *files, self.id)
        return self._entered(self._network.connecting(options.network, command))

    def _entered(self, command: list[str]) -> list[str]:
        """`command`, in the node's network."""
        return command if self._node_netns is None else ["nsenter", f"--net={self._node_netns}", *command]

    def why_not_launched(self, *, restoring: bool) -> tuple[str, bool]:
        """Why the launcher failed, and whether anything may have been executed."""
        message = self.message()
        if not restoring:
            # Said when the first process could not be made or could not execute the command.
            refused = "unable to start container process: "
            return message.removeprefix(refused), not message.startswith(refused)
        if "criu failed" in message:
            message = f"CRIU: {criu.why(self._work / 'restore.log')}"
        return message, self.resumed()

    def resumed(self) -> bool:
        """Whether the last launch was a restore that let the processes go on."""
        return "Tasks resumed" in _tail(self._work / "restore.log")

    def restore_failed(self, run: str) -> bool:
        """Whether that run, whose supervisor saw its end, was a restore of which nothing executed.

        The images are then as good as before.
        """
        return _tail(self._restoring) == run and not self.resumed() and self.images.exists()

    def lacks_address(self) -> bool:
        """Whether the last restore failed since an address of a connection is not here."""
        return "Can't bind inet socket back: Cannot assign" in _tail(self._work / "restore.log")

    # CRIU

    def dump(self, options: oci.Options, *, leave_running: bool) -> None:
        """Have the memory written to a new folder; the processes end unless `leave_running`.

        The node's packet filter then keeps their connections silent, until a restore or `release`.

        Raises:
            EngineFailed: with CRIU's reason; the processes go on.
        """
        self.forget_dump()
        self._new_images.mkdir(mode=0o700)
        words: list[str | Path] = ["--leave-running"] if leave_running else []
        locking = options.network.host and options.tcp_established and not leave_running
        before = self._lock.rules() if locking else set()
        try:
            self.run("checkpoint", *words, *self._criu_words(self._new_images, options), self.id)
        except EngineFailed as error:
            reason = f"CRIU: {criu.why(self._work / 'dump.log')}" if "criu failed" in str(error) else str(error)
            raise EngineFailed(reason) from error
        if locking:
            self._lock.remember(before)

    def restored(self) -> None:
        """The memory is back in processes: no images are left that could be restored again."""
        self._lock.forget()
        remove_tree(self.images)

    def release(self) -> None:
        """The memory is not wanted any more: remove what is left of it."""
        self._lock.release()
        self.forget_dump()
        remove_tree(self.images)

    def forget_dump(self) -> None:
        """Nothing is left of a dump that was not taken, or of one that another took the place of."""
        remove_tree(self._new_images)
        remove_tree(self._old_images)
        (self._work / "dump.log").unlink(missing_ok=True)

    def dump_is_complete(self) -> bool:
        """Whether the dump that was begun last is whole, be it taken by `take_final_dump` or not yet."""
        place = self._new_images if self._new_images.exists() else self.images
        if not (place / "descriptors.json").exists():
            return False
        return "Dumping finished successfully" in _tail(self._work / "dump.log")

    def take_final_dump(self) -> None:
        """Let a whole dump take the place of the earlier one, which is put aside. Idempotent.

        `images.new` is gone exactly when it was taken, so a node that was killed in between can tell.
        """
        if not self._new_images.exists():
            return
        if self.images.exists():
            remove_tree(self._old_images)
            self.images.rename(self._old_images)
        self._new_images.rename(self.images)

    def forget_old_dump(self) -> None:
        """Remove what `take_final_dump` put aside."""
        remove_tree(self._old_images)

    def take_dump(self) -> None:
        """Let the new dump take the place of the earlier one, at once."""
        if self.images.exists():
            places = os.fsencode(self._new_images), os.fsencode(self.images)
            if _libc.renameat2(_AT_FDCWD, places[0], _AT_FDCWD, places[1], _RENAME_EXCHANGE) != 0:
                code = ctypes.get_errno()
                if code not in (errno.EINVAL, errno.ENOSYS):
                    raise OSError(code, os.strerror(code), str(self.images))
                remove_tree(self.images)  # a file system that cannot exchange
                self._new_images.rename(self.images)
            remove_tree(self._new_images)
        else:
            self._new_images.rename(self.images)

    def paused_s(self) -> float | None:
        """How long the last dump kept the processes from executing; None when CRIU does not say."""
        return criu.paused_s(self._work / "stats-dump")

    def _criu_words(self, images: Path, options: oci.Options) -> Sequence[str | Path]:
        tcp = ["--tcp-established"] if options.tcp_established else []
        return ["--image-path", images, "--work-path", self._work, "--file-locks", *tcp]


def _remove_cgroup(group: Path) -> None:
    """Remove a group with those that the application made in it; one that is in use stays."""
    for place, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(place)


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode(errors="replace")
    except OSError:
        return ""


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
