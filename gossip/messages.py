"""The words that nodes say to each other about membership, as plain values.

Who is who: a `NodeId` names a key pair, a `Member` is what this node believes of another one. The message classes are
what a packet is made of; `gossip.wire` turns them into bytes, `gossip.records` holds the one message that is signed.
The vocabulary is SWIM's (Das, Gupta, Motivala 2002) with Lifeguard's additions (Dadgar, Phillips, Currey 2018).
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from blake3 import blake3

from gossip.coordinates import Coordinate
from gossip.errors import Malformed

NodeId = NewType("NodeId", str)
"""32 lower-case hex digits: the first 16 bytes of the BLAKE3 of a node's raw Ed25519 public key."""

NODE_ID_BYTES = 16
PUBLIC_KEY_BYTES = 32
BOOT_ID_BYTES = 8

ANYONE = NodeId("0" * 32)
"""As the target of a `Ping`: whoever listens at that address. No key hashes to it in practice."""

_HEX = frozenset("0123456789abcdef")


def node_id(public_key: bytes) -> NodeId:
    """The id of the node that owns this raw 32-byte Ed25519 public key."""
    return NodeId(blake3(public_key).digest(length=NODE_ID_BYTES).hex())


def parse_node_id(value: object) -> NodeId:
    """Check that something from a peer has the form of a node id.

    Raises:
        Malformed: it is not 32 lower-case hex digits.
    """
    if not isinstance(value, str) or len(value) != 2 * NODE_ID_BYTES or not _HEX.issuperset(value):
        raise Malformed("not a node id")
    return NodeId(value)


class MemberState(StrEnum):
    """What this node believes of a member; only `LEFT` is the member's own word."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Member:
    """One row of the membership, as the rest of the node sees it.

    Attributes:
        id: names the member's key.
        name: for people; unique by convention, not by force.
        site: where it stands, an operator's label.
        host: advertised address, an IP literal or a DNS name.
        port: one number, for TCP and UDP alike.
        state: see `MemberState`.
        incarnation: grows with each record that the member signs.
        rtt_s: smoothed round trip of direct probes in seconds; None before the first one.
        version: of the member's software.
    """

    id: NodeId
    name: str
    site: str
    host: str
    port: int
    state: MemberState
    incarnation: int
    rtt_s: float | None
    version: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Answered by an `Ack` with the same `seq` when `target` is the receiver or `ANYONE`."""

    seq: int
    target: NodeId
    coordinate: Coordinate


@dataclass(frozen=True, slots=True)
class Ack:
    """`node` answered ping `seq`; sent by itself with its coordinate, or passed on by a relay."""

    seq: int
    node: NodeId
    coordinate: Coordinate


@dataclass(frozen=True, slots=True)
class PingReq:
    """Ping `target` for me, and answer with `Ack` or, when it stays silent, with `Nack`."""

    seq: int
    target: NodeId


@dataclass(frozen=True, slots=True)
class Nack:
    """The relay is well, but the target of ping request `seq` has not answered it (Lifeguard, section IV-A)."""

    seq: int


@dataclass(frozen=True, slots=True)
class Introduce:
    """I do not know you, or only an earlier boot of you: send me your record."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A hint, unsigned and refutable: `accuser` could not reach `node` at that incarnation."""

    node: NodeId
    incarnation: int
    accuser: NodeId


@dataclass(frozen=True, slots=True)
class Dead:
    """A hint, unsigned and refutable: `accuser` gave `node` up at that incarnation."""

    node: NodeId
    incarnation: int
    accuser: NodeId
