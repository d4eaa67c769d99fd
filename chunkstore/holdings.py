"""What is known of layers: their records, and how much of each is here.

A layer's record names its manifest chunks and its distinct content chunks in manifest order; most or all of the
content may be missing. Each of these chunks has a *ref* row that leads back to the layer, which tells garbage
collection what to spare, `verify` whom a damaged chunk hurts, and an arriving chunk which bits to set.

How much of a layer is here is a bitmap, computed when it is first asked for and kept up to date from then on. It is
never stored, so no crash can make it wrong.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from chunkstore.digest import ID_BYTES, ChunkId, LayerId
from chunkstore.errors import ChunkMissing, LayerUnknown
from chunkstore.index import Index, select_in
from chunkstore.records import TABLE_ROW_BYTES, decode_table, encode_table, iterate_table

_SLICE: Final = 8192
_COLUMNS = "id, size, chunks, manifest, manifest_size, held, pinned, added_s, used_s"


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """What the store knows of one layer."""

    id: LayerId
    size: int
    """Bytes of file content."""
    chunks: int
    """Distinct content chunks, here or not."""
    manifest_chunks: tuple[ChunkId, ...]
    manifest_size: int
    held: bool
    """Wanted here: its chunks are protected from gc, whether all have arrived or not."""
    pinned: bool
    """Protected even when no longer held, and never evicted."""
    added_s: float
    used_s: float
    """When it was last added or touched, in seconds since the epoch."""


@dataclass(slots=True)
class _Presence:
    """Which content chunks of one layer are here: bit i (least significant first) is the i-th in manifest order."""

    bits: bytearray
    total: int
    have: int = 0

    def set(self, position: int) -> None:
        mask = 1 << (position & 7)
        if not self.bits[position >> 3] & mask:
            self.bits[position >> 3] |= mask
            self.have += 1

    def clear(self, position: int) -> None:
        mask = 1 << (position & 7)
        if self.bits[position >> 3] & mask:
            self.bits[position >> 3] &= ~mask
            self.have -= 1


class Holdings:
    """Layer records of one index. Safe for many threads."""

    def __init__(self, index: Index, clock: Callable[[], float]) -> None:
        self._index = index
        self._clock = clock
        self._presence: dict[int, _Presence] = {}
        index.on_rollback.append(self._presence.clear)

    def put(
        self,
        id: LayerId,
        size: int,
        manifest_chunks: Sequence[ChunkId],
        manifest_size: int,
        content_chunks: Mapping[ChunkId, int],
        hold: bool,
    ) -> None:
        """Make or renew a record; see `ChunkStore.put_layer`."""
        manifest = b"".join(manifest_chunks)
        content = _encoded(content_chunks)
        now = self._clock()
        with self._index.write() as db:
            here = {row[0] for row in select_in(db, "SELECT id FROM chunks WHERE id IN ({})", manifest_chunks)}
            for chunk in manifest_chunks:
                if chunk not in here:
                    raise ChunkMissing(chunk)
            query = "SELECT no, manifest = ? AND content = ? FROM layers WHERE id = ?"
            no, same = db.execute(query, (manifest, content, id)).fetchone() or (None, False)
            if same:
                db.execute("UPDATE layers SET held = max(held, ?), used_s = ? WHERE no = ?", (hold, now, no))
                return
            if no is None:
                begin = "INSERT INTO layers VALUES (NULL, ?, 0, 0, 0, 0, 0, ?, 0, x'', x'')"
                no = db.execute(begin, (id, now)).lastrowid
            else:
                self._unref(db, no)
            facts = "size=?, chunks=?, manifest=?, manifest_size=?, held=max(held, ?), used_s=?, content=?"
            values = (size, len(content_chunks), manifest, manifest_size, hold, now, content, no)
            db.execute(f"UPDATE layers SET {facts} WHERE no = ?", values)
            del content, values
            refs = ((chunk, no, position) for chunk, position in _sorted_refs(content_chunks, manifest_chunks))
            db.executemany("INSERT INTO refs VALUES (?, ?, ?)", refs)

    def get(self, id: LayerId) -> LayerRecord | None:
        """The record of a layer, if there is one."""
        with self._index.read() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM layers WHERE id = ?", (id,)).fetchone()
        return row and _record(row)

    def all(self, hex_prefix: str = "") -> list[LayerRecord]:
        """Records whose id begins with these hex digits, in the order in which they were added."""
        if hex_prefix.strip("0123456789abcdefABCDEF"):
            return []
        query = f"SELECT {_COLUMNS} FROM layers WHERE hex(id) LIKE ? ORDER BY no"
        with self._index.read() as db:
            return [_record(row) for row in db.execute(query, (hex_prefix + "%",)).fetchall()]

    def change(self, id: LayerId, **values: bool) -> None:
        """Set `held` or `pinned`, and mark the layer as used now.

        Raises:
            LayerUnknown
        """
        settings = "".join(f"{name} = {int(value)}, " for name, value in values.items())
        with self._index.write() as db:
            changed = db.execute(f"UPDATE layers SET {settings} used_s = ? WHERE id = ?", (self._clock(), id))
            if not changed.rowcount:
                raise LayerUnknown(id)

    def content(self, id: LayerId) -> dict[ChunkId, int]:
        """Distinct content chunks in manifest order, with their lengths.

        Raises:
            LayerUnknown
        """
        with self._index.read() as db:
            return dict(iterate_table(self._find(db, id)[1]))

    def have(self, id: LayerId) -> tuple[int, int, bytes]:
        """How many distinct content chunks are here, how many there are, and the bitmap of which.

        Raises:
            LayerUnknown
        """
        with self._index.lock:
            with self._index.read() as db:
                no, _ = self._find(db, id, want_content=False)
                presence = self._presence.get(no)
                if presence is None:
                    presence = self._presence[no] = self._look(self._find(db, id)[1])
            return presence.have, presence.total, bytes(presence.bits)

    def _look(self, content: bytes) -> _Presence:
        """Which of these chunks are here, asked slice by slice: a layer may have very many."""
        rows = iterate_table(content)
        total = len(content) // TABLE_ROW_BYTES
        presence = _Presence(bytearray((total + 7) // 8), total)
        for start in range(0, total, _SLICE):
            ids = [chunk for chunk, _ in islice(rows, _SLICE)]
            here = self._index.present(ids)
            for position, chunk in enumerate(ids, start):
                if chunk in here:
                    presence.set(position)
        return presence

    def referring(self, ids: Iterable[ChunkId]) -> dict[ChunkId, tuple[LayerId, ...]]:
        """The layers that each chunk belongs to, for chunks that belong to any."""
        query = "SELECT DISTINCT chunk, layers.id FROM refs JOIN layers ON no = layer WHERE chunk IN ({})"
        found: dict[ChunkId, tuple[LayerId, ...]] = {}
        with self._index.read() as db:
            for chunk, layer in select_in(db, query, ids):
                found[chunk] = (*found.get(chunk, ()), layer)
        return found

    def arrived(self, db: sqlite3.Connection, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Chunks have got a row, in this transaction. Returns those that belong to any layer."""
        known = set()
        for chunk, presence, position in self._bits(db, ids):
            known.add(chunk)
            if presence:
                presence.set(position)
        return known

    def departed(self, db: sqlite3.Connection, ids: Iterable[ChunkId]) -> None:
        """Chunks have lost their row, in this transaction."""
        for _, presence, position in self._bits(db, ids):
            if presence:
                presence.clear(position)

    def discard_records(self, db: sqlite3.Connection, ids: Iterable[LayerId]) -> None:
        """Forget layers altogether, in this transaction."""
        for id in ids:
            no, _ = self._find(db, id)
            self._unref(db, no)
            db.execute("DELETE FROM layers WHERE no = ?", (no,))

    def _bits(self, db: sqlite3.Connection, ids: Iterable[ChunkId]) -> Iterator[tuple[ChunkId, _Presence | None, int]]:
        for chunk, no, position in select_in(db, "SELECT chunk, layer, position FROM refs WHERE chunk IN ({})", ids):
            yield chunk, self._presence.get(no) if position >= 0 else None, position

    def _find(self, db: sqlite3.Connection, id: LayerId, want_content: bool = True) -> tuple[int, bytes]:
        column = "content" if want_content else "x''"
        row: tuple[int, bytes] | None = db.execute(f"SELECT no, {column} FROM layers WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise LayerUnknown(id)
        return row

    def _unref(self, db: sqlite3.Connection, no: int) -> None:
        manifest, content = db.execute("SELECT manifest, content FROM layers WHERE no = ?", (no,)).fetchone()
        ids = (*decode_table(content)[0], *_split_ids(manifest))
        db.executemany("DELETE FROM refs WHERE chunk = ? AND layer = ?", [(chunk, no) for chunk in sorted(ids)])
        self._presence.pop(no, None)


def _encoded(chunks: Mapping[ChunkId, int]) -> bytearray:
    table = bytearray()
    rest = iter(chunks.items())
    while some := list(islice(rest, _SLICE)):
        table += encode_table(*zip(*some, strict=True))
    return table


def _sorted_refs(content: Iterable[ChunkId], manifest: Iterable[ChunkId]) -> Iterator[tuple[ChunkId, int]]:
    """Chunks and positions in the order in which they are rowed; those of the manifest are negative."""
    ids = [*content]
    count = len(ids)
    ids += manifest
    for at in sorted(range(len(ids)), key=ids.__getitem__):
        yield ids[at], at if at < count else count - 1 - at


def _record(row: tuple[bytes, int, int, bytes, int, int, int, float, float]) -> LayerRecord:
    id, size, chunks, manifest, manifest_size, held, pinned, added_s, used_s = row
    ids = _split_ids(manifest)
    return LayerRecord(LayerId(id), size, chunks, ids, manifest_size, bool(held), bool(pinned), added_s, used_s)


def _split_ids(joined: bytes) -> tuple[ChunkId, ...]:
    return tuple(ChunkId(joined[at : at + ID_BYTES]) for at in range(0, len(joined), ID_BYTES))
