"""A seeded crowd of real `Swarm`s that pull one layer at the same time, from its seeds and from each other.

Every member has an uplink and a downlink. What it is asked for leaves its uplink in turns, `QUANTUM_BYTES` for each
asker, as TCP sessions share a link; it then waits for its turn on the asker's downlink. An ask lands as a whole, as in
`p2player.landing`. A member learns of the others when they have met, and of what they hold whenever it asks them.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from random import Random

from chunkstore.digest import ChunkId
from gossip.messages import NodeId
from p2player.proto.swarm import Swarm
from p2player.proto.swarm_events import (
    Ask,
    Cancel,
    Drop,
    Event,
    Expected,
    Finished,
    Heard,
    Joined,
    Output,
    Received,
    Tick,
)

QUANTUM_BYTES = 32 << 10
HEARD_S = 0.4


@dataclass(frozen=True)
class Crowd:
    """What a run is made of.

    Attributes:
        seeds, eaters: how many hold everything, and how many hold nothing and want it.
        seed_rate, rate: up and down, bytes a second.
        rtt_s: between any two.
        meet_s: when eaters know of each other, counted from the start.
        look_s: how often an eater asks another one what it has.
        land_s: from the last byte of an ask until it is stored and told.
        group: how many neighbouring chunks are stored together.
        lag_s: how much later than the one before each eater starts.
    """

    seeds: int = 1
    eaters: int = 8
    seed_rate: float = 12.5e6
    rate: float = 12.5e6
    rtt_s: float = 0.001
    meet_s: float = 1.2
    look_s: float = 0.25
    land_s: float = 0.01
    group: int = 12
    lag_s: float = 0.0


@dataclass
class _Member:
    """One node: what it holds, and its link."""

    node: NodeId
    rate: float
    swarm: Swarm | None
    have: bytearray
    queues: dict[NodeId, deque["_Due"]] = field(default_factory=dict)
    order: deque[NodeId] = field(default_factory=deque)
    sending: bool = False
    sent: int = 0
    down_free: float = 0.0
    done_s: float | None = None
    tick_at: float = 0.0
    told: dict[NodeId, int] = field(default_factory=dict)
    heard: dict[NodeId, float] = field(default_factory=dict)


@dataclass
class _Due:
    """An ask at the one who was asked."""

    ask: Ask
    asker: NodeId
    left: int
    chunks: dict[ChunkId, int]
    cancelled: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    Attributes:
        seconds: when each eater was done, from its own start; the start of all is the first one's.
        last_s: when the last one was.
        copies: what the seeds sent, in copies of the layer.
        duplicates: the largest share of the layer that an eater got twice.
        asks: how many asks were made in all.
    """

    seconds: tuple[float, ...]
    last_s: float
    copies: float
    duplicates: float
    asks: int


