"""`HOST:PORT` as people write it, and which address of this machine others can use.

An IPv6 address wears brackets: `[::1]:7420`. A node listens on one number for TCP and UDP.
"""

import errno
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, NamedTuple

from p2player.errors import Refused, Usage

MAX_HOST_CHARS: Final = 253
ATTEMPTS: Final = 64

_FORM: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%A-Za-z0-9_-]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")
_OUTWARD: Final = ("192.0.2.1", "2001:db8::1")
"""Documentation addresses (RFC 5737, RFC 3849): routed by the default route, and nothing is ever sent to them."""


class Address(NamedTuple):
    """A host, by address or name, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Read `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        Usage: it has another form, or the port is above 65535.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise Usage(f"{text!r} is not an address: write HOST:PORT or [IPV6]:PORT")
    address = Address(match["v6"] or match["host"], int(match["port"]))
    if not is_address(address.host, address.port) or (match["v6"] and not _literal(address.host)):
        raise Usage(f"{text!r} is not an address: host or port is out of bounds")
    return address


def is_address(host: object, port: object) -> bool:
    """Whether these two have the form of an address; for values that come from a file or a peer."""
    return (
        isinstance(host, str)
        and 0 < len(host) <= MAX_HOST_CHARS
        and host.isascii()
        and host.isprintable()
        and " " not in host
        and isinstance(port, int)
        and not isinstance(port, bool)
        and 0 <= port <= 65535
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    literal = _literal(host)
    return literal.is_loopback if literal else host == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether `host` stands for every address of this machine, and so for none that a peer could dial."""
    literal = _literal(host)
    return literal is not None and literal.is_unspecified


def _literal(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def local_address_towards(host: str, port: int = 7420) -> str | None:
    """The address that this machine would use to reach `host`; None where no route leads there.

    Nothing is sent: connecting a UDP socket only asks the routing table. A name is resolved, which may take as long as
    the resolver takes.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return None
    for family, kind, protocol, _, target in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            source: str = probe.getsockname()[0]
            if not is_wildcard(source):
                return source
    return None


def reachable_host(listen_host: str, towards: Iterable[str] = ()) -> str:
    """The host under which others reach a node that listens on `listen_host`.

    A specific one is its own answer. For a wildcard: the address used towards the first of `towards` that a route leads
    to, else towards the world at large, else loopback.
    """
    if not is_wildcard(listen_host):
        return listen_host
    candidates = [*towards, *(_OUTWARD if ":" not in listen_host else reversed(_OUTWARD))]
    return next((found for host in candidates if (found := local_address_towards(host))), "127.0.0.1")


def free_port(host: str) -> int:
    """A port that is free on `host` for TCP and UDP alike, at this moment.

    Raises:
        Refused: this machine cannot listen on `host`.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        for _ in range(ATTEMPTS):
            with socket.socket(family, socket.SOCK_STREAM) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
                tcp.bind(target)
                port: int = tcp.getsockname()[1]
                try:
                    udp.bind((target[0], port, *target[2:]))
                except OSError as error:
                    if error.errno == errno.EADDRINUSE:
                        continue
                    raise
                return port
    except (OSError, UnicodeError) as error:
        raise Refused(f"cannot listen on {host}: {error}") from None
    raise Refused(f"cannot listen on {host}: no port is free for both TCP and UDP")
