"""Kernel and initramfs of the virtual machines: they mount the disk, set the address and run the base's init.

Addresses come as words of the kernel's command line, as `p2p_ipv4=10.88.0.5/24 p2p_gateway=10.88.0.1`; there is no
DHCP to wait for. The initramfs holds busybox and the modules of a machine with virtio devices.
"""

import gzip
import shutil
import stat
from pathlib import Path

from bench.data import contained
from bench.data.debs import Archive
from bench.data.workshop import Workshop
from bench.paper.apps import packages

KERNEL = "linux-image-cloud-amd64"
COMMAND_LINE = "console=ttyS0 quiet panic=-1"
"""What the kernel needs to be told, besides the address."""

_ALIGNED = 4
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
)
_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
for module in $(cat /modules/order); do insmod "/modules/$module.ko"; done
for word in $(cat /proc/cmdline); do
  case $word in
    p2p_ipv4=*) address=${word#*=} ;;
    p2p_gateway=*) gateway=${word#*=} ;;
  esac
done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do sleep 0.05; tries=$((tries + 1)); done
mount -t ext4 -o noatime,noinit_itable /dev/vda /root || exec poweroff -f
ip link set lo up
if [ -n "$address" ]; then
  ip address add "$address" dev eth0
  ip link set eth0 up
  [ -z "$gateway" ] || ip route add default via "$gateway"
fi
mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
mount -t tmpfs -o mode=755,nosuid tmpfs /root/run
mount -t tmpfs -o mode=1777,nosuid tmpfs /root/tmp
exec switch_root -c /dev/console /root /sbin/init
"""


def build(workshop: Workshop, folder: Path) -> None:
    """Put `vmlinuz` and `initrd` into `folder`."""
    contained.need("busybox")
    busybox = contained.find("busybox")
    assert busybox is not None
    scratch = workshop.scratch("guest")
    try:
        archive = Archive.of(workshop, packages.SUITE)
        unpacked, root = scratch / "unpacked", scratch / "root"
        archive.unpack(archive.first_dependency(KERNEL), None, unpacked)
        (kernel,) = (unpacked / "boot").glob("vmlinuz-*")
        shutil.copyfile(kernel, folder / "vmlinuz")
        (modules,) = unpacked.glob("lib/modules/*/kernel")
        for name in ("bin", "dev", "modules", "proc", "root", "sys"):
            (root / name).mkdir(parents=True)
        shutil.copy(busybox, root / "bin/busybox")
        for name in _MODULES:
            shutil.copy(modules / f"{name}.ko", root / "modules")
        (root / "modules/order").write_text("".join(f"{name.rpartition('/')[2]}\n" for name in _MODULES))
        (root / "init").write_text(_INIT)
        (root / "init").chmod(0o755)
        (folder / "initrd").write_bytes(gzip.compress(archive_of(root), mtime=0))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def archive_of(root: Path) -> bytes:
    """A tree of folders and files as the kernel unpacks it ("newc" of cpio), without anything of where it lay."""
    packed = bytearray()
    paths = [root, *sorted(root.rglob("*"))]
    for number, path in enumerate(paths, 1):
        name = str(path.relative_to(root)).encode()
        _append(packed, number, path.stat().st_mode, name, b"" if path.is_dir() else path.read_bytes())
    _append(packed, 0, 0, b"TRAILER!!!", b"")
    return bytes(packed)


def _append(packed: bytearray, number: int, mode: int, name: bytes, data: bytes) -> None:
    links = 2 if stat.S_ISDIR(mode) else 1
    # Inode, mode, owner, group, links, time, size, four numbers of devices, length of the name, checksum.
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    packed += b"070701" + b"".join(b"%08X" % field for field in fields) + name + b"\0"
    packed += bytes(-len(packed) % _ALIGNED) + data
    packed += bytes(-len(packed) % _ALIGNED)
