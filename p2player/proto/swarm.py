"""Decide which peer is asked for which chunk.

Theory of operation
-------------------
A transfer wants a set of chunks, kept in a `WantTable`. Holders join, are asked for runs of neighbouring chunks
(`AskBook`), and leave. After every event the machine deals out idle chunks until nothing more can be asked:

- *Who first.* Peers with room in their window (`PeerStats`), in the order in which they would finish one more ask:
  near, fast and idle ones first. Each takes the rarest chunks that it holds, neighbours together.
- *How much.* An ask is a fraction of the window. Near the end it shrinks to what the peer can deliver by the time at
  which all are expected to be done; a peer that would come too late gets nothing that somebody else holds, unless
  it is the quickest of those. At the beginning a part is kept for each holder (`FairStart`).
- *Hedging.* A peer that has room and nothing to take doubles an ask that is late (`hedging`). The first copy wins, and
  an ask with nothing left is cancelled.
- *Crowds.* Partial holders are taken for nodes that pull the same layer: each takes a part of its own of what only
  whole copies have (`WantTable.divide`), and what one of them has is asked of it: the rarest chunks come first, and
  one ask is not filled up with others while there are such.
- *Trouble.* A wrong digest bars the sender from this transfer. A peer that stays silent for its deadline is dropped.
  Chunks that a peer lacks, or took with it when it left, are idle again and go to others; one that denies what it
  claims is asked for more at once, so that this is soon settled. When nobody holds what is
  left and nobody is expected, `Stuck` says so, once until another holder joins.

Nothing here waits: `wake_at` is the next time at which a `Tick` may change something.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Final

from chunkstore.digest import ChunkId
from gossip.messages import NodeId
from p2player.proto.asks import AskBook
from p2player.proto.fairstart import FairStart
from p2player.proto.hedging import find_double
from p2player.proto.peerstats import (
    ALONE_SHARE,
    ALONE_WINDOW_BYTES,
    FIRST_WINDOW_BYTES,
    MAX_ASK_BYTES,
    MAX_QUEUE_S,
    MIN_WINDOW_BYTES,
    QUEUE_S,
    PeerStats,
)
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
from p2player.proto.wants import WantTable

MAX_IN_FLIGHT_BYTES: Final = 48 << 20
MAX_ASKS_A_PEER: Final = 16
NEAR_RTT_S: Final = 0.005
MAX_ASK_CHUNKS: Final = 2048
QUEUE_SHARE: Final = 1 / 16
HEDGE_CHECK_S: Final = 0.03
MIN_WAKE_S: Final = 0.001
UNMEASURED_DEADLINE_S: Final = 10.0
MIN_DEADLINE_S: Final = 5.0
MAX_DEADLINE_S: Final = 60.0
DEADLINE_FACTOR: Final = 4.0


class Swarm:
    """The scheduler of one transfer.

    Args:
        wants: chunk id -> length in bytes, in the order of the manifest.
        rng: decides where in the layer the transfer starts.
        starts: one byte a want, 1 where holders probably begin a stored group; asks end there if they can.
        me: this node's name in a crowd; None: it does not share work out.
        costs: bytes that each want is expected to need on the wire; None: its length. What is in flight and how fast a
            peer is are counted in these, what arrived in bytes of content.

    Attributes:
        table: what is wanted and who claims it.
        wanted_bytes: bytes of content that are wanted.
        accepted: bytes of chunks that each peer was the first to deliver.
        duplicates: bytes that were delivered and not needed.
    """

    def __init__(
        self,
        wants: Mapping[ChunkId, int],
        rng: Random,
        *,
        starts: bytes | None = None,
        costs: Sequence[int] | None = None,
        me: NodeId | None = None,
    ) -> None:
        self.table = WantTable(wants, rng, starts, costs)
        self.wanted_bytes = sum(wants.values())
        self.accepted: dict[NodeId, int] = {}
        self.duplicates = 0
        self._doubled = 0
        self._asks = AskBook()
        self._me = me
        self._crowd: set[NodeId] = set()
        self._start = FairStart(self.table.total_bytes)
        self._peers: dict[NodeId, PeerStats] = {}
        self._denials: dict[NodeId, int] = {}
        self._barred: set[NodeId] = set()
        self._chunk_bytes = self.table.total_bytes // max(1, len(self.table.ids))
        self._told_end = False
        self._idle_hands = False
        self._wake_at: float | None = None

    @property
    def done(self) -> bool:
        """Whether everything wanted is here."""
        return not self.table.left

    @property
    def wake_at(self) -> float | None:
        """When to send a `Tick` if nothing else happens before; None: never."""
        return self._wake_at

    @property
    def bytes_left(self) -> int:
        """Bytes of wanted chunks that are not here."""
        return self.wanted_bytes - sum(self.accepted.values())

    @property
    def bytes_in_flight(self) -> int:
        """Bytes that peers were asked for and have not sent."""
        return sum(stats.in_flight for stats in self._peers.values())

    def goodput(self, least_bytes: int) -> dict[NodeId, float]:
        """Bytes a second of every peer in session that has delivered `least_bytes` or more."""
        return {peer: stats.rate for peer, stats in self._peers.items() if stats.delivered >= least_bytes}

    def missing(self) -> Iterator[ChunkId]:
        """The chunks that are not here, in order."""
        return self.table.missing()

    def handle(self, event: Event, now: float) -> list[Output]:
        """Advance by one event.

        Args:
            event: what happened. Those about asks and peers that are gone are understood: a late `Received` counts.
            now: seconds on a monotonic clock chosen by the caller.
        """
        out: list[Output] = []
        match event:
            case Expected(peer, rtt_s):
                if peer not in self._peers and peer not in self._barred:
                    self._start.expect(peer, rtt_s, now)
            case Joined():
                self._join(event, now)
            case Left(peer):
                self._remove(peer)
            case Heard(peer):
                if peer in self._peers:
                    self._peers[peer].heard(now)
            case Received():
                self._receive(event, now, out)
            case Finished(peer, number):
                self._finish(peer, number)
            case Corrupt(peer):
                self._bar(peer, "sent corrupt data", out)
            case Tick():
                pass
        self._drop_silent(now, out)
        if not self.done:
            self._deal(now, out)
        self._tell_end(out)
        self._wake_at = self._next_wake(now)
        return out

    # What happens

    def _join(self, event: Joined, now: float) -> None:
        if event.peer in self._barred:
            return
        if event.peer not in self._peers:
            self._start.join(event.peer, event.rtt_s, now)
            part = self.table.total_bytes // (16 * (len(self._peers) + 1 + self._start.expecting))
            # Whoever is near and alone may have much at once: there is nobody to whom it could be given instead.
            alone = not self._peers and not self._start.expecting
            near = event.rtt_s is not None and event.rtt_s <= NEAR_RTT_S
            most = ALONE_WINDOW_BYTES if alone and near else FIRST_WINDOW_BYTES
            first_window = min(max(part, MIN_WINDOW_BYTES), most)
            self._peers[event.peer] = PeerStats(event.rtt_s, event.load, first_window)
        self.table.add_holder(event.peer, event.have)
        self._meet(event.peer, partial=event.have is not None)
        self._denials[event.peer] = 0
        self._told_end = False

    def _meet(self, peer: NodeId, *, partial: bool) -> None:
        """`peer` is one of those who pull the same, or no longer: all of them divide the work in the same way."""
        before = len(self._crowd)
        if partial:
            self._crowd.add(peer)
        else:
            self._crowd.discard(peer)
        if self._me is not None and len(self._crowd) != before:
            crowd = sorted([self._me, *self._crowd])
            self.table.divide(crowd.index(self._me), len(crowd))

    def _receive(self, event: Received, now: float, out: list[Output]) -> None:
        asked = self._asks.get(event.ask, event.peer)
        positions, gained, total = list[int](), 0, 0
        for chunk, length in event.chunks.items():
            total += length
            position = self.table.position(chunk)
            if position is not None:
                positions.append(position)
                if self.table.finish(position):
                    gained += length
                else:
                    self._doubled += self.table.lengths[position]
        if gained:
            self.accepted[event.peer] = self.accepted.get(event.peer, 0) + gained
        self.duplicates += total - gained
        if asked is not None:
            self._denials[event.peer] = 0
            self._asks.deliver(asked, positions, now)
        for position in positions:
            out += [Cancel(other.number, other.peer) for other in self._asks.settle(position)]

    def _finish(self, peer: NodeId, number: int) -> None:
        asked = self._asks.get(number, peer)
        if asked is None:
            return
        self.table.deny(peer, asked.left)
        self.table.put_back(self._asks.close(asked))
        self._denials[peer] += 1

    def _bar(self, peer: NodeId, reason: str, out: list[Output]) -> None:
        self._barred.add(peer)
        if self._remove(peer):
            out.append(Drop(peer, reason, retry=False))

    def _remove(self, peer: NodeId) -> bool:
        self._start.leave(peer)
        self._meet(peer, partial=False)
        if self._peers.pop(peer, None) is None:
            return False
        del self._denials[peer]
        self.table.remove_holder(peer)
        for asked in list(self._asks.of(peer)):
            self.table.put_back(self._asks.close(asked))
        return True

    def _drop_silent(self, now: float, out: list[Output]) -> None:
        for peer, stats in list(self._peers.items()):
            quiet_s = stats.quiet_s(now)
            if quiet_s and quiet_s >= self._deadline_s(peer):
                self._remove(peer)
                out.append(Drop(peer, f"silent for {quiet_s:.1f} s", retry=True))

    def _deadline_s(self, peer: NodeId) -> float:
        stats = self._peers[peer]
        if not stats.measured:
            return UNMEASURED_DEADLINE_S
        due_s = max((stats.due_s(asked.size) for asked in self._asks.of(peer)), default=0.0)
        return min(max(DEADLINE_FACTOR * due_s, MIN_DEADLINE_S), MAX_DEADLINE_S)

    # Who is asked

    def _deal(self, now: float, out: list[Output]) -> None:
        """Ask until no peer has room or nothing may be asked."""
        self._idle_hands = False
        waiting = dict(self._peers)
        queue_s = min(max(QUEUE_SHARE * self._all_done_s(now), QUEUE_S), MAX_QUEUE_S)
        for stats in self._peers.values():
            stats.queue_s = queue_s
            alone = len(self._peers) == 1 and not self._start.expecting
            stats.alone_window = min(ALONE_WINDOW_BYTES, self.table.total_bytes // ALONE_SHARE) if alone else 0
        while waiting:
            peer = min(waiting, key=lambda peer: waiting[peer].finish_s(waiting[peer].ask_bytes, now))
            stats = waiting[peer]
            room = MAX_IN_FLIGHT_BYTES - self.bytes_in_flight
            open_asks = len(self._asks.of(peer))
            full = open_asks >= MAX_ASKS_A_PEER or room <= 0
            full |= open_asks > 0 and stats.window - stats.in_flight < stats.ask_bytes
            if full or not (self._grant(peer, now, out) or self._hedge(peer, now, out)):
                del waiting[peer]
                self._idle_hands |= not full

    def _grant(self, peer: NodeId, now: float, out: list[Output]) -> bool:
        """Ask `peer` for idle chunks, rarest first."""
        positions: list[int] = []
        left = min(self._peers[peer].ask_bytes << min(self._denials[peer], 8), MAX_ASK_BYTES)
        for mask in self.table.rarest(peer):
            allowed = self._share(peer, self.table.sharers(mask), left, now)
            if allowed > 0:
                taken = self.table.take(mask, allowed, MAX_ASK_CHUNKS - len(positions))
                positions += taken
                left -= sum(self.table.lengths[position] for position in taken)
                if self.table.idle(mask):  # it ended where a stored group does
                    break
            if left <= 0 or len(positions) >= MAX_ASK_CHUNKS:
                break
        if positions:
            self._ask(peer, positions, now, out)
        return bool(positions)

    def _share(self, peer: NodeId, sharers: Sequence[NodeId], limit: int, now: float) -> int:
        """How many bytes of the chunks that all `sharers` hold `peer` may take now; 0: none."""
        stats = self._peers[peer]
        end_s = self._all_done_s(now)
        mine = self._start.kept_for(peer, self._peers, end_s, now)
        free = self.table.idle_bytes - self._start.kept_from(peer, sharers, self._peers, end_s, now)
        limit = min(limit, max(mine, free))
        if limit <= 0 or mine > 0 or len(sharers) == 1:
            return max(limit, 0)
        in_time = int(stats.rate_at(now) * (end_s - stats.latency_s)) - stats.in_flight
        if in_time >= self._chunk_bytes:
            return min(limit, in_time)
        mine_s = stats.finish_s(self._chunk_bytes, now)
        if all(mine_s <= self._peers[other].finish_s(self._chunk_bytes, now) for other in sharers):
            return min(limit, self._chunk_bytes)
        return 0

    def _all_done_s(self, now: float) -> float:
        """Seconds until everything would be here if each peer delivered at its rate from its latency on.

        Solves sum(rate * (end_s - latency_s)) = bytes, over the peers whose latency is below `end_s`.
        """
        wanted = float(self.table.idle_bytes + self.bytes_in_flight)
        rates, end_s = 0.0, math.inf
        for stats in sorted(self._peers.values(), key=lambda stats: stats.latency_s):
            if stats.latency_s >= end_s:
                break
            rate = stats.rate_at(now)
            rates += rate
            wanted += rate * stats.latency_s
            end_s = wanted / rates
        return end_s

    def _hedge(self, peer: NodeId, now: float, out: list[Output]) -> bool:
        """Double an ask of another peer that is expected late."""
        if self.table.rarest(peer):
            return False
        double = find_double(peer, self._peers[peer], self._asks, self.table, self._doubled, now)
        if double is not None:
            self._ask(peer, double.positions, now, out, double.risk)
        return double is not None

    def _ask(self, peer: NodeId, positions: Sequence[int], now: float, out: list[Output], risk: int = 0) -> None:
        left = {position: self.table.lengths[position] for position in positions}
        asked = self._asks.open(peer, self._peers[peer], left, now, risk)
        out.append(Ask(asked.number, peer, tuple(self.table.ids[position] for position in positions)))

    # Ends and timers

    def _tell_end(self, out: list[Output]) -> None:
        if self._told_end:
            return
        if self.done:
            out.append(Done())
            self._told_end = True
        elif not self._asks and not self._start.expecting and self.table.orphaned:
            out.append(Stuck(self.bytes_left))
            self._told_end = True

    def _next_wake(self, now: float) -> float | None:
        if self.done:
            return None
        times = [
            now - stats.quiet_s(now) + self._deadline_s(peer) for peer, stats in self._peers.items() if stats.in_flight
        ]
        times += self._start.times(now)
        if self._idle_hands and self._asks:
            times.append(now + HEDGE_CHECK_S)
        return max(min(times), now + MIN_WAKE_S) if times else None
