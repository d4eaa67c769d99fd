"""Whether the addresses that an app declares can be had on this machine.

Only for engines whose apps live in the node's own network, and only where another machine's app comes: on one machine
the app itself still has its ports. An address of another machine is none of this check's business: the operator moves
it here with the app.
"""

import errno
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from backends import config, procfs
from backends.errors import ConfigError
from p2player.addresses import parse_address
from p2player.apprecord import AppRecord
from p2player.errors import Usage


def network_here() -> str:
    """Names the network namespace of this process, unlike any other's; empty where the system does not tell."""
    try:
        return f"{procfs.boot_id()} {os.readlink('/proc/self/ns/net')}"
    except OSError:
        return ""


def in_host_network(record: AppRecord) -> bool:
    """Whether the app binds its ports in the network of the node."""
    if record.backend == "process":
        return True
    try:
        table = config.parse(record.config).engines.get(record.backend, {})
    except ConfigError:
        return False
    return record.backend == "runc" and table.get("network", "host") == "host"


def taken(addresses: Iterable[str]) -> list[str]:
    """Those of the `HOST:PORT` that are this machine's, or of any, and that something listens on."""
    return [address for address in addresses if _is_taken(address)]


def _is_taken(text: str) -> bool:
    try:
        host, port = parse_address(text)
        address = ip_address(host)
    except (Usage, ValueError):  # a name, a URL, whatever users are told
        return False
    return port != 0 and _is_bound(address, port)


def _is_bound(address: IPv4Address | IPv6Address, port: int) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do it: connections that end are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((str(address), port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
