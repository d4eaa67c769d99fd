"""What this node tells the mesh of itself: layers held, a sketch of all chunks, free disk, load, apps; when it changes.

Whoever changes something calls `changed()` and goes on, or awaits `publish()` where the change should be on its way
before an answer is given. Counting what is held asks the store, so changes are gathered for a moment first. The sketch
costs a look at its 64 rows, however many chunks there are, as the store keeps them in order of id.

A change counts as told when a record was begun after it. So `publish` clears the mark that `changed` sets before it
looks at anything: what changes meanwhile marks it again, and `run` publishes once more.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from chunkstore.errors import StoreError
from chunkstore.store import ChunkStore
from gossip.errors import GossipError
from gossip.inventory import AppRow, Holding
from gossip.ledger import Ledger
from gossip.sketch import DEFAULT_K, sketch
from p2player.faults import describe
from p2player.log import Log

GATHER_S = 0.2
REFRESH_S = 20.0
RETRY_S = 5.0


class Presence:
    """Publishes this node's inventory.

    Args:
        apps: the rows of the apps that live here.
        announce: sends the news on its way.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: ChunkStore,
        store_root: Path,
        apps: Callable[[], tuple[AppRow, ...]],
        labels: Mapping[str, str],
        announce: Callable[[], None],
        log: Log,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._store_root = store_root
        self._apps = apps
        self._labels = labels
        self._announce = announce
        self._log = log
        self._dirty = True
        self._failed = False
        self._wake = trio.Event()  # replaced by `run` only, which is the one that waits for it
        self._lock = trio.Lock()
        self._warned: frozenset[str] = frozenset()

    def changed(self) -> None:
        """Something is different: publish soon."""
        self._dirty = True
        self._wake.set()

    async def publish(self) -> None:
        """Publish the present state now, unless it hardly differs from what was told.

        What cannot be told is left out and logged, and a failure is logged as well: whoever changed something has done
        so, whether or not the others hear of it at once. `run` makes up for a failed or cancelled publishing.
        """
        async with self._lock:
            self._dirty = False
            told, self._failed = False, True
            try:
                told = await self._publish()
                self._failed = False
            except (GossipError, StoreError, OSError) as error:
                self._log.warning("the mesh was not told of a change here", error=describe(error).message)
            finally:
                self._dirty = self._dirty or self._failed
        if told:
            self._announce()

    async def _publish(self) -> bool:
        holdings, sample = await trio.to_thread.run_sync(self._look)
        disk = os.statvfs(self._store_root)
        now = time.time()
        told = self._ledger.publish_inventory(
            layers=holdings,
            free_bytes=disk.f_bavail * disk.f_frsize,
            load=os.getloadavg()[0] / (os.cpu_count() or 1),
            labels=self._labels,
            apps=self._apps(),
            sketch=sample,
            now=now,
        )
        self._warn_of(self._ledger.untold)
        return self._ledger.publish_popularity(now=now) or told

    def _warn_of(self, untold: Mapping[str, str]) -> None:
        """Log what was left out, once as long as it is."""
        for what, why in untold.items():
            if what not in self._warned:
                self._log.warning("not told to the mesh", what=what, error=why)
        self._warned = frozenset(untold)

    def _look(self) -> tuple[dict[bytes, Holding], bytes]:
        """How much of each layer is in the store, and a sketch of all chunks; for a worker thread."""
        holdings: dict[bytes, Holding] = {}
        for record in self._store.layers():
            have, total = self._store.holding(record.id)
            if record.held or have:
                holdings[record.id] = Holding(have, total, record.size)
        return holdings, sketch(self._store.smallest(DEFAULT_K))

    async def run(self) -> None:
        """Publish at every change, and now and then without one, since disk and load change by themselves."""
        while True:
            self._wake = trio.Event()
            if not self._dirty:
                with trio.move_on_after(REFRESH_S):
                    await self._wake.wait()
            await trio.sleep(GATHER_S)
            await self.publish()
            if self._failed:
                await trio.sleep(RETRY_S)
