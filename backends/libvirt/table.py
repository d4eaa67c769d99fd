"""The `[libvirt]` table of a configuration file, read strictly.

[libvirt]
memory_mb = 256
vcpus = 1
cmdline = "console=ttyS0 quiet"     # for layers that hold a kernel
machine = "pc-i440fx-7.2"           # with a version; default: the newest "pc" of the QEMU that starts it first
kvm = false                         # default: where it works
disk_bus = "virtio"                 # or "ide", "sata", "scsi"
network = "bridge:br0"              # default: "none"
mac = "02:00:00:00:00:01"           # default: made from the application's id
ipv4 = "10.88.0.5/24"               # given to the guest on its kernel command line, as p2p_ipv4= and p2p_gateway=
gateway = "10.88.0.1"
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from backends.base import AppConfig
from backends.errors import ConfigError

MAX_MEMORY_MB = 1 << 20
MIN_MEMORY_MB = 16
MAX_VCPUS = 255
MAX_CMDLINE = 1024
BUSES = ("virtio", "ide", "sata", "scsi")

_MACHINE = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,63}")
_BRIDGE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True, slots=True)
class Machine:
    """What the configuration says of a virtual machine; None: left to the backend."""

    memory_mb: int = 256
    vcpus: int = 1
    cmdline: str = ""
    machine: str | None = None
    kvm: bool | None = None
    disk_bus: str = "virtio"
    bridge: str | None = None
    mac: str | None = None
    ipv4: str | None = None
    gateway: str | None = None


def read(config: AppConfig) -> Machine:
    """The table, checked.

    Raises:
        ConfigError: this backend cannot run that configuration.
    """
    if config.command:
        raise ConfigError("command", "a virtual machine starts its own programs: the libvirt backend takes no command")
    table = _Table(config.engines.get("libvirt", {}))
    machine = Machine(
        memory_mb=table.number("memory_mb", Machine().memory_mb, MIN_MEMORY_MB, MAX_MEMORY_MB),
        vcpus=table.number("vcpus", Machine().vcpus, 1, MAX_VCPUS),
        cmdline=table.text("cmdline") or "",
        machine=table.text("machine"),
        kvm=table.flag("kvm"),
        disk_bus=table.text("disk_bus") or Machine().disk_bus,
        bridge=_bridge(table.text("network")),
        mac=_mac(table.text("mac")),
        ipv4=_ipv4(table.text("ipv4")),
        gateway=_gateway(table.text("gateway")),
    )
    table.refuse_others()
    if len(machine.cmdline) > MAX_CMDLINE or not machine.cmdline.isprintable():
        raise ConfigError("libvirt.cmdline", f"must be printable and at most {MAX_CMDLINE} characters")
    if machine.machine is not None and not _MACHINE.fullmatch(machine.machine):
        raise ConfigError("libvirt.machine", "not a name of a machine type")
    if machine.disk_bus not in BUSES:
        raise ConfigError("libvirt.disk_bus", f"must be one of {', '.join(BUSES)}")
    if machine.bridge is None and (machine.mac or machine.ipv4 or machine.gateway):
        raise ConfigError("libvirt.network", 'an address needs network = "bridge:NAME"')
    return machine


class _Table:
    """Reads typed values, and remembers what was asked for."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._known: set[str] = set()

    def number(self, key: str, default: int, least: int, most: int) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(f"libvirt.{key}", f"must be a whole number from {least} to {most}")
        return value

    def text(self, key: str) -> str | None:
        value = self._get(key, None)
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigError(f"libvirt.{key}", "must be a string, and not empty")
        return value

    def flag(self, key: str) -> bool | None:
        value = self._get(key, None)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"libvirt.{key}", "must be true or false")
        return value

    def refuse_others(self) -> None:
        unknown = sorted(self._document.keys() - self._known)
        if unknown:
            raise ConfigError(f"libvirt.{unknown[0]}", "unknown key")

    def _get(self, key: str, default: Any) -> Any:
        self._known.add(key)
        return self._document.get(key, default)


def _bridge(text: str | None) -> str | None:
    if text is None or text == "none":
        return None
    kind, _, name = text.partition(":")
    if kind != "bridge" or not _BRIDGE.fullmatch(name):
        raise ConfigError(
            "libvirt.network", 'must be "none" or "bridge:NAME": a virtual machine has a network of its own'
        )
    return name


def _mac(text: str | None) -> str | None:
    if text is None:
        return None
    lower = text.lower()
    if not _MAC.fullmatch(lower) or int(lower[:2], 16) & 1:
        raise ConfigError("libvirt.mac", "must be six pairs of hexadecimal digits with colons, and no group address")
    return lower


def _ipv4(text: str | None) -> str | None:
    try:
        return None if text is None else str(ipaddress.IPv4Interface(text))
    except ValueError as error:
        raise ConfigError("libvirt.ipv4", str(error)) from None


def _gateway(text: str | None) -> str | None:
    try:
        return None if text is None else str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise ConfigError("libvirt.gateway", str(error)) from None
