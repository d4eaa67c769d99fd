"""Figures and goals, printed: one table of every series, one of the goals."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from bench.figures import spell_bytes, spell_s
from bench.sync import memory
from bench.sync.plan import CASES, OURS
from bench.sync.results import Figures, SeriesKey
from bench.sync.targets import PEAK_PART, Verdict, What

TITLES = {case.name: case.title for case in (*CASES, *(large.case for large in memory.LARGE))}
METHOD = (
    "seconds: whole commands with start-up; p2player: layer pull + layer checkout (nothing changed: layer add + pull)",
    "bytes: counters of the destination's interface, both directions; loopback: a bare veth pair between two hosts",
    "links: megabits a second and milliseconds one way; a round trip takes twice the delay",
    "everything on tmpfs unless it says disk; every result compared with the source (rsync -aHAXnc --delete)",
)


def show(
    console: Console,
    code: str,
    medians: Mapping[SeriesKey, Mapping[str, Figures]],
    verdicts: Sequence[Verdict],
    notes: Mapping[str, str],
) -> None:
    """Print all there is about one state of the code."""
    console.print(_figures(code, medians))
    console.print(_goals(verdicts))
    for line in METHOD:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(", ".join(f"{name} {value}" for name, value in notes.items()), highlight=False, soft_wrap=True)


def _figures(code: str, medians: Mapping[SeriesKey, Mapping[str, Figures]]) -> Table:
    table = Table(title=f"medians, code {code}; x: p2player's figure / this one's", title_justify="left")
    for name in ("case", "link", "tree"):
        table.add_column(name)
    table.add_column("contestant")
    for name in ("runs", "time", "fastest - slowest", "x", "bytes", "x"):
        table.add_column(name, justify="right")
    for (case, link, _), tools in medians.items():
        ours = tools.get(OURS)
        for number, (tool, found) in enumerate(tools.items()):
            tree = f"{spell_bytes(found.size_bytes)}, {found.files:,} file{'s' * (found.files != 1)}"
            head = (TITLES.get(case, case), link, tree) if number == 0 else ("", "", "")
            both = ours is not None and tool != OURS
            table.add_row(
                *head,
                tool,
                str(found.runs),
                spell_s(found.seconds),
                f"{found.fastest_s:.2f} - {found.slowest_s:.2f}",
                spell_ratio(ours.seconds, found.seconds) if both and ours else "",
                _amount(found),
                spell_ratio(ours.wire_bytes, found.wire_bytes) if both and ours else "",
                end_section=number == len(tools) - 1,
            )
    return table


def _amount(found: Figures) -> str:
    """Bytes on the wire; of a run that was about memory, what it took."""
    peak = found.parts.get(PEAK_PART)
    return spell_bytes(found.wire_bytes) if peak is None else f"{spell_bytes(peak)} of memory"


def _goals(verdicts: Sequence[Verdict]) -> Table:
    met = sum(verdict.met for verdict in verdicts)
    table = Table(title=f"goals: {met} of {len(verdicts)} met", title_justify="left")
    for name in ("case", "link", "of", "against"):
        table.add_column(name)
    for name in ("p2player", "rival", "ratio", "goal", "met"):
        table.add_column(name, justify="right")
    for verdict in verdicts:
        goal = verdict.goal
        table.add_row(
            TITLES.get(goal.case, goal.case),
            verdict.link,
            "time inside the API" if goal.what == "api" else goal.what,
            goal.text if goal.text == verdict.rival else f"{goal.text} ({verdict.rival})",
            spell(goal.what, verdict.ours),
            spell(goal.what, verdict.theirs) if goal.rivals else "",
            f"{verdict.ratio:.3g}",
            f"<= {verdict.bound:.3g}",
            "yes" if verdict.met else "NO",
            style=None if verdict.met else "bold",
        )
    return table


def spell(what: What, value: float) -> str:
    """A figure as the goal's kind is written."""
    return spell_bytes(value) if what in ("bytes", "memory") else spell_s(value)


def spell_ratio(ours: float, theirs: float) -> str:
    """Ours as a multiple of theirs."""
    return f"{ours / theirs:.3g}" if theirs else "-"