class CrowdNet:
    """One run; see `Crowd`. The same seed gives the same run."""

    def __init__(self, crowd: Crowd, wants: Mapping[ChunkId, int], seed: int) -> None:
        self._crowd = crowd
        self._wants = dict(wants)
        self._positions = {chunk: position for position, chunk in enumerate(wants)}
        self._now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._asks = 0
        self._dues: dict[tuple[NodeId, int], _Due] = {}
        rng = Random(seed)
        starts = bytes(position % crowd.group == 0 for position in range(len(wants)))
        names = [NodeId(f"{rng.getrandbits(128):032x}") for _ in range(crowd.seeds + crowd.eaters)]
        self._members: dict[NodeId, _Member] = {}
        for number, name in enumerate(names):
            eats = number >= crowd.seeds
            swarm = Swarm(self._wants, Random(rng.random()), starts=starts, me=name) if eats else None
            have = bytearray(len(wants)) if eats else bytearray(b"\1" * len(wants))
            self._members[name] = _Member(name, crowd.rate if eats else crowd.seed_rate, swarm, have)
        self._seeds = [member for member in self._members.values() if member.swarm is None]
        self._eaters = [member for member in self._members.values() if member.swarm is not None]

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do `what` at time `when`."""
        self._sequence += 1
        heapq.heappush(self._heap, (max(when, self._now), self._sequence, what))

    def run(self, until_s: float = 600.0) -> Outcome:
        """Run until all eaters are done, or time is up."""
        crowd = self._crowd
        starts = [number * crowd.lag_s for number in range(len(self._eaters))]
        for member, start in zip(self._eaters, starts, strict=True):
            for other in self._seeds:
                self.at(start, partial(self._feed, member, Expected(other.node, crowd.rtt_s)))
                self.at(start + 3 * crowd.rtt_s, partial(self._join, member, other))
            for other, theirs in zip(self._eaters, starts, strict=True):
                if other is not member:
                    self.at(max(start, theirs) + crowd.meet_s, partial(self._look, member, other))
        while any(member.done_s is None for member in self._eaters) and self._heap:
            self._now, _, what = heapq.heappop(self._heap)
            if self._now > until_s:
                break
            what()
        total = sum(self._wants.values())
        swarms = [member.swarm for member in self._eaters if member.swarm is not None]
        done = [until_s if member.done_s is None else member.done_s for member in self._eaters]
        return Outcome(
            seconds=tuple(end - start for end, start in zip(done, starts, strict=True)),
            last_s=max(done),
            copies=sum(member.sent for member in self._seeds) / total,
            duplicates=max(swarm.duplicates for swarm in swarms) / total,
            asks=self._asks,
        )

    # What eaters hear

    def _feed(self, member: _Member, event: Event) -> None:
        assert member.swarm is not None
        for output in member.swarm.handle(event, self._now):
            self._carry_out(member, output)
        if member.swarm.done:
            if member.done_s is None:
                member.done_s = self._now
            return
        wake_at = member.swarm.wake_at
        if wake_at is not None and (member.tick_at <= self._now or wake_at < member.tick_at):
            member.tick_at = wake_at
            self.at(wake_at, lambda: self._tick(member, wake_at))

    def _tick(self, member: _Member, at: float) -> None:
        if member.done_s is None and member.tick_at == at:
            member.tick_at = 0.0
            self._feed(member, Tick())

    def _join(self, member: _Member, other: _Member) -> None:
        if member.done_s is None:
            have = None if other.swarm is None else bytes(other.have)
            self._feed(member, Joined(other.node, have, self._crowd.rtt_s))

    def _look(self, member: _Member, other: _Member) -> None:
        """Ask a partial holder what it has, now and again."""
        count = other.have.count(1)
        if member.done_s is not None or member.told.get(other.node) == len(other.have):
            return
        if member.told.get(other.node) != count:
            member.told[other.node] = count
            self.at(self._now + self._crowd.rtt_s, partial(self._learn, member, other.node, bytes(other.have)))
        self.at(self._now + self._crowd.look_s, lambda: self._look(member, other))

    def _learn(self, member: _Member, other: NodeId, have: bytes) -> None:
        if member.done_s is None:
            self._feed(member, Joined(other, have, self._crowd.rtt_s))

    # What is sent

    def _carry_out(self, member: _Member, output: Output) -> None:
        match output:
            case Ask(peer=peer):
                self._asks += 1
                holder = self._members[peer]
                self.at(self._now + self._crowd.rtt_s / 2, lambda: self._enqueue(holder, member, output))
            case Cancel(number):
                self.at(self._now + self._crowd.rtt_s / 2, lambda: self._cancel(member, number))
            case Drop(peer, reason):
                raise AssertionError(f"{peer} was dropped: {reason}")

    def _cancel(self, member: _Member, number: int) -> None:
        due = self._dues.get((member.node, number))
        if due is not None:
            due.cancelled = True

    def _enqueue(self, holder: _Member, asker: _Member, ask: Ask) -> None:
        held = {chunk: self._wants[chunk] for chunk in ask.chunks if self._holds(holder, chunk)}
        due = self._dues[asker.node, ask.ask] = _Due(ask, asker.node, sum(held.values()), held)
        if asker.node not in holder.queues:
            holder.queues[asker.node] = deque()
        if not holder.queues[asker.node]:
            holder.order.append(asker.node)
        holder.queues[asker.node].append(due)
        if not holder.sending:
            self._send(holder)

    def _holds(self, holder: _Member, chunk: ChunkId) -> bool:
        return bool(holder.have[self._positions[chunk]])

    def _send(self, holder: _Member) -> None:
        """Send the next asker's next bytes."""
        holder.sending = False
        while holder.order:
            asker = self._members[holder.order.popleft()]
            queue = holder.queues[asker.node]
            while queue and queue[0].cancelled:
                queue.popleft()
            if not queue:
                continue
            due = queue[0]
            size = min(due.left, QUANTUM_BYTES)
            due.left -= size
            holder.sent += size
            last = not due.left
            if last:
                queue.popleft()
            if queue:
                holder.order.append(asker.node)
            holder.sending = True
            end = self._now + size / holder.rate
            self.at(end + self._crowd.rtt_s / 2, partial(self._arrive, asker, holder, due, size, last=last))
            self.at(end, lambda: self._send(holder))
            return

    def _arrive(self, asker: _Member, holder: _Member, due: _Due, size: int, *, last: bool) -> None:
        asker.down_free = max(self._now, asker.down_free) + size / asker.rate
        if last:
            self.at(asker.down_free + self._crowd.land_s, lambda: self._land(asker, holder, due))
        elif asker.down_free - asker.heard.get(holder.node, 0.0) >= HEARD_S:
            asker.heard[holder.node] = asker.down_free
            self.at(asker.down_free, lambda: self._heard(asker, holder))

    def _heard(self, asker: _Member, holder: _Member) -> None:
        if asker.done_s is None:
            self._feed(asker, Heard(holder.node))

    def _land(self, asker: _Member, holder: _Member, due: _Due) -> None:
        assert asker.swarm is not None
        for chunk in due.chunks:
            asker.have[self._positions[chunk]] = 1
        if asker.done_s is None:
            self._feed(asker, Received(holder.node, due.ask.ask, due.chunks))
        if asker.done_s is None:
            self._feed(asker, Finished(holder.node, due.ask.ask))
