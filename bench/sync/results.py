"""The runs that were done: one JSON line each, appended as soon as it is over; and their medians.

A bench that is interrupted leaves whole lines only, but for the last: that one is ignored, and done again.
"""

import json
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.sync.plan import Key


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took.

    Attributes:
        seconds: of the whole commands, start-up included.
        bytes_in, bytes_out: what the destination's interface received and sent meanwhile.
        size_bytes, files: of the tree that was to be made.
        parts: more figures, by name: seconds of single commands, seconds as told by the API, and so on.
        error: why it failed; the figures are then worth nothing.
        at: when, in UTC.
    """

    key: Key
    seconds: float
    bytes_in: int
    bytes_out: int
    size_bytes: int
    files: int
    parts: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    at: str = ""

    @property
    def wire_bytes(self) -> int:
        """Both directions."""
        return self.bytes_in + self.bytes_out


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians of the runs of one contestant in one series."""

    runs: int
    seconds: float
    fastest_s: float
    slowest_s: float
    wire_bytes: float
    size_bytes: int
    files: int
    parts: Mapping[str, float]


SeriesKey = tuple[str, str, int]
"""Case, link, size in MB."""


class Results:
    """A file of runs and notes; made when it is first written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[Key, Run] = {}
        self.notes: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            self._take(line)

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return
        if "notes" in row:
            self.notes[row["code"]] = row["notes"]
        elif "key" in row:
            run = Run(**{**row, "key": Key(**row["key"])})
            self.runs[run.key] = run

    def add(self, run: Run) -> None:
        """Keep a run."""
        self.runs[run.key] = run
        self._append(asdict(run))

    def note(self, code: str, notes: Mapping[str, Any]) -> None:
        """Keep what is to be known about the runs of one state of the code: versions, machine."""
        known = {**self.notes.get(code, {}), **notes}
        if known != self.notes.get(code):
            self.notes[code] = known
            self._append({"code": code, "notes": known})

    def _append(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as out:
            out.write("\n" * torn + json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())

    @property
    def done(self) -> set[Key]:
        """Runs that went well."""
        return {key for key, run in self.runs.items() if run.error is None}

    def newest_code(self) -> str | None:
        """The state of the code that was measured last."""
        return max(self.runs.values(), key=lambda run: run.at).key.code if self.runs else None

    def medians(self, code: str) -> dict[SeriesKey, dict[str, Figures]]:
        """Of each series and contestant, for one state of the code, in the order in which they were measured."""
        groups: dict[SeriesKey, dict[str, list[Run]]] = {}
        for key, run in self.runs.items():
            if key.code == code and run.error is None:
                groups.setdefault((key.case, key.link, key.size_mb), {}).setdefault(key.tool, []).append(run)
        return {series: {tool: median(runs) for tool, runs in tools.items()} for series, tools in groups.items()}


def median(runs: Iterable[Run]) -> Figures:
    """The figures of at least one run."""
    runs = list(runs)
    names = dict.fromkeys(name for run in runs for name in run.parts)
    seconds = [run.seconds for run in runs]
    return Figures(
        runs=len(runs),
        seconds=statistics.median(seconds),
        fastest_s=min(seconds),
        slowest_s=max(seconds),
        wire_bytes=statistics.median(run.wire_bytes for run in runs),
        size_bytes=runs[-1].size_bytes,
        files=runs[-1].files,
        parts={name: statistics.median(run.parts[name] for run in runs if name in run.parts) for name in names},
    )
