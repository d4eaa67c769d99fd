"""Names for layers: signed, versioned pointers, owned by the node that made them.

Theory of operation
-------------------
There is one entry for each name: the pointer of the highest version. Its owner makes the next version by adding the
name again; another node is refused unless it takes the name over, which makes the next version under a new owner.
When two sides of a partition each made one, the higher version wins, then the lower node id (then the later clock,
for an owner that lost its state and counts again). The loser's layer is still there, by its id.

Versions count 1, 2, 3, but nothing keeps a node from signing a large one, and above the largest there would be no
next one: its owner would have the name for good. So no version is taken that is above the number of milliseconds
since 1970, give or take a day (`latest_version`). That bound rises faster than anybody adds names, and what is above
it now is taken when it is not any more: what is held still does not depend on the order in which entries came.

Removing a name leaves a *tombstone*, the next version with `deleted` set, so that the name does not come back from a
node that has not heard; it is kept for `TOMBSTONE_S`. An entry remembers the layers that the name pointed to before:
these are the natural relatives of a new version when its bytes are to be moved.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gossip import fields
from gossip.errors import GossipError, Malformed
from gossip.inventory import LAYER_ID_BYTES
from gossip.messages import NodeId, parse_node_id
from gossip.sketch import MAX_SKETCH_BYTES, resemblance

Kind = Literal["base", "app"]

TOMBSTONE_S: Final = 7 * 86400.0
SKEW_S: Final = 86400.0
MAX_PREVIOUS: Final = 8
MIN_PREFIX: Final = 8
_MAX_ENTRY_BYTES: Final = 4096
_HEX = frozenset("0123456789abcdef")


class NameTaken(GossipError):
    """The name belongs to another node.

    Attributes:
        name: that was to be bound or removed.
        owner: whose it is.
    """

    reason = "taken"

    def __init__(self, name: str, owner: NodeId) -> None:
        super().__init__(f"the name {name} belongs to node {owner}")
        self.name = name
        self.owner = owner


class BadName(GossipError):
    """A name that could not be typed back: empty, too long, with spaces, or with the form of a layer id."""

    reason = "name"


@dataclass(frozen=True, slots=True)
class Past:
    """What a name pointed to in an earlier version."""

    version: int
    layer: bytes


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A name, and what it points to.

    Attributes:
        version: counts from 1 with each change of the name.
        size: of the layer's file content, in bytes.
        chunks: distinct content chunks of the layer.
        deleted: a tombstone: the name is free.
        stamp_ms: the owner's wall clock when it made this entry.
        taken_from: the owner before, if this one took the name over.
        previous: earlier versions, newest first, `MAX_PREVIOUS` of them at most.
        sketch: of the layer's chunks, see `gossip.sketch`; empty when not told.
    """

    name: str
    version: int
    owner: NodeId
    layer: bytes
    kind: Kind
    size: int
    chunks: int
    deleted: bool = False
    stamp_ms: int = 0
    taken_from: NodeId | None = None
    previous: tuple[Past, ...] = ()
    sketch: bytes = b""

    @property
    def rank(self) -> tuple[int, ...]:
        """Of two entries for one name the one with the larger rank is right."""
        return self.version, -int(self.owner, 16), self.stamp_ms

    def encode(self) -> bytes:
        """The body of the signed record."""
        document = {
            "name": self.name,
            "layer": self.layer,
            "kind": self.kind,
            "size": self.size,
            "chunks": self.chunks,
            "deleted": self.deleted,
            "stamp": self.stamp_ms,
            "from": self.taken_from or "",
            "previous": [[past.version, past.layer] for past in self.previous],
            "sketch": self.sketch,
        }
        return fields.pack(document)


def decode(owner: NodeId, version: int, body: bytes) -> CatalogEntry:
    """The inverse of `CatalogEntry.encode`.

    Raises:
        Malformed: the body has another form, or breaks a bound.
    """
    document = fields.table(fields.unpack(body, _MAX_ENTRY_BYTES))
    taken_from = document.get("from")
    return CatalogEntry(
        name=_name(document.get("name")),
        version=version,
        owner=owner,
        layer=fields.raw(document.get("layer"), LAYER_ID_BYTES),
        kind=_kind(document.get("kind")),
        size=fields.integer(document.get("size")),
        chunks=fields.integer(document.get("chunks")),
        deleted=fields.truth(document.get("deleted")),
        stamp_ms=fields.integer(document.get("stamp")),
        taken_from=parse_node_id(taken_from) if taken_from else None,
        previous=tuple(
            Past(fields.integer(row[0]), fields.raw(row[1], LAYER_ID_BYTES))
            for row in fields.rows(document.get("previous"), 2, MAX_PREVIOUS)
        ),
        sketch=fields.raw(document.get("sketch"), 0, MAX_SKETCH_BYTES),
    )


def latest_version(now: float) -> int:
    """The highest version of a name that is taken from others at `now`: there is always a next one, soon."""
    return int((now + SKEW_S) * 1000)


