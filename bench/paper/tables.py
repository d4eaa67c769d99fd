"""The tables of the report, as Markdown; pure."""

from collections.abc import Iterable, Mapping, Sequence

from bench.paper import literature, plan
from bench.paper.plan import LIBVIRT, LXD, OURS, OWN, PROCESS, RSYNC, RSYNC_Z, RUNC, TITLES, Cell, spell_link
from bench.paper.results import Run, Runs

PLATFORMS: Mapping[str, str] = {
    LXD: "LXC (LXD)",
    LIBVIRT: "KVM (libvirt and QEMU)",
    RUNC: "runc",
    PROCESS: "embedded backend",
}
METHODS: Mapping[str, str] = {RSYNC: "rsync", RSYNC_Z: "rsync -z", OURS: "p2player", OWN: "the engine's own"}


def table_1(runs: Runs) -> list[str]:
    """Table 1 for each platform and link: the published figures, and those of the methods here."""
    made = []
    for platform, mbit, delay_ms in _places(runs, "table"):
        rows: list[Sequence[str]] = []
        for app in (*plan.APPS, plan.COUNTER):
            absent, present = (_methods(runs, platform, app, mbit, delay_ms, there) for there in (False, True))
            if not absent and not present:
                continue
            literature_row = literature.TABLE_1.get((platform, app))
            if literature_row is not None:
                published = literature_row
                figures = (published.absent_s, published.absent_mb, published.present_s, published.present_mb)
                rows.append(
                    (TITLES[app], "published", *(f"{figure:.1f}" for figure in figures), "", _s(published.down_s), "")
                )
            for method in (RSYNC, RSYNC_Z, OURS):
                pair = absent.get(method), present.get(method)
                if any(pair):
                    first = "" if rows and literature_row is not None else TITLES[app]
                    rows.append((first, METHODS[method], *_pair(*pair)))
            ours, theirs = (absent.get(OURS), present.get(OURS)), (absent.get(RSYNC), present.get(RSYNC))
            if any(ours) and any(theirs):
                rows.append(("", "*p2player / rsync*", *_ratios(ours, theirs)))
        head = (
            "application",
            "method",
            "absent: s",
            "MB",
            "present: s",
            "MB",
            "down: absent, s",
            "present, s",
            "state",
        )
        title = f"## {PLATFORMS[platform]}, {spell_link(mbit, delay_ms)}"
        made += [title, grid(head, rows, right=range(2, 8))]
    return made


def phases(runs: Runs) -> list[str]:
    """Where the seconds go, and the engine's own time."""
    rows = []
    for cell, methods in _of(runs, "table"):
        theirs, ours = methods.get(RSYNC), methods.get(OURS)
        old, new = (run.figures if run is not None else {} for run in (theirs, ours))
        first = [_s(old.get(name)) for name in ("app_s", "suspend_s", "instance_s", "restore_s", "engine_s")]
        second = [_s(new.get("freeze_s")), _s(new.get("longest_freeze_s")), _count(new.get("rounds"))]
        moved = [_mb(new.get(f"{layer}_bytes")) for layer in ("app", "instance")]
        rows.append((cell.platform, TITLES[cell.app], _there(cell), *first, *second, *moved))
    head = ("platform", "application", "app layer", "rsync: app, s", "suspend", "instance", "restore", "engine alone")
    more = ("p2player: freeze, s", "longest", "rounds", "app, MB", "instance, MB")
    return ["## Where the time goes", grid((*head, *more), rows, right=range(3, 13))] if rows else []


