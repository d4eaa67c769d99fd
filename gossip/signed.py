"""Signed statements, and tables of them that merge.

Theory of operation
-------------------
A *statement* is what one node says about one thing: bytes (`body`), a version, and the owner's signature over both and
over the name of the table that it belongs to. Whoever passes it on passes it on unchanged, so a record keeps its proof,
and fields that only a later version understands, over any number of hops. The owner is not written down: it is
the hash of the public key that comes along (`gossip.messages.node_id`), and so cannot be wrong.

A `Table` keeps, for each key, the statement of the highest *rank*. Rank is a total order that is computed from the
statement alone, the last word in it being a fingerprint of all that was signed; a table is therefore a
join-semilattice (Shapiro et al. 2011, "Conflict-free Replicated Data Types", section 3.1): merging is commutative,
associative and idempotent, and tables that have seen the same statements are equal, in whatever order and however
often those came.

A key that was dropped on purpose leaves a *floor*: the version and fingerprint of what stood there, until some time.
Towards peers a floor counts as holding the statement, so that nobody sends it again; only a newer one gets in.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from blake3 import blake3

from gossip import fields
from gossip.errors import Early, Forged, Full, Malformed
from gossip.messages import PUBLIC_KEY_BYTES, NodeId, node_id

SIGNATURE_BYTES: Final = 64
FINGERPRINT_BYTES: Final = 4
KEY_BYTES: Final = 16
MAX_BODY_BYTES: Final = 128 << 10
_CONTEXT: Final = b"p2player ledger 1\0"

Sign = Callable[[bytes], bytes]
"""Message to 64-byte Ed25519 signature, by this node's key."""

Verify = Callable[[bytes, bytes, bytes], bool]
"""(public key, signature, message) to whether it is that key's signature of that message; never raises."""

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Statement:
    """What `owner` says, with its proof.

    Attributes:
        version: grows with each statement of that owner on that thing.
        fingerprint: 4 bytes that tell two statements of one version apart.
    """

    owner: NodeId
    version: int
    body: bytes
    public_key: bytes
    signature: bytes
    fingerprint: bytes

    def row(self) -> list[Any]:
        """The form for the wire and the snapshot; `Table.read` is its inverse."""
        return [self.version, self.body, self.public_key, self.signature]


@dataclass(frozen=True, slots=True)
class Floor:
    """A key that was dropped: nothing up to `version` is taken again before `until_s` (wall clock)."""

    version: int
    fingerprint: bytes
    until_s: float


@dataclass(frozen=True, slots=True)
class Held(Generic[V]):
    """A statement and what its body says."""

    statement: Statement
    value: V


def _no_limit(_now: float) -> int:
    return fields.MAX_INTEGER


def _message(table: str, version: int, body: bytes) -> bytes:
    return b"".join((_CONTEXT, table.encode(), b"\0", version.to_bytes(8, "big"), body))


