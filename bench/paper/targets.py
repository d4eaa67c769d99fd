"""The goals, and whether the figures meet them; pure.

What a goal compares was measured in the same cell: the same layers, engines and link. "Where the content compresses" is
taken from the runs, too: where `rsync -z` moves at most half of what `rsync` does. A time without service is what the
client saw, where there is one. "Fresh random data" is the memory of the high-RAM application.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bench.paper.plan import FRESH_RANDOM, MBIT, OURS, PUBLISHED, REWRITING, RSYNC, RSYNC_Z, TITLES, Cell
from bench.paper.results import Run, Runs

MB = "megabytes"
TIME = "total time"
FREEZE = "freeze"
BACK = "way back"
STATE = "state kept"

COMPRESSES = 0.5
SLACK_S = 1.0
BACK_SHARE = 0.05
ROWS_FASTER = 6
FASTER = 0.7


@dataclass(frozen=True, slots=True)
class Verdict:
    """One goal for one cell, or for several.

    Attributes:
        where: the cell, for people.
        text: the goal.
        value, bound: what is, and what it may be at most (at least, for `at_least`).
        unit: of both: "x", "s", "MB", "rows", "lost".
    """

    platform: str
    where: str
    what: str
    text: str
    value: float
    bound: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is met."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def judge(runs: Runs, mbit: float = MBIT) -> list[Verdict]:
    """Every goal that there are figures for, cell by cell, then those over several rows."""
    table = {cell: methods for cell, methods in runs.items() if cell.series == "table" and cell.mbit == mbit}
    verdicts = [verdict for cell, methods in table.items() for verdict in _cell(cell, methods)]
    published = {cell: methods for cell, methods in table.items() if cell.platform in PUBLISHED}
    if any(OURS in methods and RSYNC in methods for methods in published.values()):
        verdicts.append(_faster_rows(published))
    return verdicts


def _cell(cell: Cell, methods: Mapping[str, Run]) -> Iterator[Verdict]:
    ours, theirs = methods.get(OURS), methods.get(RSYNC)
    if ours is None:
        return
    yield _verdict(cell, STATE, "the application keeps its state", float(sum(not kept for kept in ours.kept.values())))
    if "back_instance_bytes" in ours.figures:
        yield _back(cell, ours)
    if theirs is None:
        return
    more = 1.8 if cell.app == REWRITING else 1.1
    yield _ratio(cell, MB, "of rsync's", ours.link_bytes, theirs.link_bytes, more)
    if compresses(methods):
        yield _ratio(cell, MB, "of rsync's, as the content compresses", ours.link_bytes, theirs.link_bytes, 0.5)
    if cell.present and cell.app not in FRESH_RANDOM:
        yield _ratio(cell, MB, "of rsync's, app layer present", ours.link_bytes, theirs.link_bytes, 0.3)
    longer = 1.8 if cell.app == REWRITING else 1.0
    yield _ratio(cell, TIME, "of rsync's", ours.total_s, theirs.total_s, longer)
    engine_s = theirs.figures.get("engine_s")
    if engine_s is not None and cell.rewrite_mb_s < cell.mbit / 8 / 2:
        text = f"engine time ({engine_s:.2f} s) + {SLACK_S:g} s"
        yield _verdict(cell, FREEZE, text, ours.down_s, engine_s + SLACK_S, "s")
    yield _verdict(cell, FREEZE, "no more than rsync's", ours.down_s, theirs.down_s, "s")


def compresses(methods: Mapping[str, Run]) -> bool:
    """Whether what the cell moves compresses."""
    plain, z = methods.get(RSYNC), methods.get(RSYNC_Z)
    return plain is not None and z is not None and z.link_bytes <= COMPRESSES * plain.link_bytes


def _back(cell: Cell, ours: Run) -> Verdict:
    """The user returns: a small part of what the instance took on the way there, and what was dirtied meanwhile."""
    figures = ours.figures
    bound = BACK_SHARE * figures["instance_bytes"] + figures.get("dirtied_bytes", 0.0)
    text = "5 % of the instance's bytes there, plus what was dirtied"
    return _verdict(cell, BACK, text, figures["back_instance_bytes"] / 1e6, bound / 1e6, "MB")


def _faster_rows(published: Mapping[Cell, Mapping[str, Run]]) -> Verdict:
    """Rows of the published table whose both times, app layer absent and present, are at most 0.7 of rsync's."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for cell, methods in published.items():
        if cell.app != REWRITING and OURS in methods and RSYNC in methods:
            ratio = methods[OURS].total_s / methods[RSYNC].total_s
            ratios.setdefault((cell.platform, cell.app), []).append(ratio)
    faster = sum(max(both) <= FASTER for both in ratios.values())
    text = f"rows with both times <= {FASTER:g} x of rsync's, at least {ROWS_FASTER} of 10"
    return Verdict("all", f"{len(ratios)} rows measured", TIME, text, float(faster), ROWS_FASTER, "rows", at_least=True)


def _ratio(cell: Cell, what: str, text: str, ours: float, theirs: float, bound: float) -> Verdict:
    return _verdict(cell, what, text, ours / theirs if theirs else 0.0, bound, "x")


def _verdict(cell: Cell, what: str, text: str, value: float, bound: float = 0.0, unit: str = "lost") -> Verdict:
    return Verdict(cell.platform, where(cell), what, text, value, bound, unit)


def where(cell: Cell) -> str:
    """A cell of the table for people, without its platform."""
    return f"{TITLES[cell.app]}, {'present' if cell.present else 'absent'}"
