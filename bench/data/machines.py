"""Two libvirt saves of one running virtual machine, some seconds apart.

The guest is a Debian kernel with a small initramfs, emulated (TCG): it counts, and writes what it counts to a file. Its
libvirtd and virtlogd have namespaces and folders of their own, so the machine's libvirt, if any, is not concerned.
"""

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.data import contained
from bench.data.debs import Archive
from bench.data.pair import MB, NEW_TIME_S, OLD_TIME_S, Facts, Unavailable, check
from bench.data.workshop import Workshop

SUITE = "bookworm"
KERNEL = "linux-image-cloud-amd64"
GUEST_MB = 160
LEAST_MB = 96
GAP_S = 10
LONGEST_SOCKET = 107
START_S = 30.0
BOOT_S = 120.0
MAGIC = b"LibvirtQemudSave"

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
mount -t tmpfs -o size=50% tmpfs /ram
# What a machine has in its memory: files it has read and written.
cp -r /bin /lib /ram/
n=0
while true; do
  n=$((n+1))
  echo "$n $(cut -d' ' -f1 /proc/uptime) $(cut -d' ' -f1-3 /proc/loadavg)" >> /ram/ticks
  echo "TICK $n"
  sleep 1
done
"""

_QEMU_CONF = """user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
cgroup_controllers = []
namespaces = []
"""

_NODE = """set -e
node=$1
mount --bind "$node/run" /run
mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
mount --bind "$node/etc" /etc/libvirt
mount --bind "$node/lib" /var/lib/libvirt
mount --bind "$node/cache" /var/cache/libvirt
mount --bind "$node/log" /var/log/libvirt
hostname bench
"$2" &
"$3" &
wait
"""


def build(workshop: Workshop, folder: Path, size_mb: int) -> Facts:
    """Boot a guest with `size_mb` of memory, save, restore, let it run for ten seconds, save again; end it all."""
    contained.need_root("libvirtd runs in namespaces of its own")
    contained.need("libvirtd", "virtlogd", "virsh", "qemu-system-x86_64", "busybox")
    guest = workshop.ingredient("guest", lambda place: _make_guest(workshop, place))
    saves = [folder / side / "vm.save" for side in ("old", "new")]
    for path in saves:
        path.parent.mkdir()
    with _node(workshop.scratch("node")) as node:
        serial = node.folder / "serial"
        definition = node.folder / "guest.xml"
        definition.write_text(_domain(guest, size_mb, serial))
        node.virsh("create", str(definition))
        node.wait_for_ticks(serial, 4)
        node.virsh("save", "bench", str(saves[0]))
        before = _ticks(serial)
        node.virsh("restore", str(saves[0]))
        time.sleep(GAP_S)
        node.virsh("save", "bench", str(saves[1]))
        after = _ticks(serial)
    check(after - before >= GAP_S // 2, f"vm-saves: the guest went on for {after - before} ticks only")
    sizes = [path.stat().st_size for path in saves]
    for path, size in zip(saves, sizes, strict=True):
        with path.open("rb") as save:
            check(save.read(len(MAGIC)) == MAGIC, f"vm-saves: {path.name} is no save of libvirt")
        check(size >= size_mb * MB // 4, f"vm-saves: {path.name} has {size} bytes only")
    check(saves[0].read_bytes() != saves[1].read_bytes(), "vm-saves: both are the same")
    for path, when in zip(saves, (OLD_TIME_S, NEW_TIME_S), strict=True):
        os.chown(path, 0, 0)
        path.chmod(0o600)
        os.utime(path, (when, when))
    return {"guest_mb": size_mb, "ticks_between": after - before, "old_bytes": sizes[0]}


@dataclass(frozen=True)
class _Node:
    """A running libvirtd."""

    folder: Path
    log: Path

    def virsh(self, *command: str) -> None:
        uri = f"qemu+unix:///system?socket={self.folder}/run/libvirt/libvirt-sock"
        done = subprocess.run(["virsh", "-q", "-c", uri, *command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Unavailable(f"libvirt: virsh {command[0]}: {done.stderr.strip()[-300:]}; {contained.tail(self.log)}")

    def wait_for_ticks(self, serial: Path, count: int) -> None:
        deadline = time.monotonic() + BOOT_S
        while _ticks(serial) < count:
            if time.monotonic() > deadline:
                raise Unavailable(f"the guest did not boot: {contained.tail(serial)}")
            time.sleep(0.1)


@contextmanager
def _node(folder: Path) -> Iterator[_Node]:
    """A libvirtd that lives in an empty folder, which is removed with it."""
    socket = folder / "run/libvirt/libvirt-sock"
    if len(os.fsencode(socket)) > LONGEST_SOCKET:
        raise Unavailable(f"the work folder's path is too long for a socket: {socket}")
    try:
        for name in ("run", "lib", "cache", "log"):
            (folder / name).mkdir()
        shutil.copytree("/etc/libvirt", folder / "etc", symlinks=True)
        shutil.rmtree(folder / "etc" / "qemu" / "networks" / "autostart", ignore_errors=True)
        (folder / "etc" / "qemu.conf").write_text(_QEMU_CONF)
        (folder / "etc" / "libvirtd.conf").write_text('auth_unix_rw = "none"\n')
        log = folder / "node.log"
        daemons = [contained.find(name) or name for name in ("virtlogd", "libvirtd")]
        with contained.running(["sh", "-c", _NODE, "sh", str(folder), *daemons], log, network=False) as process:
            deadline = time.monotonic() + START_S
            while not socket.is_socket():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Unavailable(f"libvirtd did not start: {contained.tail(log)}")
                time.sleep(0.05)
            yield _Node(folder, log)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ticks(serial: Path) -> int:
    """The number of the last tick that the guest has told."""
    try:
        lines = serial.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return 0
    return max((int(line.split()[1]) for line in lines[:-1] if line.startswith("TICK ")), default=0)


def _make_guest(workshop: Workshop, place: Path) -> None:
    """A kernel from the archive, and an initramfs of busybox and the files of a library package."""
    archive = Archive.of(workshop, SUITE)
    unpacked = place / "unpacked"
    archive.unpack(archive.first_dependency(KERNEL), None, unpacked)
    (kernel,) = (unpacked / "boot").glob("vmlinuz-*")
    kernel.rename(place / "vmlinuz")
    shutil.rmtree(unpacked)
    root = place / "root"
    for name in ("bin", "dev", "lib", "proc", "sys", "ram"):
        (root / name).mkdir(parents=True)
    busybox = contained.find("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin" / "busybox")
    archive.unpack("libpython3.11-stdlib", None, root / "lib")
    (root / "init").write_text(_INIT)
    (root / "init").chmod(0o755)
    packed = shlex.quote(str(place / "initrd.gz"))
    command = f"find . | LC_ALL=C sort | {shlex.quote(busybox)} cpio -o -H newc 2>/dev/null | gzip -1 > {packed}"
    subprocess.run(["sh", "-c", command], cwd=root, check=True)
    shutil.rmtree(root)


def _domain(guest: Path, memory_mb: int, serial: Path) -> str:
    return f"""<domain type='qemu'><name>bench</name><memory unit='MiB'>{memory_mb}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type>
<kernel>{guest / "vmlinuz"}</kernel><initrd>{guest / "initrd.gz"}</initrd>
<cmdline>console=ttyS0 quiet panic=-1</cmdline></os>
<features><acpi/><apic/></features><cpu mode='maximum'/><clock offset='utc'/>
<on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
<devices><controller type='usb' model='none'/><memballoon model='none'/>
<serial type='file'><source path='{serial}' append='on'/><target port='0'/></serial>
<console type='file'><source path='{serial}'/><target type='serial' port='0'/></console></devices></domain>
"""
