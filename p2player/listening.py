"""The node's two sockets for peers: TCP and UDP on one address and port."""

import socket
from dataclasses import dataclass

from p2player import errors
from p2player.addresses import Address

BACKLOG = 256


@dataclass(frozen=True, slots=True)
class Ports:
    """Both sockets, bound."""

    tcp: socket.socket
    udp: socket.socket

    def close(self) -> None:
        """Close both."""
        self.tcp.close()
        self.udp.close()


def bind(address: Address) -> Ports:
    """Bind TCP and UDP to `address`.

    Raises:
        Refused: the address is taken, or not one of this machine.
    """
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, where = found[0][0], found[0][4]
        tcp = socket.socket(family, socket.SOCK_STREAM)
        udp = socket.socket(family, socket.SOCK_DGRAM)
    except OSError as error:
        raise errors.Refused(f"cannot listen on {address}: {error.strerror}") from None
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(where)
        tcp.listen(BACKLOG)
        udp.bind(where)
    except OSError as error:
        tcp.close()
        udp.close()
        raise errors.Refused(f"cannot listen on {address}: {error.strerror}") from None
    return Ports(tcp, udp)
