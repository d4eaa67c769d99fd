"""Take a virtual machine that libvirt knows apart into a base layer and an app layer.

The chain of its disk is cut above its lowest image: that is the base, all above it the app. Without a chain, the whole
disk is the base, and the app layer is an empty overlay. With a base layer given, the app layer is an overlay of that
one's disk and holds what differs. Images are written anew, uncompressed and the base as a raw one, so that equal
content is equal in every layer; the machine's own are only read.

What a configuration of this backend cannot say is refused, with the reason: a machine that came back with other
hardware would be no adoption.
"""

import json
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.base import Adopted
from backends.errors import BackendError
from backends.libvirt.connection import Connection, library
from backends.libvirt.description import parse
from backends.libvirt.disks import QCOW2, RAW, disk_of, qemu_img
from backends.libvirt.image import Image, inspect
from backends.libvirt.table import BUSES

CONVERT_S = 6 * 3600.0

_MAX_CHAIN = 64
_REFUSED = {
    "hostdev": "a device of the host",
    "filesystem": "a folder of the host",
    "shmem": "memory shared with the host",
    "tpm": "a TPM, whose content is outside its disk",
    "redirdev": "redirected USB devices",
    "smartcard": "a smart card",
    "vsock": "a vsock device",
    "iommu": "an IOMMU",
    "nvram": "non-volatile memory outside its disk",
}


class NotAdoptable(BackendError):
    """That machine cannot be taken apart; the text says why."""


@dataclass(frozen=True, slots=True)
class Found:
    """A machine of libvirt's, in terms of this backend."""

    disk: Path
    kernel: Path | None
    initrd: Path | None
    table: dict[str, str | int]

    @property
    def config(self) -> str:
        """A configuration file. JSON's strings, numbers and booleans are TOML's."""
        return "\n".join(["[libvirt]", *(f"{key} = {json.dumps(value)}" for key, value in self.table.items())]) + "\n"


def adopt(connection: Connection, source: str, into: Path, base: Path | None) -> Adopted:
    """See `backends.base.Adopter`.

    Raises:
        NotAdoptable: it runs, or has what this backend does not give to a machine.
        BackendError: there is none, or its images cannot be read or copied.
    """
    found = examine(_description(connection, source))
    chain = _chain(found.disk)
    base_out, app_out = into / "base", into / "app"
    try:
        if base is None:
            base_out.mkdir()
            below = base_out / RAW
            _flatten(chain[-1], below)
            _copy_boot_files(found, base_out)
        else:
            given = disk_of(base)
            if given is None:
                raise NotAdoptable(f"the base layer has no disk: {base}")
            below = given
        app_out.mkdir()
        _difference(chain[0], below, app_out / QCOW2, whole=base is None and len(chain) == 1)
        if base is not None:
            _copy_boot_files(found, app_out)
    except OSError as error:
        raise NotAdoptable(f"cannot copy {error.filename or into}: {error.strerror}") from error
    return Adopted(None if base is not None else base_out, app_out, found.config)


def examine(description: str) -> Found:
    """Read libvirt's description of a machine.

    Raises:
        NotAdoptable: it has what this backend does not give to a machine.
    """
    root = parse(description)
    system = root.find("os")
    kind = None if system is None else system.find("type")
    if root.get("type") not in ("kvm", "qemu") or system is None or kind is None or kind.text != "hvm":
        raise NotAdoptable("it is no virtual machine of QEMU")
    if kind.get("arch") != "x86_64":
        raise NotAdoptable(f"it is a machine of architecture {kind.get('arch')}, and this backend makes x86_64 ones")
    if system.get("firmware") == "efi" or system.find("loader") is not None or system.find("nvram") is not None:
        raise NotAdoptable("it boots with UEFI, whose variables are outside its disk")
    table: dict[str, str | int] = {
        "memory_mb": _memory_mb(root),
        "vcpus": int(root.findtext("vcpu") or 1),
    }
    for tag, words in _REFUSED.items():
        if root.find(f"devices/{tag}") is not None:
            raise NotAdoptable(f"it has {words}")
    disk, bus = _disk(root)
    if bus != "virtio":
        table["disk_bus"] = bus
    if (machine := kind.get("machine")) is not None:
        table["machine"] = machine
    if root.get("type") == "qemu":
        table["kvm"] = False
    table.update(_network(root))
    kernel, initrd = system.findtext("kernel"), system.findtext("initrd")
    if kernel is not None and (cmdline := system.findtext("cmdline")):
        table["cmdline"] = cmdline
    return Found(disk, None if kernel is None else Path(kernel), None if initrd is None else Path(initrd), table)


