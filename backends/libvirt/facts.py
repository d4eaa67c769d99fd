"""What two nodes must have in common for the memory of a machine to move, as short texts.

    kind       kvm or qemu (emulated)
    machine    QEMU's machine type, which has a version
    qemu       version of the QEMU that runs it: a newer one reads what an older one wrote, not the other way round
    cpu        with KVM: model and features that the guest was given, as libvirt names them
    memory_bytes   what saved memory adds to the instance folder

An emulated processor has the same features on every host; with KVM they are those of the host.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.libvirt.connection import Connection, LibvirtFailed, library
from backends.libvirt.domain import Kind

ARCH = "x86_64"

_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_MAX_FEATURES = 512


@dataclass(frozen=True, slots=True)
class Host:
    """What libvirt says of this node's QEMU."""

    qemu: tuple[int, int, int]
    emulator: str
    machines: frozenset[str]
    default_machine: str
    as_root: bool


def read_host(connection: Connection) -> Host | None:
    """Ask libvirt; None when it has no QEMU for this architecture."""
    capabilities = ET.fromstring(connection.run(lambda hypervisor: hypervisor.getCapabilities()))
    number = connection.run(lambda hypervisor: int(hypervisor.getVersion()))
    arch = capabilities.find(f"guest[os_type='hvm']/arch[@name='{ARCH}']")
    if arch is None:
        return None
    names = {name for entry in arch.iter("machine") for name in (entry.text, entry.get("canonical")) if name}
    newest = next((entry.get("canonical") for entry in arch.iter("machine") if entry.text == "pc"), None)
    return Host(
        qemu=(number // 1000000, number // 1000 % 1000, number % 1000),
        emulator=arch.findtext("emulator") or "",
        machines=frozenset(names),
        default_machine=newest or "pc",
        as_root=capabilities.find("host/secmodel[model='dac']") is not None,
    )


def of_machine(live: ET.Element, host: Host) -> dict[str, str]:
    """The facts of a running machine, from its description."""
    kind = live.get("type") or ""
    kind_of_os = live.find("os/type")
    facts = {
        "kind": kind,
        "machine": "" if kind_of_os is None else kind_of_os.get("machine") or "",
        "qemu": ".".join(map(str, host.qemu)),
    }
    if kind == "kvm":
        facts["cpu"] = _written(live.find("cpu"))
    return facts


def differences(facts: Mapping[str, str], host: Host, connection: Connection) -> list[str]:
    """Why memory saved under `facts` cannot be continued on `host`, but for whether KVM works."""
    found = []
    machine = facts.get("machine", "")
    if machine and machine not in host.machines:
        called = machine if _WORD.fullmatch(machine) else "of that name"
        found.append(f"QEMU {_dotted(host.qemu)} has no machine type {called}")
    theirs = _version(facts.get("qemu", ""))
    if theirs is not None and theirs[:2] > host.qemu[:2]:
        found.append(f"QEMU {_dotted(host.qemu)} is older than {_dotted(theirs)}, which runs the application")
    if facts.get("kind") == "kvm" and (cpu := _read(facts.get("cpu", ""))) is not None:
        found += _missing(cpu, host, machine, connection)
    return found


def kind_of(facts: Mapping[str, str]) -> Kind | None:
    kind = facts.get("kind")
    return kind if kind in ("kvm", "qemu") else None  # type: ignore[return-value]


def _missing(cpu: ET.Element, host: Host, machine: str, connection: Connection) -> list[str]:
    libvirt = library()
    description = ET.tostring(cpu, encoding="unicode")
    machine_type = machine if machine in host.machines else None

    def compare(hypervisor: Any) -> int:
        return int(hypervisor.compareHypervisorCPU(host.emulator, ARCH, machine_type, "kvm", description, 0))

    try:
        outcome = connection.run(compare)
    except LibvirtFailed as error:
        return [f"the processor here cannot be compared with {cpu.findtext('model')}: {error}"]
    if outcome == libvirt.VIR_CPU_COMPARE_INCOMPATIBLE:
        return [f"the processor here lacks features of {cpu.findtext('model')}, which the application uses"]
    return []


def _written(cpu: ET.Element | None) -> str:
    """`Model +feature -feature`."""
    if cpu is None:
        return ""
    words = [cpu.findtext("model") or ""]
    for feature in cpu.findall("feature"):
        sign = "+" if feature.get("policy") in ("require", "force") else "-"
        words.append(sign + (feature.get("name") or ""))
    return " ".join(words)


def _read(text: str) -> ET.Element | None:
    """The other way round; None when it is nothing of the kind."""
    words = text.split()
    if not words or len(words) > _MAX_FEATURES or not all(_WORD.fullmatch(word) for word in words):
        return None
    cpu = ET.Element("cpu", mode="custom", match="exact")
    ET.SubElement(cpu, "model", fallback="forbid").text = words[0]
    for word in words[1:]:
        ET.SubElement(cpu, "feature", policy="require" if word.startswith("+") else "disable", name=word[1:])
    return cpu


def _version(text: str) -> tuple[int, int, int] | None:
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})", text)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3]))


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))
