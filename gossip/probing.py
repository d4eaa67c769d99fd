"""Failure detection: who is probed when, who is asked to probe for us, and for whom we probe.

Theory of operation
-------------------
In each interval one member is probed. The targets go round a shuffled list that is shuffled again after each pass, and
newcomers enter at a random place, so that everyone is probed within two passes (SWIM, section 4.3).

    Ping target ──── no ack by the timeout ───> PingReq to some relays, and one ping over TCP
                                                  │
              any ack by the end of the interval ─┤
                                                  └─ none: suspect the target

The TCP ping keeps members alive whose UDP is filtered. A relay pings the target for us and passes its ack on; when the
target stays silent, the relay says so (*nack*) shortly before our timeout. A missing nack tells of trouble near *us*:
it lowers the local health, and with it our pace (Lifeguard, section IV-A).
"""

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from gossip.config import GossipConfig
from gossip.coordinates import Coordinate
from gossip.health import LocalHealth
from gossip.messages import Ack, Nack, NodeId, PingReq
from gossip.roster import Roster

Address = tuple[str, int]
"""Host and UDP port."""

NACK_AT: Final = 0.8
"""A relay gives up after this part of the probe timeout, so that its nack arrives in time."""
MAX_RELAYED: Final = 256


@dataclass(frozen=True, slots=True)
class PingMember:
    """Step: ping `node` with this sequence number."""

    node: NodeId
    seq: int


@dataclass(frozen=True, slots=True)
class AskRelay:
    """Step: send `request` to `node`."""

    node: NodeId
    request: PingReq


@dataclass(frozen=True, slots=True)
class TryTcp:
    """Step: ping `node` over TCP."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Answer:
    """Step: tell the one who asked us to relay."""

    addr: Address
    message: Ack | Nack


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Step: the probe of `node` failed; suspect it."""

    node: NodeId


Step = PingMember | AskRelay | TryTcp | Answer | Unanswered


@dataclass(slots=True)
class _Probe:
    seq: int
    target: NodeId
    sent_at: float
    ask_at: float
    asked: set[NodeId] = field(default_factory=set)
    nacked: set[NodeId] = field(default_factory=set)
    is_asked: bool = False


@dataclass(slots=True)
class _Relayed:
    seq: int
    target: NodeId
    asker: Address
    asker_seq: int
    nack_at: float


