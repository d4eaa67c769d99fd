"""Garbage collection, the execution: carry out a plan while everybody else keeps working.

Theory of operation
-------------------
The plan was made from a snapshot, so every step is checked again under the writer lock:

1. evicted layers are marked as not held, unless they were used after the snapshot;
2. the rows of unprotected chunks are deleted, some thousands a transaction, so that adders wait for milliseconds;
3. live records of sparse packs are appended to the newest pack and made durable, then their rows are moved;
4. packs to which no row points are deleted, once that is durable in the index.

At every kill point each protected chunk has a row that points to a durable record. A reader that has looked a chunk up
just before its pack went away looks again.
"""

from collections.abc import Callable, Collection, Iterator

from chunkstore.codec import Group, take
from chunkstore.collect import GcPlan, GcPolicy, GcReport, GcSnapshot, Share
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import BadGroup, DiskFull
from chunkstore.holdings import Holdings
from chunkstore.index import Index, delete_chunks, insert_group, select_in
from chunkstore.packs import Lost, PackFiles
from chunkstore.progress import Progress
from chunkstore.records import Place, at, pack_of, record_bytes

_SWEEP_CHUNKS = 2000
_BATCH_RECORDS = 500
_MOVE_BYTES = 8 << 20


class Sweep:
    """One run of garbage collection over one store.

    Args:
        spared: chunks to keep whatever the layers say; it may grow while the sweep runs, under the writer lock.
        bound: layers that running things need: protected, and never evicted.
        policy: what the plan was made by; of it, when a pack is worth rewriting is decided again.
        commit: makes what was added so far durable.
    """

    def __init__(
        self,
        index: Index,
        packs: PackFiles,
        holdings: Holdings,
        *,
        spared: Collection[ChunkId],
        bound: Collection[LayerId],
        policy: GcPolicy,
        commit: Callable[[], None],
    ) -> None:
        self._index = index
        self._packs = packs
        self._holdings = holdings
        self._spared = spared
        self._bound = frozenset(bound)
        self._policy = policy
        self._commit = commit
        names = ",".join(f"x'{layer.hex()}'" for layer in self._bound)
        keeps = f"held OR pinned OR layers.id IN ({names})"
        self._kept = f"EXISTS (SELECT 1 FROM refs JOIN layers ON no = layer WHERE chunk = chunks.id AND ({keeps}))"

    def snapshot(self) -> GcSnapshot:
        """What there is, and what keeps it. One pass over all chunk rows."""
        query = """
            SELECT chunks.id, length, place, size, raw_bytes, group_concat(layer)
            FROM chunks JOIN groups USING (place) LEFT JOIN refs ON refs.chunk = chunks.id GROUP BY chunks.id"""
        found: dict[tuple[int, frozenset[LayerId], bool], list[int]] = {}
        with self._index.read() as db:
            db.execute("BEGIN")
            try:
                layers = db.execute("SELECT no, id, held, pinned, used_s FROM layers").fetchall()
                always = {str(no) for no, layer, _, pinned, _ in layers if pinned or layer in self._bound}
                evictable = {str(no): layer for no, layer, held, _, _ in layers if held and str(no) not in always}
                kinds: dict[str | None, tuple[frozenset[LayerId], bool]] = {None: (frozenset(), False)}
                for name, length, place, size, raw_bytes, numbers in db.execute(query):
                    if numbers not in kinds:
                        some = set(numbers.split(","))
                        keepers = frozenset(evictable[number] for number in some & evictable.keys())
                        kinds[numbers] = (keepers, bool(some & always))
                    keepers, protected = kinds[numbers]
                    share = found.setdefault((pack_of(place), keepers, protected or name in self._spared), [0, 0])
                    share[0] += 1
                    share[1] += max(1, size * length // raw_bytes)
            finally:
                db.execute("ROLLBACK")
        shares = tuple(
            Share(pack, keepers, protected, chunks, stored_bytes)
            for (pack, keepers, protected), (chunks, stored_bytes) in found.items()
            if keepers or protected
        )
        used = {layer: used_s for no, layer, _, _, used_s in layers if str(no) in evictable}
        return GcSnapshot(self._packs.sizes(), used, shares)

    def execute(self, plan: GcPlan, snapshot: GcSnapshot, progress: Progress | None) -> GcReport:
        """Do what `plan`, made from `snapshot`, says. Interrupted at any point, the rest waits for the next run."""
        evicted = tuple(layer for layer in plan.evict if self._evict(layer, snapshot.evictable[layer]))
        chunks = self._delete_chunks()
        self._discard_records()
        freed, deleted = self._free_packs({*plan.delete, *plan.rewrite}, progress)
        return GcReport(freed, chunks, deleted, evicted)

    def _evict(self, layer: LayerId, used_s: float) -> bool:
        with self._index.write() as db:
            query = "UPDATE layers SET held = 0 WHERE id = ? AND held AND NOT pinned AND used_s = ?"
            return db.execute(query, (layer, used_s)).rowcount == 1

    def _delete_chunks(self) -> int:
        """Delete the rows of all unprotected chunks."""
        deleted = 0
        last = b""
        query = f"SELECT id FROM chunks WHERE id > ? AND NOT {self._kept} ORDER BY id LIMIT ?"
        still = f"SELECT id FROM chunks WHERE id IN ({{}}) AND NOT {self._kept}"
        while True:
            with self._index.read() as db:
                garbage = [row[0] for row in db.execute(query, (last, _SWEEP_CHUNKS)).fetchall()]
            if not garbage:
                return deleted
            last = garbage[-1]
            with self._index.write() as db:
                doomed = [name for name in garbage if name not in self._spared]
                gone = [row[0] for row in select_in(db, still, doomed)]
                delete_chunks(db, gone)
                self._holdings.departed(db, gone)
            deleted += len(gone)

    def _discard_records(self) -> None:
        """Forget layers that nobody wants any more and whose manifest is no longer readable."""
        with self._index.write() as db:
            unwanted = [
                layer.id
                for layer in self._holdings.all()
                if not (layer.held or layer.pinned or layer.id in self._bound)
                and self._index.present(layer.manifest_chunks) != set(layer.manifest_chunks)
            ]
            self._holdings.discard_records(db, unwanted)

    def _free_packs(self, targets: set[int], progress: Progress | None) -> tuple[int, int]:
        """Empty the target packs and delete them. Returns bytes freed and packs deleted."""
        with self._index.lock:
            if pack_of(self._packs.end) in targets:
                self._packs.roll()
        self._commit()
        stored = "sum(max(1, size * length / raw_bytes))"
        query = f"SELECT place >> 32, {stored} FROM chunks JOIN groups USING (place) GROUP BY 1"
        with self._index.read() as db:
            # Rows are only ever added for the newest pack, so from now on these can only shrink.
            live: dict[int, int] = dict(db.execute(query).fetchall())
        sizes = self._packs.sizes()
        sparse = {pack for pack in sizes if live.get(pack, 0) < sizes[pack] * self._policy.rewrite_below}
        order = sorted(targets & (sparse | sizes.keys() - live.keys()), key=lambda pack: (live.get(pack, 0), pack))
        total, done, freed, deleted = sum(sizes[pack] for pack in order), 0, 0, 0
        for pack in order:
            try:
                moved = self._empty(pack) if live.get(pack) else 0
            except DiskFull:
                break  # emptier packs came first: what they gave back is all there is for now
            if moved is not None:
                with self._index.write(durable=True) as db:
                    db.execute("DELETE FROM groups WHERE place >= ? AND place < ?", (at(pack, 0), at(pack + 1, 0)))
                freed += self._packs.remove(pack) - moved
                deleted += 1
            done += sizes[pack]
            if progress:
                progress(done, total)
        self._commit()  # what was moved is durable already: let the mark say so
        return freed, deleted

    def _empty(self, pack: int) -> int | None:
        """Move the live records of a pack. Returns the bytes appended; None where the pack must stay.

        A damaged record with live chunks keeps its pack, so that `verify` still finds what was lost.

        Raises:
            DiskFull: what was moved until then stays moved.
        """
        moved = 0
        batch: list[tuple[Place, Group]] = []
        for place, found in self._records(pack):
            if isinstance(found, Lost):
                with self._index.read() as db:
                    if db.execute("SELECT 1 FROM chunks WHERE place = ? LIMIT 1", (place,)).fetchone():
                        return None
                continue
            with self._index.read() as db:
                query = "SELECT id FROM chunks WHERE id IN ({}) AND place = ?"
                live = {row[0] for row in select_in(db, query, found.ids, place)}
            try:
                kept = take(found, live)
            except BadGroup:
                return None
            if kept is not None:
                batch.append((place, kept))
            if sum(record_bytes(group) for _, group in batch) >= _MOVE_BYTES:
                moved += self._move(batch)
                batch = []
        return moved + self._move(batch)

    def _records(self, pack: int) -> Iterator[tuple[Place, Group | Lost]]:
        place, beyond = at(pack, 0), at(pack + 1, 0)
        while batch := [row for row in self._index.records_from(place, _BATCH_RECORDS) if row[0] < beyond]:
            yield from self._packs.fetch(batch)
            place = Place(batch[-1][0] + 1)

    def _move(self, batch: list[tuple[Place, Group]]) -> int:
        """Append records anew, and let the rows that pointed to the old ones point there."""
        if not batch:
            return 0
        with self._index.lock:
            places = self._packs.append([group for _, group in batch])
            # Unlike added data, the moved must be durable before the index says so: the old copy will be deleted.
            self._packs.sync(self._packs.unsynced())
            with self._index.write(durable=True) as db:
                for (old, group), new in zip(batch, places, strict=True):
                    insert_group(db, new, group, ())
                    update = "UPDATE chunks SET place = ? WHERE id = ? AND place = ?"
                    db.executemany(update, [(new, name, old) for name in sorted(group.ids)])
        return sum(record_bytes(group) for _, group in batch)
