"""Whether KVM works: not whether there is a /dev/kvm, but whether a 64-bit kernel would run.

There are hosts, virtual machines themselves, whose KVM accepts a guest and then carries out each instruction of its
kernel one by one: a kernel needs minutes to unpack itself. So something is booted: `kvmprobe.S`, which counts for some
hundredths of a second on a processor that really runs it. It is started through libvirt as applications are, so wrong
permissions on /dev/kvm show too.
"""

import base64
import contextlib
import tempfile
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends import procfs
from backends.errors import BackendError
from backends.libvirt.connection import Connection, library

LIMIT_S = 3.0
"""What the probe may take, of which a real processor needs 0.1 s: the rest is for busy hosts."""

SAYS = b"KVM runs 64-bit code"

IMAGE = base64.b64decode(
    "ArCtGwAAAQD+T1HkAAAQAAAAEAAAAAAAAAAAACAAEAD6vAAAGAC/AAARADHAuQAQAADzq8cFAAARAAMQEQDHBQAQEQADIBEAvwAg"
    "EQC4gwAAALkIAAAAiQcFAAAgAIPHCOL0uAAAEQAPItgPIOCDyCAPIuC5gAAAwA8yDQABAAAPMA8gwA0AAACADyLADwEVSAEQAOqb"
    "ABAACAC4EAAAAI7YjsCO0L8AMhEAuBoBEABmiQdmx0cCCABmx0cEAI7B6BBmiUcGDwEcJU4BEACwEeYgsCDmIbAE5iGwAeYhsP7m"
    "IbA05kOwnOZAsC7mQPu5AOH1Bf/JdfyDPCVYARAAA3MD9OvzvlwBEAC6+AMAAKyEwHQD7uv49Ov9/wQlWAEQAFCwIOYgWEjPDx+A"
    "AAAAAAAAAAAAAAAA//8AAACarwD//wAAAJLPABcAMAEQAA8CADARAAAAAAAAAAAAS1ZNIHJ1bnMgNjQtYml0IGNvZGUKAA=="
)
"""kvmprobe.S, assembled."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether KVM works; `reason` tells why not."""

    works: bool
    reason: str = ""


class KvmProbe:
    """Finds out once, and remembers for as long as the host does not restart; for use from any thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def verdict(self) -> Verdict:
        """At most `LIMIT_S` and some calls of libvirt, the first time.

        Raises:
            BackendUnavailable: there is no libvirtd.
        """
        key = (self._connection.uri, procfs.boot_id())
        with _lock:
            if key not in _known:
                _known[key] = self._find_out()
            return _known[key]

    def _find_out(self) -> Verdict:
        capabilities = ET.fromstring(self._connection.run(lambda hypervisor: hypervisor.getCapabilities()))
        if capabilities.find("guest/arch[@name='x86_64']/domain[@type='kvm']") is None:
            return Verdict(False, "libvirt sees no KVM on this host")
        with tempfile.TemporaryDirectory(prefix="p2player-kvm-") as made:
            folder = Path(made)
            (folder / "image").write_bytes(IMAGE)
            as_root = capabilities.find("host/secmodel[model='dac']") is not None
            try:
                return self._connection.run(lambda hypervisor: _boot(hypervisor, folder, as_root), LIMIT_S + 10)
            except BackendError as error:
                return Verdict(False, f"no machine starts with KVM: {error}")


_lock = threading.Lock()
_known: dict[tuple[str | None, str], Verdict] = {}


def _boot(hypervisor: Any, folder: Path, as_root: bool) -> Verdict:
    libvirt = library()
    console = folder / "console"
    machine = hypervisor.createXML(_description(folder / "image", console, as_root), 0)
    try:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            if console.exists() and SAYS in console.read_bytes():
                return Verdict(True)
            time.sleep(0.02)
    finally:
        with contextlib.suppress(libvirt.libvirtError):  # it ended by itself
            machine.destroy()
    return Verdict(False, f"a machine with KVM does not run a 64-bit kernel at speed: nothing in {LIMIT_S:g} s")


def _description(image: Path, console: Path, as_root: bool) -> str:
    root = ET.Element("domain", type="kvm")
    ET.SubElement(root, "name").text = f"p2p-probe-{uuid.uuid4().hex[:8]}"
    ET.SubElement(root, "memory", unit="MiB").text = "16"
    ET.SubElement(root, "vcpu").text = "1"
    system = ET.SubElement(root, "os")
    ET.SubElement(system, "type", arch="x86_64", machine="pc").text = "hvm"
    ET.SubElement(system, "kernel").text = str(image)
    ET.SubElement(ET.SubElement(root, "features"), "apic")
    devices = ET.SubElement(root, "devices")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=str(console))
    if as_root:
        label = ET.SubElement(root, "seclabel", type="static", model="dac", relabel="no")
        ET.SubElement(label, "label").text = "+0:+0"
    return ET.tostring(root, encoding="unicode")
