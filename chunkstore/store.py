"""A node's shared content: packs and their index as one `ChunkStore`, and what is known of layers.

    packs      append-only files of records        index      SQLite: chunk -> record
    recovery   what happens on open                retrieve   reading back
    holdings   layers, refs, what is here          leases     what gc must spare
    audit      verify                              collect    gc: the plan; sweep: its execution
    filecache  the importer's stat cache

Adding: data is appended to the newest pack and rowed in the index at once, without waiting for the disk; every
64 MiB, and at `commit()`, the packs are synced and the index's mark moves. A kill loses nothing that was appended,
a power cut at most what no `commit()` had covered.

One process at a time has a store open (`lock`). Within it, every method may be called from many threads.
"""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from chunkstore.audit import Damage, verify
from chunkstore.codec import Group, take
from chunkstore.collect import GcPolicy, GcReport, plan_gc
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import StoreBusy
from chunkstore.filecache import FileCache
from chunkstore.holdings import Holdings, LayerRecord
from chunkstore.index import delete_chunks, insert_group, select_in
from chunkstore.leases import Leases
from chunkstore.packs import PACK_BYTES, PackFiles, free_bytes, require_room, sync_folder
from chunkstore.progress import Progress
from chunkstore.records import record_bytes
from chunkstore.recovery import Recovery, open_index, recover
from chunkstore.retrieve import Retrieval
from chunkstore.sweep import Sweep

__all__ = ["ChunkStore", "Damage", "GcPolicy", "GcReport", "LayerRecord", "Recovery", "StoreStats"]

