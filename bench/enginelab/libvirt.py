"""A libvirtd of its own for a test: one node's engine, in namespaces and folders that end with it.

libvirtd, virtlogd and the QEMUs they start live in a pid namespace: when its first process is killed, or the process
that made it dies, the kernel ends them all. Their /run, /etc and /var belong to the node's folder, so the machine's own
libvirt, if any, is not concerned. Paths of disks are the machine's: the file systems are shared otherwise.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from backends.base import Backend, EngineSettings
from backends.libvirt.backend import LibvirtBackend
from bench.data import contained
from bench.data.pair import Unavailable

START_S = 30.0
CACHE = Path("/var/tmp/p2player-tests/libvirt")
"""What QEMU can do, as libvirtd found out once: it takes seconds. What it keeps is about the processor core that it
ran on, down to that one's number, so it is bound to one; QEMU is not."""

_LONGEST_SOCKET = 107
_FOLDERS = ("run", "lib", "cache", "log")

# The machine's user of QEMU may not open /dev/kvm, for which QEMU waits 44 s.
_QEMU_CONF = """user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
cgroup_controllers = []
namespaces = []
"""

_LIBVIRTD_CONF = """auth_unix_rw = "none"
log_outputs = "3:stderr"
host_uuid = "{uuid}"
"""

_NODE = """set -e
node=$1
mount -t sysfs sys /sys
mount --bind "$node/run" /run
mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
mount --bind "$node/etc" /etc/libvirt
mount --bind "$node/lib" /var/lib/libvirt
mount --bind "$node/cache" /var/cache/libvirt
mount --bind "$node/log" /var/log/libvirt
hostname "$2"
ip link set lo up
virtlogd &
while true; do
  taskset -c "$3" libvirtd &
  echo $! > "$node/libvirtd.pid"
  wait $! || true
done
"""


class LibvirtNode:
    """See the module. A context manager; needs root.

    Args:
        root: an existing folder; the node's own is made below it, and removed with the node.
        name: of the node and its folder.
        netns: path of the network namespace in which QEMU's bridges are; None: a new one.
    """

    def __init__(self, root: Path, name: str, *, netns: str | None = None) -> None:
        self.folder = root / name
        self.name = name
        self._netns = netns
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._uri = ""

    def __enter__(self) -> "LibvirtNode":
        contained.need_root("libvirtd runs in namespaces of its own")
        contained.need("libvirtd", "virtlogd", "qemu-system-x86_64", "qemu-img", "nsenter", "ip", "taskset")
        with ExitStack() as stack:
            self._enter(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def settings(self) -> EngineSettings:
        return EngineSettings(libvirt_uri=self._uri)

    @property
    def backend(self) -> Backend:
        return LibvirtBackend(self.settings)

    @property
    def environment(self) -> dict[str, str]:
        """None is needed."""
        return {}

    def command(self, argv: Sequence[str]) -> list[str]:
        """What runs `argv` in the node's network; the file systems are the machine's."""
        return ["nsenter", f"--net={self.netns}", "--", *argv]

    @property
    def netns(self) -> str:
        """Path of the network namespace."""
        return self._netns or f"/proc/{self._first()}/ns/net"

    def restart_daemon(self) -> None:
        """Kill libvirtd and wait for the next one; virtual machines run on."""
        assert self._process is not None
        inside = (self.folder / "libvirtd.pid").read_text().strip()
        subprocess.run(["nsenter", "-t", str(self._first()), "-p", "-m", "kill", "-KILL", inside], check=True)
        deadline = time.monotonic() + START_S
        while (self.folder / "libvirtd.pid").read_text().strip() == inside:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self._wait()

    def _enter(self, stack: ExitStack) -> None:
        self.folder.mkdir()
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        for name in _FOLDERS:
            (self.folder / name).mkdir()
        shutil.copytree("/etc/libvirt", self.folder / "etc", symlinks=True)
        for kind in ("networks", "autostart"):
            shutil.rmtree(self.folder / "etc" / "qemu" / kind, ignore_errors=True)
        (self.folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
        (self.folder / "etc" / "libvirtd.conf").write_text(_LIBVIRTD_CONF.format(uuid=uuid.uuid4()))
        if CACHE.is_dir():
            shutil.copytree(CACHE, self.folder / "cache", dirs_exist_ok=True)

        enter = [] if self._netns is None else ["nsenter", f"--net={self._netns}", "--"]
        command = [*enter, "sh", "-c", _NODE, "sh", str(self.folder), self.name, str(min(os.sched_getaffinity(0)))]
        network = self._netns is not None
        self._process = stack.enter_context(
            contained.running(command, self.folder / "log" / "daemons", network=network)
        )
        stack.callback(self._keep_cache)
        self._uri = f"qemu+unix:///system?socket={self._short(stack)}/run/libvirt/libvirt-sock"
        self._wait()

    def _short(self, stack: ExitStack) -> Path:
        """A name of the node's folder that leaves room for those of sockets."""
        if len(os.fsencode(self.folder / "run/libvirt/libvirt-sock-ro")) <= _LONGEST_SOCKET:
            return self.folder
        short = Path(tempfile.mkdtemp(prefix="p2p-"))
        stack.callback(shutil.rmtree, short, ignore_errors=True)
        (short / "n").symlink_to(self.folder)
        return short / "n"

    def _wait(self) -> None:
        """Until libvirtd answers."""
        assert self._process is not None
        path = self._uri.partition("socket=")[2]
        deadline = time.monotonic() + START_S
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                    return
                except OSError:
                    pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"libvirtd: {contained.tail(self.folder / 'log' / 'daemons')}")
            time.sleep(0.02)

    def _first(self) -> int:
        """The first process of the namespaces."""
        assert self._process is not None
        unshare = self._process.pid
        return int(Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()[0])

    def _keep_cache(self) -> None:
        made = self.folder / "cache" / "qemu"
        if CACHE.is_dir() or not made.is_dir():
            return
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=CACHE.parent))
        shutil.copytree(made, making / "qemu")
        try:
            making.rename(CACHE)
        except OSError:  # another process was faster
            shutil.rmtree(making)
