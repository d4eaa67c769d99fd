"""A tiny virtual machine for tests: Debian's cloud kernel, busybox in an initramfs, a disk, and an overlay of that.

The guest counts in memory, prints what it counts on its serial console and writes it to its disk:

    ready 1 boot=BOOT base=BASE app=APP     once, after its disk is mounted
    tick N boot=BOOT                        ten times a second

BOOT is a name of this boot, so that a guest that goes on can be told from one that started again; BASE and APP are what
the files of these names on the disk say: the first comes from the base layer, the second from the app layer.

It answers lines of TCP on PORT with their number in that connection and the present count, and ends when its power
button is pressed. Words on its kernel command line: `p2p_ipv4=A.B.C.D/N` and `p2p_gateway=` (set by the backend),
`life=S` (power off after S seconds), `panic_after=S`, `deaf` (ignore the power button), `fill=MB` (of random memory).
"""

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

PORT = 7000
LEAST_MEMORY_MB = 96
CACHE = Path("/var/tmp/p2player-tests/guest")
"""Where tests keep what they make once."""

DISK_MB = 64

_KERNEL = "linux-image-cloud-amd64"
_BASE_FILL_BYTES = 4 << 20
_MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/input/evdev",
    "drivers/acpi/button",
    "drivers/misc/pvpanic/pvpanic",
    "drivers/misc/pvpanic/pvpanic-mmio",
)

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
for word in $(cat /proc/cmdline); do case $word in
  p2p_ipv4=*) ipv4=${word#*=};; p2p_gateway=*) gateway=${word#*=};;
  life=*) life=${word#*=};; panic_after=*) panic_after=${word#*=};; deaf) deaf=1;; fill=*) fill=${word#*=};;
esac; done
for module in $(cat /modules/order); do insmod /modules/$module.ko 2>/dev/null; done
[ -z "$deaf" ] && acpid
ip link set lo up
if [ -n "$ipv4" ] && ip link set eth0 up; then
  ip addr add $ipv4 dev eth0
  [ -n "$gateway" ] && ip route add default via $gateway
  nc -ll -p PORT -e /answer &
fi
n=0; while [ $n -lt 50 ] && [ ! -b /dev/vda ]; do sleep 0.05; n=$((n+1)); done
mount -t ext4 /dev/vda /mnt
boot=$(cut -c1-8 /proc/sys/kernel/random/boot_id)
if [ -n "$fill" ]; then
  mount -t tmpfs -o size=90% tmpfs /ram
  dd if=/dev/urandom of=/ram/fill bs=1M count=$fill 2>/dev/null
fi
[ -n "$life" ] && { sleep $life; sync; poweroff -f; } &
[ -n "$panic_after" ] && { sleep $panic_after; echo c > /proc/sysrq-trigger; } &
n=1
echo "ready $n boot=$boot base=$(cat /mnt/base) app=$(cat /mnt/app)"
while true; do
  echo "tick $n boot=$boot"
  echo $n > /count
  if [ $((n % 10)) = 0 ]; then echo "$n $boot" >> /mnt/ticks; sync; fi
  n=$((n+1))
  sleep 0.1
done
""".replace("PORT", str(PORT))

_ANSWER = """#!/bin/sh
n=0
while read -r line; do n=$((n+1)); echo "$n $(cat /count) $line"; done
"""

_POWER_BUTTON = """#!/bin/sh
sync
umount /mnt 2>/dev/null
poweroff -f
"""


class GuestUnavailable(Exception):
    """The guest cannot be made here; the text says why."""


@dataclass(frozen=True, slots=True)
class GuestLayers:
    """Folders to be used as layers, read-only. `base` holds vmlinuz, initrd, disk (raw); `app` disk.qcow2."""

    base: Path
    app: Path


def layers(cache: Path = CACHE) -> GuestLayers:
    """The two layers, made the first time in the folder `cache` (which is created) and kept there.

    Raises:
        GuestUnavailable: a program is missing, or the kernel's package cannot be had.
    """
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / "guest-3"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            making = cache / "making"
            shutil.rmtree(making, ignore_errors=True)
            _make(kernel(cache), making)
            making.rename(made)
    return GuestLayers(made / "base", made / "app")


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel: the image, and the folder that holds its modules by their path in the source tree."""

    image: Path
    modules: Path


def kernel(cache: Path = CACHE) -> Kernel:
    """Debian's cloud kernel, fetched the first time without being installed."""
    unpacked = cache / "kernel"
    if not unpacked.is_dir():
        _need("apt-get", "apt-cache", "dpkg-deb")
        making = cache / "kernel.making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        depends = _output("apt-cache", "depends", _KERNEL).splitlines()
        names = [line.split()[-1] for line in depends if line.strip().startswith("Depends: linux-image-")]
        if not names:
            raise GuestUnavailable(f"the package lists of this machine do not know {_KERNEL}: run apt-get update")
        _output("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", names[0], folder=making)
        (package,) = making.glob("*.deb")
        _output("dpkg-deb", "-x", str(package), str(making))
        package.unlink()
        making.rename(unpacked)
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    (modules,) = (unpacked / "lib" / "modules").glob("*/kernel")
    return Kernel(image, modules)


def _make(kernel: Kernel, folder: Path) -> None:
    _need("busybox", "mkfs.ext4", "debugfs", "qemu-img", "gzip")
    base, app, scratch = folder / "base", folder / "app", folder / "scratch"
    for path in (base, app, scratch):
        path.mkdir(parents=True)
    shutil.copy(kernel.image, base / "vmlinuz")
    _make_initrd(kernel, scratch / "initrd", base / "initrd")
    _make_disks(scratch, base / "disk", app / "disk.qcow2")
    shutil.rmtree(scratch)


def _make_initrd(kernel: Kernel, root: Path, target: Path) -> None:
    for name in ("bin", "dev", "mnt", "modules", "proc", "ram", "sys", "etc/acpi/PWRF", "var/log", "var/run"):
        (root / name).mkdir(parents=True)
    shutil.copy(_found("busybox"), root / "bin" / "busybox")
    for module in _MODULES:
        shutil.copy(kernel.modules / f"{module}.ko", root / "modules")
    (root / "modules" / "order").write_text("\n".join(module.rsplit("/", 1)[-1] for module in _MODULES) + "\n")
    for name, text in (("init", _INIT), ("answer", _ANSWER), ("etc/acpi/PWRF/00000080", _POWER_BUTTON)):
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    command = 'find . | LC_ALL=C sort | busybox cpio -o -H newc 2>/dev/null | gzip -1 > "$0"'
    _output("sh", "-c", command, str(target), folder=root)


def _make_disks(scratch: Path, base: Path, app: Path) -> None:
    """A raw file system, and a qcow2 overlay that holds only what differs after two files were added."""
    files = scratch / "files"
    files.mkdir()
    (files / "base").write_text("base-1")
    (files / "fill").write_bytes(os.urandom(_BASE_FILL_BYTES))
    with base.open("wb") as disk:
        disk.truncate(DISK_MB << 20)
    _output("mkfs.ext4", "-q", "-F", "-d", str(files), "-O", "^has_journal", str(base))
    changed, text = scratch / "changed", scratch / "app"
    _output("cp", "--sparse=always", str(base), str(changed))
    text.write_text("app-1")
    _output("debugfs", "-w", "-R", f"write {text} app", str(changed))
    _output("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(changed), "-F", "raw", str(app))
    _output("qemu-img", "rebase", "-f", "qcow2", "-b", str(base), "-F", "raw", str(app))
    _output("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "disk", "-F", "raw", str(app))


def _need(*programs: str) -> None:
    for program in programs:
        _found(program)


def _found(program: str) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")
    if path is None:
        raise GuestUnavailable(f"needs {program}")
    return path


def _output(*command: str, folder: Path | None = None) -> str:
    program = _found(command[0])
    done = subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise GuestUnavailable(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    return done.stdout
