"""One UDP socket for sealed packets: what is sent waits in a short queue, what comes in is opened or counted.

UDP may lose packets anyway, so nothing here waits for room or repeats anything: a full queue, an unreachable network
and a name that does not resolve each cost one packet and add to a counter.
"""

import ipaddress
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import trio

from gossip.errors import GossipError
from gossip.events import SendPacket
from gossip.sealing import Keyring, Opened, Opener, Sealer

Address = tuple[str, int]

QUEUE: Final = 1024
MAX_DATAGRAM_BYTES: Final = 2048
"""Longer than any packet of ours, so that a longer one is seen to be too long rather than cut."""
RESOLVE_S: Final = 3.0
RESOLVED_FOR_S: Final = 60.0
MAX_NAMES: Final = 1024
PAUSE_S: Final = 0.05


class DatagramSocket(Protocol):
    """What is needed of a bound UDP socket; `trio.socket.SocketType` has it."""

    @property
    def family(self) -> int: ...
    def recvfrom(self, bufsize: int, /) -> Awaitable[tuple[bytes, Any]]: ...
    def sendto(self, data: bytes, address: Any, /) -> Awaitable[int]: ...


class Datagrams:
    """Sends and receives sealed packets.

    Args:
        socket: bound; the caller closes it.
        sealer, opener: this node's, with the mesh's keyring.
        deliver: called with each packet that opens, and where it came from.

    Attributes:
        counted: packets and bytes in and out, and what was dropped, by reason.
    """

    def __init__(
        self,
        socket: DatagramSocket,
        sealer: Sealer,
        opener: Opener,
        deliver: Callable[[Opened, Address], None],
    ) -> None:
        self._socket = socket
        self._sealer = sealer
        self._opener = opener
        self._deliver = deliver
        self._into_queue, self._queue = trio.open_memory_channel[SendPacket](QUEUE)
        self._resolved: dict[str, tuple[str, float]] = {}
        self.counted: Counter[str] = Counter()

    async def run(self) -> None:
        """Send and receive until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._send_queued, nursery)

    def rotate(self, keyring: Keyring) -> None:
        """Use another keyring from now on."""
        self._sealer.rotate(keyring)
        self._opener.rotate(keyring)

    def post(self, packet: SendPacket) -> None:
        """Queue a packet; when the queue is full it is lost."""
        try:
            self._into_queue.send_nowait(packet)
        except trio.WouldBlock:
            self.counted["queue_full"] += 1

    async def send(self, packet: SendPacket) -> None:
        """Seal a packet and send it at once, to an address whose host is a name perhaps; cancelled, it may be lost."""
        host, port = packet.addr
        if not _is_literal(host):
            found = await self._resolve(host, port)
            if found is None:
                self.counted["unresolved"] += 1
                return
            host = found
        data = self._sealer.seal(packet.payload)
        try:
            await self._socket.sendto(data, (host, port))
        except OSError:
            self.counted["unsendable"] += 1
        else:
            self.counted["packets_out"] += 1
            self.counted["bytes_out"] += len(data)

    async def _send_queued(self, nursery: trio.Nursery) -> None:
        async for packet in self._queue:
            if packet.addr[0] in self._resolved or _is_literal(packet.addr[0]):
                await self.send(packet)
            else:  # a slow name server holds up nobody else
                nursery.start_soon(self.send, packet)

    async def _receive(self) -> None:
        while True:
            try:
                data, source = await self._socket.recvfrom(MAX_DATAGRAM_BYTES)
            except OSError:
                self.counted["unreceivable"] += 1
                await trio.sleep(PAUSE_S)  # whatever it is, it is not to become a busy loop
                continue
            self.counted["packets_in"] += 1
            self.counted["bytes_in"] += len(data)
            try:
                self._deliver(self._opener.open(data), (source[0], source[1]))
            except GossipError as error:
                self.counted[error.reason] += 1

    async def _resolve(self, host: str, port: int) -> str | None:
        """An address for a name, remembered for a while; a failure is not."""
        known = self._resolved.get(host)
        if known is not None and trio.current_time() < known[1]:
            return known[0]
        self._resolved.pop(host, None)
        with trio.move_on_after(RESOLVE_S):
            try:
                found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_DGRAM)
            except OSError:
                return None
            suitable = [entry for entry in found if entry[0] == self._socket.family] or found
            address = str(suitable[0][4][0])
            while len(self._resolved) >= MAX_NAMES:
                self._resolved.pop(next(iter(self._resolved)))
            self._resolved[host] = address, trio.current_time() + RESOLVED_FOR_S
            return address
        return None


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
