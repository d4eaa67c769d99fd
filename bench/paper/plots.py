"""The figures, drawn: PNG files for the report.

paper-time.png, paper-bytes.png   the table: rsync, rsync -z and p2player in each row, app layer absent and present
paper-down.png                    time without service, with the engine's own time
paper-sweep.png                   total time against memory, for each rate
paper-holders.png                 total time against the number of holders of the application layer
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.paper import plan
from bench.paper.plan import APPS, OURS, RSYNC, RSYNC_Z, TITLES, Cell
from bench.paper.results import Run, Runs
from bench.paper.tables import METHODS, PLATFORMS

matplotlib.use("Agg")

COLOURS: Final[Mapping[str, str]] = {RSYNC: "#8da0cb", RSYNC_Z: "#3b5b9d", OURS: "#d1495b"}
RATES: Final[Mapping[float, str]] = dict(
    zip(plan.SWEEP_MBIT, ("#440154", "#3b528b", "#21918c", "#5ec962", "#c9a400"), strict=True)
)
PLAIN: Final = FuncFormatter(lambda value, _: f"{value:g}")
ENGINE_COLOUR: Final = "black"


def draw(folder: Path, runs: Runs) -> list[Path]:
    """Write the plots to `folder` and return their paths; one that there are no figures for is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [
        _table(folder / "paper-time.png", runs, "Total migration time, s", lambda run: run.total_s),
        _table(folder / "paper-bytes.png", runs, "MB on the link", lambda run: run.mb),
        _table(folder / "paper-down.png", runs, "Time without service, s", lambda run: run.down_s, engine=True),
        _sweep(folder / "paper-sweep.png", runs),
        _holders(folder / "paper-holders.png", runs),
    ]
    return [path for path in made if path is not None]