class Prober:
    """One probe of our own at a time, and those that others asked for.

    Args:
        config: the pace.
        health: slows the pace down.
        live: members that can be probed and asked.
        rng: order of targets, choice of relays, sequence numbers.
        now: the first probe is due within one interval from here.
    """

    def __init__(self, config: GossipConfig, health: LocalHealth, live: Roster, rng: random.Random, now: float) -> None:
        self._config = config
        self._health = health
        self._live = live
        self._rng = rng
        self._next_at = now + rng.random() * config.probe_interval_s
        self._probe: _Probe | None = None
        self._targets: list[NodeId] = []
        self._relayed: dict[int, _Relayed] = {}
        # Each relayed ping waits equally long, so the order of arrival is the order of their deadlines.
        self._relayed_order: deque[_Relayed] = deque()

    @property
    def deadline(self) -> float:
        """When `tick` has something to do next."""
        at = self._next_at
        if self._probe is not None and not self._probe.is_asked:
            at = min(at, self._probe.ask_at)
        if self._relayed_order:
            at = min(at, self._relayed_order[0].nack_at)
        return at

    def add(self, node: NodeId) -> None:
        """A newcomer: it is probed at a random time of this pass."""
        if len(self._targets) > 2 * len(self._live) + 2:  # someone comes and goes faster than we probe
            self._targets.clear()
        self._targets.insert(self._rng.randint(0, len(self._targets)), node)

    def tick(self, now: float) -> list[Step]:
        """Do what is due."""
        steps = self._nack_silent(now)
        probe = self._probe
        if probe is not None and not probe.is_asked and now >= probe.ask_at:
            steps += self._ask_others(probe)
        if now >= self._next_at:
            steps += self._judge()
            steps += self._probe_next(now)
        return steps

    def skip_judgement(self) -> None:
        """Forget the probe in flight: this node was not listening, so a missing ack says nothing."""
        self._probe = None

    def acked(self, seq: int, node: NodeId, coordinate: Coordinate, now: float) -> tuple[list[Step], float | None]:
        """An ack that names `node` arrived.

        Returns:
            what is to be done now, and for an own probe the seconds since it was sent.
        """
        probe = self._probe
        if probe is not None and probe.seq == seq and probe.target == node:
            self._succeed()
            return [], now - probe.sent_at
        relayed = self._relayed.get(seq)
        if relayed is not None and relayed.target == node:
            self._end_relayed(relayed)
            return [Answer(relayed.asker, Ack(relayed.asker_seq, node, coordinate))], None
        return [], None

    def nacked(self, seq: int, relay: NodeId) -> None:
        """A relay is well, but did not reach the target."""
        if self._probe is not None and self._probe.seq == seq and relay in self._probe.asked:
            self._probe.nacked.add(relay)

    def reached(self, node: NodeId) -> None:
        """The member answered over TCP."""
        if self._probe is not None and self._probe.target == node:
            self._succeed()

    def relay(self, request: PingReq, asker: Address, now: float) -> list[Step]:
        """Someone asks us to probe `request.target` for them; who is unknown here gets a nack at once."""
        if request.target not in self._live or len(self._relayed) >= MAX_RELAYED:
            return [Answer(asker, Nack(request.seq))]
        nack_at = now + NACK_AT * self._config.probe_timeout_s
        relayed = _Relayed(self._seq(), request.target, asker, request.seq, nack_at)
        self._relayed[relayed.seq] = relayed
        self._relayed_order.append(relayed)
        return [PingMember(request.target, relayed.seq)]

    def _probe_next(self, now: float) -> list[Step]:
        self._next_at = now + self._health.scaled_s(self._config.probe_interval_s)
        target = self._next_target()
        if target is None:
            return []
        ask_at = now + self._health.scaled_s(self._config.probe_timeout_s)
        self._probe = _Probe(self._seq(), target, now, ask_at)
        return [PingMember(target, self._probe.seq)]

    def _next_target(self) -> NodeId | None:
        if not self._live:
            self._targets.clear()
            return None
        while True:
            while self._targets:
                target = self._targets.pop()
                if target in self._live:
                    return target
            self._targets = list(self._live)
            self._rng.shuffle(self._targets)

    def _ask_others(self, probe: _Probe) -> list[Step]:
        relays = self._live.draw(self._rng, self._config.relays, but=probe.target)
        probe.is_asked = True
        probe.asked.update(relays)
        return [*(AskRelay(relay, PingReq(probe.seq, probe.target)) for relay in relays), TryTcp(probe.target)]

    def _judge(self) -> list[Step]:
        probe, self._probe = self._probe, None
        if probe is None:
            return []
        silent = len(probe.asked) - len(probe.nacked)
        self._health.adjust(silent if probe.asked else 1)
        return [Unanswered(probe.target)]

    def _succeed(self) -> None:
        self._probe = None
        self._health.adjust(-1)

    def _nack_silent(self, now: float) -> list[Step]:
        steps: list[Step] = []
        while self._relayed_order and self._relayed_order[0].nack_at <= now:
            relayed = self._relayed_order[0]
            self._end_relayed(relayed)
            steps.append(Answer(relayed.asker, Nack(relayed.asker_seq)))
        return steps

    def _end_relayed(self, relayed: _Relayed) -> None:
        del self._relayed[relayed.seq]
        self._relayed_order.remove(relayed)

    def _seq(self) -> int:
        return self._rng.getrandbits(32)
