"""Keeping the store sound: what it holds, verifying and mending it, and collecting what nothing refers to."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import trio

from chunkstore.digest import LayerId
from chunkstore.store import ChunkStore, Damage, GcPolicy
from gossip.ledger import Ledger
from gossip.messages import NodeId
from p2player import errors
from p2player.layers import Layers
from p2player.log import Log
from p2player.operations import Operation
from p2player.presence import Presence


class Upkeep:
    """The store's keeper on this node.

    Args:
        high, low: how full the file system may be, as parts of it; above the first, gc evicts down to the second.
        in_use: layers that this node's apps refer to.
    """

    def __init__(
        self,
        store: ChunkStore,
        ledger: Ledger,
        layers: Layers,
        presence: Presence,
        log: Log,
        *,
        me: NodeId,
        root: Path,
        high: float,
        low: float,
        in_use: Callable[[], set[LayerId]],
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._layers = layers
        self._presence = presence
        self._log = log
        self._me = me
        self._root = root
        self._high, self._low = high, low
        self._in_use = in_use
        self._alone = trio.Lock()

    async def stats(self) -> dict[str, Any]:
        """The document of `/v1/store`: chunks, layers, packs, and bytes raw, stored and free."""
        return asdict(await trio.to_thread.run_sync(self._store.stats))

    async def verify(self, *, repair: bool, operation: Operation) -> dict[str, Any]:
        """Read everything back and compare; with `repair`, fetch what is damaged from peers.

        Returns:
            `{checked_bytes, damaged: [{chunk, layers: [{id, name}]}], repaired}`; what could be mended is still
            listed under `damaged`, and counted in `repaired`.
        """
        async with self._alone:
            damages: Sequence[Damage] = await trio.to_thread.run_sync(
                partial(self._store.verify, operation.thread_progress("verifying"))
            )
            stats = await self.stats()
            repaired = await self._repair(damages, operation) if repair and damages else 0
        for damage in damages:
            self._log.error("chunk damaged", chunk=damage.chunk_id.hex()[:16], reason=damage.reason)
        return {
            "checked_bytes": stats["stored_bytes"],
            "damaged": [
                {"chunk": damage.chunk_id.hex(), "layers": [self._named(layer) for layer in damage.layers]}
                for damage in damages
            ],
            "repaired": repaired,
        }

    def _named(self, layer: LayerId) -> dict[str, Any]:
        names = [entry.name for entry in self._ledger.catalog().of(layer)]
        return {"id": layer.hex(), "name": names[0] if names else None}

    async def _repair(self, damages: Sequence[Damage], operation: Operation) -> int:
        """Forget what is damaged and pull its layers again; returns how many chunks are whole afterwards."""
        ids = [damage.chunk_id for damage in damages]
        await trio.to_thread.run_sync(self._store.forget, ids)
        for layer in sorted({layer for damage in damages for layer in damage.layers}):
            try:
                await self._layers.fetch(layer, operation.progress)
            except errors.P2PlayerError as error:
                self._log.warning("layer could not be mended", layer=layer.hex()[:16], error=error.message)
        await self._presence.publish()
        needed = [damage.chunk_id for damage in damages if damage.layers]
        missing = await trio.to_thread.run_sync(self._store.missing, needed)
        return len(damages) - len(missing)

    async def collect(self, operation: Operation) -> dict[str, Any]:
        """Free what nothing refers to; above the high watermark, also layers that were not used for long.

        Returns:
            `{freed_bytes, chunks, evicted: [{id, name}]}`.
        """
        mine = {e.layer for e in self._ledger.catalog().values() if e.owner == self._me}
        bound = {LayerId(layer) for layer in mine} | self._in_use()
        async with self._alone:
            report = await trio.to_thread.run_sync(
                partial(
                    self._store.collect,
                    await trio.to_thread.run_sync(self._policy),
                    bound=bound,
                    progress=operation.thread_progress("collecting"),
                )
            )
        await self._presence.publish()
        self._log.info("store collected", freed=report.freed_bytes, chunks=report.chunks, packs=report.packs)
        return {
            "freed_bytes": report.freed_bytes,
            "chunks": report.chunks,
            "evicted": [self._named(layer) for layer in report.evicted],
        }

    def _policy(self) -> GcPolicy:
        """The watermarks in bytes of this store: what others have on the file system is not ours to free."""
        disk = os.statvfs(self._root)
        total = disk.f_blocks * disk.f_frsize
        others = total - disk.f_bavail * disk.f_frsize - self._store.stats().stored_bytes
        return GcPolicy(
            high_bytes=max(0, int(self._high * total) - others), low_bytes=max(0, int(self._low * total) - others)
        )
