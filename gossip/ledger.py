"""What the mesh knows beyond membership: names, inventories, popularity.

The ledger is three tables of signed statements (`gossip.signed`): an entry for each name, an inventory and popularity
counters for each node. This module is what goes into them and comes out; `gossip.replica` makes the ledgers of all
nodes alike.

Versions of a node's own records are milliseconds of the wall clock, or one more than the last, so they grow over
restarts even when the snapshot is lost; should an older self of this node have been ahead of its clock, it is outdone
as soon as a peer shows its record. Names count 1, 2, 3 instead, as the owner may change.

All of it is bounded: a mesh of 2,048 nodes and 8,192 names makes a summary of 0.4 MB.
Times are wall-clock seconds, as versions and stamps are compared across restarts and machines.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from gossip import catalog, fields, inventory, popularity
from gossip.catalog import Catalog, CatalogEntry, Kind
from gossip.errors import Malformed
from gossip.inventory import AppRow, Holding, Inventory
from gossip.messages import NodeId
from gossip.popularity import Counters, Popularity, Tally
from gossip.replica import MAX_DELTA_BYTES, Changes, Replica
from gossip.signed import FINGERPRINT_BYTES, Floor, Sign, Statement, Table, Verify

MAX_NODES: Final = 2048
MAX_NAMES: Final = 8192
FLOOR_S: Final = 30 * 86400.0

_SNAPSHOT_FORMAT = 1
_MAX_SNAPSHOT_BYTES = 1 << 30


def _everyone(_node: NodeId) -> bool:
    """Whoever is in the ledger was admitted once."""
    return True


class Ledger(Replica):
    """The three tables as one node holds them. Not thread-safe.

    Args:
        public_key: this node's raw 32-byte Ed25519 key.
        sign: signs with the private one.
        verify: checks others' signatures.
        half_life_s: of popularity counts; the same on all nodes of a mesh.
        admit: whose records are kept; a record of anybody else is dropped, and taken when it comes again later.
        delta_bytes: about how long a delta of an exchange may be.

    Attributes:
        untold: what the last inventory had to leave out, and why; see `inventory.tellable`.
    """

    def __init__(
        self,
        public_key: bytes,
        sign: Sign,
        verify: Verify,
        *,
        half_life_s: float = popularity.HALF_LIFE_S,
        admit: Callable[[NodeId], bool] = _everyone,
        delta_bytes: int = MAX_DELTA_BYTES,
    ) -> None:
        self._public_key = public_key
        self._sign = sign
        self._names: Table[CatalogEntry] = Table(
            "names",
            MAX_NAMES,
            catalog.decode,
            lambda entry: entry.name,
            lambda entry: entry.rank,
            catalog.latest_version,
        )
        self._inventories: Table[Inventory] = Table(
            "inventories", MAX_NODES, inventory.decode, lambda kept: kept.node, lambda kept: (kept.version,)
        )
        self._counters: Table[Counters] = Table(
            "popularity", MAX_NODES, popularity.decode, lambda kept: kept.node, lambda kept: (kept.version,)
        )
        tables: tuple[Table[Any], ...] = (self._names, self._inventories, self._counters)
        super().__init__(public_key, verify, admit, tables, delta_bytes)
        self._tally = Tally(half_life_s)
        self.untold: Mapping[str, str] = {}
        self._told: Inventory | None = None  # by this process; said again should an older self be louder
        self._catalog: Catalog | None = None

    # What this node says

    def publish_inventory(
        self,
        *,
        layers: Mapping[bytes, Holding],
        free_bytes: int,
        load: float,
        labels: Mapping[str, str],
        apps: tuple[AppRow, ...],
        sketch: bytes = b"",
        now: float,
    ) -> bool:
        """Publish what this node holds; call it as often as convenient.

        Returns:
            False when it differs too little from the last record to be worth telling (`inventory.worth_telling`).

        Nothing in it is an error: what no peer would take is left out and named in `untold`, and what does not fit into
        a record is cut.
        """
        wanted, left_out = inventory.tellable(Inventory(self.node, 1, layers, free_bytes, load, labels, apps, sketch))
        self.untold = left_out
        wanted = inventory.fitting(wanted)
        if not inventory.worth_telling(self._told, wanted):
            return False
        self._say(self._inventories, self.node, wanted.encode(), now)
        self._told = wanted
        return True

    def bind(
        self,
        name: str,
        layer: bytes,
        *,
        kind: Kind,
        size: int,
        chunks: int,
        takeover: bool = False,
        sketch: bytes = b"",
        now: float,
    ) -> CatalogEntry:
        """Let `name` point to a layer.

        Returns:
            The entry that holds now: the next version, or the present one when it points there already.

        Raises:
            BadName: it cannot be a name.
            NameTaken: another node owns it, and `takeover` is not set.
        """
        catalog.check_name(name)
        wanted = CatalogEntry(name, 1, self.node, layer, kind, size, chunks, stamp_ms=int(now * 1000), sketch=sketch)
        held = self._names.held.get(name)
        current = None if held is None else held.value
        entry = catalog.bound(current, wanted, takeover=takeover)
        if entry is current:
            return entry
        return self._publish_name(replace(entry, version=self._names.last_version(name) + 1))

    def unbind(self, name: str, *, now: float) -> CatalogEntry | None:
        """Free a name of this node's.

        Returns:
            The tombstone; None when there is no such name.

        Raises:
            NameTaken: another node owns it.
        """
        held = self._names.held.get(name)
        if held is None or held.value.deleted:
            return None
        return self._publish_name(catalog.tombstone(held.value, self.node, now))

    def count_start(self, site: str, app: bytes, base: bytes, *, now: float) -> None:
        """Count that an application of layer `app` on layer `base` started here."""
        self._tally.start(site, app, base, now)

    def count_pull(self, site: str, layer: bytes, *, now: float) -> None:
        """Count that this node fetched `layer`."""
        self._tally.pull(site, layer, now)

    def count_move(self, source: str, destination: str, *, now: float) -> None:
        """Count a finished migration between two sites: once, on the node that it arrived at."""
        self._tally.move(source, destination, now)

    def publish_popularity(self, *, now: float) -> bool:
        """Publish what was counted since the last time; False when there was nothing. Every minute or so is enough."""
        if not self._tally.dirty:
            return False
        counted = popularity.fitting(self._tally.counters(self.node, 1, now))
        self._say(self._counters, self.node, counted.encode(), now)
        self._tally.dirty = False
        return True

    # What is known

    def inventories(self) -> Mapping[NodeId, Inventory]:
        """Each node's last record, this one's included; whether that node is alive is for the membership to say."""
        return {NodeId(key): held.value for key, held in sorted(self._inventories.held.items())}

    def names(self) -> Mapping[str, CatalogEntry]:
        """All entries, tombstones included; `catalog` is the view without those."""
        return {key: held.value for key, held in sorted(self._names.held.items())}

    def catalog(self) -> Catalog:
        """The names that exist now; an immutable view."""
        if self._catalog is None:
            self._catalog = Catalog(held.value for held in self._names.held.values())
        return self._catalog

    def find(self, ref: str) -> list[bytes]:
        """The layers that a name or an id prefix may mean, see `Catalog.find`; layers without a name count too."""
        unnamed = {layer for held in self._inventories.held.values() for layer in held.value.layers}
        return self.catalog().find(ref, unnamed)

    def popularity(self, *, now: float) -> Popularity:
        """All nodes' counters added up, as of `now`; this node's own up to the last count."""
        others = [held.value for key, held in sorted(self._counters.held.items()) if key != self.node]
        return Popularity([*others, self._tally.counters(self.node, 1, now)], now, half_life_s=self._tally.half_life_s)

    # Lifetime

    def expire(self, *, now: float) -> None:
        """Let old tombstones go, and what was remembered of forgotten nodes. Call it once an hour or so."""
        for key, held in list(self._names.held.items()):
            if catalog.expired(held.value, now):
                self._names.drop(key, now + FLOOR_S)
        for table in self._tables:
            table.expire(now)
        self._changed()

    def forget(self, node: NodeId, *, now: float) -> None:
        """Drop what a node said that is gone for good: inventory, counters, and names for layers that nobody holds.

        That is not taken again from others for 30 days; a newer record, of a node that came back, is taken.
        """
        self._inventories.drop(node, now + FLOOR_S)
        self._counters.drop(node, now + FLOOR_S)
        somewhere = {layer for held in self._inventories.held.values() for layer in held.value.layers}
        for key, entry in [(key, held.value) for key, held in self._names.held.items()]:
            if entry.owner == node and entry.layer not in somewhere:
                self._names.drop(key, now + FLOOR_S)
        self._changed()

    def snapshot(self) -> bytes:
        """Everything, for `restore` after a restart."""
        floors = [
            [table.name, key, floor.version, floor.fingerprint, floor.until_s]
            for table in self._tables
            for key, floor in sorted(table.floors.items())
        ]
        everything = self.delta({}, limit_bytes=_MAX_SNAPSHOT_BYTES)
        return fields.pack({"format": _SNAPSHOT_FORMAT, "records": everything, "floors": floors})

    def restore(self, snapshot: bytes, *, now: float) -> Changes:
        """Take over a snapshot, into a ledger that has published nothing yet; bad records are dropped and counted.

        Raises:
            Malformed: it is no snapshot, or one of another format.
        """
        document = fields.table(fields.unpack(snapshot, _MAX_SNAPSHOT_BYTES))
        if document.get("format") != _SNAPSHOT_FORMAT:
            raise Malformed("a ledger snapshot of another format")
        changes = self._merge(document.get("records"), now, _everyone)
        self._tally.dirty = False
        tables = {table.name: table for table in self._tables}
        for name, key, version, print_, until_s, *_ in fields.rows(
            document.get("floors"), 5, MAX_NAMES + 2 * MAX_NODES
        ):
            table = tables.get(fields.text(name, fields.MAX_NAME_BYTES))
            key = fields.text(key, fields.MAX_NAME_BYTES)
            if table is not None and key not in table.held:
                table.floors[key] = Floor(
                    fields.integer(version),
                    fields.raw(print_, FINGERPRINT_BYTES),
                    fields.number(until_s, fields.MAX_INTEGER),
                )
        self._changed()
        return changes

    # Inside

    def _publish_name(self, entry: CatalogEntry) -> CatalogEntry:
        self._put(self._names, self._names.sign(entry.version, entry.encode(), self._public_key, self._sign))
        return entry

    def _say(self, table: Table[Any], key: str, body: bytes, now: float) -> None:
        """Publish a statement of this node's own, above every version that is known of it."""
        version = max(int(now * 1000), table.last_version(key) + 1)
        self._put(table, table.sign(version, body, self._public_key, self._sign))

    def _put(self, table: Table[Any], statement: Statement) -> None:
        table.offer(statement, lambda *_: True)
        self._changed()

    def _heard_myself(self, value: object, now: float) -> None:
        """A record of this node's from before it lost its state: go on from there, or outdo it."""
        if isinstance(value, Counters):
            self._tally.adopt(value)
            self._tally.dirty = True
        elif isinstance(value, Inventory) and self._told is not None:
            self._say(self._inventories, self.node, self._told.encode(), now)

    def _changed(self) -> None:
        self._digest = None
        self._catalog = None
