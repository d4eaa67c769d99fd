"""A seeded network of simulated holders around the real `Swarm`: bandwidth, delay, death, lies, partial holdings.

Every holder sends what it is asked for in order, as parts of up to `PART_BYTES` of neighbouring chunks, over a link of
its own; all parts then pass the downlink of the node that pulls. Events are kept in a heap, time is a number, and the
same seed gives the same run.
"""

import heapq
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from random import Random

from chunkstore.digest import ChunkId, chunk_id
from gossip.messages import NodeId
from p2player.proto.swarm import Swarm
from p2player.proto.swarm_events import (
    Ask,
    Cancel,
    Corrupt,
    Done,
    Drop,
    Event,
    Expected,
    Finished,
    Heard,
    Joined,
    Left,
    Output,
    Received,
    Stuck,
    Tick,
)

PART_BYTES = 1 << 20
MIB = 1 << 20
MBIT = 125_000.0


def node(number: int) -> NodeId:
    """A node id for tests."""
    return NodeId(f"{number:032x}")


def some_wants(
    total_bytes: int, rng: Random, *, lengths: tuple[int, int] = (16 << 10, 112 << 10)
) -> dict[ChunkId, int]:
    """Chunks of random lengths, 64 KiB on average, that sum up to `total_bytes`."""
    wants: dict[ChunkId, int] = {}
    left = total_bytes
    while left:
        length = min(left, rng.randint(*lengths))
        wants[chunk_id(len(wants).to_bytes(8, "big"))] = length
        left -= length
    return wants


@dataclass
class Holder:
    """One simulated peer.

    Args:
        rate: uplink, bytes a second.
        rtt_s: round trip; `told_rtt_s` is what gossip says of it.
        have: what it holds; None: everything. `claims` is what it says, the same when None.
        joins_s: when the session is up, counted from the start; None: three round trips.
        dies_s: from then on it says nothing, and `notice_s` later the session breaks (None: never noticed).
        lies: the share of its parts that are corrupt.
        stalls: (from, to) in seconds: nothing is sent in between.
    """

    rate: float
    rtt_s: float = 0.001
    told_rtt_s: float | None = None
    load: float = 0.0
    have: Collection[ChunkId] | None = None
    claims: Collection[ChunkId] | None = None
    joins_s: float | None = None
    dies_s: float | None = None
    notice_s: float | None = None
    lies: float = 0.0
    stalls: tuple[float, float] | None = None

    free_at: float = 0.0
    sent: int = 0
    cancelled: set[int] = field(default_factory=set)

    def holds(self, chunk: ChunkId) -> bool:
        return self.have is None or chunk in self.have

    def transmit(self, start: float, size: int) -> float:
        """When `size` bytes that are ready at `start` have left."""
        begin = max(start, self.free_at)
        end = begin + size / self.rate
        if self.stalls is not None and begin < self.stalls[1] and end > self.stalls[0]:
            end += self.stalls[1] - max(begin, self.stalls[0])
        self.free_at = end
        self.sent += size
        return end


@dataclass(frozen=True)
class Outcome:
    """What a run gave.

    `seconds` is when the last chunk came (or when the swarm was stuck for good); `arrived` are all bytes that came in
    over the downlink; `asks` how many asks were made.
    """

    done: bool
    seconds: float
    total: int
    arrived: int
    duplicates: int
    shares: dict[NodeId, float]
    drops: dict[NodeId, str]
    asks: int
    left: int


