"""What the swarm scheduler is told, and what it says: plain values.

A node drives one `Swarm` for each transfer. It reports how sessions with holders come and go and what they deliver
(`Event`), and carries out what comes back (`Output`). Events about asks and peers that the swarm has given up are
allowed at any time: messages cross on the wire.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from chunkstore.digest import ChunkId
from gossip.messages import NodeId


@dataclass(frozen=True, slots=True)
class Expected:
    """`peer` is being dialled: it will join or leave. `rtt_s` is None when unknown."""

    peer: NodeId
    rtt_s: float | None = None


@dataclass(frozen=True, slots=True)
class Joined:
    """`peer` may be asked from now on; or, said again, what it has is known better.

    Attributes:
        have: what it claims, see `WantTable.marks`; None for everything.
        rtt_s: round trip as gossip knows it.
        load: runnable processes per core; 0 is idle.
    """

    peer: NodeId
    have: bytes | None = None
    rtt_s: float | None = None
    load: float = 0.0


@dataclass(frozen=True, slots=True)
class Left:
    """`peer` can no longer be asked: it could not be dialled, or its session ended."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Heard:
    """Bytes of `peer` arrived that do not make a whole part yet: it lives."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Received:
    """`peer` delivered `chunks` (id -> length) for ask `ask`; their digests are verified."""

    peer: NodeId
    ask: int
    chunks: Mapping[ChunkId, int]


@dataclass(frozen=True, slots=True)
class Finished:
    """`peer` has answered all of ask `ask`; what it was asked and did not deliver, it lacks."""

    peer: NodeId
    ask: int


@dataclass(frozen=True, slots=True)
class Corrupt:
    """`peer` sent bytes that are not what their digest says."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = Expected | Joined | Left | Heard | Received | Finished | Corrupt | Tick


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask `peer` for `chunks`, in this order; `ask` is the number to report on it."""

    ask: int
    peer: NodeId
    chunks: tuple[ChunkId, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nothing more is wanted of ask `ask`."""

    ask: int
    peer: NodeId


@dataclass(frozen=True, slots=True)
class Drop:
    """End the session with `peer`. Without `retry` it lied and may not join this transfer again."""

    peer: NodeId
    reason: str
    retry: bool


@dataclass(frozen=True, slots=True)
class Stuck:
    """Nobody who is here or expected holds any chunk that is left; another holder may still join."""

    bytes_left: int


@dataclass(frozen=True, slots=True)
class Done:
    """Everything wanted is here."""


Output = Ask | Cancel | Drop | Stuck | Done
