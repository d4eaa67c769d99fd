"""The stat cache's rows: what an importer found in a file, under the file's device and inode.

The payload is opaque here: the importer puts size and times into it and trusts it only while they are unchanged.
Rows are gathered and written a thousand at a time; losing some costs nothing but reading a file again.
"""

import threading
from collections.abc import Callable

from chunkstore.index import Index

_FLUSH_ROWS = 1000
_KEEP_S = 90 * 86400.0


class FileCache:
    """Opaque rows by (device, inode). Safe for many threads."""

    def __init__(self, index: Index, clock: Callable[[], float]) -> None:
        self._index = index
        self._clock = clock
        self._pending: dict[tuple[int, int], bytes] = {}
        self._lock = threading.Lock()

    def cached(self, dev: int, ino: int) -> bytes | None:
        """What was remembered for this inode, if anything."""
        with self._lock:
            payload = self._pending.get((dev, ino))
        if payload is None:
            with self._index.read() as db:
                query = "SELECT payload FROM files WHERE dev = ? AND ino = ?"
                row = db.execute(query, (_signed(dev), _signed(ino))).fetchone()
            payload = row and row[0]
        return payload

    def remember(self, dev: int, ino: int, payload: bytes) -> None:
        """Keep `payload` for this inode, in place of what was remembered before."""
        with self._lock:
            self._pending[dev, ino] = payload
            full = len(self._pending) >= _FLUSH_ROWS
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        with self._index.lock:
            with self._lock:
                pending = dict(self._pending)
            if not pending:
                return
            now = self._clock()
            rows = [(_signed(dev), _signed(ino), payload, now) for (dev, ino), payload in sorted(pending.items())]
            with self._index.write() as db:
                db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
            with self._lock:
                for key, payload in pending.items():
                    if self._pending.get(key) is payload:
                        del self._pending[key]

    def prune(self) -> None:
        """Drop rows that nobody has written for a long time."""
        with self._index.write() as db:
            db.execute("DELETE FROM files WHERE seen_s < ?", (self._clock() - _KEEP_S,))


def _signed(number: int) -> int:
    """Some file systems use all 64 bits of an inode number; SQLite's integers are signed."""
    return number - (1 << 64) if number >= 1 << 63 else number
