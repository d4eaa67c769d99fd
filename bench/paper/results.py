"""The runs that were done: one JSON line each, appended as soon as it is over.

A bench that is interrupted leaves whole lines only, but for the last: that one is ignored, and done again. Lines of the
same key: the last one counts.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.paper.plan import Cell, Key


@dataclass(frozen=True, slots=True)
class Run:
    """What one migration by one method took.

    Attributes:
        total_s: from the command until the application runs at the destination.
        link_bytes: both directions of the migration's link, by the counters of its interfaces.
        gap_s: the longest time in which a client of the service got no answer; None where there is no client.
        freeze_s: the time without service by the method's own account.
        figures: more, by name: seconds of phases (`app_s`, `suspend_s`, `instance_s`, `restore_s`), `engine_s`
            (checkpoint and restore alone, on one machine), what was predicted, the way back.
        kept: what of the application's state was looked at afterwards, and whether it was as it should be.
        notes: texts: machine, versions, flags, what an engine said.
        error: why it failed; the figures are then worth nothing.
        at: when, in UTC.
    """

    key: Key
    total_s: float = 0.0
    link_bytes: int = 0
    gap_s: float | None = None
    freeze_s: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)
    kept: Mapping[str, bool] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    at: str = ""

    @property
    def mb(self) -> float:
        """Megabytes on the link."""
        return self.link_bytes / 1e6

    @property
    def down_s(self) -> float:
        """The time without service: what the client saw, else what the method says."""
        return self.freeze_s if self.gap_s is None else self.gap_s

    @property
    def whole(self) -> bool:
        """Whether it went well, and the application kept all that was looked at."""
        return self.error is None and all(self.kept.values())


Runs = Mapping[Cell, Mapping[str, Run]]
"""Good runs of one state of the code, by cell and method."""


class Results:
    """A file of runs; made when it is first written to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[Key, Run] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            self._take(line)

    def _take(self, line: str) -> None:
        try:
            row = json.loads(line)
            key = row.pop("key")
            run = Run(**row, key=Key(**{**key, "cell": Cell(**key["cell"])}))
        except (ValueError, TypeError, KeyError, AttributeError):
            return  # torn, or of another version of this bench
        self.runs.pop(run.key, None)
        self.runs[run.key] = run

    def add(self, run: Run) -> None:
        """Keep a run."""
        self.runs.pop(run.key, None)
        self.runs[run.key] = run
        self._append(asdict(run))

    def _append(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as out:
            out.write("\n" * torn + json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def done(self, code: str | None) -> set[tuple[Cell, str]]:
        """Cells and methods with a good run of one state of the code; of any, for None."""
        return {(cell, method) for cell, methods in self.of(code).items() for method in methods}

    def newest_code(self) -> str | None:
        """The state of the code that was measured last."""
        return next(reversed(self.runs)).code if self.runs else None

    def of(self, code: str | None) -> dict[Cell, dict[str, Run]]:
        """The good runs of one state of the code; for None, the last good ones of any."""
        found: dict[Cell, dict[str, Run]] = {}
        for key, run in self.runs.items():
            if code in (None, key.code) and run.error is None:
                found.setdefault(key.cell, {})[key.method] = run
        return found

    def failed(self, code: str | None) -> list[Run]:
        """What gave no figures so far: runs of cells and methods without a good one."""
        good = self.done(code)
        runs = {(key.cell, key.method): run for key, run in self.runs.items() if code in (None, key.code) and run.error}
        return [run for done, run in runs.items() if done not in good]
