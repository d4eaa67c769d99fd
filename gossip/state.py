"""One node's part in the gossip, as a machine without sockets, clock or threads.

Theory of operation
-------------------
The owner feeds `handle` with events (a packet, a full exchange, the time) and does what the outputs say.
`next_deadline` says when the next `Tick` is due. Everything is decided by six parts, each in a module of its own:

    Prober      who is probed, who is suspected                    probing.py
    Membership  what a record or a claim changes                   membership.py
    Broadcasts  which news rides on which packet                   broadcast.py
    Contacts    seeds, and members that are to be found again      contacts.py
    Distances   coordinates and round trips                        distances.py
    Composer    what goes into one packet                          composing.py

This module connects them: it takes packets apart, and keeps the timers for news and full exchanges.

Whoever sealed a packet holds the mesh key, which makes it a member; its id in the header is what the seal says.
A round trip is measured only from acks of the member itself.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from math import log2
from typing import Any

from gossip.broadcast import BroadcastQueue
from gossip.composing import Composer
from gossip.config import LAN, GossipConfig
from gossip.contacts import Contacts, ContactStep, Exchange, Hello
from gossip.distances import Distances
from gossip.errors import GossipError
from gossip.events import (
    Ban,
    Event,
    ExchangeReceived,
    JoinSeeds,
    Leave,
    Output,
    PacketReceived,
    RequestExchange,
    TcpPing,
    TcpPingAnswered,
    Tick,
)
from gossip.exchange import read_body, read_incarnation, write_body
from gossip.health import LocalHealth
from gossip.membership import Membership
from gossip.messages import ANYONE, Ack, Dead, Introduce, Member, MemberState, Nack, NodeId, Ping, PingReq, Suspect
from gossip.probing import Answer, AskRelay, PingMember, Prober, Step, TryTcp, Unanswered
from gossip.records import LocalNode, Record, Verify
from gossip.table import MemberChanged, MemberTable
from gossip.wire import Message, decode

_LIVE = (MemberState.ALIVE, MemberState.SUSPECT)

_YOUNG_GOSSIPS = 5
"""Gossip intervals before the first periodic exchange of a node that is new to the mesh; each next one comes later."""

_SNAPSHOT_BYTES = 64 << 20

LEAVE_FANOUT = 8
"""How many members hear of a leave from the leaver itself."""


class GossipState:
    """SWIM with Lifeguard for one node.

    Args:
        local: who this node is; its `boot_id` must be new with each start.
        verify: checks Ed25519 signatures.
        rng: the only source of randomness; the same seed and events give the same outputs.
        now: the time, in seconds, on the clock that every later `now` is read from; it never goes back.
        config: the pace, the same on all nodes.
        restored: what `snapshot` gave in an earlier life, or the exchange body of another member.

    Raises:
        Malformed: `restored` is not such a body.

    Attributes:
        dropped: how much was not believed, by `GossipError.reason`.
    """

    def __init__(
        self,
        local: LocalNode,
        *,
        verify: Verify,
        rng: random.Random,
        now: float,
        config: GossipConfig = LAN,
        restored: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = local.id
        self.config = config
        self.dropped: Counter[str] = Counter()
        self._rng = rng
        self._health = LocalHealth(config.worst_health)
        self._distances = Distances(self.id, rng)
        self._queue = BroadcastQueue()
        self._table = MemberTable(config.max_members, self._distances)
        incarnation = 1
        if restored is not None and "incarnation" in restored:
            incarnation = read_incarnation(restored) + 1
        self._members = Membership(local, config, verify, self._table, self._queue, self._health, incarnation)
        self._compose = Composer(config, self._members, self._table, self._distances, self._queue)
        self._prober = Prober(config, self._health, self._table.live, rng, now)
        self._contacts = Contacts(config, self._table, rng, now)
        self._gossip_at: float | None = None
        self._young_exchange_s = _YOUNG_GOSSIPS * config.gossip_interval_s
        self._exchange_s = self._young_exchange_s
        self._exchange_at = now + self._jittered(self._exchange_s)
        self._left = False
        if restored is not None:
            self._restore(restored, now)

    # Queries

    @property
    def me(self) -> Member:
        """This node, as others see it."""
        return self._members.me

    def members(self) -> list[Member]:
        """Everyone else that is known, in whatever state; this node is not among them."""
        return [self._table.member(row.record, row.state) for row in self._table]

    def alive(self) -> list[Member]:
        """Everyone else that is ALIVE."""
        return [self._table.member(row.record, row.state) for row in self._table if row.state is MemberState.ALIVE]

    def member(self, node: NodeId) -> Member | None:
        """One member, or this node; None for someone unknown."""
        if node == self.id:
            return self.me
        row = self._table.get(node)
        return None if row is None else self._table.member(row.record, row.state)

    def state_of(self, node: NodeId) -> MemberState | None:
        """What is believed of another member; None for someone unknown."""
        row = self._table.get(node)
        return None if row is None else row.state

    def estimate_s(self, a: NodeId, b: NodeId) -> float | None:
        """The expected round trip between two nodes in seconds, see `Distances.estimate_s`."""
        return self._distances.estimate_s(a, b)

    @property
    def health(self) -> int:
        """How badly this node itself is doing, 0 (well) to `config.worst_health`."""
        return self._health.score

    def exchange_body(self, now: float) -> dict[str, Any]:
        """This node's half of a full exchange."""
        return write_body(self._members.record, self._table, self._distances, now)

    def snapshot(self, now: float) -> dict[str, Any]:
        """What to keep for the next start, as a msgpack-able dictionary."""
        body = write_body(
            self._members.record, self._table, self._distances, now, unheard=True, limit_bytes=_SNAPSHOT_BYTES
        )
        return {**body, "incarnation": self._members.record.incarnation}

    def next_deadline(self) -> float | None:
        """When the next `Tick` is due; None once this node has left."""
        if self._left:
            return None
        at = min(self._prober.deadline, self._contacts.deadline, self._exchange_at)
        suspicion_at = self._members.deadline
        if suspicion_at is not None and suspicion_at < at:
            at = suspicion_at
        if self._gossip_at is not None and self._gossip_at < at:
            at = self._gossip_at
        return at

    # The machine

    def handle(self, event: Event, now: float) -> list[Output]:
        """Advance by one event.

        Raises:
            Malformed: a packet or body does not decode; then nothing of it had any effect.
        """
        if self._left:
            return []
        out: list[Output] = []
        match event:
            case PacketReceived():
                self._on_packet(event, now, out)
            case Tick():
                self._on_tick(now, out)
            case ExchangeReceived(sender, body):
                self._on_exchange(sender, body, now)
            case TcpPingAnswered(node):
                self._prober.reached(node)
            case JoinSeeds(addresses):
                self._contacts.add_seeds(addresses, now)
            case Ban(node):
                self._members.ban(node)
            case Leave():
                self._on_leave(out)
        self._report_changes(out)
        if self._gossip_at is None and len(self._queue) and self._table.live:
            self._gossip_at = now + self.config.gossip_interval_s
        return out

    def _on_tick(self, now: float, out: list[Output]) -> None:
        due = self.next_deadline()
        late_s = 0.0 if due is None else now - due
        if late_s > self.config.probe_timeout_s:
            # This process stood still: acks and refutations wait unread in the socket. Accuse nobody for our own fault.
            self._prober.skip_judgement()
            self._members.postpone(late_s)
            if late_s > self.config.probe_interval_s:
                self._health.adjust(1)
        for step in self._prober.tick(now):
            out += self._outputs_of(step, now)
        self._members.expire(now)
        if now >= self._contacts.deadline:
            self._members.forget_old(now)
            for contact in self._contacts.tick(now):
                out += self._outputs_of(contact, now)
        if now >= self._exchange_at:
            out += [RequestExchange(node) for node in self._table.live.draw(self._rng, 1)]
            self._exchange_s = min(2 * self._exchange_s, self._longest_exchange_s())
            self._exchange_at = now + self._jittered(self._exchange_s)
        if self._gossip_at is not None and now >= self._gossip_at:
            out += self._spread_news()
            self._gossip_at = None  # armed again while there is news

    def _on_packet(self, packet: PacketReceived, now: float, out: list[Output]) -> None:
        messages = decode(packet.payload)
        if self._members.is_banned(packet.sender):
            self.dropped["banned"] += 1
            return
        if packet.sender == self.id:  # a seed address turned out to be our own
            for message in messages:
                if isinstance(message, Ping):
                    self._contacts.acked(message.seq, self.id, now)
            return
        self._members.vouch(packet.sender, packet.boot_id, now)
        # Records first: they say who the other messages are about.
        for message in sorted(messages, key=lambda message: not isinstance(message, Record)):
            try:
                self._on_message(message, packet, now, out)
            except GossipError as error:
                self.dropped[error.reason] += 1

    def _on_message(self, message: Message, packet: PacketReceived, now: float, out: list[Output]) -> None:
        match message:
            case Record():
                self._members.hear_record(message, now)
            case Suspect():
                self._members.hear_suspect(message, now)
            case Dead():
                self._members.hear_dead(message, now)
            case Ping(seq, target, coordinate):
                if self._table.get(packet.sender) is not None:
                    self._distances.place(packet.sender, coordinate)
                if target in (self.id, ANYONE):
                    out.append(self._compose.answer(seq, packet, introduce=target == ANYONE))
            case PingReq(seq, target) if target == self.id:
                out.append(self._compose.answer(seq, packet, introduce=False))
            case PingReq(seq, target) if (row := self._table.get(target)) is not None and row.record.left:
                out.append(self._compose.packet(packet.addr, Nack(seq), row.record))  # the asker has not heard of it
            case PingReq():
                for step in self._prober.relay(message, packet.addr, now):
                    out += self._outputs_of(step, now)
            case Ack():
                self._on_ack(message, packet, now, out)
            case Nack(seq):
                self._prober.nacked(seq, packet.sender)
            case Introduce():
                out.append(self._compose.packet(packet.addr, self._members.record))

    def _on_ack(self, ack: Ack, packet: PacketReceived, now: float, out: list[Output]) -> None:
        steps, elapsed_s = self._prober.acked(ack.seq, ack.node, ack.coordinate, now)
        for step in steps:
            out += self._outputs_of(step, now)
        if elapsed_s is None and ack.node == packet.sender:
            elapsed_s = self._contacts.acked(ack.seq, ack.node, now)
            if elapsed_s is not None:
                self._hurry_exchanges(now)
                out.append(RequestExchange(ack.node))
        if elapsed_s is not None and ack.node == packet.sender and self._table.get(ack.node) is not None:
            self._distances.observe(ack.node, ack.coordinate, elapsed_s)

    def _on_exchange(self, sender: NodeId, body: Mapping[str, Any], now: float) -> None:
        rows = read_body(body)
        if self._members.is_banned(sender):
            self.dropped["banned"] += 1
            return
        # What a newcomer learns is news to nobody else.
        is_newcomer = not self._table.live
        for row in rows:
            try:
                self._members.hear_row(row.record, row.state, row.age_s, sender, now, spread=not is_newcomer)
            except GossipError as error:
                self.dropped[error.reason] += 1
                continue
            node = row.record.node
            if row.coordinate is None or self._table.get(node) is None:
                continue
            if node == sender or self._distances.coordinate(node) is None:
                self._distances.place(node, row.coordinate)
        if not self._table.changes and len(rows) > len(self._table):  # we are even: no need to hurry
            self._exchange_s = min(2 * self._exchange_s, self._longest_exchange_s())

    def _on_leave(self, out: list[Output]) -> None:
        self._members.leave()
        for node in self._table.live.draw(self._rng, LEAVE_FANOUT):
            out += self._compose.packet_to(node, self._members.record)
        self._left = True

    def _restore(self, body: Mapping[str, Any], now: float) -> None:
        for row in read_body(body):
            try:
                self._members.remember(row.record, row.age_s, now, unheard=True)
            except GossipError as error:
                self.dropped[error.reason] += 1
                continue
            if row.coordinate is not None and self._table.get(row.record.node) is not None:
                self._distances.place(row.record.node, row.coordinate)
        self._table.changes.clear()

    # What the parts want done

    def _outputs_of(self, step: Step | ContactStep, now: float) -> Sequence[Output]:
        match step:
            case PingMember(node, seq):
                return self._compose.packet_to(node, Ping(seq, node, self._distances.mine))
            case AskRelay(node, request):
                return self._compose.packet_to(node, request)
            case Answer(addr, message):
                return [self._compose.packet(addr, message)]
            case Hello(addr, seq):
                ping = Ping(seq, ANYONE, self._distances.mine)
                return [self._compose.packet(addr, ping, self._members.record)]
            case TryTcp(node):
                return [TcpPing(node)]
            case Exchange(node):
                return [RequestExchange(node)]
            case Unanswered(node):
                row = self._table.get(node)
                if row is not None:
                    self._members.hear_suspect(Suspect(node, row.record.incarnation, self.id), now)
                return []

    def _spread_news(self) -> list[Output]:
        out: list[Output] = []
        for node in self._table.live.draw(self._rng, self.config.gossip_fanout):
            if len(self._queue):
                out += self._compose.packet_to(node)
        return out

    def _report_changes(self, out: list[Output]) -> None:
        changes, self._table.changes = self._table.changes, []
        for change in changes:
            if isinstance(change, MemberChanged) and change.new.id in self._table.live:
                was_live = change.old is not None and change.old.state in _LIVE
                if not was_live:
                    self._prober.add(change.new.id)
        out += changes

    def _hurry_exchanges(self, now: float) -> None:
        """We just found a mesh, or a lost part of it: what is new on both sides is more than packets carry soon."""
        self._exchange_s = self._young_exchange_s
        self._exchange_at = min(self._exchange_at, now + self._jittered(self._exchange_s))

    def _longest_exchange_s(self) -> float:
        """Grows with the mesh, so that the load of full exchanges stays bounded."""
        members = len(self._table.live) + 1
        return self.config.push_pull_interval_s * (1.0 if members <= 32 else 1.0 + log2(members / 32))

    def _jittered(self, interval_s: float) -> float:
        """So that nodes that start together do not go on in step."""
        return interval_s * self._rng.uniform(0.75, 1.25)
