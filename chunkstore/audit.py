"""Find every flipped bit: read all packs in disk order and check each record, table and digest.

Reads sequentially, holds a few MiB, and may run while others add, read and collect: a record that was rewritten in
the meantime is not reported.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from chunkstore.codec import Group, split
from chunkstore.digest import ChunkId, LayerId, chunk_id
from chunkstore.errors import BadGroup, StoreDamaged
from chunkstore.holdings import Holdings
from chunkstore.index import Index
from chunkstore.packs import PackFiles
from chunkstore.progress import Progress
from chunkstore.records import Place

_BATCH_RECORDS = 1000


@dataclass(frozen=True, slots=True)
class Damage:
    """A chunk that is on record here and cannot be had."""

    chunk_id: ChunkId
    layers: tuple[LayerId, ...]
    """The layers that need it."""
    reason: str


def verify(index: Index, packs: PackFiles, holdings: Holdings, progress: Progress | None) -> list[Damage]:
    """Check everything; see `ChunkStore.verify`."""
    with index.read() as db:
        for (said,) in db.execute("PRAGMA quick_check(1)").fetchall():
            if said != "ok":
                raise StoreDamaged(index.path, said)
        (total,) = db.execute("SELECT coalesce(sum(size), 0) FROM groups").fetchone()
    records: dict[Place, str] = {}
    chunks: dict[ChunkId, Place] = {}
    done = 0
    for batch in _batches(index):
        sizes = dict(batch)
        for place, found in packs.fetch(batch):
            if isinstance(found, Group):
                try:
                    chunks.update((name, place) for name in _corrupt(found))
                except BadGroup as error:
                    records[place] = str(error)
            else:
                records[place] = found.value
            done += sizes[place]
            if progress:
                progress(min(done, total), total)
    reasons = _rows_of(index, records)
    for place, (_, names) in index.locate(chunks).items():
        reasons.update((name, "it differs from its digest") for name in names if chunks[name] == place)
    layers = holdings.referring(reasons)
    return [Damage(name, layers.get(name, ()), reason) for name, reason in reasons.items()]


def _batches(index: Index) -> Iterator[list[tuple[Place, int]]]:
    place = Place(0)
    while batch := index.records_from(place, _BATCH_RECORDS):
        yield batch
        place = Place(batch[-1][0] + 1)


def _corrupt(group: Group) -> list[ChunkId]:
    """The chunks of a sound record whose bytes have another digest: they were wrong when they were added."""
    return [name for name, data in split(group) if chunk_id(data) != name]


def _rows_of(index: Index, records: dict[Place, str]) -> dict[ChunkId, str]:
    """Chunks whose row points into one of these records, or to no record at all."""
    with index.read() as db:
        query = "SELECT id FROM chunks WHERE NOT EXISTS (SELECT 1 FROM groups WHERE groups.place = chunks.place)"
        reasons = {ChunkId(name): "its row points nowhere" for (name,) in db.execute(query)}
        if records:
            for name, place in db.execute("SELECT id, place FROM chunks"):
                if place in records:
                    reasons[name] = records[place]
    return reasons