def check_name(name: str) -> str:
    """Refuse names that cannot be typed back, told apart from options, or told apart from ids.

    Returns:
        The name.

    Raises:
        BadName: with what is wrong.
    """
    if not name or len(name.encode(errors="replace")) > fields.MAX_NAME_BYTES:
        raise BadName(f"a name has 1 to {fields.MAX_NAME_BYTES} bytes")
    if not name.isprintable() or any(char.isspace() for char in name):
        raise BadName("a name has no spaces and no control characters")
    if name.startswith("-"):
        raise BadName("a name does not start with -")
    if len(name) == 2 * LAYER_ID_BYTES and _HEX.issuperset(name.lower()):
        raise BadName("a name does not look like a layer id")
    return name


def bound(current: CatalogEntry | None, wanted: CatalogEntry, *, takeover: bool) -> CatalogEntry:
    """Decide what adding a name makes of what is there.

    Args:
        current: the entry of that name, if there is one, tombstones included.
        wanted: what to point to; its version, history and `taken_from` are filled in here.
        takeover: take the name from another owner.

    Returns:
        The entry to publish; `current` itself when it says the same already.

    Raises:
        NameTaken: another node owns the name, and `takeover` is not set.
    """
    if current is None:
        return replace(wanted, version=1, taken_from=None, previous=(), deleted=False)
    taken_from = None
    if not current.deleted and current.owner != wanted.owner:
        if not takeover:
            raise NameTaken(current.name, current.owner)
        taken_from = current.owner
    elif not current.deleted and (current.layer, current.kind) == (wanted.layer, wanted.kind):
        return current
    previous = current.previous
    if current.layer != wanted.layer:
        kept = [past for past in previous if past.layer not in (wanted.layer, current.layer)]
        previous = (Past(current.version, current.layer), *kept)[:MAX_PREVIOUS]
    return replace(wanted, version=current.version + 1, taken_from=taken_from, previous=previous, deleted=False)


def tombstone(current: CatalogEntry, owner: NodeId, now: float) -> CatalogEntry:
    """The entry that frees a name.

    Raises:
        NameTaken: `owner` does not own it.
    """
    if current.owner != owner:
        raise NameTaken(current.name, current.owner)
    return replace(current, version=current.version + 1, deleted=True, stamp_ms=int(now * 1000))


def expired(entry: CatalogEntry, now: float) -> bool:
    """Whether it is a tombstone that everybody has had the time to hear of."""
    return entry.deleted and now - entry.stamp_ms / 1000 > TOMBSTONE_S


class Catalog(Mapping[str, CatalogEntry]):
    """The names that exist, as one node knows them at one time; tombstones are not among them."""

    def __init__(self, entries: Iterable[CatalogEntry]) -> None:
        self._entries = {entry.name: entry for entry in entries if not entry.deleted}

    def __getitem__(self, name: str) -> CatalogEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, layer: bytes) -> list[CatalogEntry]:
        """The names that point to `layer` now, or else those that did before."""
        now = [entry for entry in self.values() if entry.layer == layer]
        return now or [entry for entry in self.values() if any(past.layer == layer for past in entry.previous)]

    def find(self, ref: str, others: Iterable[bytes] = ()) -> list[bytes]:
        """The layers that a name, or a prefix of at least eight hex digits of an id, may mean.

        Args:
            ref: a name goes before an id.
            others: ids of layers that are known without a name.

        Returns:
            One layer when `ref` is clear, none when it is unknown, sorted candidates when it is ambiguous.
        """
        if entry := self._entries.get(ref):
            return [entry.layer]
        prefix = ref.lower()
        if not MIN_PREFIX <= len(prefix) <= 2 * LAYER_ID_BYTES or not _HEX.issuperset(prefix):
            return []
        known = {entry.layer for entry in self._entries.values()}
        known.update(past.layer for entry in self._entries.values() for past in entry.previous)
        known.update(others)
        return sorted(layer for layer in known if layer.hex().startswith(prefix))

    def successors(self) -> dict[bytes, bytes]:
        """Each earlier version of a name, and the layer that the name points to now."""
        newer = {past.layer: entry.layer for entry in self.values() for past in entry.previous}
        for entry in self.values():
            newer.pop(entry.layer, None)
        return newer

    def relatives(self, layer: bytes, sketch: bytes = b"", *, least: float = 0.1) -> list[bytes]:
        """Layers that are likely to share content with `layer`, the likeliest first.

        Other versions under one name come first, newest first; then what resembles the sketch by `least` or more.
        """
        found: dict[bytes, None] = {}
        for entry in self.of(layer):
            family = [entry.layer, *(past.layer for past in entry.previous)]
            found.update(dict.fromkeys(family))
            sketch = sketch or (entry.sketch if entry.layer == layer else b"")
        alike = [(resemblance(sketch, entry.sketch), entry.layer) for entry in self.values() if sketch]
        found.update(dict.fromkeys(other for share, other in sorted(alike, reverse=True) if share >= least))
        found.pop(layer, None)
        return list(found)


def _name(value: Any) -> str:
    try:
        return check_name(fields.text(value, fields.MAX_NAME_BYTES))
    except BadName as error:
        raise Malformed(str(error)) from None


def _kind(value: Any) -> Kind:
    if value == "base":
        return "base"
    if value == "app":
        return "app"
    raise Malformed("not a kind of layer")
