"""Doing the runs of a plan: one series after the other, each result kept as soon as it is there."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import data, figures
from bench.sync import rivals, tools
from bench.sync.measured import RunFailed, command, measure
from bench.sync.plan import LOOPBACK, ON_DISK, Key, Series
from bench.sync.results import Results, Run
from bench.sync.stage import Ground, Stage
from p2player.errors import P2PlayerError

PREFIX = "p2player-sync-"


class Runner:
    """Does what a plan says.

    Args:
        folder: on tmpfs; for one series at a time a folder is made below it.
        disk: the same on a disk, for the series that is about disks.
        work: where `bench.data` keeps the pairs.
        say: shows a line.

    Attributes:
        failed: number of runs, or whole series, that gave no figures.
    """

    def __init__(
        self, results: Results, folder: Path, disk: Path | None, work: Path, say: Callable[[str], None]
    ) -> None:
        self.results = results
        self.folder = folder
        self.disk = disk
        self.work = work
        self.say = say
        self.failed = 0
        self._done = 0
        self._total = 0

    def run(self, planned: Sequence[Series]) -> None:
        """Do all runs; a contestant that fails is left out of the rest of that series."""
        self._total = sum(len(series.runs) for series in planned)
        for series in planned:
            try:
                with self._ground(series) as ground:
                    self._series(series, ground)
            except data.Unavailable as error:
                self._miss(f"{series.case.name}: {error}", len(series.runs))

    @contextmanager
    def _ground(self, series: Series) -> Iterator[Ground]:
        """The pair of a series, copied to where it is measured."""
        case = series.case
        if data.workshop.finished(self.work, case.name, data.CASES[case.name].variant(series.size_mb)) is None:
            self.say(f"making the data of {case.name}, {series.size_mb} MB")
        pair = data.make(case.name, self.work, series.size_mb)
        with placed(self.disk if series.link == ON_DISK and self.disk else self.folder) as folder:
            command(["cp", "-a", str(pair.new), str(folder / "new")])
            old = folder / "new" if pair.old == pair.new else pair.old
            if old is not None and old == pair.old:
                old = folder / "old"
                command(["cp", "-a", str(pair.old), str(old)])
            yield Ground(case, folder, old, folder / "new", pair.size, pair.files)

    def _series(self, series: Series, ground: Ground) -> None:
        size = f"{figures.spell_bytes(ground.size_bytes)} in {ground.files:,} files"
        self.say(f"{series.case.title} on {series.link.name}: {size}")
        contestants = {name: tools.make(name, ground) for name in series.tools}
        with Stage(ground, LOOPBACK) as stage:
            self._each(series, contestants, lambda tool: tool.prepare(stage))
        with Stage(ground, series.link) as stage:
            self._each(series, contestants, lambda tool: tool.open(stage))
            self.results.note(series.runs[0].code, {**machine(), **rivals.versions(stage)})
            for key in series.runs:
                if key.tool in contestants and not self._one(key, ground, contestants[key.tool]):
                    self._drop(series, contestants, key.tool, after=key.number)

    def _each(self, series: Series, contestants: dict[str, tools.Tool], action: Callable[[tools.Tool], object]) -> None:
        for name, tool in list(contestants.items()):
            try:
                action(tool)
            except (RunFailed, P2PlayerError, OSError) as error:
                self.say(f"  {name}: {error}")
                self._drop(series, contestants, name, after=0)

    def _drop(self, series: Series, contestants: dict[str, tools.Tool], name: str, after: int) -> None:
        del contestants[name]
        left = sum(key.tool == name and key.number > after for key in series.runs)
        if left:
            self._miss(f"  {name}: left out of the other {left} runs", left)

    def _one(self, key: Key, ground: Ground, tool: tools.Tool) -> bool:
        error: str | None = None
        try:
            tool.reset()
            found = measure(tool.destination, tool.run)
            tool.finish()
            ground.verify(hard_links=tool.keeps_hard_links)
        except (RunFailed, P2PlayerError, OSError) as problem:
            error = str(problem)
        finally:
            tool.clear()
        self._done += 1
        line = f"  [{self._done}/{self._total}] {key.case} {key.link} {key.tool} {key.number}: "
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        size = (ground.size_bytes, ground.files)
        if error is not None:
            self.failed += 1
            self.results.add(Run(key, 0, 0, 0, *size, {}, error, at))
            self.say(line + f"failed: {error}")
            return False
        run = Run(key, found.seconds, found.wire.rx_bytes, found.wire.tx_bytes, *size, dict(found.parts), None, at)
        self.results.add(run)
        self.say(line + f"{figures.spell_s(run.seconds)}, {figures.spell_bytes(run.wire_bytes)}")
        return True

    def _miss(self, text: str, runs: int) -> None:
        self.failed += 1
        self._done += runs
        self.say(text)


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """A folder of its own below `folder`, while the block runs; what killed benches left there is removed."""
    for left in folder.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def machine() -> dict[str, str]:
    """What the figures were taken on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": f"{os.cpu_count()} cores, {memory / 2**30:.0f} GiB, Linux {platform.release()}",
        "python": platform.python_version(),
    }
