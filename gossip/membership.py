"""The rules of membership: how what is heard, or not heard, changes the table of members.

Theory of operation
-------------------
Each member has one row: its newest signed record and a state.

    ==============  ======================================================  =====================
    from            heard                                                   to
    ==============  ======================================================  =====================
    (unknown)       a record                                                ALIVE, LEFT
    any             a record of a higher incarnation                        ALIVE, LEFT
    ALIVE           Suspect, or Dead from a full exchange, this incarnation SUSPECT
    SUSPECT         Suspect by another accuser, this incarnation            SUSPECT, sooner DEAD
    SUSPECT         nothing, until the suspicion's deadline                 DEAD
    ALIVE, SUSPECT  Dead, this incarnation                                  DEAD
    DEAD, LEFT      nothing for days                                        (forgotten)
    ==============  ======================================================  =====================

Records are signed, and move a row only forwards. Claims are hints: one counts only if it names exactly the incarnation
of the record at hand, so that nobody can push a victim's incarnation up, and the victim ends any claim by signing
its next incarnation (it *refutes*). What changes a row is news, and goes into the broadcast queue.

A row from a snapshot is *unheard*: DEAD until there is any sign of the member, which then lives at the incarnation
it had, since nobody declared it dead.

Source: Das, Gupta, Motivala, "SWIM", DSN 2002, section 4.2; that a death told in a full exchange only makes suspect is
memberlist's rule.
"""

import heapq

from gossip.broadcast import BroadcastQueue
from gossip.config import GossipConfig
from gossip.health import LocalHealth
from gossip.messages import Dead, Member, MemberState, NodeId, Suspect
from gossip.records import LocalNode, Record, Verify
from gossip.suspicion import Suspicion, min_timeout_s
from gossip.table import MemberTable, Row
from gossip.wire import encode