def own(runs: Runs) -> list[str]:
    """The engines' own live migrations beside p2player's, the application layer being there."""
    rows = []
    for cell, methods in _of(runs, "table"):
        if OWN in methods:
            both = [
                (methods[name].total_s, methods[name].mb, methods[name].down_s)
                for name in (OWN, OURS)
                if name in methods
            ]
            figures = [f"{figure:.2f}" for each in both for figure in each]
            kept = _kept([methods[OWN]]) + ", paused first" * (methods[OWN].figures.get("paused_first", 0) > 0)
            rows.append((cell.platform, TITLES[cell.app], *figures, *[""] * (6 - len(figures)), kept))
    head = ("platform", "application", "own: s", "MB", "down, s", "p2player: s", "MB", "down, s", "state (own)")
    return ["## The engines' own live migration", grid(head, rows, right=range(2, 8))] if rows else []


def way_back(runs: Runs) -> list[str]:
    """The user returns: what the way back took beside the way there."""
    rows = []
    for cell, methods in _of(runs, "table"):
        figures = methods[OURS].figures if OURS in methods else {}
        if "back_instance_bytes" in figures:
            there, back = figures["instance_bytes"], figures["back_instance_bytes"]
            share = f"{100 * back / there:.2f} %" if there else "-"
            dirtied = _mb(figures.get("dirtied_bytes"))
            seconds = [f"{methods[OURS].total_s:.2f}", _s(figures["back_total_s"]), _s(figures.get("back_gap_s"))]
            rows.append(
                (cell.platform, TITLES[cell.app], _there(cell), _mb(there), _mb(back), share, dirtied, *seconds)
            )
    head = ("platform", "application", "app layer", "instance there, MB", "back, MB", "share", "dirtied, MB")
    more = ("there, s", "back, s", "down on the way back, s")
    return ["## There and back again", grid((*head, *more), rows, right=range(3, 10))] if rows else []


def predicted(runs: Runs) -> list[str]:
    """What p2player had predicted, beside what it was."""
    rows = []
    for cell, methods in _of(runs, "table"):
        run = methods.get(OURS)
        if run is not None and "predicted_total_s" in run.figures:
            told = run.figures
            pairs = (
                (_s(told["predicted_total_s"]), _s(told["told_total_s"])),
                (_s(told["predicted_freeze_s"]), _s(told["freeze_s"])),
                (_mb(told["predicted_transferred"]), _mb(told["told_bytes"])),
            )
            rows.append((cell.platform, TITLES[cell.app], _there(cell), *(text for pair in pairs for text in pair)))
    head = ("platform", "application", "app layer", "predicted: s", "was", "freeze, s", "was", "MB", "was")
    return ["## Predicted and measured", grid(head, rows, right=range(3, 9))] if rows else []


def sweep(runs: Runs) -> list[str]:
    """Figure 3: total seconds against memory and rate, and what was cut."""
    made: list[str] = []
    for platform in dict.fromkeys(cell.platform for cell in runs if cell.series == "sweep"):
        delay_ms = next(cell.delay_ms for cell in runs if cell.series == "sweep" and cell.platform == platform)
        rows, capped = [], []
        points = plan.sweep(platform, delay_ms)
        for mbit in plan.SWEEP_MBIT:
            line = []
            for point in points:
                if point.cell.mbit != mbit:
                    continue
                methods = runs.get(point.cell, {})
                texts = [f"{methods[name].total_s:.1f}" if name in methods else "-" for name in (RSYNC, OURS)]
                line.append(" / ".join(texts) + (f" ({point.cell.ram_mb} MB)" if point.capped else ""))
                if point.capped and methods:
                    capped.append(f"{point.asked_mb} MB at {mbit:g} Mbit/s measured with {point.cell.ram_mb} MB")
            rows.append((f"{mbit:g} Mbit/s", *line))
        head = ("link", *(f"{ram_mb} MB" for ram_mb in plan.SWEEP_RAM_MB))
        made += [f"## Memory and rate: {PLATFORMS[platform]}", "Seconds in total, rsync / p2player; app layer present."]
        made.append(grid(head, rows, right=range(1, 6)))
        if capped:
            made.append(f"Cut so that no cell exceeds {plan.LONGEST_S:g} s: {'; '.join(capped)}.")
    return made


