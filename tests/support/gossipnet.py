"""A network in memory for gossip services: datagrams that may get lost, and a pool that calls handlers directly."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
import trio

from gossip.messages import NodeId
from p2player.errors import Unreachable
from p2player.net.rumours import Handler

Address = tuple[str, int]


@dataclass
class Wire:
    """What connects the nodes of a test.

    Attributes:
        delay_s: of each datagram and each call, one way.
        filtered: addresses that datagrams neither reach nor leave.
        down: nodes that do not answer calls.
        calls: how many calls of each method were made; `call_bytes` the longest body of each.
    """

    delay_s: float = 0.001
    filtered: set[Address] = field(default_factory=set)
    down: set[NodeId] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    call_bytes: Counter[str] = field(default_factory=Counter)
    sockets: dict[Address, "MemorySocket"] = field(default_factory=dict)
    handlers: dict[NodeId, Mapping[str, Handler]] = field(default_factory=dict)


class MemorySocket:
    """Has what `Datagrams` needs of a UDP socket."""

    family = int(trio.socket.AF_INET)

    def __init__(self, wire: Wire, address: Address) -> None:
        self._wire = wire
        self.address = address
        self._into, self._arriving = trio.open_memory_channel[tuple[bytes, Address, float]](1000)
        wire.sockets[address] = self

    def inject(self, data: bytes, source: Address) -> None:
        """Let bytes arrive from anywhere."""
        self._into.send_nowait((data, source, trio.current_time()))

    async def recvfrom(self, bufsize: int, /) -> tuple[bytes, Any]:
        data, source, at = await self._arriving.receive()
        await trio.sleep_until(at)
        return data[:bufsize], source

    async def sendto(self, data: bytes, address: Any, /) -> int:
        await trio.lowlevel.checkpoint()
        target = self._wire.sockets.get(address)
        if target is not None and not {address, self.address} & self._wire.filtered:
            target._into.send_nowait((data, self.address, trio.current_time() + self._wire.delay_s))
        return len(data)


@dataclass(frozen=True)
class Asked:
    """A peer's request, as its handler sees it."""

    peer: NodeId
    body: dict[str, Any]


class MemoryPool:
    """Calls the handlers of other nodes; bodies go through msgpack, as on the wire."""

    def __init__(self, wire: Wire, me: NodeId) -> None:
        self._wire = wire
        self._me = me

    async def call(
        self, node: NodeId, method: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0
    ) -> dict[str, Any]:
        packed = msgpack.packb(dict(body or {}))
        self._wire.calls[method] += 1
        self._wire.call_bytes[method] = max(self._wire.call_bytes[method], len(packed))
        await trio.sleep(self._wire.delay_s)
        if node in self._wire.down or self._me in self._wire.down or node not in self._wire.handlers:
            raise Unreachable(f"peer {node} is down")
        asked = Asked(self._me, msgpack.unpackb(packed))
        answer = await self._wire.handlers[node][method](asked)
        await trio.sleep(self._wire.delay_s)
        reply: dict[str, Any] = msgpack.unpackb(msgpack.packb(answer))
        return reply
