"""`make bench-sync`: p2player beside rsync and casync, and the goals.

Every run is appended to the results as soon as it is over. A bench that was interrupted goes on where it stopped, as
long as the product's code is the same.
"""

import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from bench import data, ssh
from bench.netlab import NetlabUnavailable
from bench.netlab import tools as netlab_tools
from bench.sync import code, memory, plan, table, targets
from bench.sync.results import Results
from bench.sync.runner import Runner

RESULTS = Path(__file__).parents[1] / "results"
PROGRAMS = ("rsync", "sshd", "ssh", "ssh-keygen", "casync")
CASE_NAMES = [case.name for case in (*plan.CASES, *(large.case for large in memory.LARGE))]

LINK_NAMES = [link.name for link in plan.LINKS]


@click.command()
@click.option("--case", "cases", multiple=True, type=click.Choice(CASE_NAMES), help="Only this case; again for more.")
@click.option("--link", "links", multiple=True, type=click.Choice(LINK_NAMES), help="As --case.")
@click.option("--tool", "names", multiple=True, type=click.Choice(plan.TOOLS), help="As --case.")
@click.option("--runs", type=click.IntRange(1, 99), help="Of each contestant; else 5 on loopback, 3 on shaped links.")
@click.option("--budget", "budget_s", type=click.FloatRange(1, 30), help="Seconds of the slowest run on a shaped link.")
@click.option("--quick", is_flag=True, help="Under ten minutes: smaller trees, fewer contestants and runs.")
@click.option("--fresh", is_flag=True, help="Do again what was done for this state of the code.")
@click.option("--report-only", is_flag=True, help="Measure nothing; show what there is.")
@click.option("--folder", default="/dev/shm", show_default=True, type=click.Path(path_type=Path), help="On tmpfs.")
@click.option("--disk", type=click.Path(path_type=Path), help="Measure the first case in this folder of a disk, too.")
@click.option(
    "--work", default=data.DEFAULT_WORK, show_default=True, type=click.Path(path_type=Path), help="Keeps the data."
)
@click.option("--results", "store", type=click.Path(path_type=Path), help="A file of JSON lines.")
def main(
    cases: tuple[str, ...],
    links: tuple[str, ...],
    names: tuple[str, ...],
    runs: int | None,
    budget_s: float | None,
    quick: bool,
    fresh: bool,
    report_only: bool,
    folder: Path,
    disk: Path | None,
    work: Path,
    store: Path | None,
) -> None:
    """Measure what was not measured yet, print the tables, draw the plots.

    Exit code 1: some runs failed; goals that are missed do not count as failures.
    """
    signal.signal(signal.SIGTERM, _leave)
    console = Console(width=None if sys.stdout.isatty() else 200)
    name = "sync-quick" if quick else "sync"
    results = Results(store or RESULTS / f"{name}.jsonl")
    state = code.state()
    failed = 0
    if report_only:
        state = results.newest_code() or state
    else:
        done = set() if fresh else results.done
        effort = plan.QUICK if quick else plan.FULL
        if budget_s is not None:
            effort = replace(effort, budget_s=budget_s)
        planned = list(
            plan.series(effort, state, done, cases=cases, links=links, tools=names, runs=runs, disk=disk is not None)
        )
        large = [] if quick and not cases else memory.pending(state, done, cases)
        if links or names:
            large = [] if not cases else large
        try:
            netlab_tools.check()
            ssh.need(*PROGRAMS)
            runner = Runner(results, folder, disk, work, lambda line: print(line, flush=True))
            runner.run(planned)
            failed = runner.failed
            for each, key in large:
                failed += not memory.run(each, key, folder, results, lambda line: print(line, flush=True))
        except (NetlabUnavailable, ssh.Missing) as error:
            sys.exit(f"bench: {error}")
        except KeyboardInterrupt:
            sys.exit("bench: interrupted; what was measured is kept, the same command goes on")
    medians = results.medians(state)
    verdicts = targets.judge(medians)
    table.show(console, state, medians, verdicts, results.notes.get(state, {}))
    try:
        from bench.sync import plots
    except ImportError:
        console.print("no plots: they need matplotlib, pip install '.[bench]'", highlight=False)
    else:
        for path in plots.draw(results.path.with_suffix(""), state, medians, verdicts):
            console.print(f"drawn: {path}", highlight=False, soft_wrap=True)
    sys.exit(1 if failed else 0)


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
