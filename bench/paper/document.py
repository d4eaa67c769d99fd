"""The report: Markdown with the tables, the goals, what was cut, and how it was measured; pure."""

from collections.abc import Sequence

from bench.paper import plan, tables, targets
from bench.paper.literature import SOURCE
from bench.paper.results import Results, Run, Runs

METHOD = """\
Two edge nodes, each with its engine, in network namespaces of one machine; between them a link with the rate that a
table names (`tc tbf`), which counts and carries nothing but migrations and what nodes say to each other. The
application keeps its address and its MAC; a client in a third namespace uses it over a network of its own, which is not
shaped. Every run starts the application anew at the source.

- **rsync** is the published method: the base layer at both ends; `rsync -a` over ssh pushes the application layer while
  the service runs (a look, where it is there already); the service is suspended, `rsync -a` pushes the instance layer,
  the application is restored. **rsync -z** is the same, compressed. Both got the options that the content needs to
  arrive as it is: FLAGS.
- **p2player** is the command `p2player migrate` between two real nodes: the source's knows all layers, the
  destination's is a new one for each run, with the base layer (and, where that is present, the application layer)
  stored and checked out. Both methods use the same backends and engines.
- **total** is seconds from the command until the application runs at the destination; **MB** are bytes of Ethernet
  frames on the link in both directions, by the counters of its interface; **down** is the longest time in which the
  client, which asks ten times a second at least, got no answer. *engine* is a checkpoint and a restore of the same
  application alone, on one machine, in the same run.
- **state** was looked at after every migration: an identity drawn at the start and kept in memory only, a counter, the
  hash of the application's memory where it has one, and a TCP connection that stayed open meanwhile.
"""


OF_A_RUN = ("flags", "warning", "lost", "broken", "lost, back", "broken, back")
"""Notes that say something of one run, and not of where it was done."""


def write(results: Results, code: str | None, pictures: Sequence[str]) -> str:
    """The whole report.

    Args:
        code: the state of the code whose runs are shown; None: the last good runs of any.
        pictures: paths of the plots, as the report is to name them.
    """
    runs = results.of(code)
    parts = [
        "# The published table of migrations, done again",
        "Written by `python -m bench.paper report` from what `make bench-paper` measured; not edited by hand.",
        _machine(runs),
        "## How it was measured",
        METHOD.replace("FLAGS", _flags(runs)),
        *_parts(results, code, runs),
    ]
    if pictures:
        parts += ["## Plots", *(f"![{path.rpartition('/')[2].removesuffix('.png')}]({path})" for path in pictures)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def summary(results: Results, code: str | None) -> str:
    """The tables and goals, for the end of a run."""
    return "\n\n".join(_parts(results, code, results.of(code)))


def _parts(results: Results, code: str | None, runs: Runs) -> list[str]:
    failed = results.failed(code)
    return [
        *tables.table_1(runs),
        *tables.phases(runs),
        *tables.own(runs),
        *tables.way_back(runs),
        *tables.predicted(runs),
        *tables.sweep(runs),
        *tables.holders(runs),
        *_goals(runs),
        *_failures(failed),
    ]


def _goals(runs: Runs) -> list[str]:
    verdicts = [verdict for rate in tables.rates(runs) for verdict in targets.judge(runs, rate)]
    if not verdicts:
        return []
    rows = [
        (
            verdict.platform,
            verdict.where,
            verdict.what,
            verdict.text,
            f"{verdict.value:.3g} {verdict.unit}",
            f"{'>=' if verdict.at_least else '<='} {verdict.bound:.3g} {verdict.unit}",
            "yes" if verdict.met else "**NO**",
        )
        for verdict in verdicts
    ]
    met = sum(verdict.met for verdict in verdicts)
    head = ("platform", "row", "of", "goal", "is", "may be", "met")
    return [f"## Goals: {met} of {len(verdicts)} met", tables.grid(head, rows, right=(4, 5))]


def _failures(failed: Sequence[Run]) -> list[str]:
    if not failed:
        return []
    lines = [f"- {run.key.cell}: {run.key.method}: {(run.error or '').splitlines()[0]}" for run in failed]
    return ["## What gave no figures", "\n".join(lines)]


def _machine(runs: Runs) -> str:
    every = [run for methods in runs.values() for run in methods.values()]
    known: dict[str, list[str]] = {}
    for run in every:
        for name, text in run.notes.items():
            if name not in OF_A_RUN and text not in known.setdefault(name, []):
                known[name].append(text)
    codes = list(dict.fromkeys(run.key.code for run in every))
    links = list(dict.fromkeys(plan.spell_link(cell.mbit, cell.delay_ms) for cell in runs))
    lines = [f"- {name}: {'; '.join(texts)}" for name, texts in known.items()]
    lines += [f"- links: {', '.join(links)}", f"- state of the code: {', '.join(codes)}"]
    lines += [f"- measured: {min(run.at for run in every)} to {max(run.at for run in every)}"] if every else []
    return "\n".join([*lines, f"- published figures: {SOURCE}"])


def _flags(runs: Runs) -> str:
    told = {
        cell.platform: methods[plan.RSYNC].notes.get("flags", "-a")
        for cell, methods in runs.items()
        if plan.RSYNC in methods
    }
    return ", ".join(f"`{flags}` ({platform})" for platform, flags in told.items()) or "none"
