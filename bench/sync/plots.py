"""Figures and goals, drawn: PNG files for a report.

ratios-bytes.png, ratios-time.png   p2player's figure over a rival's for each case, with the goals marked
links.png                           how fast a tree arrives, against the rate of the link
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.sync.plan import BEST_ON_IMAGES, CASES, CASYNC, DAEMON, LINKS, LOOPBACK, OURS, SSH, WAN
from bench.sync.results import Figures, SeriesKey
from bench.sync.targets import Verdict, What, figure

matplotlib.use("Agg")

Medians = Mapping[SeriesKey, Mapping[str, Figures]]

RIVALS: Final = {
    "rsync over ssh": (SSH[:1], "#8da0cb"),
    "rsync -z over ssh": (SSH[1:], "#3b5b9d"),
    "rsync -z -B 4096 over ssh": (BEST_ON_IMAGES[:2], "#1b2a4a"),
    "rsync daemon": (DAEMON[:1], "#a6d854"),
    "rsync -z daemon": (DAEMON[1:], "#4d8b21"),
    "casync": ((CASYNC,), "#bbbbbb"),
}
"""Rivals as they are drawn: contestants of whom the best one counts, and a colour."""
PLAIN: Final = FuncFormatter(lambda value, _: f"{value:g}")
OURS_COLOUR: Final = "#d1495b"
BAR: Final = 0.8 / len(RIVALS)


def draw(folder: Path, code: str, medians: Medians, verdicts: Sequence[Verdict]) -> list[Path]:
    """Write the plots to `folder` and return their paths; a plot that there are no figures for is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds: tuple[What, ...] = ("bytes", "time")
    made = [_ratios(folder / f"ratios-{what}.png", code, medians, verdicts, what) for what in kinds]
    made.append(_links(folder / "links.png", code, medians))
    return [path for path in made if path is not None]


def _ratios(path: Path, code: str, medians: Medians, verdicts: Sequence[Verdict], what: What) -> Path | None:
    names = [case.name for case in CASES if any(key[0] == case.name and OURS in medians[key] for key in medians)]
    links = [link.name for link in (LOOPBACK, WAN) if any(key[1] == link.name for key in medians)]
    if not names or not links:
        return None
    drawing = Figure(figsize=(7 * len(links), 1.5 + 0.95 * len(names)), layout="constrained")
    panels = drawing.subplots(1, len(links), sharey=True, sharex=True, squeeze=False)[0]
    for panel, link in zip(panels, links, strict=True):
        for row, name in enumerate(names):
            keys = [key for key in medians if key[:2] == (name, link) and OURS in medians[key]]
            if keys:
                key = max(keys)
                goals = [each for each in verdicts if each.goal.what == what and (each.goal.case, each.link) == key[:2]]
                _bars(panel, row, medians[key], goals, what)
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xscale("log")
        panel.margins(x=0.1)
        panel.xaxis.set_major_formatter(PLAIN)
        panel.set_title(link)
        panel.set_xlabel(f"{what}: p2player / rival (left of 1: p2player is better)")
        panel.grid(axis="x", which="major", color="#dddddd", zorder=0)
    titles = {case.name: case.title for case in CASES}
    panels[0].set_yticks(range(len(names)), [titles[name] for name in names])
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    seen: dict[str, Artist] = {}
    for panel in panels:
        handles, labels = panel.get_legend_handles_labels()
        seen.update(zip(labels, handles, strict=True))
    order = [name for name in (*RIVALS, "goal met", "goal missed") if name in seen]
    drawing.legend([seen[name] for name in order], order, loc="outside lower center", ncols=4, frameon=False)
    drawing.suptitle(f"{'Bytes on the wire' if what == 'bytes' else 'Time'} of p2player beside its rivals, code {code}")
    drawing.savefig(path, dpi=110)
    return path


def _bars(panel: Axes, row: int, tools: Mapping[str, Figures], goals: Sequence[Verdict], what: What) -> None:
    ours = figure(tools[OURS], what)
    present = [(name, *entry) for name, entry in RIVALS.items() if any(tool in tools for tool in entry[0])]
    for number, (name, members, colour) in enumerate(present):
        theirs = min(figure(tools[tool], what) for tool in members if tool in tools)
        place = row + (number - (len(present) - 1) / 2) * BAR
        ratio = ours / theirs if theirs else 1.0
        panel.barh(place, ratio - 1, BAR * 0.9, left=1, color=colour, label=name, zorder=2)
        panel.annotate(
            f"{ratio:.3g}",
            (ratio, place),
            xytext=(-3 if ratio < 1 else 3, 0),
            textcoords="offset points",
            ha="right" if ratio < 1 else "left",
            va="center",
            fontsize=7,
        )
        for verdict in goals:
            if verdict.rival in members:
                label, mark = ("goal met", "#2a9d3a") if verdict.met else ("goal missed", "#d00000")
                panel.plot(verdict.bound, place, "D", color=mark, markersize=5, label=label, zorder=3)


def _links(path: Path, code: str, medians: Medians) -> Path | None:
    cases = [case for case in CASES if case.matrix]
    delays = sorted({link.delay_ms for link in LINKS if link.mbit is not None})
    rates = {link.name: (link.mbit, link.delay_ms) for link in LINKS if link.mbit is not None}
    cases = [case for case in cases if len({key[1] for key in medians if key[0] == case.name and key[1] in rates}) > 1]
    if not cases:
        return None
    drawing = Figure(figsize=(6.5 * len(delays), 4.5 * len(cases)), layout="constrained")
    panels = drawing.subplots(len(cases), len(delays), sharex=True, squeeze=False)
    shown = {"p2player": ((OURS,), OURS_COLOUR), **RIVALS}
    for line, case in zip(panels, cases, strict=True):
        for panel, delay in zip(line, delays, strict=True):
            for label, (members, colour) in shown.items():
                points = []
                for (name, link, _), tools in medians.items():
                    mbit, delay_ms = rates.get(link, (None, None))
                    found = [tools[tool] for tool in members if tool in tools]
                    if name == case.name and mbit is not None and delay_ms == delay and found:
                        points.append((mbit, max(each.size_bytes / each.seconds / 1e6 for each in found)))
                if points:
                    points.sort()
                    panel.plot(*zip(*points, strict=True), "o-", color=colour, label=label, linewidth=1.5, markersize=4)
            panel.set_xscale("log")
            panel.set_yscale("log")
            panel.set_xticks(sorted({mbit for mbit, _ in rates.values() if mbit}), minor=False)
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter(PLAIN)
                axis.set_minor_formatter(NullFormatter())
            panel.set_title(f"{case.title}, {delay:g} ms one way")
            panel.set_xlabel("link, Mbit/s")
            panel.set_ylabel("MB of tree a second")
            panel.grid(which="major", color="#dddddd")
            if panel.lines:
                panel.legend(frameon=False, fontsize=8)
    drawing.suptitle(f"How fast a tree arrives, code {code} (trees are smaller on slower links)")
    drawing.savefig(path, dpi=110)
    return path