class Membership:
    """Applies the rules to a table, and speaks for this node.

    Args:
        local: who this node is.
        config: limits, and the timing of suspicions.
        verify: checks Ed25519 signatures.
        table: the rows.
        queue: takes the news that others should hear.
        health: suffers when this node has to defend itself.
        incarnation: of this node's first record: above the last that it knows to have signed.

    Attributes:
        record: this node's newest word about itself.
    """

    def __init__(
        self,
        local: LocalNode,
        config: GossipConfig,
        verify: Verify,
        table: MemberTable,
        queue: BroadcastQueue,
        health: LocalHealth,
        incarnation: int,
    ) -> None:
        self.id = local.id
        self.record = local.record(incarnation)
        self._local = local
        self._config = config
        self._verify = verify
        self._table = table
        self._queue = queue
        self._health = health
        self._banned: set[NodeId] = set()
        self._suspicions: dict[NodeId, Suspicion] = {}
        self._timers: list[tuple[float, NodeId]] = []
        self._contested_until = float("-inf")
        queue.put(self.id, encode(self.record))

    # What is heard

    def hear_record(self, record: Record, now: float, *, spread: bool = True) -> None:
        """A record of anyone, come by any way; someone new is news to others only with `spread`.

        Raises:
            Forged: its signature is not the owner's.
            Full: it is someone new, and there is no room.
        """
        if record.node == self.id:
            self._hear_of_me(record, now)
            return
        row = self._table.get(record.node)
        if row is None:
            row = self._admit(record, MemberState.LEFT if record.left else MemberState.ALIVE, now)
            if row is not None and spread:
                self._queue.put(record.node, encode(record))
        elif record.incarnation > row.record.incarnation:
            record.check(self._verify)
            self._change(row, record, MemberState.LEFT if record.left else MemberState.ALIVE, now)
            self._queue.put(record.node, encode(record))
        elif row.unheard and record.blob == row.record.blob:
            self._change(row, record, MemberState.ALIVE, now)

    def hear_suspect(self, claim: Suspect, now: float) -> None:
        """Someone, perhaps this node's own prober, could not reach a member."""
        if claim.node == self.id:
            self._defend(claim.incarnation)
            return
        row = self._table.get(claim.node)
        if row is None or claim.incarnation != row.record.incarnation:
            return
        if row.state is MemberState.SUSPECT:
            suspicion = self._suspicions[claim.node]
            if not suspicion.confirm(claim.accuser):
                return
            heapq.heappush(self._timers, (suspicion.deadline, claim.node))
        elif row.state is MemberState.ALIVE:
            self._change(row, row.record, MemberState.SUSPECT, now)
            self._begin_suspicion(claim, now)
        else:
            return
        self._queue.put(claim.node, encode(claim), accuser=claim.accuser)

    def hear_dead(self, claim: Dead, now: float) -> None:
        """Someone, perhaps this node itself, gave a member up."""
        if claim.node == self.id:
            self._defend(claim.incarnation)
            return
        row = self._table.get(claim.node)
        if row is None or claim.incarnation != row.record.incarnation:
            return
        row.unheard = False
        if row.state in (MemberState.ALIVE, MemberState.SUSPECT):
            self._change(row, row.record, MemberState.DEAD, now)
            self._queue.put(claim.node, encode(claim))

    def hear_row(
        self, record: Record, state: MemberState, age_s: float, teller: NodeId, now: float, *, spread: bool = True
    ) -> None:
        """One row of someone's full exchange.

        Args:
            record: the newest word of the member that the teller has.
            state: what the teller believes of it.
            age_s: for how long it has believed so.
            teller: who tells.
            now: the time.
            spread: see `hear_record`.

        Raises:
            Forged, Full: as `hear_record`.
        """
        row = self._table.get(record.node)
        if row is None and record.node != self.id and (record.left or state is MemberState.DEAD):
            self.remember(record, age_s, now)
            return
        if row is not None and state is MemberState.DEAD and row.record.blob == record.blob:
            row.unheard = False
        self.hear_record(record, now, spread=spread)
        if state in (MemberState.SUSPECT, MemberState.DEAD):
            self.hear_suspect(Suspect(record.node, record.incarnation, teller), now)

    def remember(self, record: Record, age_s: float, now: float, *, unheard: bool = False) -> None:
        """Take in a member that is not there, so that it is tried again; nobody else needs to hear of it.

        Raises:
            Forged, Full: as `hear_record`.
        """
        limit_s = self._config.remember_left_s if record.left else self._config.remember_dead_s
        if record.node == self.id or self._table.get(record.node) is not None or age_s > limit_s:
            return
        row = self._admit(record, MemberState.LEFT if record.left else MemberState.DEAD, now - age_s)
        if row is not None:
            row.unheard = unheard and not record.left

    def vouch(self, node: NodeId, boot_id: bytes, now: float) -> None:
        """A packet came from the member itself: if only silence spoke against it, it lives."""
        row = self._table.get(node)
        if row is not None and row.unheard and row.record.boot_id == boot_id:
            self._change(row, row.record, MemberState.ALIVE, now)

    def ban(self, node: NodeId) -> None:
        """Drop a member and never hear of it again: its certificate was revoked."""
        self._banned.add(node)
        if self._table.get(node) is not None:
            self._forget(node)

    def is_banned(self, node: NodeId) -> bool:
        """Whether nothing is to be heard from, or about, this node."""
        return node in self._banned

    # What time does

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do next."""
        while self._timers:
            at, node = self._timers[0]
            suspicion = self._suspicions.get(node)
            if suspicion is not None and suspicion.deadline == at:
                return at
            heapq.heappop(self._timers)  # refuted or confirmed meanwhile
        return None

    def expire(self, now: float) -> None:
        """Give up those who did not refute in time."""
        while (at := self.deadline) is not None and at <= now:
            _, node = heapq.heappop(self._timers)
            row = self._table.get(node)
            assert row is not None, "a suspicion ends with its row"
            self.hear_dead(Dead(node, row.record.incarnation, self.id), now)

    def postpone(self, by_s: float) -> None:
        """This node was not listening for so long, so nobody could refute."""
        for suspicion in self._suspicions.values():
            suspicion.postpone(by_s)
        self._timers = [(suspicion.deadline, node) for node, suspicion in self._suspicions.items()]
        heapq.heapify(self._timers)

    def forget_old(self, now: float) -> None:
        """Drop members that are gone for longer than anyone should remember."""
        limits = {MemberState.DEAD: self._config.remember_dead_s, MemberState.LEFT: self._config.remember_left_s}
        for row in [row for row in self._table if now - row.since > limits.get(row.state, float("inf"))]:
            self._forget(row.record.node)

    # This node itself

    @property
    def me(self) -> Member:
        """This node's own row."""
        return self._table.member(self.record, MemberState.LEFT if self.record.left else MemberState.ALIVE)

    def leave(self) -> None:
        """Sign that this node left; from here on it does not defend itself."""
        if not self.record.left:
            self.record = self._local.record(self.record.incarnation + 1, left=True)
            self._queue.put(self.id, encode(self.record))

    def _hear_of_me(self, record: Record, now: float) -> None:
        """An earlier boot of this node, or a twin with the same key, is still spoken of: go beyond it."""
        if self.record.left or record.incarnation < self.record.incarnation or record.blob == self.record.blob:
            return
        if now < self._contested_until:  # a twin that runs answers each record with the next one: do not race it
            return
        record.check(self._verify)
        self._contested_until = now + self._config.probe_interval_s
        self._sign_beyond(record.incarnation)

    def _defend(self, accused_incarnation: int) -> None:
        if self.record.left or accused_incarnation > self.record.incarnation:
            return
        if accused_incarnation == self.record.incarnation:
            self._health.adjust(1)
            self._sign_beyond(accused_incarnation)
        else:  # refuted already, but the accuser has not heard of it
            self._queue.put(self.id, encode(self.record))

    def _sign_beyond(self, incarnation: int) -> None:
        self.record = self._local.record(incarnation + 1)
        self._queue.put(self.id, encode(self.record))

    # Rows

    def _admit(self, record: Record, state: MemberState, since: float) -> Row | None:
        if record.node in self._banned:
            return None
        self._table.require_room()
        record.check(self._verify)
        row = Row(record, state, since)
        self._table.add(row)
        return row

    def _change(self, row: Row, record: Record, state: MemberState, now: float) -> None:
        self._table.change(row, record, state, now)
        if state is not MemberState.SUSPECT:
            self._suspicions.pop(record.node, None)

    def _forget(self, node: NodeId) -> None:
        self._table.remove(node)
        self._suspicions.pop(node, None)
        self._queue.drop(node)

    def _begin_suspicion(self, claim: Suspect, now: float) -> None:
        members = len(self._table.live) + 1
        # The suspect and the first accuser cannot confirm.
        confirmations = min(self._config.confirmations, members - 2)
        min_s = min_timeout_s(self._config.suspicion_multiplier, members, self._config.probe_interval_s)
        max_s = min_s * self._config.suspicion_max_multiplier
        suspicion = Suspicion(claim.accuser, confirmations, min_s, max_s, now)
        self._suspicions[claim.node] = suspicion
        heapq.heappush(self._timers, (suspicion.deadline, claim.node))
