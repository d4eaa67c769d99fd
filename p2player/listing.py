"""The layers of the mesh as this node knows them: what they are called, who has them, how large they are.

The ledger belongs to the trio thread and is in memory; the store asks SQLite, and so is asked in worker threads, once
for each answer. `holder_hints` alone is synchronous, as running transfers ask it again and again: it reads the ledger
and nothing else.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from chunkstore.digest import LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.store import ChunkStore
from gossip.catalog import CatalogEntry
from gossip.ledger import Ledger
from gossip.messages import NodeId
from p2player import errors
from p2player.mesh import Mesh
from p2player.net.connection import Incoming
from p2player.net.peers import PeerPool
from p2player.transfer import HolderHint

ASK_PEERS_S = 5.0
ASK_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class _Here:
    """What the store has of a layer."""

    size: int
    have: int
    total: int
    held: bool
    pinned: bool


class LayerListing:
    """Looks layers up; changes nothing."""

    def __init__(self, store: ChunkStore, ledger: Ledger, pool: PeerPool, mesh: Mesh) -> None:
        self._store = store
        self._ledger = ledger
        self._pool = pool
        self._mesh = mesh

    async def rows(self) -> list[dict[str, Any]]:
        """The rows of `/v1/layers`: every name of the mesh, and what this node holds without a name."""
        here = await trio.to_thread.run_sync(_all_here, self._store)
        holders, partial = self._holders()
        catalog = self._ledger.catalog()
        rows = [self._row(entry.layer, entry, here, holders, partial) for entry in catalog.values()]
        known = {layer for layer, found in here.items() if found.held} | set(holders) | set(partial)
        for layer in sorted(known - {entry.layer for entry in catalog.values()}):
            rows.append(self._row(layer, None, here, holders, partial))
        return rows

    def _holders(self) -> tuple[dict[bytes, list[str]], dict[bytes, dict[str, int]]]:
        """Who holds each layer, whole and in part, by name; nodes that cannot be asked do not count."""
        holders: dict[bytes, list[str]] = {}
        partial: dict[bytes, dict[str, int]] = {}
        reachable = {self._mesh.me, *(member.id for member in self._mesh.alive())}
        for node, inventory in self._ledger.inventories().items():
            if node not in reachable:
                continue
            name = self._mesh.name_of(node)
            for layer, held in inventory.layers.items():
                if held.whole:
                    holders.setdefault(layer, []).append(name)
                elif held.have:
                    partial.setdefault(layer, {})[name] = held.have
        return holders, partial

    def _row(
        self,
        layer: bytes,
        entry: CatalogEntry | None,
        here: Mapping[bytes, _Here],
        holders: dict[bytes, list[str]],
        partial: dict[bytes, dict[str, int]],
    ) -> dict[str, Any]:
        found = here.get(layer)
        size, total = (found.size, found.total) if found is not None else (0, 0)
        if entry is not None:
            size, total = entry.size, entry.chunks
        elif found is None:
            size, total = self._told_size(layer)
        return {
            "id": layer.hex(),
            "name": entry.name if entry is not None else None,
            "kind": entry.kind if entry is not None else None,
            "size": size,
            "chunks": total,
            "have_chunks": found.have if found is not None else 0,
            "holders": sorted(holders.get(layer, [])),
            "partial": dict(sorted(partial.get(layer, {}).items())),
            "owner": self._mesh.name_of(entry.owner) if entry is not None else None,
            "version": entry.version if entry is not None else None,
            "taken_from": self._mesh.name_of(entry.taken_from) if entry is not None and entry.taken_from else None,
            "pinned": found is not None and found.pinned,
        }

    async def sizes(self, layers: Iterable[LayerId]) -> dict[LayerId, int]:
        """Bytes of file content of each layer, as far as anybody told; 0 if nobody did."""
        wanted = list(layers)
        records = await trio.to_thread.run_sync(lambda: [self._store.layer(layer) for layer in wanted])
        return {
            layer: record.size if record is not None else self._size_elsewhere(layer)
            for layer, record in zip(wanted, records, strict=True)
        }

    def _size_elsewhere(self, layer: LayerId) -> int:
        named = self._ledger.catalog().of(layer)
        return named[0].size if named and named[0].layer == layer else self._told_size(layer)[0]

    def _told_size(self, layer: bytes) -> tuple[int, int]:
        """Bytes and chunks of a layer, as its holders tell."""
        told = [
            inventory.layers[layer] for inventory in self._ledger.inventories().values() if layer in inventory.layers
        ]
        return (told[0].size, told[0].total) if told else (0, 0)

    async def known(self, ref: str) -> LayerId | None:
        """The layer that `ref` means by what is known here; None if nothing is.

        Raises:
            Refused: `ref` is the start of several ids.
        """
        found = {*self._ledger.find(ref)}
        if ref not in self._ledger.catalog() and _is_prefix(ref):
            found |= {record.id for record in await trio.to_thread.run_sync(self._store.find_layers, ref)}
        if len(found) > 1:
            raise errors.Refused(f"layer id {ref} is not unique: {', '.join(sorted(i.hex()[:16] for i in found))}")
        return LayerId(found.pop()) if found else None

    async def resolve(self, ref: str) -> LayerId:
        """The layer that a name or an id prefix means; peers are asked for what is not known here.

        Raises:
            NotFound: nobody knew it for `ASK_PEERS_S` seconds.
            Refused: `ref` is the start of several ids.
        """
        layer = await self.known(ref)
        if layer is None:
            with trio.move_on_after(ASK_PEERS_S):
                while layer is None:
                    layer = await self.known(ref) or await self._ask_peers(ref)
                    if layer is None:
                        await trio.sleep(ASK_AGAIN_S)
        if layer is None:
            raise errors.NotFound(f"no layer {ref} in the mesh")
        return layer

    async def _ask_peers(self, ref: str) -> LayerId | None:
        answers: set[bytes] = set()

        async def ask(node: NodeId) -> None:
            try:
                reply = await self._pool.call(node, "layer.resolve", {"ref": ref}, timeout_s=ASK_PEERS_S / 2)
            except errors.P2PlayerError:
                return  # a peer that cannot answer knows nothing: the others may
            layer = reply.get("layer")
            if isinstance(layer, bytes) and len(layer) == 32:
                answers.add(layer)

        async with trio.open_nursery() as nursery:
            for member in self._mesh.alive():
                nursery.start_soon(ask, member.id)
        if len(answers) > 1:
            raise errors.Refused(f"peers disagree about {ref}; name it by id")
        return LayerId(answers.pop()) if answers else None

    async def handle_resolve(self, call: Incoming) -> dict[str, Any]:
        """Serve `layer.resolve {ref}` -> `{layer: id or None}`."""
        ref = call.body.get("ref")
        if not isinstance(ref, str) or not 0 < len(ref) <= 128:
            raise errors.Usage("malformed reference")
        return {"layer": await self.known(ref)}

    def holder_hints(self, layer: LayerId) -> list[HolderHint]:
        """Peers that claim content of `layer`, wholly or in part."""
        hints = []
        alive = {member.id: member for member in self._mesh.alive()}
        for node, inventory in self._ledger.inventories().items():
            held = inventory.layers.get(layer)
            if node in alive and held is not None and (held.have or held.whole):
                hints.append(HolderHint(node, alive[node].rtt_s, inventory.load, held.whole))
        return hints


def _all_here(store: ChunkStore) -> dict[bytes, _Here]:
    """What there is of every layer on record; for a worker thread."""
    found: dict[bytes, _Here] = {}
    for record in store.layers():
        with suppress(LayerUnknown):  # gc took it meanwhile
            have, total = store.holding(record.id)
            found[record.id] = _Here(record.size, have, total, record.held, record.pinned)
    return found


def _is_prefix(ref: str) -> bool:
    return 8 <= len(ref) <= 64 and all(char in "0123456789abcdef" for char in ref.lower())