class SwarmNet:
    """One transfer by the real swarm from simulated holders.

    Args:
        holders: by node.
        downlink: of the pulling node, bytes a second.
    """

    def __init__(
        self, wants: dict[ChunkId, int], holders: dict[NodeId, Holder], seed: int, *, downlink: float = 1e9
    ) -> None:
        self.wants = wants
        self.holders = holders
        self.swarm = Swarm(wants, Random(seed))
        self.now = 0.0
        self.peak_in_flight = 0
        self._rng = Random(seed + 1)
        self._downlink = downlink
        self._down_free = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._arrived = 0
        self._asks = 0
        self._drops: dict[NodeId, str] = {}
        self._gone: set[NodeId] = set()
        self.stuck = False
        self._queues: dict[NodeId, list[Ask]] = {peer: [] for peer in holders}
        self._busy: set[NodeId] = set()

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do `what` at time `when`."""
        self._sequence += 1
        heapq.heappush(self._heap, (max(when, self.now), self._sequence, what))

    def feed(self, event: Event) -> None:
        """Give the swarm an event now and carry out what it says."""
        for output in self.swarm.handle(event, self.now):
            self._carry_out(output)
        self.peak_in_flight = max(self.peak_in_flight, self.swarm.bytes_in_flight)

    def run(self, *, until_s: float = 3600.0) -> Outcome:
        """Run until done, or nothing is left to happen, or time is up."""
        for peer, holder in self.holders.items():
            self.feed(Expected(peer, holder.told_rtt_s))
            joins_s = 3 * holder.rtt_s if holder.joins_s is None else holder.joins_s
            self.at(joins_s, self._join(peer))
            if holder.dies_s is not None and holder.notice_s is not None:
                self.at(holder.dies_s + holder.notice_s, self._leave(peer))
        while not self.swarm.done:
            wake_at = self.swarm.wake_at
            if self._heap and (wake_at is None or self._heap[0][0] <= wake_at):
                self.now, _, what = heapq.heappop(self._heap)
                if self.now > until_s:
                    break
                what()
            elif wake_at is not None and wake_at <= until_s:
                self.now = max(self.now, wake_at)
                self.feed(Tick())
            else:
                break
        total = sum(self.wants.values())
        return Outcome(
            done=self.swarm.done,
            seconds=self.now,
            total=total,
            arrived=self._arrived,
            duplicates=self.swarm.duplicates,
            shares={peer: size / total for peer, size in self.swarm.accepted.items()},
            drops=dict(self._drops),
            asks=self._asks,
            left=self.swarm.bytes_left,
        )

    def _join(self, peer: NodeId) -> Callable[[], None]:
        def join() -> None:
            holder = self.holders[peer]
            if holder.dies_s is not None and holder.dies_s <= self.now:
                self.at(self.now + 8.0, self._leave(peer))
                return
            claims = holder.have if holder.claims is None else holder.claims
            have = None if claims is None else self.swarm.table.marks(claims)
            self.feed(Joined(peer, have, holder.told_rtt_s, holder.load))

        return join

    def _leave(self, peer: NodeId) -> Callable[[], None]:
        def leave() -> None:
            if peer not in self._gone:
                self._gone.add(peer)
                self.feed(Left(peer))

        return leave

    def _carry_out(self, output: Output) -> None:
        match output:
            case Ask(peer=peer):
                self._asks += 1
                self.at(self.now + self.holders[peer].rtt_s / 2, lambda: self._enqueue(output))
            case Cancel(ask, peer):
                self.at(self.now + self.holders[peer].rtt_s / 2, lambda: self.holders[peer].cancelled.add(ask))
            case Drop(peer, reason):
                self._gone.add(peer)
                self._drops[peer] = reason
            case Stuck():
                self.stuck = True
            case Done():
                pass

    def _enqueue(self, ask: Ask) -> None:
        self._queues[ask.peer].append(ask)
        if ask.peer not in self._busy:
            self._serve(ask.peer)

    def _serve(self, peer: NodeId) -> None:
        """Send the next ask of the queue, part by part."""
        queue = self._queues[peer]
        if not queue or peer in self._gone:
            self._busy.discard(peer)
            return
        self._busy.add(peer)
        ask = queue.pop(0)
        self._send_next(ask, self._parts(ask))

    def _send_next(self, ask: Ask, parts: Iterator[dict[ChunkId, int]]) -> None:
        holder = self.holders[ask.peer]
        if ask.peer in self._gone or (holder.dies_s is not None and holder.dies_s <= self.now):
            return
        part = None if ask.ask in holder.cancelled else next(parts, None)
        if part is None:
            self.at(self.now + holder.rtt_s / 2, lambda: self._pass_downlink(0, self._finished(ask)))
            self._serve(ask.peer)
            return
        size = sum(part.values())
        end = holder.transmit(self.now, size)
        for second in range(1, int(end - self.now) + 1):
            self.at(self.now + second, self._heard(ask.peer))
        self.at(end + holder.rtt_s / 2, lambda: self._pass_downlink(size, self._arrival(ask, part)))
        self.at(end, lambda: self._send_next(ask, parts))

    def _pass_downlink(self, size: int, arrive: Callable[[], None]) -> None:
        self._down_free = max(self.now, self._down_free) + size / self._downlink
        self.at(self._down_free, arrive)

    def _heard(self, peer: NodeId) -> Callable[[], None]:
        def hear() -> None:
            if peer not in self._gone:
                self.feed(Heard(peer))

        return hear

    def _parts(self, ask: Ask) -> Iterator[dict[ChunkId, int]]:
        part: dict[ChunkId, int] = {}
        for chunk in ask.chunks:
            if not self.holders[ask.peer].holds(chunk):
                continue
            if part and sum(part.values()) + self.wants[chunk] > PART_BYTES:
                yield part
                part = {}
            part[chunk] = self.wants[chunk]
        if part:
            yield part

    def _arrival(self, ask: Ask, part: dict[ChunkId, int]) -> Callable[[], None]:
        def arrive() -> None:
            if ask.peer in self._gone:
                return
            self._arrived += sum(part.values())
            holder = self.holders[ask.peer]
            if holder.lies and self._rng.random() < holder.lies:
                self.feed(Corrupt(ask.peer))
            else:
                self.feed(Received(ask.peer, ask.ask, part))

        return arrive

    def _finished(self, ask: Ask) -> Callable[[], None]:
        def finish() -> None:
            if ask.peer not in self._gone:
                self.feed(Finished(ask.peer, ask.ask))

        return finish
