"""Layers on this node and in the mesh: add, pull, check out, compare, pin and remove them.

A layer is named by the catalog, described by its manifest, and held chunk by chunk in stores. This service joins the
three: it resolves what a user calls a layer, brings it here when it is wanted here, and keeps the catalog true.

Looking layers up is `listing`; this module changes things.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import trio

from chunkstore.checkout import CheckedOut, checkout
from chunkstore.digest import LayerId
from chunkstore.fileimport import import_file
from chunkstore.importer import import_tree
from chunkstore.ingest import Imported
from chunkstore.manifest import Manifest, load
from chunkstore.manifest_diff import Difference, diff
from chunkstore.reserving import Reserving
from chunkstore.sniff import SourceKind, sniff
from chunkstore.store import ChunkStore, LayerRecord
from chunkstore.tarfiles import import_tar
from chunkstore.tree_errors import printable
from chunkstore.treerecall import Survey, recall_held, remember, survey
from gossip.catalog import NameTaken
from gossip.ledger import Ledger
from gossip.sketch import sketch
from p2player import errors
from p2player.events import EventBus
from p2player.listing import LayerListing
from p2player.log import Log
from p2player.mesh import Mesh
from p2player.net.connection import Throttle
from p2player.net.peers import PeerPool
from p2player.operations import Operation
from p2player.presence import Presence
from p2player.transfer import MANY_CHUNKS, PullReport, Transfers, give_back
from p2player.trees import Trees

CHANGES_SHOWN = 10_000
IMPORT_TRIES = 3

Kind = Literal["base", "app"]
Progress = Callable[[int, int], None]


class Layers(LayerListing):
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
        super().__init__(store, ledger, pool, mesh)
        self._transfers = transfers
        self._presence = presence
        self._events = events
        self._log = log
        self._trees = Trees(trees, self._make_tree, log)
        self._in_use = in_use
        self._fetched = trio.Event()

    # What is done with them

    async def add(
        self, path: Path, name: str, kind: str, *, takeover: bool = False, operation: Operation
    ) -> dict[str, Any]:
        """Import the folder, tar file or disk image `path` as a layer and bind `name` to it.

        A folder that is still the layer that it was costs its `stat`s, and nobody is told anew.

        Raises:
            NotFound: there is no such path.
            Refused: another node owns the name; or the path is of a sort that is not supported.
        """
        started = time.monotonic()
        checked: Kind = "base" if kind == "base" else "app"
        self.check_owner(name, takeover=takeover)
        seen, record = await trio.to_thread.run_sync(_look, self._store, path)
        if record is None:
            importer = await trio.to_thread.run_sync(_importer_for, path, self._store)
            progress = operation.thread_progress(f"importing {path}")
            record = await trio.to_thread.run_sync(self._import, partial(importer, path=path, progress=progress))
            await trio.to_thread.run_sync(remember, self._store, seen, record.id)
        if not self._is_told(name, record.id, checked):
            await self._tell_added(name, record, checked, takeover)
        return {
            "id": record.id.hex(),
            "name": name,
            "size": record.size,
            "chunks": record.chunks,
            "seconds": round(time.monotonic() - started, 3),
        }

    def _is_told(self, name: str, layer: LayerId, kind: Kind) -> bool:
        """Whether the mesh knows already that this is what the name means, and that this node has it."""
        entry = self._ledger.catalog().get(name)
        told = self._ledger.inventories().get(self._mesh.me)
        holding = None if told is None else told.layers.get(layer)
        bound = entry is not None and (entry.owner, entry.layer, entry.kind) == (self._mesh.me, layer, kind)
        return bound and holding is not None and holding.whole

    async def _tell_added(self, name: str, record: LayerRecord, kind: Kind, takeover: bool) -> None:
        try:
            self._ledger.bind(
                name,
                record.id,
                kind=kind,
                size=record.size,
                chunks=record.chunks,
                takeover=takeover,
                sketch=await trio.to_thread.run_sync(_sketch, self._store, record.id),
                now=time.time(),
            )
        except NameTaken as error:
            raise self._name_taken(error) from None
        await self._presence.publish()
        self._events.emit("layer.added", id=record.id.hex(), name=name, size=record.size)
        self._log.info("layer added", name=name, layer=record.id.hex()[:16], bytes=record.size)

    def check_owner(self, name: str, *, takeover: bool = False) -> None:
        """Refuse a name before anything is read for it.

        Raises:
            Refused: another node owns it.
        """
        entry = self._ledger.catalog().get(name)
        if entry is not None and entry.owner != self._mesh.me and not takeover:
            raise self._name_taken(NameTaken(name, entry.owner))

    def _name_taken(self, error: NameTaken) -> errors.Refused:
        owner = self._mesh.name_of(error.owner)
        return errors.Refused(f"the name {error.name} belongs to node {owner}; --takeover takes it over")

    def _import(self, read: Callable[[Reserving], Imported]) -> LayerRecord:
        """Read a source and record it as a layer; in a worker thread.

        What was here before is reserved meanwhile. A new chunk may still be collected in an import of hours: then what
        is missing is read once more.
        """
        for _ in range(IMPORT_TRIES):
            with Reserving(self._store) as content:
                layer = self._record(read(content))
            self._store.commit()
            have, total = self._store.holding(layer)
            record = self._store.layer(layer)
            if total >= MANY_CHUNKS:
                give_back(self._store)
            if have == total and record is not None:
                return record
        raise errors.Failed("chunks of the layer vanished while it was imported")

    def _record(self, imported: Imported) -> LayerId:
        """Put a layer on record."""
        layer, size, content = imported.layer_id, imported.size, imported.content
        manifest = (imported.manifest_chunks, imported.manifest_size)
        del imported  # the encoded manifest of a large layer is in nobody's memory meanwhile
        self._store.put_layer(layer, size, *manifest, content)
        return layer

    async def pull(self, ref: str, *, operation: Operation, throttle_in: Throttle | None = None) -> dict[str, Any]:
        """Bring a layer here, whole, from whoever holds it.

        Args:
            throttle_in: a cap on what this pull receives, besides the node's.

        Raises:
            NotFound: no such layer, or nobody holds what is missing.
        """
        started = time.monotonic()
        layer = await self.resolve(ref)
        report = await self.fetch(layer, operation.progress, throttle_in)
        names = [entry.name for entry in self._ledger.catalog().of(layer)]
        return {
            "id": layer.hex(),
            "name": ref if ref in names else (names[0] if names else None),
            "seconds": round(time.monotonic() - started, 3),
            "bytes": {
                "total": report.total,
                "deduplicated": report.deduplicated,
                "transferred": report.transferred,
                "duplicates": report.duplicates,
            },
            "sources": {self._mesh.name_of(node): count for node, count in report.sources.items()},
        }

    async def fetch(
        self, layer: LayerId, progress: Progress | None = None, throttle_in: Throttle | None = None
    ) -> PullReport:
        """Pull `layer`, hold it from now on and tell the mesh; a layer that is held whole costs one look."""
        size = await trio.to_thread.run_sync(self._held_size, layer)
        if size is not None:
            self._tell_fetched()
            return PullReport(total=size, deduplicated=size)
        report = await self._transfers.pull_layer(
            layer,
            partial(self.holder_hints, layer),
            me=self._mesh.me,
            progress=self._tell_of_first(progress),
            throttle_in=throttle_in,
        )
        if report.transferred:
            self._ledger.count_pull(self._mesh.my_site, layer, now=time.time())
            self._events.emit("layer.pulled", id=layer.hex(), transferred=report.transferred)
            self._log.info("layer pulled", layer=layer.hex()[:16], bytes=report.transferred, seconds=report.seconds)
        await self._presence.publish()
        self._tell_fetched()
        return report

    def _tell_of_first(self, progress: Progress | None) -> Progress:
        """A progress that also tells the mesh when the first of a layer is here: who pulls it too can have it."""
        told = False

        def tell(done: int, total: int) -> None:
            nonlocal told
            if not told:
                told = True
                self._presence.changed()
            if progress is not None:
                progress(done, total)

        return tell

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

    async def checkout(
        self, ref: str, directory: Path, *, operation: Operation, throttle_in: Throttle | None = None
    ) -> dict[str, Any]:
        """Write the tree of a layer to `directory`, which must be absent or empty; pulls what is missing."""
        started = time.monotonic()
        if await trio.Path(directory).exists() and any(await trio.to_thread.run_sync(_entries, directory)):
            raise errors.Refused(f"{directory} is not empty")
        layer = await self.resolve(ref)
        await self.fetch(layer, operation.progress, throttle_in)
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
        older = await self._trees.first(relative.layer for relative in await self._transfers.relatives(layer))
        done = await trio.to_thread.run_sync(partial(checkout, self._store, manifest, path, reuse=older))
        if os.geteuid() == 0 and any(done.skipped.values()):  # else it is known: an ordinary user may not
            self._log.warning("a checkout is not exact", layer=layer.hex()[:16], **done.skipped)

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


def _load_manifest(store: ChunkStore, layer: LayerId) -> Manifest:
    record = store.layer(layer)
    if record is None:
        raise errors.NotFound(f"layer {layer.hex()[:16]} is not on this node")
    return load(store, record.manifest_chunks, layer)


def _entries(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise errors.Refused(f"{directory} is not a folder")
    return list(directory.iterdir())


def _look(store: ChunkStore, path: Path) -> tuple[Survey | None, LayerRecord | None]:
    """How a folder looks, and the layer that it still is, if that is held here; for a worker thread."""
    seen = survey(path)
    return seen, recall_held(store, seen)


def _sketch(store: ChunkStore, layer: LayerId) -> bytes:
    return sketch(store.layer_chunks(layer))


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
        case SourceKind.QCOW2 | SourceKind.RAW:
            return partial(import_file, stat_cache=store)
        case kind:
            raise errors.Refused(f"{path} is {kind.described}: this version adds folders, tar files and disk images")
