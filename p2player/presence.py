"""What this node tells the mesh of itself: layers held, free disk, load, apps; published when it changes.

Whoever changes something calls `changed()` and goes on, or awaits `publish()` where the change should be on its way
before an answer is given. Counting what is held asks the store, so changes are gathered for a moment first.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from chunkstore.store import ChunkStore
from gossip.inventory import AppRow, Holding
from gossip.ledger import Ledger

GATHER_S = 0.2
REFRESH_S = 20.0


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
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._store_root = store_root
        self._apps = apps
        self._labels = labels
        self._announce = announce
        self._wake = trio.Event()
        self._lock = trio.Lock()

    def changed(self) -> None:
        """Something is different: publish soon."""
        self._wake.set()

    async def publish(self) -> None:
        """Publish the present state now, unless it hardly differs from what was told."""
        async with self._lock:
            self._wake = trio.Event()
            holdings = await trio.to_thread.run_sync(self._holdings)
            disk = os.statvfs(self._store_root)
            now = time.time()
            told = self._ledger.publish_inventory(
                layers=holdings,
                free_bytes=disk.f_bavail * disk.f_frsize,
                load=os.getloadavg()[0] / (os.cpu_count() or 1),
                labels=self._labels,
                apps=self._apps(),
                now=now,
            )
            told = self._ledger.publish_popularity(now=now) or told
        if told:
            self._announce()

    def _holdings(self) -> dict[bytes, Holding]:
        holdings: dict[bytes, Holding] = {}
        for record in self._store.layers():
            have, total = self._store.holding(record.id)
            if record.held or have:
                holdings[record.id] = Holding(have, total, record.size)
        return holdings

    async def run(self) -> None:
        """Publish at every change, and now and then without one, since disk and load change by themselves."""
        while True:
            await self.publish()
            with trio.move_on_after(REFRESH_S):
                await self._wake.wait()
                await trio.sleep(GATHER_S)
