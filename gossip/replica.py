"""Tables of signed statements that nodes keep alike: one anti-entropy over all of them.

Theory of operation
-------------------
A node writes only statements of its own, and keeps everybody's. Two replicas become equal by telling each other what
the other one lacks, in versions first and records then:

    offer    A -> B  {digest}            16 bytes: when they are the same, that was all
    answer   B -> A  {summary}           each key's version and fingerprint
    follow   A -> B  {summary, delta}    what B lacks, and what A has
    answer   B -> A  {delta}             what A lacks

One side runs `offer` and `follow`, the other one `answer`; the shell only carries the documents. A delta is bounded;
where one could not hold everything it says `more`, and the exchange starts anew. Records pass from node to node, so
an exchange with a random peer every few seconds reaches all in a time that grows with the logarithm of their number
(Demers et al. 1987, "Epidemic algorithms for replicated database maintenance").

A record that breaks a rule is dropped and counted, and the rest of its delta is taken.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from blake3 import blake3

from gossip import fields
from gossip.errors import GossipError
from gossip.messages import NodeId, node_id
from gossip.signed import FINGERPRINT_BYTES, KEY_BYTES, Held, Statement, Table, Verify

MAX_DELTA_BYTES: Final = 512 << 10
MAX_ROWS: Final = 16 << 10
_DIGEST_BYTES = 16
_ROW_OVERHEAD_BYTES = 128
_UNKEPT = (0, b"")


class Stranger(GossipError):
    """A record of a node that is not of this mesh, as far as is known here by now."""

    reason = "stranger"


@dataclass(frozen=True, slots=True)
class Changes:
    """What a merge did.

    Attributes:
        taken: the keys that are new, by table; see the properties for those of the ledger.
        lost: keys that were this node's and now belong to another one.
        dropped: how many records were not taken, by `GossipError.reason`.
    """

    taken: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    lost: frozenset[str] = frozenset()
    dropped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def __bool__(self) -> bool:
        """Whether anything is different now."""
        return any(self.taken.values())

    @property
    def names(self) -> frozenset[str]:
        """Names whose entry is new, tombstones included."""
        return self.taken.get("names", frozenset())

    @property
    def inventories(self) -> frozenset[NodeId]:
        """Nodes whose inventory is new."""
        return frozenset(map(NodeId, self.taken.get("inventories", ())))

    @property
    def popularity(self) -> frozenset[NodeId]:
        """Nodes whose counters are new."""
        return frozenset(map(NodeId, self.taken.get("popularity", ())))


class Replica:
    """One node's copy of some tables. Not thread-safe.

    Args:
        public_key: this node's raw 32-byte Ed25519 key.
        verify: checks signatures.
        admit: whose records are kept; anybody else's are dropped, and taken when they come again later.
        tables: what is kept.
        delta_bytes: about how long a delta of an exchange may be.
    """

    def __init__(
        self,
        public_key: bytes,
        verify: Verify,
        admit: Callable[[NodeId], bool],
        tables: tuple[Table[Any], ...],
        delta_bytes: int = MAX_DELTA_BYTES,
    ) -> None:
        self.node = node_id(public_key)
        self._verify = verify
        self._admit = admit
        self._tables = tables
        self._delta_bytes = delta_bytes
        self._digest: bytes | None = None

    def digest(self) -> bytes:
        """Sixteen bytes, the same on two nodes that hold the same."""
        if self._digest is None:
            hasher = blake3()
            for table in self._tables:
                for key, version, print_ in table.versions():
                    hasher.update(table.short_key(key) + version.to_bytes(8, "big") + print_)
                hasher.update(table.name.encode())
            self._digest = hasher.digest(length=_DIGEST_BYTES)
        return self._digest

    def summary(self) -> dict[str, Any]:
        """What is here, in versions: `{table: [[key, version, fingerprint], ...]}`, keys as 16 bytes."""
        return {
            table.name: [[table.short_key(key), version, print_] for key, version, print_ in table.versions()]
            for table in self._tables
        }

    def delta(self, summary: object, *, limit_bytes: int | None = None) -> dict[str, Any]:
        """The records that the sender of `summary` lacks: `{table: [row, ...], "more": bool}`.

        Args:
            summary: from a peer; `{}` for all there is.
            limit_bytes: about how long the delta may be, if not `delta_bytes`; it holds one record in any case.

        Raises:
            Malformed: it is no summary.
        """
        limit_bytes = self._delta_bytes if limit_bytes is None else limit_bytes
        found: dict[str, Any] = {table.name: [] for table in self._tables}
        used = 0
        for table, statement in self._lacking(fields.table(summary)):
            size = len(statement.body) + _ROW_OVERHEAD_BYTES
            if used and used + size > limit_bytes:
                return {**found, "more": True}
            used += size
            found[table.name].append(statement.row())
        return {**found, "more": False}

    def merge(self, delta: object, *, now: float) -> Changes:
        """Take what is new in a peer's delta; records that break a rule are left out, and counted.

        Raises:
            Malformed: it is no delta at all.
        """
        return self._merge(delta, now, self._admit)

    def offer(self) -> dict[str, Any]:
        """Begin an exchange: what to send to a peer's `answer`."""
        return {"digest": self.digest()}

    def answer(self, body: object, *, now: float) -> tuple[dict[str, Any], Changes]:
        """The other side of an exchange: take what a peer sent, and reply.

        Raises:
            Malformed: the peer's document is none of those that an exchange consists of.
        """
        document = fields.table(body)
        if "summary" not in document:
            same = fields.raw(document.get("digest"), _DIGEST_BYTES) == self.digest()
            return ({"same": True} if same else {"summary": self.summary()}), Changes()
        delta = fields.table(document.get("delta"))
        changes = self.merge(delta, now=now)
        again = delta.get("more") is True and bool(changes)
        return {"delta": self.delta(document["summary"]), "again": again}, changes

    def follow(self, reply: object, *, now: float) -> tuple[dict[str, Any] | None, Changes]:
        """Go on with an exchange that `offer` began.

        Returns:
            What to send next, None when the exchange is over; and what changed here. A caller bounds the number of
            rounds: a peer can always claim that there is more.

        Raises:
            Malformed: the peer's document is none of those that an exchange consists of.
        """
        document = fields.table(reply)
        if document.get("same") is True:
            return None, Changes()
        if "summary" in document:
            return {"summary": self.summary(), "delta": self.delta(document["summary"])}, Changes()
        delta = fields.table(document.get("delta"))
        changes = self.merge(delta, now=now)
        more = (delta.get("more") is True and bool(changes)) or document.get("again") is True
        return (self.offer() if more else None), changes

    def _merge(self, delta: object, now: float, admit: Callable[[NodeId], bool]) -> Changes:
        document = fields.table(delta)
        batches = [(table, fields.items(document.get(table.name, []), MAX_ROWS)) for table in self._tables]
        taken: dict[str, frozenset[str]] = {}
        lost: set[str] = set()
        dropped: Counter[str] = Counter()
        for table, rows in batches:
            before = {key: held.statement.owner for key, held in table.held.items()}
            keys: set[str] = set()
            for row in rows:
                try:
                    held = self._take(table, row, now, admit)
                except GossipError as error:
                    dropped[error.reason] += 1
                    continue
                if held is not None:
                    keys.add(table.key(held.value))
            taken[table.name] = frozenset(keys)
            lost |= {
                key for key in keys if before.get(key) == self.node and table.held[key].statement.owner != self.node
            }
        self._changed()
        return Changes(MappingProxyType(taken), frozenset(lost), MappingProxyType(dict(dropped)))

    def _take(self, table: Table[Any], row: object, now: float, admit: Callable[[NodeId], bool]) -> Held[Any] | None:
        """Take one record of a peer's, if it is new."""
        statement = table.read(row)
        if statement.owner != self.node and not admit(statement.owner):
            raise Stranger(f"node {statement.owner} is not of this mesh")
        table.check_time(statement, now)
        held = table.offer(statement, self._verify)
        if held is not None and statement.owner == self.node:
            self._heard_myself(held.value, now)
        return held

    def _heard_myself(self, value: Any, now: float) -> None:
        """A record of this node's own came from a peer, newer than what is here: it is from before a loss of state."""

    def _lacking(self, summary: Mapping[Any, Any]) -> Iterator[tuple[Table[Any], Statement]]:
        for table in self._tables:
            theirs: dict[bytes, tuple[int, bytes]] = {}
            for row in fields.rows(summary.get(table.name, []), 3, MAX_ROWS):
                print_ = fields.raw(row[2], FINGERPRINT_BYTES)
                theirs[fields.raw(row[0], KEY_BYTES)] = fields.integer(row[1]), print_
            for key, held in sorted(table.held.items()):
                version, print_ = theirs.get(table.short_key(key), _UNKEPT)
                mine = held.statement
                if mine.version > version or (mine.version == version and mine.fingerprint != print_):
                    yield table, mine

    def _changed(self) -> None:
        """Something in the tables is different: derived values are void."""
        self._digest = None
