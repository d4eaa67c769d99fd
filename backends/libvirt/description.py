"""What libvirt's description of a machine says: whether it can move, what its disk is called, whether memory is final.

A saved machine's description comes with its memory, from another machine. So only elements that `domain.describe` and
libvirt write are let through: one that asks for a folder or a device of the host, or for words on QEMU's command line,
is refused.
"""

import xml.etree.ElementTree as ET

from backends.errors import BackendError

NAMESPACE = "urn:p2player:libvirt:1"

_MARK = f"{{{NAMESPACE}}}memory"
_FINAL = "final"
_TOP_LEVEL = frozenset(
    {
        "name",
        "uuid",
        "metadata",
        "title",
        "description",
        "memory",
        "currentMemory",
        "vcpu",
        "resource",
        "os",
        "features",
    }
    | {"cpu", "clock", "pm", "seclabel", "devices", "on_poweroff", "on_reboot", "on_crash"}
)
_DEVICES = frozenset(
    {"emulator", "disk", "controller", "interface", "serial", "console", "input", "audio", "memballoon", "panic"}
)

_REPEATED = frozenset({"seclabel"})
_KINDS = {"input": frozenset({"mouse", "keyboard", "tablet"}), "audio": frozenset({"none"})}
"""Other kinds of these are devices and files of a host."""

_MAX_XML_BYTES = 1 << 20

ET.register_namespace("p2player", NAMESPACE)


class DescriptionUnfit(BackendError):
    """A saved machine's description cannot be used here."""


def parse(text: str) -> ET.Element:
    """libvirt's XML as a tree.

    Raises:
        DescriptionUnfit: it is too large or no XML.
    """
    if len(text) > _MAX_XML_BYTES or "<!DOCTYPE" in text:
        raise DescriptionUnfit("the description of the machine is not acceptable")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise DescriptionUnfit(f"the description of the machine is no XML: {error}") from None


def foreign(root: ET.Element) -> list[str]:
    """What a description has that cannot move: one sentence each."""
    found = []
    if root.tag != "domain" or root.get("type") not in ("kvm", "qemu"):
        found.append(f"it is a machine of kind {str(root.get('type'))[:64]}")
    tags = [child.tag for child in root]
    for tag in dict.fromkeys(tags):
        if tag not in _TOP_LEVEL:
            found.append(f"its description has the element {tag[:64]}")
        elif tags.count(tag) > 1 and tag not in _REPEATED:  # libvirt would heed all of them, we the first
            found.append(f"its description has the element {tag} more than once")
    if value(root, "on_crash").startswith("coredump"):
        found.append("it has libvirt write its memory to the host's disk when it crashes")
    devices = root.find("devices")
    for device in [] if devices is None else devices:
        if device.tag not in _DEVICES:
            found.append(f"it has a device of kind {device.tag[:64]}")
        elif (kind := device.get("type", "")) not in _KINDS.get(device.tag, {kind}):
            found.append(f"it has a device of kind {device.tag} {kind[:64]}")
    for tag, kind, least, words in (
        ("disk", "file", 1, "it has other disks than the one of its instance"),
        ("interface", "bridge", 0, "it has other network devices than one at a bridge"),
        ("serial", "file", 1, "it has other serial ports than its console"),
    ):
        found_here = root.findall(f"devices/{tag}")
        if not least <= len(found_here) <= 1 or any(device.get("type") != kind for device in found_here):
            found.append(words)
    return found


def mark_final(live: str) -> str:
    """The description of a running machine, with the mark that its saved memory is final: not that of a round."""
    root = parse(live)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    for old in metadata.findall(_MARK):
        metadata.remove(old)
    ET.SubElement(metadata, _MARK).set("is", _FINAL)
    return ET.tostring(root, encoding="unicode")


def is_final(saved: str) -> bool:
    """Whether `mark_final` marked it."""
    mark = parse(saved).find(f"metadata/{_MARK}")
    return mark is not None and mark.get("is") == _FINAL


def disk_of(description: str) -> str:
    """What libvirt calls the machine's disk."""
    target = parse(description).find("devices/disk/target")
    return "" if target is None else target.get("dev") or ""


def value(root: ET.Element, tag: str) -> str:
    return root.findtext(tag) or ""
