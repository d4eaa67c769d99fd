"""The network of an application in a container: that of the node, none, or a place of its own on a bridge.

Theory of operation
-------------------
MAC and IP address are the application's and move with it, so that its open connections go on at the next node when
both bridges belong to one network. A network namespace is made for each run, kept by a mount on `run_dir/netns`, and
a pair of virtual interfaces leads from it to the bridge.

A packet of an open connection that arrives before the connection is restored would be answered with a reset. So the
outer end of the pair stays down until the memory is back; then an unasked ARP answer tells the bridge and
the neighbours where the address is now. The end is raised by the launcher itself (`connecting`), since the node may be
killed while the launcher is at work. Taking the namespace away also takes CRIU's packet filter, which had kept the
connections of the saved application silent.
"""

import contextlib
import ctypes
import ipaddress
import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.errors import BackendError, ConfigError

KEYS = frozenset({"network", "mac", "ipv4", "gateway"})
INSIDE = "eth0"

_BRIDGE = re.compile(r"bridge:([A-Za-z0-9_.-]{1,15})", re.ASCII)
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)
_TIMEOUT_S = 10.0
_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2
_ETH_P_ARP = 0x0806

_libc = ctypes.CDLL(None, use_errno=True)


class NetworkError(BackendError):
    """The network of an application could not be set up."""


@dataclass(frozen=True, slots=True)
class Network:
    """What the configuration asks for. Without `bridge`, `host` tells the node's network from none at all."""

    host: bool = False
    bridge: str | None = None
    mac: str | None = None
    ipv4: str | None = None
    gateway: str | None = None


def parse(engine: str, table: Mapping[str, Any], default: str) -> Network:
    """Read the keys of `KEYS` from an engine's table of the configuration.

    Raises:
        ConfigError: a value is not acceptable, or is of no use without a bridge.
    """

    def text(key: str, fallback: str | None = None) -> str | None:
        value = table.get(key, fallback)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{engine}.{key}", "must be a string")
        return value

    name = text("network", default)
    bridge = _BRIDGE.fullmatch(name or "")
    if bridge is None and name not in ("host", "none"):
        raise ConfigError(f"{engine}.network", 'must be "host", "none" or "bridge:NAME"')
    found = Network(name == "host", bridge and bridge[1], text("mac"), text("ipv4"), text("gateway"))
    for key in ("mac", "ipv4", "gateway"):
        if bridge is None and key in table:
            raise ConfigError(f"{engine}.{key}", 'needs network = "bridge:NAME"')
    if found.mac is not None and not _MAC.fullmatch(found.mac):
        raise ConfigError(f"{engine}.mac", "must be the MAC address of one interface, as in 02:00:5e:00:00:01")
    with _config_error(f"{engine}.ipv4", "must be an address with a prefix length, as in 10.88.0.5/24"):
        if found.ipv4 is not None and (
            "/" not in found.ipv4 or not ipaddress.IPv4Interface(found.ipv4).network.prefixlen
        ):
            raise ValueError
    with _config_error(f"{engine}.gateway", "must be an IPv4 address of the network of `ipv4`"):
        if found.gateway is not None and (
            found.ipv4 is None
            or ipaddress.IPv4Address(found.gateway) not in ipaddress.IPv4Interface(found.ipv4).network
        ):
            raise ValueError
    return found


@contextlib.contextmanager
def _config_error(where: str, problem: str) -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise ConfigError(where, problem) from None


