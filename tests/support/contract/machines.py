"""The rig of libvirt: a virtual machine that boots in seconds and runs one of the programs as its only application.

The base layer is that of `tests.support.guest`. An app layer brings an initramfs of its own, which the kernel takes
instead of the base's: that of the base, followed by an archive of a few files that replace what is there.
"""

import gzip
import shutil
import subprocess
from pathlib import Path

from backends.base import AppLayout
from tests.support import guest
from tests.support.contract.containers import LabRig
from tests.support.contract.rigs import Facets, Unavailable
from tests.support.contract.services import guest_cache

MEMORY_MB = guest.LEAST_MEMORY_MB

_INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin P2P_STATE=/mnt/state
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
echo
for module in $(cat /modules/order); do insmod /modules/$module.ko 2>/dev/null; done
acpid
n=0; while [ $n -lt 50 ] && [ ! -b /dev/vda ]; do sleep 0.05; n=$((n+1)); done
mount -t ext4 /dev/vda /mnt
mkdir -p /mnt/state
sh /main.sh &
echo $! >/main.pid
wait $!
sync
umount /mnt
poweroff -f
"""

_POWER_BUTTON = """#!/bin/sh
kill -TERM $(cat /main.pid)
"""


def write_initrd(program: str, base: Path, target: Path) -> None:
    """The initramfs of `base`, with `program` as what it runs."""
    files = target.with_suffix(".files")
    (files / "etc/acpi/PWRF").mkdir(parents=True)
    for name, text in (("init", _INIT), ("main.sh", program), ("etc/acpi/PWRF/00000080", _POWER_BUTTON)):
        (files / name).write_text(text)
        (files / name).chmod(0o755)
    archive = subprocess.run(
        ["sh", "-c", "find . -type f | busybox cpio -o -H newc"], cwd=files, capture_output=True, check=True
    ).stdout
    shutil.rmtree(files)
    first = base.read_bytes()
    target.write_bytes(first + bytes(-len(first) % 4) + gzip.compress(archive, 1))


class LibvirtRig(LabRig):
    """A daemon a node."""

    name = "libvirt"
    facets = Facets(
        memory=True, exit_known=False, absent_command=False, prints_fast=False, log_moves=False, healthy_after_s=0.5
    )
    instance = frozenset({"disk.qcow2", "memory.save"})
    family = 1

    def layers(self, program: str, folder: Path) -> tuple[Path, Path]:
        try:
            made = guest.layers(guest_cache())
        except guest.GuestUnavailable as error:
            raise Unavailable(str(error)) from error
        base, app = folder / "base", folder / "app"
        for source, target in ((made.base, base), (made.app, app)):
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)
        write_initrd(program, base / "initrd", app / "initrd")
        return base, app

    def words(self) -> list[str]:
        return []

    def tables(self, line: str = "") -> str:
        return f'[libvirt]\nmemory_mb = {MEMORY_MB}\ncmdline = "console=ttyS0 quiet"\n{line}\n'

    def damage(self, layout: AppLayout) -> None:
        path = layout.state_dir / "memory.save"
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
