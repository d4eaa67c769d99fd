"""What garbage collection must spare although no layer asks for it.

A *lease* is a promise with an end: a session that said "I have these" keeps them until it is done or has been
silent for too long. Leases are stored, so an interrupted transfer finds its chunks again after a restart.

*Young* chunks need no promise: whoever adds chunks needs some time to name the layer they belong to. A chunk is
young from being added until a layer refers to it, for an hour at least and two at most.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from chunkstore.digest import ID_BYTES, ChunkId
from chunkstore.index import Index

_YOUNG_S = 3600.0
_SLICE_IDS = 1 << 16


class Leases:
    """Leased and young chunks of one index. Safe for many threads."""

    def __init__(self, index: Index, clock: Callable[[], float]) -> None:
        self._index = index
        self._clock = clock
        self._young: set[ChunkId] = set()
        self._less_young: set[ChunkId] = set()
        self._young_since = clock()
        self._watchers: list[set[ChunkId]] = []

    def lease(self, ids: Iterable[ChunkId], ttl_s: float, owner: str) -> None:
        """Spare `ids` for `ttl_s` seconds, or until `release(owner)`."""
        self._lease(ids, ttl_s, owner, instead=False)

    def renew(self, ids: Iterable[ChunkId], ttl_s: float, owner: str) -> None:
        """Spare `ids` in the place of what `owner` leased before; there is no moment in which neither holds."""
        self._lease(ids, ttl_s, owner, instead=True)

    def _lease(self, ids: Iterable[ChunkId], ttl_s: float, owner: str, *, instead: bool) -> None:
        names = set(ids)
        in_order = iter(names)
        slices = iter(lambda: b"".join(islice(in_order, _SLICE_IDS)), b"")
        now = self._clock()
        with self._index.write() as db:
            db.execute("DELETE FROM leases WHERE expires_s <= ? OR (? AND owner = ?)", (now, instead, owner))
            db.executemany("INSERT INTO leases VALUES (?, ?, ?)", ((owner, now + ttl_s, joined) for joined in slices))
            self._tell(names)

    def release(self, owner: str) -> None:
        """End every lease of `owner`."""
        with self._index.write() as db:
            db.execute("DELETE FROM leases WHERE owner = ?", (owner,))

    def born(self, ids: Collection[ChunkId]) -> None:
        """Chunks were added to which no layer refers yet. Call with the writer lock held."""
        now = self._clock()
        if now - self._young_since >= _YOUNG_S:
            still_young = self._young if now - self._young_since < 2 * _YOUNG_S else set()
            self._less_young, self._young = still_young, set()
            self._young_since = now
        self._young.update(ids)
        self._tell(ids)

    def adopted(self, ids: Collection[ChunkId]) -> None:
        """A layer refers to these chunks from now on: they are as protected as it is."""
        with self._index.lock:
            self._young.difference_update(ids)
            self._less_young.difference_update(ids)
            if not self._young:
                self._young = set()  # an empty set keeps the room of all that was in it

    @contextmanager
    def watch(self, also: Iterable[ChunkId] = ()) -> Iterator[set[ChunkId]]:
        """A set of every chunk to spare, into which those leased or added meanwhile go too.

        It grows only under the writer lock: whoever holds that lock sees all of it.
        """
        now = self._clock()
        spared: set[ChunkId] = set(also)
        with self._index.lock:
            with self._index.read() as db:
                rows = db.execute("SELECT ids FROM leases WHERE expires_s > ?", (now,)).fetchall()
            for (joined,) in rows:
                spared.update(ChunkId(joined[at : at + ID_BYTES]) for at in range(0, len(joined), ID_BYTES))
            if now - self._young_since < 2 * _YOUNG_S:
                spared |= self._young
            if now - self._young_since < _YOUNG_S:
                spared |= self._less_young
            self._watchers.append(spared)
        try:
            yield spared
        finally:
            with self._index.lock:
                self._watchers = [watcher for watcher in self._watchers if watcher is not spared]

    def _tell(self, ids: Collection[ChunkId]) -> None:
        for watcher in self._watchers:
            watcher.update(ids)