class Namespace:
    """The network namespace of one application.

    Args:
        place: the file that keeps it, a mount.
        outer: name of the pair's end on the bridge, at most 15 letters.
        node: the node's own network namespace, when that is not the one of this process.
    """

    def __init__(self, place: Path, outer: str, node: Path | None = None) -> None:
        self.place = place
        self._outer = outer
        self._node = node

    def create(self, network: Network) -> None:
        """Make it afresh; the outer end is on the bridge, and down.

        Raises:
            NetworkError: there is no such bridge, or the kernel refused.
        """
        self.remove()
        self.place.touch(mode=0o600)
        _apart(self._make)
        try:
            commands = ["link set lo up"]
            if network.bridge is not None:
                address = f" address {network.mac}" if network.mac else ""
                pair = f"link add {self._outer} type veth peer name {INSIDE}{address} netns {self.place}"
                _ip(self._node, pair, f"link set {self._outer} master {network.bridge}")
                if network.ipv4:
                    commands.append(f"address add {network.ipv4} dev {INSIDE}")
                commands.append(f"link set {INSIDE} up")
                if network.gateway:
                    commands.append(f"route add default via {network.gateway}")
            _ip(self.place, *commands)
        except NetworkError:
            self.remove()
            raise

    def connecting(self, network: Network, command: list[str]) -> list[str]:
        """The argv that runs `command` and, when that went well, lets packets through."""
        if network.bridge is None:
            return command
        script = 'outer=$1; shift; "$@" && exec ip link set "$outer" up'
        return ["sh", "-c", script, "launcher", self._outer, *command]

    def remove(self) -> None:
        """Take it away, with its interfaces. Idempotent."""
        if not os.path.lexists(self.place):
            return
        # At once, for the kernel clears namespaces away later, and the name may be wanted again.
        with contextlib.suppress(NetworkError):
            _ip(self._node, f"link delete {self._outer}")
        while _is_mounted(self.place):
            if _libc.umount2(os.fsencode(self.place), _MNT_DETACH) != 0:
                break
        self.place.unlink(missing_ok=True)

    def _make(self) -> None:
        _check(_libc.unshare(_CLONE_NEWNET), "make a network namespace")
        source = f"/proc/self/task/{threading.get_native_id()}/ns/net".encode()
        _check(_libc.mount(source, os.fsencode(self.place), None, _MS_BIND, None), f"mount on {self.place}")


def announce(ipv4: str, namespace: Path) -> None:
    """Tell the neighbours of a network namespace's `INSIDE` where this address is now.

    And look for them anew: what was asked while nothing got through would be repeated after a second only.

    Raises:
        NetworkError: there is no such interface.
    """
    address = ipaddress.IPv4Interface(ipv4).ip.packed
    _apart(lambda: _announce(address), namespace)
    _ip(namespace, f"neighbour flush dev {INSIDE}")


def _is_mounted(path: Path) -> bool:
    """Whether something of another file system is mounted on this file."""
    return path.stat().st_dev != path.parent.stat().st_dev


def _announce(address: bytes) -> None:
    """Broadcast a gratuitous ARP answer, as RFC 5227 section 3 has it, from the namespace of this thread."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP)) as link:
        link.bind((INSIDE, _ETH_P_ARP))
        mac = link.getsockname()[4]
        everyone = b"\xff" * 6
        header = everyone + mac + struct.pack("!H", _ETH_P_ARP)
        for operation in (1, 2):  # some neighbours heed only requests, some only answers
            target = b"\0" * 6 if operation == 1 else everyone
            link.send(header + struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + address + target + address)


def _ip(namespace: Path | None, *commands: str) -> None:
    """Run commands of ip(8) in a namespace; all of them in one process."""
    enter = [] if namespace is None else ["nsenter", f"--net={namespace}"]
    try:
        done = subprocess.run(
            [*enter, "ip", "-batch", "-"],
            input="\n".join(commands) + "\n",
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"cannot run ip: {error}") from error
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines() or ["no reason given"]
        raise NetworkError(f"ip {commands[0]}: {reason[0]}")


def _apart(act: Callable[[], None], namespace: Path | None = None) -> None:
    """Run `act` in a thread of its own, whose network namespace is its own to change."""
    problem: list[Exception] = []

    def body() -> None:
        try:
            if namespace is not None:
                with open(namespace, "rb") as file:
                    _check(_libc.setns(file.fileno(), _CLONE_NEWNET), f"enter {namespace}")
            act()
        except (OSError, BackendError) as error:
            problem.append(error)

    thread = threading.Thread(target=body, name="appnet")
    thread.start()
    thread.join()
    for error in problem:
        raise NetworkError(f"network: {error}") from error


def _check(result: int, what: str) -> None:
    if result != 0:
        raise NetworkError(f"cannot {what}: {os.strerror(ctypes.get_errno())}")
