"""The table of members: one row each, in the roster that its state puts it in, and a note of every change.

Only the rules of `gossip.membership` write here; everyone else reads.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from gossip.distances import Distances
from gossip.errors import Full
from gossip.messages import Member, MemberState, NodeId
from gossip.records import Record
from gossip.roster import Roster


@dataclass(slots=True)
class Row:
    """What is known of one other member.

    Attributes:
        record: the newest word of the member itself.
        state: what this node believes.
        since: when it came to that belief, on this node's clock.
        unheard: DEAD only because it was not heard of since this node started.
    """

    record: Record
    state: MemberState
    since: float
    unheard: bool = False


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """Output: a member is new (`old` is None), or its state, address, labels or boot changed."""

    old: Member | None
    new: Member


@dataclass(frozen=True, slots=True)
class MemberForgotten:
    """Output: a member has no row any more: it was gone for too long, or was banned."""

    member: Member


Change = MemberChanged | MemberForgotten


class MemberTable:
    """Rows by node id.

    Args:
        max_members: rows that are kept at most.
        distances: where the round trip in a `Member` comes from; forgets with the table.

    Attributes:
        live: members to talk to, ALIVE or SUSPECT.
        gone: members to try again, DEAD.
        changes: what changed since someone emptied this list.
    """

    def __init__(self, max_members: int, distances: Distances) -> None:
        self.live = Roster()
        self.gone = Roster()
        self.changes: list[Change] = []
        self._max_members = max_members
        self._distances = distances
        self._rows: dict[NodeId, Row] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def get(self, node: NodeId) -> Row | None:
        """The row of a member, if there is one."""
        return self._rows.get(node)

    def member(self, record: Record, state: MemberState) -> Member:
        """A record and what is believed of it, as the rest of the node sees it."""
        return Member(
            id=record.node,
            name=record.name,
            site=record.site,
            host=record.host,
            port=record.port,
            state=state,
            incarnation=record.incarnation,
            rtt_s=self._distances.rtt_s(record.node),
            version=record.version,
        )

    def require_room(self) -> None:
        """See whether another member could be added, before anything is spent on it.

        Raises:
            Full: there are as many as there may be, and none of them is gone.
        """
        if len(self.live) >= self._max_members:
            raise Full(f"{len(self._rows)} members are known, and no more are taken")

    def add(self, row: Row) -> None:
        """Add a new member; when the table is full, whoever is gone for longest makes room.

        Raises:
            Full: see `require_room`.
        """
        self.require_room()
        if len(self._rows) >= self._max_members:
            self.remove(min((old.since, node) for node, old in self._rows.items() if node not in self.live)[1])
        self._rows[row.record.node] = row
        self._enrol(row)
        self.changes.append(MemberChanged(None, self.member(row.record, row.state)))

    def change(self, row: Row, record: Record, state: MemberState, now: float) -> None:
        """Give a row a newer record, another state, or both."""
        old, before = row.record, self.member(row.record, row.state)
        if (old.host, old.port) != (record.host, record.port):
            self._distances.forget(record.node)
        if state is not row.state:
            row.since = now
        row.record, row.state, row.unheard = record, state, False
        self._enrol(row)
        told = (old.boot_id, old.name, old.site, old.host, old.port, old.version, before.state)
        tells = (record.boot_id, record.name, record.site, record.host, record.port, record.version, state)
        if told != tells:
            self.changes.append(MemberChanged(before, self.member(record, state)))

    def remove(self, node: NodeId) -> None:
        """Forget a member."""
        row = self._rows.pop(node)
        self.live.discard(node)
        self.gone.discard(node)
        self.changes.append(MemberForgotten(self.member(row.record, row.state)))
        self._distances.forget(node)

    def _enrol(self, row: Row) -> None:
        node = row.record.node
        if row.state in (MemberState.ALIVE, MemberState.SUSPECT):
            self.live.add(node)
            self.gone.discard(node)
        else:
            self.live.discard(node)
            if row.state is MemberState.DEAD:
                self.gone.add(node)
            else:
                self.gone.discard(node)