def _table(path: Path, runs: Runs, label: str, figure: Callable[[Run], float], *, engine: bool = False) -> Path | None:
    cells = {cell: methods for cell, methods in runs.items() if cell.series == "table" and cell.mbit == plan.MBIT}
    platforms = [platform for platform in PLATFORMS if any(cell.platform == platform for cell in cells)]
    if not platforms:
        return None
    drawing = Figure(figsize=(12, 0.6 + 3.6 * len(platforms)), layout="constrained")
    panels = drawing.subplots(len(platforms), 2, squeeze=False, sharey="row")
    for line, platform in zip(panels, platforms, strict=True):
        for panel, present in zip(line, (False, True), strict=True):
            rows = [
                (cell, methods)
                for app in (*APPS, plan.COUNTER)
                for cell, methods in cells.items()
                if (cell.platform, cell.app, cell.present) == (platform, app, present)
            ]
            _bars(panel, rows, figure, engine)
            panel.set_title(f"{PLATFORMS[platform]}, app layer {'present' if present else 'absent'}")
        line[0].set_ylabel(label)
    handles, labels = panels[0][0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    drawing.suptitle(f"{label.partition(',')[0]} at {plan.MBIT:g} Mbit/s")
    drawing.savefig(path, dpi=110)
    return path


def _bars(
    panel: Axes, rows: Sequence[tuple[Cell, Mapping[str, Run]]], figure: Callable[[Run], float], engine: bool
) -> None:
    width = 0.8 / len(COLOURS)
    for number, (method, colour) in enumerate(COLOURS.items()):
        if not any(method in methods for _, methods in rows):
            continue
        places = [at + (number - 1) * width for at, (_, methods) in enumerate(rows) if method in methods]
        values = [figure(methods[method]) for _, methods in rows if method in methods]
        bars = panel.bar(places, values, width * 0.95, color=colour, label=METHODS[method], zorder=2)
        panel.bar_label(bars, [f"{value:.3g}" for value in values], fontsize=7, padding=1, rotation=90)
    if engine:
        for at, (_, methods) in enumerate(rows):
            engine_s = methods[RSYNC].figures.get("engine_s") if RSYNC in methods else None
            if engine_s is not None:
                label = "engine alone" if at == 0 else "_"
                panel.hlines(engine_s, at - 0.42, at + 0.42, color=ENGINE_COLOUR, linewidth=1.2, label=label, zorder=3)
    names = [TITLES[cell.app].replace(" App, ", " App,\n").replace(" ", "\n", 1) for cell, _ in rows]
    panel.set_xticks(range(len(rows)), names, fontsize=8)
    panel.set_xlim(-0.5, max(len(rows), 1) - 0.5)
    panel.margins(y=0.18)
    panel.grid(axis="y", color="#dddddd", zorder=0)


def _sweep(path: Path, runs: Runs) -> Path | None:
    platforms = [name for name in PLATFORMS if any(cell.series == "sweep" and cell.platform == name for cell in runs)]
    if not platforms:
        return None
    drawing = Figure(figsize=(6.5 * len(platforms), 5), layout="constrained")
    panels = drawing.subplots(1, len(platforms), squeeze=False, sharey=True)[0]
    for panel, platform in zip(panels, platforms, strict=True):
        for mbit, colour in RATES.items():
            for method, style in ((RSYNC, "--"), (OURS, "-")):
                points = sorted(
                    (cell.ram_mb, methods[method].total_s)
                    for cell, methods in runs.items()
                    if (cell.series, cell.platform, cell.mbit) == ("sweep", platform, mbit) and method in methods
                )
                if points:
                    label = f"{METHODS[method]}, {mbit:g} Mbit/s"
                    options = {"color": colour, "linewidth": 1.5, "markersize": 4, "label": label}
                    panel.plot(*zip(*points, strict=True), "o" + style, **options)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(plan.SWEEP_RAM_MB, minor=False)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(PLAIN)
            axis.set_minor_formatter(NullFormatter())
        panel.set_title(PLATFORMS[platform])
        panel.set_xlabel("memory of the application, MB")
        panel.grid(which="major", color="#dddddd")
    panels[0].set_ylabel("total migration time, s")
    handles, labels = panels[0].get_legend_handles_labels()
    columns = 5 if len(platforms) > 1 else 3
    drawing.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    drawing.suptitle("High RAM App: time against memory and rate")
    drawing.savefig(path, dpi=110)
    return path


def _holders(path: Path, runs: Runs) -> Path | None:
    cells = {cell: methods for cell, methods in runs.items() if cell.series == "holders"}
    platforms = [name for name in PLATFORMS if any(cell.platform == name for cell in cells)]
    if not platforms:
        return None
    drawing = Figure(figsize=(5 * len(platforms), 4), layout="constrained")
    panels = drawing.subplots(1, len(platforms), squeeze=False, sharey=True)[0]
    for panel, platform in zip(panels, platforms, strict=True):
        mine = sorted((cell.holders, methods) for cell, methods in cells.items() if cell.platform == platform)
        points = [(str(holders), methods[OURS].total_s) for holders, methods in mine if OURS in methods]
        if points:
            bars = panel.bar(*zip(*points, strict=True), 0.5, color=COLOURS[OURS], label=METHODS[OURS], zorder=2)
            panel.bar_label(bars, fmt="%.1f", fontsize=8)
        theirs = [methods[RSYNC].total_s for _, methods in mine if RSYNC in methods]
        if theirs:
            panel.axhline(theirs[0], color=COLOURS[RSYNC], label="rsync, from the source", zorder=3)
        panel.set_title(PLATFORMS[platform])
        panel.set_xlabel("holders of the application layer")
        panel.grid(axis="y", color="#dddddd", zorder=0)
        panel.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("total migration time, s")
    drawing.suptitle(f"{TITLES[plan.HOLDERS_APP]}, app layer absent, each holder at {plan.MBIT:g} Mbit/s")
    drawing.savefig(path, dpi=110)
    return path
