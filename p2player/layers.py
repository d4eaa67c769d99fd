"""Layers on this node and in the mesh: add, pull, check out, compare, pin and remove them.

A layer is named by the catalog, described by its manifest, and held chunk by chunk in stores. This service joins the
three: it resolves what a user calls a layer, brings it here when it is wanted here, and keeps the catalog true.

The ledger belongs to the trio thread and is in memory; the store asks SQLite, and so is asked in worker threads, once
for each answer. `holder_hints` alone is synchronous, as running transfers ask it again and again: it reads the ledger
and nothing else.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import trio

from chunkstore.checkout import CheckedOut, checkout
from chunkstore.digest import LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.importer import import_tree
from chunkstore.ingest import Imported
from chunkstore.manifest import Manifest, load
from chunkstore.manifest_diff import Difference, diff
from chunkstore.reserving import Reserving
from chunkstore.sniff import SourceKind, sniff
from chunkstore.store import ChunkStore
from chunkstore.tarfiles import import_tar
from chunkstore.tree_errors import printable
from gossip.catalog import CatalogEntry, NameTaken
from gossip.ledger import Ledger
from gossip.messages import NodeId
from gossip.sketch import sketch
from p2player import errors
from p2player.events import EventBus
from p2player.log import Log
from p2player.mesh import Mesh
from p2player.net.connection import Incoming
from p2player.net.peers import PeerPool
from p2player.operations import Operation
from p2player.presence import Presence
from p2player.transfer import HolderHint, PullReport, Transfers
from p2player.trees import Trees

ASK_PEERS_S = 5.0
ASK_AGAIN_S = 0.5
CHANGES_SHOWN = 10_000
IMPORT_TRIES = 3

Kind = Literal["base", "app"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class _Here:
    """What the store has of a layer."""

    size: int
    have: int
    total: int
    held: bool
    pinned: bool


class Layers:
    """The layer service of a node.

    Args:
        trees: folder of the checked-out trees that apps run on.
        in_use: layers that this node's apps refer to.
    """

    def __init__(
        self,
        store: ChunkStore,
        ledger: Ledger,
        transfers: Transfers,
        pool: PeerPool,
        mesh: Mesh,
        presence: Presence,
        events: EventBus,
        log: Log,
        *,
        trees: Path,
        in_use: Callable[[], set[LayerId]],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._transfers = transfers
        self._pool = pool
        self._mesh = mesh
        self._presence = presence
        self._events = events
        self._log = log
        self._trees = Trees(trees, self._make_tree, log)
        self._in_use = in_use
        self._fetched = trio.Event()

    # What there is

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

    # What is done with them

    async def add(
        self, path: Path, name: str, kind: str, *, takeover: bool = False, operation: Operation
    ) -> dict[str, Any]:
        """Import the folder or tar file `path` as a layer and bind `name` to it.

        Raises:
            NotFound: there is no such path.
            Refused: another node owns the name; or the path is of a sort that is not supported.
        """
        started = time.monotonic()
        checked: Kind = "base" if kind == "base" else "app"
        self._check_owner(name, takeover)
        importer = await trio.to_thread.run_sync(_importer_for, path, self._store)
        progress = operation.thread_progress(f"importing {path}")
        read = partial(importer, path=path, progress=progress)
        imported = await trio.to_thread.run_sync(self._import, read)
        try:
            self._ledger.bind(
                name,
                imported.layer_id,
                kind=checked,
                size=imported.size,
                chunks=imported.chunks,
                takeover=takeover,
                sketch=await trio.to_thread.run_sync(sketch, imported.manifest.chunks()),
                now=time.time(),
            )
        except NameTaken as error:
            raise self._name_taken(error) from None
        await self._presence.publish()
        self._events.emit("layer.added", id=imported.layer_id.hex(), name=name, size=imported.size)
        self._log.info("layer added", name=name, layer=imported.layer_id.hex()[:16], bytes=imported.size)
        return {
            "id": imported.layer_id.hex(),
            "name": name,
            "size": imported.size,
            "chunks": imported.chunks,
            "seconds": round(time.monotonic() - started, 3),
        }

    def _check_owner(self, name: str, takeover: bool) -> None:
        """Refuse a name before anything is read for it."""
        entry = self._ledger.catalog().get(name)
        if entry is not None and entry.owner != self._mesh.me and not takeover:
            raise self._name_taken(NameTaken(name, entry.owner))

    def _name_taken(self, error: NameTaken) -> errors.Refused:
        owner = self._mesh.name_of(error.owner)
        return errors.Refused(f"the name {error.name} belongs to node {owner}; --takeover takes it over")

    def _import(self, read: Callable[[Reserving], Imported]) -> Imported:
        """Read a source and record it as a layer; in a worker thread.

        What was here before is reserved meanwhile. A new chunk may still be collected in an import of hours: then what
        is missing is read once more.
        """
        for _ in range(IMPORT_TRIES):
            with Reserving(self._store) as content:
                imported = read(content)
                self._store.put_layer(
                    imported.layer_id,
                    imported.size,
                    imported.manifest_chunks,
                    imported.manifest_size,
                    imported.manifest.chunks(),
                )
            self._store.commit()
            have, total = self._store.holding(imported.layer_id)
            if have == total:
                return imported
        raise errors.Failed("chunks of the layer vanished while it was imported")

    async def pull(self, ref: str, *, operation: Operation) -> dict[str, Any]:
        """Bring a layer here, whole, from whoever holds it.

        Raises:
            NotFound: no such layer, or nobody holds what is missing.
        """
        started = time.monotonic()
        layer = await self.resolve(ref)
        report = await self.fetch(layer, operation.progress)
        names = [entry.name for entry in self._ledger.catalog().of(layer)]
        return {
            "id": layer.hex(),
            "name": ref if ref in names else (names[0] if names else None),
            "seconds": round(time.monotonic() - started, 3),
            "bytes": {
                "total": report.total,
                "deduplicated": report.deduplicated,
                "transferred": report.transferred,
            },
            "sources": {self._mesh.name_of(node): count for node, count in report.sources.items()},
        }

    async def fetch(self, layer: LayerId, progress: Progress | None = None) -> PullReport:
        """Pull `layer`, hold it from now on and tell the mesh; a layer that is held whole costs one look."""
        size = await trio.to_thread.run_sync(self._held_size, layer)
        if size is not None:
            self._tell_fetched()
            return PullReport(total=size, deduplicated=size)
        report = await self._transfers.pull_layer(layer, partial(self.holder_hints, layer), progress=progress)
        if report.transferred:
            self._ledger.count_pull(self._mesh.my_site, layer, now=time.time())
            self._events.emit("layer.pulled", id=layer.hex(), transferred=report.transferred)
            self._log.info("layer pulled", layer=layer.hex()[:16], bytes=report.transferred, seconds=report.seconds)
        await self._presence.publish()
        self._tell_fetched()
        return report

    def _tell_fetched(self) -> None:
        self._fetched.set()
        self._fetched = trio.Event()

    def _held_size(self, layer: LayerId) -> int | None:
        """The size of a layer that is held with everything in it, and marks it as used; else None."""
        record = self._store.layer(layer)
        if record is None or not record.held or self._store.missing(record.manifest_chunks):
            return None
        have, total = self._store.holding(layer)
        if have < total:
            return None
        self._store.touch(layer)
        return record.size

    def being_pulled(self) -> set[LayerId]:
        """Layers of which something is on its way here."""
        return self._transfers.pulling()

    async def wait_fetched(self) -> None:
        """Return when a layer was pulled, or looked after and found whole."""
        await self._fetched.wait()

    async def manifest(self, layer: LayerId) -> Manifest:
        """The manifest of a layer that is held here.

        Raises:
            Integrity: it is damaged.
        """
        return await trio.to_thread.run_sync(_load_manifest, self._store, layer)

    async def checkout(self, ref: str, directory: Path, *, operation: Operation) -> dict[str, Any]:
        """Write the tree of a layer to `directory`, which must be absent or empty; pulls what is missing."""
        started = time.monotonic()
        if await trio.Path(directory).exists() and any(await trio.to_thread.run_sync(_entries, directory)):
            raise errors.Refused(f"{directory} is not empty")
        layer = await self.resolve(ref)
        await self.fetch(layer, operation.progress)
        manifest = await self.manifest(layer)
        done: CheckedOut = await trio.to_thread.run_sync(
            partial(
                checkout,
                self._store,
                manifest,
                directory,
                progress=operation.thread_progress(f"writing {directory}"),
            )
        )
        return {
            "id": layer.hex(),
            "name": ref,
            "files": done.files,
            "bytes": done.bytes,
            "skipped": dict(done.skipped),
            "seconds": round(time.monotonic() - started, 3),
        }

    async def tree(self, layer: LayerId) -> Path:
        """The checked-out tree of `layer` that this node's apps share; made when it is first asked for."""
        return await self._trees.tree(layer)

    async def _make_tree(self, layer: LayerId, path: Path) -> None:
        await self.fetch(layer)
        manifest = await self.manifest(layer)
        await trio.to_thread.run_sync(checkout, self._store, manifest, path)

    async def sweep_trees(self, idle_s: float) -> int:
        """Remove the trees that no app here uses and nobody asked for in the last `idle_s` seconds; how many."""
        removed = await self._trees.sweep(self._in_use, idle_s)
        if removed:
            self._log.info("checkouts removed", layers=len(removed))
        return len(removed)

    async def remove(self, ref: str) -> dict[str, Any]:
        """Free the name if this node owns it, and drop the layer from this node; gc frees the space.

        Raises:
            Refused: an app of this node runs on it, or it is neither this node's name nor held here.
        """
        layer = await self.resolve(ref)
        record = await trio.to_thread.run_sync(self._store.layer, layer)
        if layer in self._in_use():
            raise errors.Refused(f"layer {ref} is in use by an app of this node")
        entry = self._ledger.catalog().get(ref)
        owned = entry is not None and entry.owner == self._mesh.me
        if not owned and (record is None or not record.held):
            raise errors.Refused(f"layer {ref} is neither named by this node nor held on it")
        if owned:
            self._ledger.unbind(ref, now=time.time())
        still_named = any(e.owner == self._mesh.me for e in self._ledger.catalog().of(layer) if e.layer == layer)
        if record is not None and not still_named:
            await trio.to_thread.run_sync(self._store.drop_layer, layer)
        await self._presence.publish()
        self._events.emit("layer.removed", id=layer.hex(), name=ref)
        return {"id": layer.hex(), "name": ref}

    async def pin(self, ref: str, on: bool) -> dict[str, Any]:
        """Pin or unpin a layer that this node holds."""
        layer = await self.resolve(ref)
        record = await trio.to_thread.run_sync(self._store.layer, layer)
        if record is None or not record.held:
            raise errors.Refused(f"layer {ref} is not held on this node; pull it first")
        await trio.to_thread.run_sync(self._store.pin, layer, on)
        return {"id": layer.hex(), "name": ref, "pinned": on}

    async def diff(self, a: str, b: str) -> dict[str, Any]:
        """What changed from layer `a` to layer `b`: paths added, removed and changed, the first `CHANGES_SHOWN`."""
        manifests = []
        for ref in (a, b):
            layer = await self.resolve(ref)
            if await trio.to_thread.run_sync(self._store.layer, layer) is None:
                await self.fetch(layer)
            manifests.append(await self.manifest(layer))
        changes = await trio.to_thread.run_sync(diff, manifests[0], manifests[1])
        shown: dict[str, list[Any]] = {"added": [], "removed": [], "changed": []}
        for change in changes[:CHANGES_SHOWN]:
            path = printable(change.path)
            if change.what in (Difference.ADDED, Difference.REMOVED):
                shown[change.what.value].append(path)
            else:
                shown["changed"].append({"path": path, "what": change.what.value})
        return {**shown, "truncated": len(changes) > CHANGES_SHOWN}


