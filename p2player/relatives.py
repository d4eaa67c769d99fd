"""Old layers that are here and resemble a wanted one: what a pull can take deltas of.

Other versions under one of its names come first, then whatever its sketch resembles, named or not. A sketch is told by
the catalog, or made of the chunk list in the store and kept, as a layer never changes. Who else has an old layer is
read off the inventories at the moment of asking: whoever has lost it since answers with plain chunks.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import trio

from chunkstore.digest import LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.holdings import LayerRecord
from chunkstore.store import ChunkStore
from gossip.catalog import Catalog
from gossip.inventory import Inventory
from gossip.ledger import Ledger
from gossip.messages import NodeId
from gossip.sketch import resemblance, sketch
from p2player.transfer import Relative

AT_MOST: Final = 3
ENOUGH_HERE: Final = 0.9
LEAST_ALIKE: Final = 0.1
SKETCHED: Final = 64
"""How many layers here are compared by sketch, those that were used last."""

_NO_VERSIONS: Final = 2.0


def other_versions(catalog: Catalog, layer: LayerId) -> list[LayerId]:
    """What else goes, or went, by a name of this layer; newest first."""
    return [LayerId(other) for other in catalog.relatives(layer, least=_NO_VERSIONS)]


def told_sketches(catalog: Catalog) -> dict[LayerId, bytes]:
    """The sketches of layers that names point to now."""
    return {LayerId(entry.layer): entry.sketch for entry in catalog.values() if entry.sketch}


def most_alike(wanted: bytes, sketches: Mapping[LayerId, bytes], least: float = LEAST_ALIKE) -> list[LayerId]:
    """The layers whose sketches resemble `wanted` by `least` or more, the likeliest first."""
    shares = [(resemblance(wanted, found), layer) for layer, found in sketches.items()]
    return [layer for share, layer in sorted(shares, reverse=True) if share >= least]


def holders(inventories: Mapping[NodeId, Inventory], layer: LayerId) -> frozenset[NodeId]:
    """The nodes that say that they have all of a layer."""
    return frozenset(
        node for node, inventory in inventories.items() if layer in inventory.layers and inventory.layers[layer].whole
    )


class HeldRelatives:
    """Finds them; a `transfer.Relatives`.

    Args:
        store: where the old layers are.
        ledger: names, sketches and inventories.
    """

    def __init__(self, store: ChunkStore, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger
        self._sketches: dict[LayerId, bytes] = {}

    async def __call__(self, layer: LayerId) -> Sequence[Relative]:
        """At most `AT_MOST` layers of which the manifest and nearly everything is here, the most promising first."""
        catalog = self._ledger.catalog()
        versions, told = other_versions(catalog, layer), told_sketches(catalog)
        found = await trio.to_thread.run_sync(self._find, layer, versions, told)
        inventories = self._ledger.inventories()
        return [Relative(old, holders(inventories, old).__contains__) for old in found]

    def holders(self, layer: LayerId) -> frozenset[NodeId]:
        """The nodes that say that they have all of a layer, this one perhaps among them."""
        return holders(self._ledger.inventories(), layer)

    def _find(self, layer: LayerId, versions: Sequence[LayerId], told: Mapping[LayerId, bytes]) -> list[LayerId]:
        """For a worker thread."""
        found = self._usable(versions, AT_MOST)
        if len(found) < AT_MOST:
            records = {record.id: record for record in self._store.layers()}
            wanted = told.get(layer) or (self._sketch(records[layer]) if layer in records else b"")
            if wanted:
                others = [record for id_, record in records.items() if id_ != layer and id_ not in versions]
                others = sorted(others, key=lambda record: record.used_s, reverse=True)[:SKETCHED]
                sketches = {record.id: told.get(record.id) or self._sketch(record) for record in others}
                found += self._usable(most_alike(wanted, sketches), AT_MOST - len(found))
        return found

    def _usable(self, layers: Iterable[LayerId], at_most: int) -> list[LayerId]:
        found: list[LayerId] = []
        for layer in layers:
            if len(found) == at_most:
                break
            record = self._store.layer(layer)
            if record is not None and not self._store.missing(record.manifest_chunks):
                with suppress(LayerUnknown):  # gc took it meanwhile
                    have, total = self._store.holding(layer)
                    if 0 < ENOUGH_HERE * total <= have:
                        found.append(layer)
        return found

    def _sketch(self, record: LayerRecord) -> bytes:
        known = self._sketches.get(record.id)
        if known is None:
            try:
                known = sketch(self._store.layer_chunks(record.id))
            except LayerUnknown:
                return b""
            if len(self._sketches) >= 4 * SKETCHED:
                self._sketches.clear()
            self._sketches[record.id] = known
        return known