def _description(connection: Connection, source: str) -> str:
    libvirt = library()

    def read(hypervisor: Any) -> str:
        try:
            machine = hypervisor.lookupByName(source)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            try:
                machine = hypervisor.lookupByUUIDString(source)
            except libvirt.libvirtError:
                raise NotAdoptable(f"libvirt has no machine {source}") from None
        if machine.isActive():
            raise NotAdoptable(f"{source} is running: shut it down first")
        if machine.hasManagedSaveImage():
            raise NotAdoptable(f"{source} has saved memory, which would be lost: start it and shut it down first")
        if machine.snapshotNum():
            raise NotAdoptable(f"{source} has snapshots, which would be lost: delete them first")
        flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
        return str(machine.XMLDesc(flags))

    return connection.run(read)


def _memory_mb(root: ET.Element) -> int:
    units = {"b": 1, "bytes": 1, "KB": 1000, "KiB": 1 << 10, "MB": 10**6, "MiB": 1 << 20, "GB": 10**9, "GiB": 1 << 30}
    memory = root.find("memory")
    if memory is None or memory.get("unit", "KiB") not in units:
        raise NotAdoptable("its memory is of no known size")
    return max(1, int(memory.text or 0) * units[memory.get("unit", "KiB")] >> 20)


def _disk(root: ET.Element) -> tuple[Path, str]:
    """Its disk and the bus that it is at; empty drives for removable media do no harm."""
    disks = [
        disk
        for disk in root.findall("devices/disk")
        if disk.get("device", "disk") == "disk" or disk.find("source") is not None
    ]
    if len(disks) != 1:
        raise NotAdoptable(f"it has {len(disks)} disks and media, and this backend takes exactly one disk")
    disk = disks[0]
    source, target = disk.find("source"), disk.find("target")
    if disk.get("type") != "file" or disk.get("device", "disk") != "disk" or source is None or target is None:
        raise NotAdoptable(f"its disk is of type {disk.get('type')}, and this backend takes image files")
    if source.find("encryption") is not None or disk.find("encryption") is not None:
        raise NotAdoptable("its disk is encrypted")
    bus = target.get("bus", "")
    if bus not in BUSES:
        raise NotAdoptable(f"its disk is at a bus of kind {bus}")
    return Path(source.get("file", "")), bus


def _network(root: ET.Element) -> dict[str, str]:
    interfaces = root.findall("devices/interface")
    if not interfaces:
        return {}
    if len(interfaces) > 1:
        raise NotAdoptable(f"it has {len(interfaces)} network devices, and this backend takes one")
    source, mac, model = (interfaces[0].find(tag) for tag in ("source", "mac", "model"))
    if interfaces[0].get("type") != "bridge" or source is None or not source.get("bridge"):
        raise NotAdoptable(f"its network is of type {interfaces[0].get('type')}, and this backend takes bridges")
    if model is not None and model.get("type") != "virtio":
        raise NotAdoptable(f"its network device is a {model.get('type')}, and this backend makes virtio ones")
    table = {"network": f"bridge:{source.get('bridge')}"}
    if mac is not None and mac.get("address"):
        table["mac"] = str(mac.get("address"))
    return table


def _chain(top: Path) -> list[Image]:
    """The images below and with `top`, as their headers name them; these are the operator's own."""
    chain = [inspect(top.resolve())]
    while (name := chain[-1].backing) is not None:
        if len(chain) >= _MAX_CHAIN:
            raise NotAdoptable(f"the chain of {top} has more than {_MAX_CHAIN} images")
        if ":" in name.split("/", 1)[0]:
            raise NotAdoptable(f"{chain[-1].path} is based on {name[:200]}, which is no file")
        chain.append(inspect((chain[-1].path.parent / name).resolve()))
    return chain


def _flatten(image: Image, out: Path) -> None:
    qemu_img("convert", "-f", image.format, "-O", "raw", str(image.path), str(out), timeout_s=CONVERT_S)


def _difference(top: Image, below: Path, out: Path, *, whole: bool) -> None:
    """Make `out` an overlay of `below` that shows what `top` shows; `whole`: `below` shows that already."""
    under = inspect(below)
    if whole:
        size = str(under.size_bytes)
        qemu_img("create", "-q", "-f", "qcow2", "-b", str(below), "-F", under.format, str(out), size, timeout_s=60)
    else:
        # An overlay of the machine's own disk, moved onto the other one: only what differs is copied into it.
        qemu_img("create", "-q", "-f", "qcow2", "-b", str(top.path), "-F", top.format, str(out), timeout_s=60)
        onto = ("-b", str(below), "-F", under.format)
        qemu_img("rebase", "-f", "qcow2", *onto, str(out), timeout_s=CONVERT_S)
    # The name in the header is not used, and should not tell where this was made.
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", below.name, "-F", under.format, str(out), timeout_s=60)


def _copy_boot_files(found: Found, layer: Path) -> None:
    for path, name in ((found.kernel, "vmlinuz"), (found.initrd, "initrd")):
        if path is not None:
            (layer / name).write_bytes(path.read_bytes())
