"""`make bench-paper`: the published table, done again with the published method and with p2player.

Every run is appended to the results as soon as it is over. A bench that was interrupted goes on where it stopped, as
long as the product's code is the same.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from bench import data, ssh
from bench.netlab import NetlabUnavailable
from bench.netlab import tools as netlab_tools
from bench.paper import document, machine, plan, room
from bench.paper.plan import Series, Wish
from bench.paper.results import Results
from bench.paper.runner import Runner
from bench.paper.scenes import Scenes
from bench.sync import code as codes

REPORT = Path(__file__).parents[1] / "PAPER.md"
FIGURES = Path(__file__).parents[2] / "docs" / "figures"
RESULTS = Path(__file__).parents[1] / "results" / "paper.jsonl"
PLATFORMS = (*plan.PUBLISHED, *plan.FURTHER, *plan.HIDDEN)
INTERRUPTED = 130


@click.group(invoke_without_command=True)
@click.option(
    "--platform", "platforms", multiple=True, type=click.Choice(PLATFORMS), help="Only this one; again for more."
)
@click.option("--apps", help="Names of applications, with commas between them.")
@click.option("--method", "methods", multiple=True, type=click.Choice(plan.METHODS), help="As --platform.")
@click.option("--only", multiple=True, type=click.Choice(plan.SERIES), help="As --platform: a part of it all.")
@click.option("--sweep", is_flag=True, help="The same as --only sweep.")
@click.option("--holders", is_flag=True, help="The same as --only holders.")
@click.option("--quick", is_flag=True, help="One row of each platform, two methods; under five minutes.")
@click.option(
    "--mbit", default=plan.MBIT, show_default=True, type=click.FloatRange(1, 10_000), help="Of the table's link."
)
@click.option("--delay-ms", default=0.0, type=click.FloatRange(0, 500), help="Of all links, one way.")
@click.option("--fresh", is_flag=True, help="Do again what was done for this state of the code.")
@click.option("--any-code", is_flag=True, help="Count what was done for other states of the code, too.")
@click.option("--list", "listing", is_flag=True, help="Measure nothing; tell what would be.")
@click.option(
    "--work", default=data.DEFAULT_WORK, show_default=True, type=click.Path(path_type=Path), help="Keeps layers."
)
@click.option("--folder", default="/var/tmp", show_default=True, type=click.Path(path_type=Path), help="For all else.")
@click.option("--results", "store", default=RESULTS, type=click.Path(path_type=Path), help="A file of JSON lines.")
@click.pass_context
def main(
    context: click.Context,
    platforms: tuple[str, ...],
    apps: str | None,
    methods: tuple[str, ...],
    only: tuple[Series, ...],
    sweep: bool,
    holders: bool,
    quick: bool,
    mbit: float,
    delay_ms: float,
    fresh: bool,
    any_code: bool,
    listing: bool,
    work: Path,
    folder: Path,
    store: Path,
) -> None:
    """Measure what was not measured yet, and print the tables.

    Exit code 1: some runs failed; goals that are missed do not count as failures. 130: interrupted.
    """
    context.obj = store
    if context.invoked_subcommand is not None:
        return
    chosen: set[Series] = {*only, *(("sweep",) if sweep else ()), *(("holders",) if holders else ())}
    wish = Wish(
        platforms=platforms or plan.PUBLISHED,
        series=chosen or plan.SERIES,
        apps=_names(apps),
        methods=methods or None,
        mbit=mbit,
        delay_ms=delay_ms,
        quick=quick,
    )
    results = Results(store)
    code = codes.state()
    counted = None if any_code else code
    pending = plan.pending(wish, set() if fresh else results.done(counted))
    if listing:
        _list(pending)
        return
    failed = _measure(results, pending, code, work, folder)
    print(document.summary(results, counted))
    sys.exit(1 if failed else 0)


@main.command()
@click.option("--any-code", is_flag=True, help="The last good runs, whatever the state of the code.")
@click.option("--to", default=REPORT, show_default=True, type=click.Path(path_type=Path), help="The Markdown file.")
@click.pass_obj
def report(store: Path, any_code: bool, to: Path) -> None:
    """Write the report from the results, and draw its plots."""
    results = Results(store)
    code = None if any_code else results.newest_code()
    if not results.of(code):
        sys.exit("bench: there is nothing to report on yet")
    from bench.paper import plots

    drawn = plots.draw(FIGURES, results.of(code))
    to.write_text(document.write(results, code, [os.path.relpath(path, to.parent) for path in drawn]))
    for path in (to, *drawn):
        print(path)


def _measure(
    results: Results, pending: list[tuple[plan.Cell, tuple[str, ...]]], code: str, work: Path, folder: Path
) -> int:
    """Do what is pending; the number of runs that failed."""
    if not pending:
        return 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        netlab_tools.check()
        ssh.need("rsync", "sshd", "ssh", "ssh-keygen")
        with room.placed(folder) as made:
            (made / "x").mkdir()
            scenes = Scenes(work, made)
            runner = Runner(results, made / "x", scenes, machine.notes(), lambda line: print(line, flush=True))
            runner.run(pending, code)
    except (NetlabUnavailable, ssh.Missing) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        print("bench: interrupted; what was measured is kept, the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    return runner.failed


def _list(pending: list[tuple[plan.Cell, tuple[str, ...]]]) -> None:
    for cell, methods in pending:
        print(f"{cell}: {', '.join(methods)}")
    left = [(cell, method) for cell, methods in pending for method in methods]
    print(f"{len(left)} runs, about {sum(plan.expected_s(*each) for each in left) / 60:.0f} minutes")


def _names(apps: str | None) -> list[str] | None:
    if apps is None:
        return None
    names = [name.strip() for name in apps.split(",") if name.strip()]
    unknown = sorted(set(names) - set(plan.APPS))
    if unknown:
        raise click.BadParameter(f"{unknown[0]}: known are {', '.join(plan.APPS)}", param_hint="--apps")
    return names


def _leave(number: int, frame: FrameType | None) -> None:
    """End the bench as Ctrl-C does; cleaning up is not to be disturbed by a second signal."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
