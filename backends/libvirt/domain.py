"""libvirt's description of a virtual machine: written for a new one, and fitted to this node for a saved one.

A saved machine brings its own description, in the file that holds its memory. What the guest sees of the hardware must
stay as it is there; paths, the bridge and the emulator are this node's. What may be in it says `description`.
"""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.libvirt.description import DescriptionUnfit, foreign, parse, value
from backends.libvirt.image import Image
from backends.libvirt.table import Machine

Kind = Literal["kvm", "qemu"]

_TARGETS = {"virtio": "vda", "scsi": "sda", "sata": "sda", "ide": "hda"}
_KEPT = {
    "os": frozenset({"type"}),
    "disk": frozenset({"target", "address", "alias"}),
    "interface": frozenset({"mac", "source", "model", "rom", "address", "alias"}),
    "serial": frozenset({"target", "address", "alias"}),
}
"""Elements below these that say what the guest sees; all others are this node's affair, and name files of a host."""


@dataclass(frozen=True, slots=True)
class Place:
    """What of a machine's description belongs to this node.

    Attributes:
        images: the chain of its disk, the writable one first.
        kernel, initrd: for direct boot.
        console: the file that its serial port is written to.
        emulator: QEMU's program; None: libvirt's choice.
        as_root: libvirt knows users (its DAC driver), and QEMU shall be root, for nobody else may enter these folders.
    """

    images: Sequence[Image]
    kernel: Path | None
    initrd: Path | None
    console: Path
    emulator: str | None
    as_root: bool


def name_of(app_id: str) -> str:
    """What libvirt calls an application's machine."""
    return f"p2p-{app_id[:12]}"


def mac_of(app_id: str) -> str:
    """A locally administered address that is the application's own wherever it runs."""
    return ":".join(["02", *(app_id[at : at + 2] for at in range(0, 10, 2))])


def describe(app_id: str, machine: Machine, kind: Kind, machine_type: str, place: Place) -> str:
    """The description of a machine that is started afresh."""
    root = ET.Element("domain", type=kind)
    _text(root, "name", name_of(app_id))
    _text(root, "uuid", app_id)
    _text(root, "memory", str(machine.memory_mb), unit="MiB")
    _text(root, "vcpu", str(machine.vcpus))
    system = ET.SubElement(root, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=machine_type)
    features = ET.SubElement(root, "features")
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    ET.SubElement(root, "cpu", mode="host-model" if kind == "kvm" else "maximum")
    ET.SubElement(root, "clock", offset="utc")
    _text(root, "on_poweroff", "destroy")
    _text(root, "on_reboot", "restart")
    _text(root, "on_crash", "preserve")  # so that a crash can be told from an end
    devices = ET.SubElement(root, "devices")
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "target", dev=_TARGETS[machine.disk_bus], bus=machine.disk_bus)
    if machine.bridge is not None:
        interface = ET.SubElement(devices, "interface", type="bridge")
        ET.SubElement(interface, "mac", address=machine.mac or mac_of(app_id))
        ET.SubElement(interface, "source", bridge=machine.bridge)
        ET.SubElement(interface, "model", type="virtio")
        ET.SubElement(interface, "rom", enabled="no")  # its size would be part of the saved memory
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="virtio")
    ET.SubElement(devices, "panic", model="isa")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "target", port="0")
    _settle(root, machine, place)
    return ET.tostring(root, encoding="unicode")


def fit(saved: str, app_id: str, machine: Machine, place: Place) -> str:
    """A saved machine's description with this node's paths.

    Raises:
        DescriptionUnfit: it is another application's, or has what this backend does not give to a machine.
    """
    root = parse(saved)
    if value(root, "uuid").replace("-", "") != app_id or value(root, "name") != name_of(app_id):
        raise DescriptionUnfit(f"the saved memory is that of {value(root, 'name')[:64]}, not of {name_of(app_id)}")
    problem = next(iter(foreign(root)), None)
    if problem is not None:
        raise DescriptionUnfit(f"the saved memory cannot be continued: {problem}")
    _settle(root, machine, place)
    return ET.tostring(root, encoding="unicode")


def _settle(root: ET.Element, machine: Machine, place: Place) -> None:
    """Give the description all that belongs to this node, in place of what it has there."""
    system = root.find("os")
    devices = root.find("devices")
    assert system is not None
    assert devices is not None
    for old in [*root.findall("seclabel"), *root.findall("metadata"), *root.findall("resource")]:
        root.remove(old)
    if place.as_root:
        label = ET.SubElement(root, "seclabel", type="static", model="dac", relabel="no")
        _text(label, "label", "+0:+0")

    _strip(system)
    if place.kernel is None:
        ET.SubElement(system, "boot", dev="hd")
    else:
        _text(system, "kernel", str(place.kernel))
        if place.initrd is not None:
            _text(system, "initrd", str(place.initrd))
        _text(system, "cmdline", _cmdline(machine))

    for old in [*devices.findall("emulator"), *devices.findall("console")]:
        devices.remove(old)  # libvirt makes the console from the serial port
    if place.emulator is not None:
        emulator = ET.Element("emulator")
        emulator.text = place.emulator
        devices.insert(0, emulator)
    for disk in devices.findall("disk"):
        _strip(disk)
        _fill_disk(disk, place.images)
    for interface in devices.findall("interface"):
        _strip(interface)
        for rom in interface.findall("rom"):
            rom.attrib = {"enabled": "no"}
        for source in interface.findall("source"):
            source.attrib = {"bridge": machine.bridge or ""}
    for serial in devices.findall("serial"):
        _strip(serial)
        ET.SubElement(serial, "source", path=str(place.console), append="on")


def _strip(element: ET.Element) -> None:
    for child in [child for child in element if child.tag not in _KEPT[element.tag]]:
        element.remove(child)


def _fill_disk(disk: ET.Element, images: Sequence[Image]) -> None:
    # Host caching is safe: QEMU flushes when memory has been saved, and when the guest asks for it.
    ET.SubElement(disk, "driver", name="qemu", type=images[0].format, cache="writeback", discard="unmap")
    ET.SubElement(disk, "source", file=str(images[0].path))
    above = disk
    for image in images[1:]:
        above = ET.SubElement(above, "backingStore", type="file")
        ET.SubElement(above, "format", type=image.format)
        ET.SubElement(above, "source", file=str(image.path))
    ET.SubElement(above, "backingStore")  # nothing below


def _cmdline(machine: Machine) -> str:
    words = [machine.cmdline] if machine.cmdline else []
    if machine.ipv4 is not None:
        words.append(f"p2p_ipv4={machine.ipv4}")
    if machine.gateway is not None:
        words.append(f"p2p_gateway={machine.gateway}")
    return " ".join(words)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text