RESERVE_BYTES = 64 << 20
COMMIT_BYTES = 64 << 20
_BATCH_GROUPS = 8


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How much is here."""

    chunks: int
    layers: int
    raw_bytes: int
    """Uncompressed bytes of all chunks."""
    stored_bytes: int
    """Bytes of the pack files, garbage included."""
    packs: int
    free_bytes: int
    """What may still be added before the reserve is touched."""
    suspects: int
    """Chunks found damaged by a read since the store was opened."""


class ChunkStore:
    """Verified chunks and layer records in one folder; see `open`. Implements `Content`."""

    def __init__(self, path: Path, reserve_bytes: int, pack_bytes: int, clock: Callable[[], float], lock: int) -> None:
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._lock_file = lock
        self._index = open_index(path / "index.sqlite")
        self._packs = PackFiles(path / "packs", pack_bytes=pack_bytes)
        self._holdings = Holdings(self._index, clock)
        self._leases = Leases(self._index, clock)
        self._files = FileCache(self._index, clock)
        self._retrieval = Retrieval(self._index, self._packs)
        self._commit_lock = threading.Lock()
        self._collect_lock = threading.Lock()
        self._batches = 0
        self._uncommitted_bytes = 0
        try:
            self.recovery = recover(self._index, self._packs, self._leases)
        except BaseException:
            self._index.close()
            raise

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        pack_bytes: int = PACK_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open the store in folder `path`, or make an empty one, and recover from whatever happened to it.

        What was found and done is in `recovery`.

        Args:
            path: the folder; it is made with mode 0700 if it does not exist.
            reserve_bytes: leave this much of the disk free.
            pack_bytes: begin a new pack when one has reached this size.
            clock: seconds since the epoch.

        Raises:
            StoreBusy: it is open already.
            FormatMismatch: another version wrote it.
        """
        (path / "packs").mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            store = cls(path, reserve_bytes, pack_bytes, clock, lock)
            sync_folder(path)
            sync_folder(path.parent)
        except BlockingIOError as error:
            os.close(lock)
            raise StoreBusy(path) from error
        except BaseException:
            os.close(lock)
            raise
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Commit, and let go of every file and connection. Other threads get `StoreClosed` from then on."""
        with self._collect_lock:
            if self._lock_file < 0:
                return
            try:
                self.commit()
            finally:
                self._index.close()
                self._packs.close()
                os.close(self._lock_file)
                self._lock_file = -1

    def give_back(self) -> None:
        """Free what was kept in case the same is wanted again: after much work, when other work is next."""
        self._index.shrink()
        self._retrieval.forget()

    # -- Content

    @property
    def key(self) -> None:
        """Shared content is named by plain digests."""
        return

    def missing(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Those of `ids` that are not here, or were found damaged."""
        wanted = set(ids)
        return wanted - (self._index.present(wanted) - self._retrieval.suspects)

    def add(self, groups: Iterable[Group]) -> int:
        """Keep verified chunks; see `Content.add`.

        A group of which at least three quarters of the bytes are new is stored as it is; of others, the new chunks
        are packed anew. Commits after every 64 MiB.
        """
        added = 0
        remaining = iter(groups)
        while batch := list(islice(remaining, _BATCH_GROUPS)):
            added += self._add(batch)
            if self._uncommitted_bytes >= COMMIT_BYTES:
                self.commit()
        return added

    def groups(self, ids: Sequence[ChunkId]) -> Iterator[Group]:
        """The wanted chunks, packed for a wire; see `Content.groups`."""
        return self._retrieval.groups(ids)

    def read(self, ids: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
        """The wanted chunks and their bytes; see `Content.read`."""
        return self._retrieval.read(ids)

    def commit(self) -> None:
        """Sync packs, then the index; see `Content.commit`."""
        with self._commit_lock:
            with self._index.lock:
                self._index.require_open()
                end, files = self._packs.end, self._packs.unsynced()
                self._uncommitted_bytes = 0
            self._files.flush()
            if files:
                self._packs.sync(files)
            if files or self._index.unsynced or end != self._index.mark:
                self._index.move_mark(end)

    def _add(self, batch: list[Group]) -> int:
        """Store what is new of a few groups. Looks up and repacks outside the writer lock."""
        ids = {name for group in batch for name in group.ids}
        batches = self._batches
        fresh = self.missing(ids)
        picked = _pick(batch, fresh)
        if not picked:
            return 0
        with self._index.lock:
            if self._batches != batches:  # somebody else has added: perhaps the same chunks
                picked = _pick(batch, self.missing(ids))
            needed = sum(record_bytes(group) for group, _ in picked)
            self._index.require_open()
            require_room(self._path, needed, self._reserve_bytes)
            start = self._packs.end
            places = self._packs.append([group for group, _ in picked])
            new = {name: length for _, chunks in picked for name, length in chunks.items()}
            try:
                with self._index.write() as db:
                    for place, (group, chunks) in zip(places, picked, strict=True):
                        insert_group(db, place, group, chunks.items())
                    known = self._holdings.arrived(db, new)
            except BaseException:
                self._packs.rewind(start)
                raise
            self._leases.born(new.keys() - known)
            self._retrieval.suspects -= new.keys()
            self._batches += 1
            self._uncommitted_bytes += needed
        return sum(new.values())

    # -- layers

    def put_layer(
        self,
        id: LayerId,
        size: int,
        manifest_chunks: Sequence[ChunkId],
        manifest_size: int,
        content_chunks: Mapping[ChunkId, int],
        hold: bool = True,
    ) -> None:
        """Make or renew the record of a layer, whose content may be here in part or not at all.

        Args:
            id: the layer.
            size: bytes of file content.
            manifest_chunks: all of them must be stored.
            manifest_size: bytes of the canonical encoding.
            content_chunks: distinct content chunks in manifest order, with their lengths.
            hold: protect its chunks from gc. A layer that is held already stays so.

        Raises:
            ChunkMissing: a manifest chunk is not stored.
        """
        self._holdings.put(id, size, manifest_chunks, manifest_size, content_chunks, hold)
        self._leases.adopted([*manifest_chunks, *content_chunks])

    def layer(self, id: LayerId) -> LayerRecord | None:
        """The record of a layer, if there is one."""
        return self._holdings.get(id)

    def layers(self) -> list[LayerRecord]:
        """Every record, in the order in which they were added."""
        return self._holdings.all()

    def find_layers(self, hex_prefix: str) -> list[LayerRecord]:
        """Records of layers whose id begins with these hex digits; none if they are not hex digits."""
        return self._holdings.all(hex_prefix)

    def drop_layer(self, id: LayerId) -> None:
        """Hold it no longer. Its record stays until gc takes its manifest.

        Raises:
            LayerUnknown
        """
        self._holdings.change(id, held=False)

    def pin(self, id: LayerId, pinned: bool) -> None:
        """Protect a layer from gc and eviction whether it is held or not, or no longer.

        Raises:
            LayerUnknown
        """
        self._holdings.change(id, pinned=pinned)

    def touch(self, id: LayerId) -> None:
        """Mark a layer as used now.

        Raises:
            LayerUnknown
        """
        self._holdings.change(id)

    def layer_chunks(self, id: LayerId) -> dict[ChunkId, int]:
        """Its distinct content chunks in manifest order, with their lengths.

        Raises:
            LayerUnknown
        """
        return self._holdings.content(id)

    def holding(self, id: LayerId) -> tuple[int, int]:
        """How many of a layer's distinct content chunks are here, and how many there are.

        Raises:
            LayerUnknown
        """
        return self._holdings.have(id)[:2]

    def bitmap(self, id: LayerId) -> bytes:
        """Bit i (least significant first) says whether the i-th distinct content chunk is here.

        Raises:
            LayerUnknown
        """
        return self._holdings.have(id)[2]

    def lacking(self, id: LayerId) -> dict[ChunkId, int]:
        """The content chunks of a layer that are not here, in manifest order, with their lengths.

        Raises:
            LayerUnknown
        """
        chunks = self._holdings.content(id)
        missing = self.missing(chunks)
        return {name: length for name, length in chunks.items() if name in missing}

    def smallest(self, count: int) -> list[ChunkId]:
        """The first `count` ids in bytewise order of all chunks here, manifests' included: a sketch's sample."""
        return self._index.smallest(count)

    # -- protection and care

    def lease(self, ids: Iterable[ChunkId], ttl_s: float, owner: str) -> None:
        """Spare `ids` (here or not) from gc for `ttl_s` seconds or until released. Survives a restart."""
        self._leases.lease(ids, ttl_s, owner)

    def renew(self, ids: Iterable[ChunkId], ttl_s: float, owner: str) -> None:
        """As `lease`, in the place of every lease of `owner`, in one step."""
        self._leases.renew(ids, ttl_s, owner)

    def release(self, owner: str) -> None:
        """End every lease of `owner`."""
        self._leases.release(owner)

    def stats(self) -> StoreStats:
        """How much is here. Counts are kept until something changes."""
        chunks, raw_bytes, layers = self._index.totals()
        sizes = self._packs.sizes()
        room = free_bytes(self._path, self._reserve_bytes)
        suspects = len(self._retrieval.suspects)
        return StoreStats(chunks, layers, raw_bytes, sum(sizes.values()), len(sizes), room, suspects)

    def verify(self, progress: Progress | None = None) -> list[Damage]:
        """Read everything and check it: records, tables, digests, and that the index agrees.

        Reads sequentially and holds a few MiB. What `progress` raises passes through.

        Returns:
            Every chunk that is on record and cannot be had; give them to `forget` to have them fetched again.

        Raises:
            StoreDamaged: the index itself is not sound. Move it away: it is rebuilt when the store is next opened.
        """
        return verify(self._index, self._packs, self._holdings, progress)

    def forget(self, ids: Iterable[ChunkId]) -> None:
        """Drop chunks from the index, so that they are missing. Their bytes go with the next gc of their pack."""
        names = set(ids)
        with self._index.write() as db:
            gone = [row[0] for row in select_in(db, "SELECT id FROM chunks WHERE id IN ({})", names)]
            delete_chunks(db, gone)
            self._holdings.departed(db, gone)
        self._retrieval.suspects -= names

    def collect(
        self,
        policy: GcPolicy,
        *,
        bound: Collection[LayerId] = (),
        extra_roots: Iterable[ChunkId] = (),
        progress: Progress | None = None,
    ) -> GcReport:
        """Delete what nothing protects; see `collect` for what protects a chunk. One run at a time.

        Args:
            policy: watermarks, and how sparse a pack is worth rewriting.
            bound: layers that running things need: protected, and never evicted.
            extra_roots: chunks to keep whatever the layers say.
            progress: bytes of packs dealt with, of those to be. May raise to cancel; what was done stays done.

        Raises:
            OSError: the disk failed.
        """
        with self._collect_lock, self._leases.watch(extra_roots) as spared:
            parts = (self._index, self._packs, self._holdings)
            sweep = Sweep(*parts, spared=spared, bound=bound, policy=policy, commit=self.commit)
            snapshot = sweep.snapshot()
            report = sweep.execute(plan_gc(snapshot, policy), snapshot, progress)
            self._files.prune()
            self._retrieval.suspects &= self._index.present(self._retrieval.suspects)
            return report

    # -- the importer's stat cache

    def cached(self, dev: int, ino: int) -> bytes | None:
        """What the importer remembered of this inode, if anything."""
        return self._files.cached(dev, ino)

    def remember(self, dev: int, ino: int, payload: bytes) -> None:
        """Remember `payload` for this inode; durable with the next `commit()`."""
        self._files.remember(dev, ino, payload)


def _pick(batch: list[Group], fresh: set[ChunkId]) -> list[tuple[Group, dict[ChunkId, int]]]:
    """What to store of some groups: each with those of its chunks that shall be read from it. Empties `fresh`."""
    picked = []
    for group in batch:
        new = {name: length for name, length in zip(group.ids, group.lengths, strict=True) if name in fresh}
        fresh -= new.keys()
        if 4 * sum(new.values()) >= 3 * group.raw_bytes:
            picked.append((group, new))
        else:
            packed = take(group, new)
            if packed is not None:
                picked.append((packed, new))
    return picked
