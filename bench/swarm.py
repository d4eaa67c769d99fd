"""Swarms on shaped links: `python -m bench.swarm`, as root.

four    four holders of 50 Mbit/s each against one, all alive, and with one of them killed half-way
seed    one seed of 100 Mbit/s that feeds eight nodes at the same time, against a single copy
hostile a slow and a lying holder beside an honest one, against the honest one alone

Each host has an access link to one switch (`bench.netlab`); content does not compress; times are those of whole
commands. Every copy goes to a node that has nothing yet.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.netlab import Access, NetlabUnavailable, Shape
from bench.starfield import Copy, Starfield
from p2player.localmesh import LocalNode

RESULTS = Path(__file__).parent / "results" / "swarm.jsonl"
LIAR = (sys.executable, str(Path(__file__).with_name("liar.py")))
EATERS = 8
KILL_AT = 0.5
LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure computed from the copies of one run, and which side of the goal is the good one."""

    name: str
    unit: str
    goal: float
    at_least: bool

    def met(self, value: float) -> bool:
        """Whether a value meets it."""
        return value >= self.goal if self.at_least else value <= self.goal


FOUR = Goal("four holders, times as fast as one", "x", 3.8, at_least=True)
KILLED = Goal("the same, one of them killed half-way", "x", 2.8, at_least=True)
EXCESS = Goal("four holders, received beyond a copy from one", "%", 1.0, at_least=False)
SEED = Goal("eight nodes from one seed, time of the last to one copy", "x", 1.3, at_least=False)
HOSTILE = Goal("slow and lying holders, time to the honest one's", "x", 1.1, at_least=False)
GOALS = (FOUR, KILLED, EXCESS, SEED, HOSTILE)


class Figures:
    """What was measured: appended to a file run by run, and shown as one table in the end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[Goal, list[float]] = {}

    def add(self, case: str, size_bytes: int, values: dict[Goal, float], copies: dict[str, list[Copy]]) -> None:
        """Keep one run of a case."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "case": case,
            "size_bytes": size_bytes,
            "figures": {goal.name: round(value, 4) for goal, value in values.items()},
            "copies": {name: [_row(copy) for copy in some] for name, some in copies.items()},
        }
        with self._path.open("a") as out:
            out.write(json.dumps(document) + "\n")
        for goal, value in values.items():
            self._values.setdefault(goal, []).append(value)
        for name, some in copies.items():
            seconds = ", ".join(f"{copy.seconds:.2f}" for copy in some)
            print(f"{case}: {name}: {size_bytes / 1e6:.0f} MB in {seconds} s", flush=True)

    def show(self) -> None:
        """Print the medians."""
        table = Table(title="p2player in a swarm", title_justify="left")
        for name in ("figure", "median", "least", "most", "goal", "met"):
            table.add_column(name, justify="left" if name == "figure" else "right")
        for goal in GOALS:
            if values := self._values.get(goal):
                median = statistics.median(values)
                texts = (f"{value:.2f} {goal.unit}" for value in (median, min(values), max(values)))
                sign = ">=" if goal.at_least else "<="
                met = "yes" if goal.met(median) else "NO"
                table.add_row(goal.name, *texts, f"{sign} {goal.goal:g} {goal.unit}", met)
        Console().print(table)


def _row(copy: Copy) -> dict[str, object]:
    return {
        "seconds": round(copy.seconds, 3),
        "node_s": copy.node_s,
        "rx_bytes": copy.wire.rx_bytes,
        "tx_bytes": copy.wire.tx_bytes,
        "cpu_s": round(copy.cpu_s, 2),
        "sources": dict(copy.sources),
    }


@dataclass(frozen=True, slots=True)
class Setting:
    """What all cases have in common."""

    root: Path
    figures: Figures
    runs: int
    scale: float
    delay_ms: float

    def access(self, up: float | None, down: float | None) -> Access:
        """An access link, Mbit/s; each direction has half of a path's delay."""
        return Access(Shape(up, self.delay_ms / 2), Shape(down, self.delay_ms / 2))

    def size(self, megabytes: int) -> int:
        """The size of a layer in bytes."""
        return int(megabytes * 1_000_000 * self.scale)


