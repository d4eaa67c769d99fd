"""Keeping the store sound: what it holds, verifying and mending it, and collecting what nothing refers to.

Collecting starts by itself when the file system is fuller than the high watermark, which is looked at now and then and
after every pull. Where that did not help, since others filled the disk or everything here is needed, it is not tried
again for a while.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

from chunkstore.digest import LayerId
from chunkstore.errors import StoreError
from chunkstore.store import ChunkStore, Damage, GcPolicy, GcReport
from gossip.ledger import Ledger
from gossip.messages import NodeId
from p2player import errors
from p2player.layers import Layers
from p2player.log import Log
from p2player.operations import Operation
from p2player.presence import Presence

CHECK_S = 60.0
PAUSE_S = 900.0
SWEEP_S = 600.0
TREE_IDLE_S = 3600.0
TREE_RECENT_S = 600.0
LAYER_RECENT_S = 600.0


@dataclass(frozen=True, slots=True)
class Round:
    """The last time that the store was collected by itself.

    `used` is how full the file system was afterwards, as a part of it; `at_s` is on a monotonic clock.
    """

    at_s: float
    used: float


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system, in bytes; `free_bytes` is what an ordinary user may still write."""

    total_bytes: int
    free_bytes: int

    @property
    def used(self) -> float:
        """How full it is, as a part of it."""
        return 1 - self.free_bytes / self.total_bytes if self.total_bytes else 0.0


def disk_of(path: Path) -> Disk:
    """The file system that `path` is on."""
    found = os.statvfs(path)
    return Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)


def is_due(used: float, high: float, last: Round | None, now: float) -> bool:
    """Whether to collect: the file system is fuller than `high`, and was brought below by the last round, or that is
    long ago.

    Args:
        used: part of the file system that is not free to this user.
        high: the high watermark.
        now: seconds on the clock of `last`.
    """
    return used > high and (last is None or last.used <= high or now - last.at_s >= PAUSE_S)


class Upkeep:
    """The store's keeper on this node.

    Args:
        high, low: how full the file system may be, as parts of it; above the first, gc evicts down to the second.
        in_use: layers that this node's apps refer to.
        may_sweep: whether all layers in use are known; else no checked-out tree is removed, since what runs on it may
            not be in the books.
        disk: what tells how full the file system of `root` is.
        wall: the store's clock, seconds since the epoch.
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
        may_sweep: Callable[[], bool] = lambda: True,
        disk: Callable[[Path], Disk] = disk_of,
        wall: Callable[[], float] = time.time,
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
        self._may_sweep = may_sweep
        self._disk = disk
        self._wall = wall
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

        Checked-out trees that no app uses go too.

        Returns:
            `{freed_bytes, chunks, evicted: [{id, name}], trees}`; `trees` counts checkouts.
        """
        trees = await self._sweep(TREE_RECENT_S)
        report = await self._collect(operation.thread_progress("collecting"))
        return {
            "freed_bytes": report.freed_bytes,
            "chunks": report.chunks,
            "evicted": [self._named(layer) for layer in report.evicted],
            "trees": trees,
        }

    async def run(self) -> None:
        """Remove idle trees, and collect when the disk is nearly full; runs until cancelled."""
        last: Round | None = None
        swept_s = -SWEEP_S
        while True:
            now = time.monotonic()
            if now - swept_s >= SWEEP_S:
                swept_s = now
                await self._sweep(TREE_IDLE_S)
            if is_due(await self._used(), self._high, last, now):
                await self._collect_by_itself()
                last = Round(now, await self._used())
            with trio.move_on_after(CHECK_S):
                await self._layers.wait_fetched()

    async def _sweep(self, idle_s: float) -> int:
        """Remove checked-out trees that nothing uses; how many."""
        if not self._may_sweep():
            self._log.warning("no checkout is removed: the record of an app cannot be read")
            return 0
        return await self._layers.sweep_trees(idle_s)

    async def _collect_by_itself(self) -> None:
        self._log.info("the disk is nearly full: collecting", high_watermark=self._high)
        try:
            await self._sweep(TREE_RECENT_S)
            await self._collect(_heed_cancellation, spare_used_since=self._wall() - LAYER_RECENT_S)
        except (StoreError, OSError) as error:
            self._log.error("the store could not be collected", reason=str(error))

    async def _collect(self, progress: Callable[[int, int], None], spare_used_since: float | None = None) -> GcReport:
        """Collect once.

        Args:
            spare_used_since: do not evict layers that were used after this wall-clock time: what needs them may not
                say so yet.
        """
        mine = {LayerId(e.layer) for e in self._ledger.catalog().values() if e.owner == self._me}
        bound = mine | self._in_use() | self._layers.being_pulled()
        async with self._alone:
            report = await trio.to_thread.run_sync(self._collect_now, bound, spare_used_since, progress)
        await self._presence.publish()
        self._log.info(
            "store collected",
            freed=report.freed_bytes,
            chunks=report.chunks,
            packs=report.packs,
            evicted=len(report.evicted),
        )
        return report

    def _collect_now(
        self, bound: set[LayerId], spare_used_since: float | None, progress: Callable[[int, int], None]
    ) -> GcReport:
        if spare_used_since is not None:
            bound = bound | {record.id for record in self._store.layers() if record.used_s >= spare_used_since}
        return self._store.collect(self._policy(), bound=bound, progress=progress)

    async def _used(self) -> float:
        return (await trio.to_thread.run_sync(self._disk, self._root)).used

    def _policy(self) -> GcPolicy:
        """The watermarks in bytes of this store: what others have on the file system is not ours to free."""
        disk = self._disk(self._root)
        total = disk.total_bytes
        others = total - disk.free_bytes - self._store.stats().stored_bytes
        return GcPolicy(
            high_bytes=max(0, int(self._high * total) - others), low_bytes=max(0, int(self._low * total) - others)
        )


def _heed_cancellation(_done: int, _total: int) -> None:
    """Progress of what nobody watches: ends it when the node stops."""
    trio.from_thread.check_cancelled()
