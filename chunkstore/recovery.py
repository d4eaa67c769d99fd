"""Open a store after whatever happened to it: a clean stop, SIGKILL, a power cut, a lost index.

Records before the index's mark are durable and their rows are trusted. Everything after it is verified again: its rows
are dropped, the packs are scanned from the mark on, and the chunks of each record whose checksum *and* digests hold
get their rows back. A torn tail is cut off. An index that cannot be read is put aside and rebuilt by the same scan,
from the beginning.

A rebuilt index knows no layers, and without layers all chunks would be garbage, so they are leased for a week: time
to pull the layers again, which then moves their manifests only.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chunkstore.codec import Group, open_group
from chunkstore.digest import ChunkId
from chunkstore.errors import BadGroup, CorruptChunk, StoreDamaged
from chunkstore.index import Index, insert_group, select_in
from chunkstore.leases import Leases
from chunkstore.packs import PackFiles
from chunkstore.records import Place, at, pack_of

_BATCH_RECORDS = 64
_REBUILT_LEASE_S = 7 * 86400.0
_REBUILT_OWNER = "rebuilt index"
_NOWHERE = Place(1 << 62)  # beyond every place


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening a store found and did."""

    rebuilt: bool
    """The index was lost: layers must be added or pulled again, which moves next to no bytes."""
    adopted_chunks: int
    """Chunks of unmarked records that were verified and kept."""
    lost_chunks: int
    """Chunks that had a row and are not there: they are missing now."""
    cut_bytes: int
    """Torn bytes that were cut off."""


def open_index(path: Path) -> Index:
    """The index at `path`; one that cannot be read is put aside, and an empty one opened.

    Raises:
        FormatMismatch: another version wrote it.
    """
    try:
        return Index(path)
    except StoreDamaged:
        for suffix in ("", "-wal", "-shm"):
            old = path.with_name(path.name + suffix)
            if old.exists():
                old.replace(path.with_name(f"{path.name}{suffix}.damaged"))
        return Index(path)


def recover(index: Index, packs: PackFiles, leases: Leases) -> Recovery:
    """Make rows and records agree, and let `packs` append after the last sound record."""
    mark = index.mark
    sizes = packs.sizes()
    dropped = index.drop_rows(mark, _NOWHERE) if index.records_from(mark, 1) else set()
    for pack in index.packs():
        if pack not in sizes:
            dropped |= index.drop_rows(at(pack, 0), at(pack + 1, 0))
    end = max(mark, at(1, 0))
    adopted: set[ChunkId] = set()
    unmarked = [pack for pack in sizes if pack >= pack_of(mark)]
    for pack in unmarked:
        end = max(end, at(pack, 0))
        for batch in _batches(packs.scan(max(mark, at(pack, 0)))):
            adopted |= _adopt(index, batch)
            end = Place(batch[-1][0] + batch[-1][1])
    cut = packs.resume(end)
    rebuilt = index.created and bool(sizes)
    if rebuilt:
        leases.lease(adopted, _REBUILT_LEASE_S, _REBUILT_OWNER)
    if packs.end != mark:
        packs.sync(packs.files(unmarked))
        index.move_mark(packs.end)
    return Recovery(rebuilt, len(adopted), len(dropped - adopted), cut)


def _adopt(index: Index, records: list[tuple[Place, int, Group]]) -> set[ChunkId]:
    """Give rows to those chunks of scanned records that have none; returns them."""
    adopted: set[ChunkId] = set()
    with index.write() as db:
        for place, _, group in records:
            try:
                open_group(group)
            except (BadGroup, CorruptChunk):
                continue
            known = {row[0] for row in select_in(db, "SELECT id FROM chunks WHERE id IN ({})", group.ids)}
            found = {name: length for name, length in zip(group.ids, group.lengths, strict=True) if name not in known}
            if found:
                insert_group(db, place, group, found.items())
                adopted |= found.keys()
    return adopted


def _batches(records: Iterator[tuple[Place, int, Group]]) -> Iterator[list[tuple[Place, int, Group]]]:
    batch: list[tuple[Place, int, Group]] = []
    for record in records:
        batch.append(record)
        if len(batch) == _BATCH_RECORDS:
            yield batch
            batch = []
    if batch:
        yield batch
