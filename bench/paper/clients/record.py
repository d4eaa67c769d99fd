"""What a client writes down while it uses a service, and what gaps there are in it; lines of JSON in a file.

    {"at": 812.250, "what": "probe"}                           an answer to a probe came
    {"at": 812.251, "what": "held", "ticks": 17, ...}          an answer on the connection that is held open
    {"at": 812.260, "what": "app", ...}                        an answer of the application in its own protocol
    {"at": 815.000, "what": "broken", "channel": "held", "why": "..."}
    {"at": 815.000, "what": "lost", "channel": "app", "why": "..."}   the application has forgotten something

`at` is on the clock `time.monotonic`, which all processes of a machine share.
"""

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

PROBE = "probe"
HELD = "held"
APP = "app"
BROKEN = "broken"
LOST = "lost"

LEAST_GAP_S = 0.1
"""Shorter times without an answer are those between two questions."""


class Record:
    """The file, written by several threads; each line is there at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def answered(self, what: str, **facts: int | str) -> None:
        """An answer came just now."""
        self._write({"at": round(time.monotonic(), 4), "what": what, **facts})

    def broken(self, channel: str, why: object) -> None:
        """A connection that was to be kept has broken."""
        self._write({"at": round(time.monotonic(), 4), "what": BROKEN, "channel": channel, "why": str(why)})

    def lost(self, channel: str, why: str) -> None:
        """The application has forgotten something that it knew."""
        self._write({"at": round(time.monotonic(), 4), "what": LOST, "channel": channel, "why": why})

    def _write(self, row: dict[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(row) + "\n")


def read(path: Path, what: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file, or those of one kind; a last line that is not whole yet is left out."""
    with path.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                row: dict[str, Any] = json.loads(line)
                if what is None or row["what"] == what:
                    yield row


@dataclass(frozen=True, slots=True)
class Gaps:
    """Times without an answer, within some time.

    Attributes:
        longest_s: the longest one.
        longest_at: when it began.
        total_s: sum of those of at least `LEAST_GAP_S`.
        answers: how many answers there were.
    """

    longest_s: float
    longest_at: float
    total_s: float
    answers: int


def gaps(times: Iterable[float], begin_s: float, end_s: float) -> Gaps:
    """Times without an answer between two times; what was before or comes after counts as far as it reaches inside.

    Args:
        times: of answers, in order.
    """
    inside = [begin_s, *(at for at in times if begin_s < at < end_s), end_s]
    steps = [(later - at, at) for at, later in pairwise(inside)]
    longest_s, longest_at = max(steps, key=lambda step: step[0])
    return Gaps(longest_s, longest_at, sum(step for step, _ in steps if step >= LEAST_GAP_S), len(inside) - 2)


def answer_times(rows: Iterable[dict[str, Any]], what: str) -> Sequence[float]:
    """When answers of one kind came."""
    return [row["at"] for row in rows if row["what"] == what]
