"""What a node's gossip is told, and what it wants done: the events and outputs of `gossip.state.GossipState`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gossip.messages import NodeId
from gossip.probing import Address
from gossip.table import MemberChanged, MemberForgotten

# Events


@dataclass(frozen=True, slots=True)
class PacketReceived:
    """A packet was opened: `sender` and `boot_id` are from its sealed header, `addr` is where it came from."""

    sender: NodeId
    boot_id: bytes
    addr: Address
    payload: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; due at `next_deadline`, harmless at any time."""


@dataclass(frozen=True, slots=True)
class JoinSeeds:
    """Addresses at which members may be found."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class ExchangeReceived:
    """The other side's half of a full exchange, whoever began it; `sender` is proved by its certificate."""

    sender: NodeId
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TcpPingAnswered:
    """`node` answered the ping that a `TcpPing` output asked for."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Ban:
    """A node's certificate was revoked: drop it, and never hear from or about it again."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Leave:
    """This node leaves the mesh for good. Merely stopping needs no event."""


Event = PacketReceived | Tick | JoinSeeds | ExchangeReceived | TcpPingAnswered | Ban | Leave

# Outputs


@dataclass(frozen=True, slots=True)
class SendPacket:
    """Seal `payload` and send it to `addr`, whose host may be a DNS name."""

    addr: Address
    payload: bytes


@dataclass(frozen=True, slots=True)
class RequestExchange:
    """Send `exchange_body` to `node` over TCP, and feed its answer back as `ExchangeReceived`."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class TcpPing:
    """See whether `node` answers over TCP at all, and feed back `TcpPingAnswered` if so."""

    node: NodeId


Output = SendPacket | RequestExchange | TcpPing | MemberChanged | MemberForgotten
