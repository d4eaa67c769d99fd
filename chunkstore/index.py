"""The look-up of one store: SQLite in WAL mode, and the rows that say where each chunk lies.

The index is derived from the packs for everything but layers, leases and the stat cache: rows are written when a record
is appended, and a *mark* says up to which place records are known to be durable. What lies after the mark is verified
when the store is opened (see `recovery`), so ordinary transactions need no fsync and only moving the mark does.

One writer at a time holds `lock`. Readers borrow a connection for each query, so there are as many as threads that
read at the same moment, and none is tied to a thread that may be gone tomorrow.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chunkstore.codec import Group
from chunkstore.digest import ChunkId
from chunkstore.errors import DiskFull, FormatMismatch, StoreClosed, StoreDamaged, StoreError
from chunkstore.records import Place, at, pack_of, record_bytes

_APPLICATION_ID = 0x50325053
_FORMAT = 1
_SCHEMA = """
CREATE TABLE mark (place INTEGER NOT NULL);
INSERT INTO mark VALUES (0);
CREATE TABLE groups (place INTEGER PRIMARY KEY, size INTEGER NOT NULL, raw_bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE chunks (id BLOB PRIMARY KEY, place INTEGER NOT NULL, length INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE layers (
    no INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, chunks INTEGER NOT NULL,
    manifest_size INTEGER NOT NULL, held INTEGER NOT NULL, pinned INTEGER NOT NULL, added_s REAL NOT NULL,
    used_s REAL NOT NULL, manifest BLOB NOT NULL, content BLOB NOT NULL);
CREATE TABLE refs (chunk BLOB, layer INTEGER, position INTEGER, PRIMARY KEY (chunk, layer, position)) WITHOUT ROWID;
CREATE TABLE leases (owner TEXT NOT NULL, expires_s REAL NOT NULL, ids BLOB NOT NULL);
CREATE INDEX leases_owner ON leases (owner);
CREATE TABLE files (
    dev INTEGER, ino INTEGER, payload BLOB NOT NULL, seen_s REAL NOT NULL, PRIMARY KEY (dev, ino)) WITHOUT ROWID;
"""

_BATCHES = (500, 64, 8, 1)  # a few fixed sizes of parameter lists, so that prepared statements are found again
_BUSY_TIMEOUT_S = 30.0


class Index:
    """Connections and chunk rows. Safe for many threads."""

    def __init__(self, path: Path) -> None:
        """Open the index at `path`, or create an empty one.

        Raises:
            FormatMismatch: it was written by another version, or is another program's database.
            StoreDamaged: it cannot be read.
        """
        self.path = path
        self.lock = threading.RLock()
        self.on_rollback: list[Callable[[], None]] = []
        self._idle: list[sqlite3.Connection] = []
        self._idle_lock = threading.Lock()
        self._closed = False
        self.unsynced = False  # some transaction would not survive a power cut yet
        self._totals: tuple[int, tuple[int, int, int]] | None = None
        self.created = not path.exists()
        self._writer = self._connect()
        try:
            with self._told():
                self.created |= self._prepare()
        except BaseException:
            self._writer.close()
            raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Borrow a connection for reading; finish every cursor before giving it back.

        Raises:
            StoreClosed: after `close`.
            StoreDamaged: the database is not sound.
        """
        with self._told():
            db = self._borrow()
            try:
                yield db
            finally:
                self._give_back(db)

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction; nothing of it stays when the block raises. Takes `lock`, does not nest.

        Args:
            durable: return only when this and every earlier transaction survive a power cut.

        Raises:
            DiskFull, StoreClosed, StoreDamaged
        """
        with self.lock, self._told():
            self.require_open()
            db = self._writer
            db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
                self.unsynced = not durable
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                for forget in self.on_rollback:
                    forget()
                raise

    def require_open(self) -> None:
        """Raise `StoreClosed` after `close`."""
        if self._closed:
            raise StoreClosed(f"{self.path} is closed")

    def close(self) -> None:
        """Close every connection; one that is in use is closed by its borrower."""
        with self.lock, self._idle_lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for db in (*idle, self._writer):
                db.close()

    def shrink(self) -> None:
        """Free the pages that connections keep, but for those in use."""
        with self.lock, self._told():
            self.require_open()
            self._writer.execute("PRAGMA shrink_memory")
        with self._idle_lock:
            idle, self._idle = self._idle, []
        for db in idle:
            db.close()

    # -- chunk rows

    def present(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Those of `ids` that have a row."""
        with self.read() as db:
            return {row[0] for row in select_in(db, "SELECT id FROM chunks WHERE id IN ({})", ids)}

    def smallest(self, count: int) -> list[ChunkId]:
        """The first `count` ids in bytewise order of those that have a row; costs no more than these rows."""
        with self.read() as db:
            return [row[0] for row in db.execute("SELECT id FROM chunks ORDER BY id LIMIT ?", (count,))]

    def locate(self, ids: Iterable[ChunkId]) -> dict[Place, tuple[int, set[ChunkId]]]:
        """Where chunks lie, in order: place -> size of the record there, and those of `ids` that it holds."""
        found: dict[Place, tuple[int, set[ChunkId]]] = {}
        # A row that points to no record is located too, at size 0, so that its reader finds the damage.
        query = "SELECT id, place, coalesce(size, 0) FROM chunks LEFT JOIN groups USING (place) WHERE id IN ({})"
        with self.read() as db:
            for name, place, size in select_in(db, query, ids):
                found.setdefault(place, (size, set()))[1].add(name)
        return dict(sorted(found.items()))

    def records_from(self, place: Place, limit: int) -> list[tuple[Place, int]]:
        """Places and sizes of the next `limit` records at or after `place`, in order."""
        query = "SELECT place, size FROM groups WHERE place >= ? ORDER BY place LIMIT ?"
        with self.read() as db:
            return db.execute(query, (place, limit)).fetchall()

    def packs(self) -> list[int]:
        """The numbers of the packs that any row points into."""
        numbers = []
        place = Place(0)
        while found := self.records_from(place, 1):
            numbers.append(pack_of(found[0][0]))
            place = at(numbers[-1] + 1, 0)
        return numbers

    def drop_rows(self, first: Place, beyond: Place) -> set[ChunkId]:
        """Delete the rows of records from `first` to before `beyond`. Returns the chunks that were there."""
        where = "WHERE place >= ? AND place < ?"
        with self.write() as db:
            dropped = {row[0] for row in db.execute(f"SELECT id FROM chunks {where}", (first, beyond))}
            db.execute(f"DELETE FROM chunks {where}", (first, beyond))
            db.execute(f"DELETE FROM groups {where}", (first, beyond))
        return dropped

    def totals(self) -> tuple[int, int, int]:
        """Chunks, their uncompressed bytes, and layers. Scans all rows if anything changed since the last call."""
        with self.lock:  # between transactions, or rows that nobody can read yet would count as changes seen
            self.require_open()
            changes = self._writer.total_changes
        if self._totals is None or self._totals[0] != changes:
            query = "SELECT count(*), coalesce(sum(length), 0), (SELECT count(*) FROM layers) FROM chunks"
            with self.read() as db:
                self._totals = (changes, db.execute(query).fetchone())
        return self._totals[1]

    @property
    def mark(self) -> Place:
        """Every record before this place is durable."""
        with self.read() as db:
            return Place(db.execute("SELECT place FROM mark").fetchone()[0])

    def move_mark(self, place: Place) -> None:
        """Say that every record before `place` is durable. Returns when that is durable itself."""
        with self.write(durable=True) as db:
            db.execute("UPDATE mark SET place = ?", (place,))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell SQLite's troubles in this package's terms."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise DiskFull(self.path, 0, 0) from error
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise StoreDamaged(self.path, str(error)) from error
            if self._closed:
                raise StoreClosed(f"{self.path} is closed") from error
            raise StoreError(f"{self.path}: {error}") from error

    def _borrow(self) -> sqlite3.Connection:
        with self._idle_lock:
            self.require_open()
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, db: sqlite3.Connection) -> None:
        with self._idle_lock:
            if not self._closed:
                self._idle.append(db)
                return
        db.close()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )

    def _prepare(self) -> bool:
        """Check the format, or create it. Returns whether the database was empty."""
        db = self._writer
        found = (db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0])
        empty: bool = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        if not empty and found != (_APPLICATION_ID, _FORMAT):
            raise FormatMismatch(self.path, found[1], _FORMAT)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA cache_size = -32768")
        if empty:
            stamp = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {_FORMAT};"
            db.executescript(f"BEGIN; {_SCHEMA} {stamp} COMMIT;")
        return empty


