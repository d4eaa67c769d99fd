"""A SQLite database of an application, before and after one per cent of its rows were updated in place."""

import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from bench.data.pair import MB, NEW_TIME_S, OLD_TIME_S, PAGE_BYTES, Facts, check, differing_pages
from bench.data.workshop import Workshop

SEED = 20240302
ROWS_PER_MB = 2950
STATES = ("open", "paid", "sent", "lost")
_SYLLABLES = ["ka", "lo", "mi", "ter", "an", "vel", "dor", "is", "qua", "ren", "tu", "shi", "bo", "gal", "en", "pra"]

Row = tuple[int, str, str, float, int, str, str]


def build(_workshop: Workshop, folder: Path, size_mb: int) -> Facts:
    """Fill a database up to nearly `size_mb`; in a copy, update scattered rows in one transaction, without VACUUM."""
    old, new = folder / "old" / "shop.sqlite", folder / "new" / "shop.sqlite"
    for path in (old, new):
        path.parent.mkdir()
    rng = random.Random(SEED)
    rows = _fill(old, size_mb * MB, rng)
    shutil.copyfile(old, new)
    updated = _update(new, rows, rng)
    differ, pages = differing_pages(old, new)
    check(0.01 <= differ / pages <= 0.3, f"sqlite: {differ} of {pages} pages were rewritten")
    check(sorted(path.name for path in new.parent.iterdir()) == [new.name], "sqlite: a journal was left")
    os.utime(old, (OLD_TIME_S, OLD_TIME_S))
    os.utime(new, (NEW_TIME_S, NEW_TIME_S))
    return {"rows": rows, "updated_rows": updated, "pages": pages, "rewritten_pages": differ}


def rows(count: int, rng: random.Random) -> Iterator[Row]:
    """Rows of an orders table."""
    words = ["".join(rng.choices(_SYLLABLES, k=rng.randrange(1, 5))) for _ in range(4000)]
    for number in range(count):
        name = " ".join(rng.choices(words, k=2))
        yield (
            number,
            f"{rng.getrandbits(96):024x}",
            name,
            round(rng.random() * 900, 2),
            OLD_TIME_S - rng.randrange(30_000_000),
            rng.choice(STATES),
            " ".join(rng.choices(words, k=rng.randrange(20, 44))),
        )


def _fill(path: Path, size: int, rng: random.Random) -> int:
    wanted = size * ROWS_PER_MB // MB
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        database.execute("PRAGMA synchronous = OFF")
        database.execute(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, token TEXT, name TEXT, total REAL, changed INTEGER, "
            "state TEXT, note TEXT)"
        )
        database.execute("CREATE INDEX by_state ON orders (state, id)")
        with database:
            database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?)", rows(wanted, rng))
    made = path.stat().st_size
    check(0.7 * size <= made <= size, f"sqlite: {made} bytes for {wanted} rows")
    return wanted


def _update(path: Path, count: int, rng: random.Random) -> int:
    chosen = sorted(rng.sample(range(count), max(1, count // 100)))
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "UPDATE orders SET state = ?, total = ?, changed = ? WHERE id = ?",
            ((rng.choice(STATES), round(rng.random() * 900, 2), OLD_TIME_S + number, number) for number in chosen),
        )
    return len(chosen)
