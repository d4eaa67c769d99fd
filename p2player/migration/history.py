"""Finished migrations, kept over restarts: their rows, what is still answered about them, and what they taught.

One journal, STATE/migrations/history, an entry a migration that is over for this node; the newest `KEPT` of them
count. When twice as many have gathered, the file is written anew with those.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2player.errors import Integrity
from p2player.journal import Journal
from p2player.planning import Lesson
from p2player.proto.handoff.memory import Epitaph, Fate
from p2player.proto.handoff.table import End
from p2player.statedir import sync_folder

KEPT = 256
FILE = "history"


@dataclass(frozen=True, slots=True)
class Entry:
    """One migration that is over here.

    Attributes:
        row: as clients see it; it has `id`.
        peer: NodeId of the other end, the only one to whom `epitaph` is told.
        lesson: what it taught, where this was the source and it moved.
    """

    row: Mapping[str, Any]
    peer: str
    epitaph: Epitaph
    lesson: Lesson | None = None

    def document(self) -> dict[str, Any]:
        """As JSON-able values."""
        return {
            "row": dict(self.row),
            "peer": self.peer,
            "end": self.epitaph.end.value,
            "fate": self.epitaph.fate.value,
            "epoch": self.epitaph.epoch,
            "lesson": None if self.lesson is None else self.lesson.document(),
        }

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Entry | None":
        """The inverse of `document`; None where another version wrote something else."""
        row, peer, epoch = document.get("row"), document.get("peer"), document.get("epoch")
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(peer, str):
            return None
        try:
            end, fate = End(str(document.get("end"))), Fate(str(document.get("fate")))
        except ValueError:
            return None
        if not isinstance(epoch, int):
            return None
        return cls(row, peer, Epitaph(end, fate, epoch), Lesson.read(document.get("lesson")))


class History:
    """What is over. `write` blocks and makes an entry durable, `put` makes it known; the rest is memory.

    Args:
        root: STATE/migrations.

    Raises:
        Integrity: the file is damaged.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / FILE
        self._lock = threading.Lock()
        self._journal = Journal.open(self._path)
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        for document in self._journal.records:
            entry = Entry.read(document)
            if entry is not None:
                self.put(entry)
        self._written = len(self._journal.records)

    @classmethod
    def open(cls, root: Path) -> tuple["History", str | None]:
        """The history in `root`, and what was wrong with it: a damaged file is put aside, and it begins anew."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return cls(root), None
        except Integrity as error:
            os.replace(root / FILE, root / f"{FILE}.damaged")
            return cls(root), error.message

    def write(self, entry: Entry) -> None:
        """Make one more durable; for a worker thread, one at a time."""
        with self._lock:
            self._journal.append(entry.document())
            self._written += 1
            if self._written > 2 * KEPT:
                self._rewrite(entry)

    def get(self, migration: str) -> Entry | None:
        """The entry of that id."""
        return self._entries.get(migration)

    def __iter__(self) -> Iterator[Entry]:
        """Oldest first."""
        return iter(self._entries.values())

    def lessons(self) -> list[Lesson]:
        """What was learned, oldest first."""
        return [entry.lesson for entry in self if entry.lesson is not None]

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def put(self, entry: Entry) -> None:
        """Make one more known; one of the same id is replaced."""
        self._entries.pop(entry.row["id"], None)
        self._entries[entry.row["id"]] = entry
        while len(self._entries) > KEPT:
            self._entries.popitem(last=False)

    def _rewrite(self, newest: Entry) -> None:
        kept = [*list(self._entries.values())[1 - KEPT :], newest]
        new = self._path.with_name(f"{FILE}.new")
        new.unlink(missing_ok=True)
        fresh = Journal.open(new)
        for entry in kept:
            fresh.append(entry.document())
        os.replace(new, self._path)
        sync_folder(self._path.parent)
        self._journal.close()
        self._journal = fresh
        self._written = len(kept)
