"""What a simulated mesh is made of: nodes at places, a network between them, and keys that are only pretended.

A signature is a keyed hash that anyone could make, so that a thousand nodes cost no cryptography; what is believed
because of it is the same as with real keys.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from math import dist, sqrt
from typing import Any, Final

from blake3 import blake3

from gossip.messages import BOOT_ID_BYTES, MemberState, NodeId, node_id
from gossip.probing import Address
from gossip.records import LocalNode
from gossip.state import GossipState

PORT: Final = 7420


def pretend_sign(public_key: bytes) -> Callable[[bytes], bytes]:
    """Signs as the owner of `public_key`, for `pretend_verify`."""
    return lambda data: blake3(data, key=public_key).digest(length=64)


def pretend_verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Checks what `pretend_sign` made."""
    return blake3(data, key=public_key).digest(length=64) == signature


@dataclass(frozen=True, slots=True)
class Skew:
    """A node's clock: `now * rate + offset_s`."""

    offset_s: float = 0.0
    rate: float = 1.0


@dataclass(slots=True)
class SimNode:
    """One node of the simulation.

    Attributes:
        number: unique, part of its first address.
        place: in the unit square.
        state: replaced when it restarts, None while it is down.
        kept: what its disk holds for the next start.
        boots: how often it was started.
        island: nodes on different ones cannot reach each other.
        is_filtered: no UDP gets to it or from it, TCP does.
        stalled_until: what comes in before waits until then.
        timer_at: when its next tick is scheduled.
    """

    name: str
    number: int
    public_key: bytes
    place: tuple[float, float]
    host: str
    skew: Skew
    state: GossipState | None = None
    kept: dict[str, Any] | None = None
    boots: int = 0
    island: int = 0
    is_filtered: bool = False
    stalled_until: float = 0.0
    timer_at: float | None = None

    @property
    def id(self) -> NodeId:
        """The id of its key."""
        return node_id(self.public_key)

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self.host, PORT

    @property
    def boot_id(self) -> bytes:
        """Another one with each start."""
        return blake3(f"{self.name}/{self.boots}".encode()).digest(length=BOOT_ID_BYTES)

    def local(self) -> LocalNode:
        """What it says of itself."""
        sign = pretend_sign(self.public_key)
        return LocalNode(self.name, "", self.host, PORT, "1.0", self.public_key, self.boot_id, sign)

    def clock(self, now: float) -> float:
        """What its clock shows."""
        return now * self.skew.rate + self.skew.offset_s

    def when(self, shown: float) -> float:
        """When its clock will show that; the inverse of `clock`."""
        return (shown - self.skew.offset_s) / self.skew.rate


@dataclass(slots=True)
class Network:
    """How packets fare; change it at any time.

    Attributes:
        latency_s: one way between neighbours.
        distance_s: one way between opposite corners of the square that nodes are placed on, on top of that.
        jitter_s: added to each packet, uniform from zero.
        loss: part of the packets that never arrive.
    """

    latency_s: float = 0.0005
    distance_s: float = 0.0
    jitter_s: float = 0.0005
    loss: float = 0.0

    def path_s(self, a: SimNode, b: SimNode) -> float:
        """One way at best."""
        return self.latency_s + dist(a.place, b.place) / sqrt(2.0) * self.distance_s

    def delay_s(self, a: SimNode, b: SimNode, rng: random.Random) -> float:
        """One way, this time."""
        return self.path_s(a, b) + rng.random() * self.jitter_s

    def connects(self, a: SimNode, b: SimNode) -> bool:
        """Whether TCP between the two works."""
        return a.island == b.island

    def loses(self, a: SimNode, b: SimNode, rng: random.Random) -> bool:
        """Whether a packet between the two gets lost, this time."""
        return a.is_filtered or b.is_filtered or not self.connects(a, b) or rng.random() < self.loss


@dataclass(frozen=True, slots=True)
class Sighting:
    """At `at`, `observer` changed its mind about `subject`."""

    at: float
    observer: str
    subject: str
    state: MemberState