class Table(Generic[V]):
    """The best statement for each key.

    Args:
        name: of the table, part of what is signed: a statement of one table is void in another.
        most: entries, floors included, that it will ever hold.
        decode: (owner, version, body) to the value; raises `Malformed`.
        key: of a value.
        rank: of a value: a tuple that starts with its version; the larger wins.
        limit: the highest version that others may have made at a time (wall clock); it never falls as time goes on.
    """

    def __init__(
        self,
        name: str,
        most: int,
        decode: Callable[[NodeId, int, bytes], V],
        key: Callable[[V], str],
        rank: Callable[[V], tuple[int, ...]],
        limit: Callable[[float], int] = _no_limit,
    ) -> None:
        self.name = name
        self._most = most
        self._decode = decode
        self.key = key
        self._rank = rank
        self._limit = limit
        self.held: dict[str, Held[V]] = {}
        self.floors: dict[str, Floor] = {}

    def sign(self, version: int, body: bytes, public_key: bytes, sign: Sign) -> Statement:
        """Make a statement of this node's own.

        Raises:
            Malformed: the body is too long to be passed on.
        """
        if len(body) > MAX_BODY_BYTES:
            raise Malformed(f"a record of {len(body)} bytes where {MAX_BODY_BYTES} are allowed")
        message = _message(self.name, version, body)
        print_ = blake3(message + public_key).digest(length=FINGERPRINT_BYTES)
        return Statement(node_id(public_key), version, body, public_key, sign(message), print_)

    def read(self, row: object) -> Statement:
        """The inverse of `Statement.row`; checks the form, not yet the signature.

        Raises:
            Malformed: it has another form, or breaks a bound.
        """
        version, body, public_key, signature = fields.rows([row], 4, 1)[0][:4]
        version = fields.integer(version, 1)
        body = fields.raw(body, 0, MAX_BODY_BYTES)
        public_key = fields.raw(public_key, PUBLIC_KEY_BYTES)
        signature = fields.raw(signature, SIGNATURE_BYTES)
        print_ = blake3(_message(self.name, version, body) + public_key).digest(length=FINGERPRINT_BYTES)
        return Statement(node_id(public_key), version, body, public_key, signature, print_)

    def check_time(self, statement: Statement, now: float) -> None:
        """Refuse a version that cannot have been reached yet.

        Raises:
            Early: it may be taken later.
        """
        if statement.version > self._limit(now):
            raise Early(f"version {statement.version} of a {self.name} record, too early")

    def offer(self, statement: Statement, verify: Verify) -> Held[V] | None:
        """Take a statement if it is better than what is here.

        Returns:
            What is held now when it was taken, None when something as good is here already.

        Raises:
            Malformed: its body does not decode.
            Forged: it would be taken, but is not signed by its owner.
            Full: it would be taken, but there is no room for another key.
        """
        value = self._decode(statement.owner, statement.version, statement.body)
        key = self.key(value)
        floor = self.floors.get(key)
        if floor is not None and statement.version <= floor.version:
            return None
        best = self.held.get(key)
        if best is not None and self._order(statement, value) <= self._order(best.statement, best.value):
            return None
        if not verify(statement.public_key, statement.signature, self._signed(statement)):
            raise Forged(statement.owner, f"no valid signature on its {self.name} record")
        if best is None and floor is None and len(self.held) + len(self.floors) >= self._most:
            raise Full(f"the table of {self.name} is full")
        taken = self.held[key] = Held(statement, value)
        self.floors.pop(key, None)
        return taken

    def drop(self, key: str, until_s: float) -> None:
        """Remove what stands at `key`, and refuse the same or older until `until_s`."""
        held = self.held.pop(key, None)
        if held is not None:
            self.floors[key] = Floor(held.statement.version, held.statement.fingerprint, until_s)

    def expire(self, now: float) -> bool:
        """Remove floors whose time is over; True if there was one."""
        over = [key for key, floor in self.floors.items() if floor.until_s <= now]
        for key in over:
            del self.floors[key]
        return bool(over)

    def versions(self) -> Iterator[tuple[str, int, bytes]]:
        """(key, version, fingerprint) of all that is held or floored, sorted by key."""
        merged = {key: (held.statement.version, held.statement.fingerprint) for key, held in self.held.items()}
        merged.update((key, (floor.version, floor.fingerprint)) for key, floor in self.floors.items())
        for key in sorted(merged):
            yield key, *merged[key]

    def last_version(self, key: str) -> int:
        """The highest version that is known of `key`; 0 when there is none."""
        held, floor = self.held.get(key), self.floors.get(key)
        return max(0 if held is None else held.statement.version, 0 if floor is None else floor.version)

    def short_key(self, key: str) -> bytes:
        """Sixteen bytes that stand for `key` in summaries."""
        return blake3(f"{self.name}\0{key}".encode()).digest(length=KEY_BYTES)

    def _order(self, statement: Statement, value: V) -> tuple[tuple[int, ...], bytes, bytes]:
        return self._rank(value), statement.fingerprint, statement.body

    def _signed(self, statement: Statement) -> bytes:
        return _message(self.name, statement.version, statement.body)