def four(setting: Setting) -> None:
    """Four holders against one; with one killed half-way."""
    names = ("one", "two", "three", "four")
    access = {name: setting.access(50, 50) for name in names} | {"puller": setting.access(1000, 1000)}
    with Starfield(setting.root / "four", access, setting.size(120)) as field:
        holders = [field.node(name) for name in names]
        field.hold(holders[0])
        single = [_fresh_copy(field, run, holders[:1]) for run in range(setting.runs)]
        field.hold(*holders[1:])
        for run, alone in enumerate(single):
            shared = _fresh_copy(field, setting.runs + run, holders)
            killed = _fresh_copy(field, 2 * setting.runs + run, holders, victim=holders[-1])
            holders[-1].start()
            values = {
                FOUR: alone.seconds / shared.seconds,
                KILLED: alone.seconds / killed.seconds,
                EXCESS: 100 * (shared.wire.rx_bytes - alone.wire.rx_bytes) / field.size_bytes,
            }
            copies = {"one": [alone], "four": [shared], "one of four killed": [killed]}
            setting.figures.add("four", field.size_bytes, values, copies)


def _fresh_copy(field: Starfield, number: int, holders: list[LocalNode], victim: LocalNode | None = None) -> Copy:
    """A copy to a node that is there for nothing else."""
    puller = field.node(f"puller-{number}", "puller")
    field.sees(puller, *holders)
    half = field.counters(puller).rx_bytes + KILL_AT * field.size_bytes

    def kill() -> None:
        while victim is not None and victim.process is not None and victim.process.poll() is None:
            if field.counters(puller).rx_bytes >= half:
                victim.kill()
            time.sleep(LOOK_S)

    copy = field.copy(puller, kill)
    field.drop(puller)
    return copy


def seed(setting: Setting) -> None:
    """One seed feeds eight nodes at the same time."""
    homes = [f"eater{number}" for number in range(EATERS)]
    access = {name: setting.access(100, 100) for name in ("seed", "puller", *homes)}
    with Starfield(setting.root / "seed", access, setting.size(200)) as field:
        source = field.node("seed")
        field.hold(source)
        for run in range(setting.runs):
            alone = _fresh_copy(field, run, [source])
            eaters = [field.node(f"{home}-{run}", home) for home in homes]
            for eater in eaters:
                field.sees(eater, source)
            copies = field.copies(eaters)
            field.drop(*eaters)
            last = max(copy.seconds for copy in copies)
            both = {"one": [alone], "eight": copies}
            setting.figures.add("seed", field.size_bytes, {SEED: last / alone.seconds}, both)


def hostile(setting: Setting) -> None:
    """One honest holder, one that is slow and one that lies, against the honest one alone."""
    access = {
        "honest": setting.access(50, 50),
        "slow": setting.access(1, 50),
        "liar": setting.access(50, 50),
        "puller": setting.access(1000, 1000),
    }
    with Starfield(setting.root / "hostile", access, setting.size(80)) as field:
        honest, slow, liar = field.node("honest"), field.node("slow"), field.node("liar", launcher=LIAR)
        field.hold(honest)
        single = [_fresh_copy(field, run, [honest]) for run in range(setting.runs)]
        field.hold(slow, liar)
        for run, alone in enumerate(single):
            mixed = _fresh_copy(field, setting.runs + run, [honest, slow, liar])
            both = {"honest alone": [alone], "with a slow and a lying one": [mixed]}
            setting.figures.add("hostile", field.size_bytes, {HOSTILE: mixed.seconds / alone.seconds}, both)


CASES: dict[str, Callable[[Setting], None]] = {"four": four, "seed": seed, "hostile": hostile}


@click.command()
@click.option("--case", "names", type=click.Choice(list(CASES)), multiple=True, help="Which ones; all by default.")
@click.option("--runs", default=3, show_default=True, help="Runs of each case; the table shows medians.")
@click.option("--scale", default=1.0, show_default=True, help="Of the layers' sizes: 120, 200 and 80 MB.")
@click.option("--delay-ms", default=0.0, show_default=True, help="One way, between any two hosts.")
@click.option("--folder", default="/dev/shm", show_default=True, help="Where everything lives; tmpfs by default.")
def main(names: tuple[str, ...], runs: int, scale: float, delay_ms: float, folder: str) -> None:
    """Run the cases, print one table, and append every run to bench/results."""
    root = Path(tempfile.mkdtemp(prefix="p2player-swarm-", dir=folder))
    figures = Figures(RESULTS)
    try:
        for name in names or CASES:
            (root / name).mkdir()
            CASES[name](Setting(root, figures, runs, scale, delay_ms))
            shutil.rmtree(root / name)
    except NetlabUnavailable as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
    finally:
        shutil.rmtree(root, ignore_errors=True)
        figures.show()


if __name__ == "__main__":
    main()