def insert_group(db: sqlite3.Connection, place: Place, group: Group, chunks: Iterable[tuple[ChunkId, int]]) -> None:
    """Row the record of `group`, and those of its chunks that shall be read from there."""
    db.execute("INSERT INTO groups VALUES (?, ?, ?)", (place, record_bytes(group), group.raw_bytes))
    rows = [(name, place, length) for name, length in sorted(chunks)]
    db.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)", rows)


def delete_chunks(db: sqlite3.Connection, ids: Iterable[ChunkId]) -> None:
    """Delete the rows of chunks; the record they pointed to keeps its own."""
    db.executemany("DELETE FROM chunks WHERE id = ?", [(name,) for name in ids])


def select_in(db: sqlite3.Connection, query: str, names: Iterable[bytes], *also: object) -> Iterator[Any]:
    """Rows of `query` for many names, in batches.

    Args:
        db: the connection.
        query: with `{}` where the list of parameters goes.
        names: any number; repeats cost nothing.
        also: parameters that follow the list.
    """
    rest: Sequence[bytes] = sorted(set(names))
    start = 0
    while start < len(rest):
        size = next(size for size in _BATCHES if size <= len(rest) - start)
        some = rest[start : start + size]
        start += size
        yield from db.execute(query.format(",".join("?" * size)), (*some, *also))
