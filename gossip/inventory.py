"""What a node tells the others about itself: the layers it holds, its room, its load, its applications.

Each node owns one versioned record, which the ledger signs and spreads. The record says *how much* of a layer is
here, never which chunks: those are asked for in pairs, when somebody wants them. So a node with a million chunks
costs the mesh one row for each layer. What a record claims is a hint to whoever reads it: content is believed when
its digest verifies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gossip import fields
from gossip.errors import Malformed
from gossip.messages import NodeId
from gossip.signed import MAX_BODY_BYTES
from gossip.sketch import MAX_SKETCH_BYTES

LAYER_ID_BYTES: Final = 32
MAX_LAYERS: Final = 2048
MAX_APPS: Final = 512
MAX_ADDRESSES: Final = 32
MAX_ADDRESS_BYTES: Final = 256
MAX_LABELS: Final = 32
MAX_LABEL_BYTES: Final = 128
MAX_LOAD: Final = 1e6

_TOLD_FREE = 1 / 16
_TOLD_LOAD = 0.25
_TOLD_PART = 1 / 4


@dataclass(frozen=True, slots=True)
class Holding:
    """How much of one layer a node has.

    Attributes:
        have: distinct content chunks that are here.
        total: distinct content chunks of the layer.
        size: of the layer's file content, in bytes.
    """

    have: int
    total: int
    size: int

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.have == self.total


@dataclass(frozen=True, slots=True)
class AppRow:
    """One application on a node.

    Attributes:
        id: random, 32 hex digits; it stays the same from node to node.
        epoch: of its ownership; of two rows with one id, the higher epoch is right.
        base, app: the layers that it runs on.
        addresses: what it can be reached at, as its configuration declares them.
    """

    id: str
    name: str
    backend: str
    state: str
    epoch: int
    base: bytes
    app: bytes
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """One node's record.

    Attributes:
        version: grows with each record; milliseconds since the epoch unless the clock went back.
        free_bytes: that the store may still take.
        load: runnable processes per core.
        labels: an operator's words: cost, metered, whatever placement may look at.
        sketch: of all chunks in the store, see `gossip.sketch`; empty when not told.
    """

    node: NodeId
    version: int
    layers: Mapping[bytes, Holding] = field(default_factory=dict)
    free_bytes: int = 0
    load: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    apps: tuple[AppRow, ...] = ()
    sketch: bytes = b""

    def encode(self) -> bytes:
        """The body of the signed record: equal inventories have equal encodings."""
        document = {
            "layers": [[id_, *_columns(held)] for id_, held in sorted(self.layers.items())],
            "free": self.free_bytes,
            "load": float(self.load),
            "labels": dict(sorted(self.labels.items())),
            "apps": [_app_columns(row) for row in self.apps],
            "sketch": self.sketch,
        }
        return fields.pack(document)


def decode(node: NodeId, version: int, body: bytes) -> Inventory:
    """The inverse of `Inventory.encode`.

    Raises:
        Malformed: the body has another form, or breaks a bound.
    """
    document = fields.table(fields.unpack(body, MAX_BODY_BYTES))
    layers = dict(_layer(row) for row in fields.rows(document.get("layers"), 4, MAX_LAYERS))
    labels = fields.table(document.get("labels"))
    if len(labels) > MAX_LABELS:
        raise Malformed(f"{len(labels)} labels where {MAX_LABELS} are allowed")
    return Inventory(
        node=node,
        version=version,
        layers=layers,
        free_bytes=fields.integer(document.get("free")),
        load=fields.number(document.get("load"), MAX_LOAD),
        labels=dict(check_label(key, value) for key, value in labels.items()),
        apps=tuple(_app(row) for row in fields.rows(document.get("apps"), 8, MAX_APPS)),
        sketch=fields.raw(document.get("sketch"), 0, MAX_SKETCH_BYTES),
    )


def check_label(key: object, value: object) -> tuple[str, str]:
    """One label as it may be told: printable, the value perhaps empty, `MAX_LABEL_BYTES` each at most.

    Raises:
        Malformed: it is not.
    """
    return fields.text(key, MAX_LABEL_BYTES), fields.text(value, MAX_LABEL_BYTES, empty=True)


def tellable(inventory: Inventory) -> tuple[Inventory, Mapping[str, str]]:
    """The same inventory without what no peer would take, so that one bad text does not silence a node.

    Returns:
        The inventory, and what was left out: why, by a name for people.
    """
    left_out: dict[str, str] = {}

    def kept(what: str, check: Callable[..., object], *values: object) -> bool:
        try:
            check(*values)
        except Malformed as error:
            left_out[what] = str(error)
            return False
        return True

    def app(row: AppRow) -> AppRow:
        sound = tuple(
            address
            for address in row.addresses
            if kept(f"address {address!r} of app {row.name!r}", fields.text, address, MAX_ADDRESS_BYTES)
        )
        if len(sound) > MAX_ADDRESSES:
            left_out[f"addresses of app {row.name!r}"] = f"the first {MAX_ADDRESSES} of {len(sound)} are told"
        return replace(row, addresses=sound[:MAX_ADDRESSES])

    labels = {key: value for key, value in inventory.labels.items() if kept(f"label {key!r}", check_label, key, value)}
    for key in list(labels)[MAX_LABELS:]:
        left_out[f"label {key!r}"] = f"{MAX_LABELS} labels are told"
        del labels[key]
    told = replace(
        inventory,
        layers={
            id_: held
            for id_, held in inventory.layers.items()
            if kept(f"layer {id_.hex()}", _layer, [id_, *_columns(held)])
        },
        free_bytes=max(0, min(inventory.free_bytes, fields.MAX_INTEGER)),
        load=max(0.0, min(inventory.load, MAX_LOAD)),
        labels=labels,
        apps=tuple(row for row in map(app, inventory.apps) if kept(f"app {row.name!r}", _app, _app_columns(row))),
        sketch=inventory.sketch if len(inventory.sketch) <= MAX_SKETCH_BYTES else b"",
    )
    return told, left_out


def fitting(inventory: Inventory) -> Inventory:
    """The same inventory cut to what a record may carry: whole layers go first, then larger ones."""

    def worth(item: tuple[bytes, Holding]) -> tuple[bool, int, bytes]:
        return not item[1].whole, -item[1].size, item[0]

    layers = sorted(inventory.layers.items(), key=worth)[:MAX_LAYERS]
    apps = inventory.apps[:MAX_APPS]
    while True:
        cut = replace(inventory, layers=dict(layers), apps=apps)
        if len(cut.encode()) <= MAX_BODY_BYTES or not (layers or apps):
            return cut
        if layers:
            layers = layers[: len(layers) // 2]
        else:
            apps = apps[: len(apps) // 2]


def worth_telling(told: Inventory | None, new: Inventory) -> bool:
    """Whether `new` differs from what was told last in a way that would change somebody's decision.

    Free disk and load wander all the time, and a layer on its way in grows with each chunk: they count from a
    sixteenth of the free disk, a quarter of a core, a quarter of the layer on.
    """
    if told is None:
        return True
    if told.labels != new.labels or told.apps != new.apps or told.layers.keys() != new.layers.keys():
        return True
    if abs(told.free_bytes - new.free_bytes) > told.free_bytes * _TOLD_FREE:
        return True
    return abs(told.load - new.load) >= _TOLD_LOAD or any(
        _differs(held, new.layers[id_]) for id_, held in told.layers.items()
    )


def _differs(told: Holding, new: Holding) -> bool:
    if told == new:
        return False
    grown = abs(new.have - told.have) >= max(1, told.total * _TOLD_PART)
    return grown or told.whole != new.whole or (told.total, told.size) != (new.total, new.size)


def _columns(held: Holding) -> list[int]:
    return [held.have, held.total, held.size]


def _layer(row: list[Any]) -> tuple[bytes, Holding]:
    total = fields.integer(row[2])
    holding = Holding(fields.integer(row[1], 0, total), total, fields.integer(row[3]))
    return fields.raw(row[0], LAYER_ID_BYTES), holding


def _app_columns(row: AppRow) -> list[Any]:
    return [row.id, row.name, row.backend, row.state, row.epoch, row.base, row.app, list(row.addresses)]


def _app(row: list[Any]) -> AppRow:
    addresses = row[7]
    if not isinstance(addresses, list) or len(addresses) > MAX_ADDRESSES:
        raise Malformed(f"not a list of at most {MAX_ADDRESSES} addresses")
    return AppRow(
        id=fields.text(row[0], fields.MAX_NAME_BYTES),
        name=fields.text(row[1], fields.MAX_NAME_BYTES),
        backend=fields.text(row[2], fields.MAX_NAME_BYTES),
        state=fields.text(row[3], fields.MAX_NAME_BYTES),
        epoch=fields.integer(row[4]),
        base=fields.raw(row[5], LAYER_ID_BYTES),
        app=fields.raw(row[6], LAYER_ID_BYTES),
        addresses=tuple(fields.text(address, MAX_ADDRESS_BYTES) for address in addresses),
    )