def holders(runs: Runs) -> list[str]:
    """What more holders of the application layer bring."""
    rows = []
    for cell, methods in _of(runs, "holders"):
        run, theirs = methods.get(OURS), methods.get(RSYNC)
        if run is None:
            continue
        shares = [value for name, value in run.figures.items() if name.startswith("from_") and value > 0]
        spread = ", ".join(f"{share / 1e6:.1f}" for share in sorted(shares, reverse=True))
        rsync = f"{theirs.total_s:.2f}" if theirs is not None else ""
        rows.append((cell.platform, str(cell.holders), f"{run.total_s:.2f}", f"{run.mb:.1f}", spread, rsync))
    title = f"## Holders of the application layer ({TITLES[plan.HOLDERS_APP]}, absent, each behind a link of its own)"
    head = ("platform", "holders", "p2player: s", "MB", "MB from each", "rsync: s")
    return [title, grid(head, rows, right=range(1, 6))] if rows else []


def rates(runs: Runs) -> list[float]:
    """The rates of the links that the table was measured with."""
    return list(dict.fromkeys(cell.mbit for cell in runs if cell.series == "table"))


def grid(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A Markdown table; columns of numbers to the right."""
    numbers = set(right)
    ruler = ["---:" if column in numbers else "---" for column in range(len(head))]
    lines = [head, ruler, *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def _places(runs: Runs, series: str) -> list[tuple[str, float, float]]:
    return list(dict.fromkeys((cell.platform, cell.mbit, cell.delay_ms) for cell in runs if cell.series == series))


def _of(runs: Runs, series: str) -> list[tuple[Cell, Mapping[str, Run]]]:
    """Cells of a series in the order of the plan, whenever they were measured."""
    order = {app: number for number, app in enumerate((*plan.APPS, plan.COUNTER))}
    platforms = {platform: number for number, platform in enumerate(PLATFORMS)}
    found = [(cell, methods) for cell, methods in runs.items() if cell.series == series]
    return sorted(
        found, key=lambda each: (platforms[each[0].platform], order[each[0].app], each[0].present, each[0].holders)
    )


def _methods(runs: Runs, platform: str, app: str, mbit: float, delay_ms: float, present: bool) -> Mapping[str, Run]:
    for cell, methods in runs.items():
        place = (cell.series, cell.platform, cell.app, cell.mbit, cell.delay_ms, cell.present)
        if place == ("table", platform, app, mbit, delay_ms, present):
            return methods
    return {}


def _pair(absent: Run | None, present: Run | None) -> tuple[str, ...]:
    figures = [text for run in (absent, present) for text in ((_s(run.total_s), f"{run.mb:.2f}") if run else ("", ""))]
    down = [_s(run.down_s) if run else "" for run in (absent, present)]
    return (*figures, *down, _kept([run for run in (absent, present) if run]))


def _ratios(ours: tuple[Run | None, Run | None], theirs: tuple[Run | None, Run | None]) -> tuple[str, ...]:
    figures, down = [], []
    for mine, other in zip(ours, theirs, strict=True):
        if mine is None or other is None:
            figures += ["", ""]
            down.append("")
            continue
        figures += [_x(mine.total_s, other.total_s), _x(mine.mb, other.mb)]
        down.append(_x(mine.down_s, other.down_s))
    return (*figures, *down, "")


def _kept(runs: Sequence[Run]) -> str:
    lost = sorted({what for run in runs for what, kept in run.kept.items() if not kept})
    return f"LOST: {', '.join(lost)}" if lost else "kept" if any(run.kept for run in runs) else "-"


def _there(cell: Cell) -> str:
    return "present" if cell.present else "absent"


def _s(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f}"


def _mb(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f}"


def _count(number: float | None) -> str:
    return "" if number is None else f"{number:.0f}"


def _x(ours: float, theirs: float) -> str:
    return f"*{ours / theirs:.2f}*" if theirs else ""
