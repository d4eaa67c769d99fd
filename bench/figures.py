"""Repeated timing, medians, and how they are shown."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass
class Case:
    """One comparison: p2player's seconds and the rival's, taken in turn.

    `goal` is the least acceptable ratio of throughputs, ours over theirs.
    """

    name: str
    size_bytes: int
    goal: float
    ours_s: list[float] = field(default_factory=list)
    rival_s: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median of the ratios of throughputs, run by run: the machine's speed drifts, a pair of runs less so."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.ours_s, self.rival_s, strict=True))

    def rate(self, seconds: list[float]) -> float:
        """MB/s at the median time."""
        return self.size_bytes / statistics.median(seconds) / 1e6


@dataclass
class Single:
    """One figure with a goal of its own; `at_least` says which side of the goal is the good one."""

    name: str
    unit: str
    goal: float
    at_least: bool
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.median >= self.goal if self.at_least else self.median <= self.goal


def seconds(action: Callable[[], object]) -> float:
    """How long `action` takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def spell_bytes(count: float) -> str:
    """An amount for people, in powers of 1000: `17 B`, `3.2 KB`, `104 MB`."""
    for unit in ("B", "KB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def spell_s(seconds_: float) -> str:
    """A duration for people."""
    return f"{seconds_:.2f} s" if seconds_ < 9.995 else f"{seconds_:.1f} s"


def show(cases: list[Case], singles: list[Single], notes: list[str]) -> None:
    """Print one table."""
    table = Table(title="p2player beside rsync over ssh", title_justify="left")
    for name in ("case", "p2player", "rival", "ratio", "goal", "met"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for case in cases:
        rates = (f"{case.rate(case.ours_s):.0f} MB/s", f"{case.rate(case.rival_s):.0f} MB/s")
        met = "yes" if case.ratio >= case.goal else "NO"
        table.add_row(case.name, *rates, f"{case.ratio:.2f}", f">= {case.goal:g}", met)
    for single in singles:
        sign = ">=" if single.at_least else "<="
        value = f"{single.median:.0f} {single.unit}"
        table.add_row(
            single.name, value, "", "", f"{sign} {single.goal:g} {single.unit}", "yes" if single.met else "NO"
        )
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note)


def save(path: Path, cases: list[Case], singles: list[Single], notes: list[str]) -> None:
    """Append the run to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cases": [{**asdict(case), "ratio": case.ratio} for case in cases],
        "singles": [{**asdict(single), "median": single.median} for single in singles],
        "notes": notes,
    }
    with path.open("a") as out:
        out.write(json.dumps(document) + "\n")