def _all_here(store: ChunkStore) -> dict[bytes, _Here]:
    """What there is of every layer on record; for a worker thread."""
    found: dict[bytes, _Here] = {}
    for record in store.layers():
        with suppress(LayerUnknown):  # gc took it meanwhile
            have, total = store.holding(record.id)
            found[record.id] = _Here(record.size, have, total, record.held, record.pinned)
    return found


def _load_manifest(store: ChunkStore, layer: LayerId) -> Manifest:
    record = store.layer(layer)
    if record is None:
        raise errors.NotFound(f"layer {layer.hex()[:16]} is not on this node")
    return load(store, record.manifest_chunks, layer)


def _is_prefix(ref: str) -> bool:
    return 8 <= len(ref) <= 64 and all(char in "0123456789abcdef" for char in ref.lower())


def _entries(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise errors.Refused(f"{directory} is not a folder")
    return list(directory.iterdir())


def _importer_for(path: Path, store: ChunkStore) -> Callable[..., Imported]:
    """What imports `path`.

    Raises:
        NotFound, Refused: see `Layers.add`.
    """
    if not path.exists():
        raise errors.NotFound(f"no such file or folder: {path}")
    match sniff(path):
        case SourceKind.FOLDER:
            return partial(import_tree, stat_cache=store)
        case SourceKind.TAR:
            return import_tar
        case kind:
            raise errors.Refused(f"{path} is {kind.described}: this version adds folders and tar files")
