"""Doing the runs: one stage after the other, each result kept as soon as it is there."""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Protocol

from backends.folders import remove_tree
from bench.figures import spell_s
from bench.netlab import Host
from bench.paper import own, plan
from bench.paper.ground import Ground
from bench.paper.plan import OURS, OWN, RSYNC, RSYNC_Z, Cell, Key
from bench.paper.published import Moved
from bench.paper.results import Results, Run
from bench.paper.workloads import Watch, Workload

Pending = Sequence[tuple[Cell, Sequence[str]]]


class Scenes(Protocol):
    """What is migrated, and who uses it meanwhile."""

    def workload(self, cell: Cell) -> Workload:
        """The application of a cell; its layers are made when it is first asked for, which may take minutes."""
        ...

    def watch(self, cell: Cell, client: Host, log: Path) -> Watch:
        """A client of it, to be run on a host; `log` is a file for what it has to say."""
        ...


class Runner:
    """Does what is pending.

    Args:
        folder: an existing one for all that is made; its path is short, as sockets lie below it.
        notes: of the machine and the versions, kept with every run.
        say: shows a line.

    Attributes:
        failed: number of runs that gave no figures.
    """

    def __init__(
        self, results: Results, folder: Path, scenes: Scenes, notes: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self.failed = 0
        self._results = results
        self._folder = folder
        self._scenes = scenes
        self._notes = notes
        self._say = say
        self._left: list[tuple[Cell, str]] = []
        self._total = 0

    def run(self, pending: Pending, code: str) -> None:
        """Do all runs. One that fails is kept with its error, and what comes after it gets a new stage."""
        self._left = [(cell, method) for cell, methods in pending for method in methods]
        self._total = len(self._left)
        while self._left:
            _, same = next(groupby(self._left, key=lambda each: each[0].stage))
            self._on_one_stage([Key(cell, method, code) for cell, method in same])

    def _on_one_stage(self, keys: Sequence[Key]) -> None:
        for cell in dict.fromkeys(key.cell for key in keys):
            try:
                self._scenes.workload(cell)
            except Exception as error:  # whatever stands against making an application: told in the results
                for key in [key for key in keys if key.cell == cell]:
                    self._keep(self._failed(key, error))
                return
        folder = self._folder / f"s{self._total - len(self._left)}"
        folder.mkdir()
        began = time.monotonic()
        left = len(self._left)
        try:
            with Ground(keys[0].cell, folder) as ground:
                self._say(f"{keys[0].cell.platform}: two nodes are ready after {spell_s(time.monotonic() - began)}")
                for key in keys:
                    if not self._one(ground, key):
                        return
        except Exception as error:  # an engine that does not come up, or does not end: a bench of hours goes on
            self._say(f"the stage failed: {error!r}")
            if len(self._left) == left:
                for key in keys:
                    self._keep(self._failed(key, error))
        finally:
            remove_tree(folder)

    def _one(self, ground: Ground, key: Key) -> bool:
        """Do one run; whether the stage is still good."""
        done = self._total - len(self._left)
        rest_s = sum(plan.expected_s(*each) for each in self._left)
        self._say(f"[{done + 1}/{self._total}, about {rest_s / 60:.0f} min left] {key.cell}: {key.method}")
        at = now()
        try:
            moved = self._measure(ground, key)
        except Exception as error:  # whatever an engine raises: told in the results, and the others are measured
            self._keep(self._failed(key, error))
            return False
        self._keep(
            Run(
                key,
                moved.total_s,
                moved.link_bytes,
                moved.seen.gap_s,
                moved.freeze_s,
                {**moved.seen.figures, **moved.figures},
                dict(moved.seen.kept),
                {**self._notes, **ground.notes, **moved.seen.notes, **moved.notes},
                None,
                at,
            )
        )
        return True

    def _measure(self, ground: Ground, key: Key) -> Moved:
        cell = key.cell
        workload = self._scenes.workload(cell)
        watch = self._scenes.watch(cell, ground.stage.c, ground.folder / "client.log")
        try:
            if key.method == OURS:
                return ground.p2player.run(
                    workload,
                    watch,
                    present=cell.present,
                    back=cell.series == "table",
                    dirty_mb_s=cell.rewrite_mb_s,
                    memory_mb=cell.ram_mb,
                )
            if key.method == OWN:
                return own.run(ground, cell.platform, workload, watch)
            assert key.method in (RSYNC, RSYNC_Z)
            method = ground.rsync(compress=key.method == RSYNC_Z)
            return method.run(workload, watch, present=cell.present, engine_too=key.method == RSYNC)
        finally:
            watch.close()

    def _failed(self, key: Key, error: Exception) -> Run:
        text = f"{type(error).__name__}: {error}" if str(error) else repr(error)
        return Run(key, notes=self._notes, error=text[:2000], at=now())

    def _keep(self, run: Run) -> None:
        self._left.remove((run.key.cell, run.key.method))
        self._results.add(run)
        if run.error is not None:
            self.failed += 1
            self._say(f"  {run.key.cell}: {run.key.method} failed: {run.error}")
            return
        gap = "" if run.gap_s is None else f", client's gap {spell_s(run.gap_s)}"
        lost = [what for what, kept in run.kept.items() if not kept]
        self._say(
            f"  {spell_s(run.total_s)}, {run.mb:.2f} MB, freeze {spell_s(run.freeze_s)}{gap}"
            + (f"; NOT KEPT: {', '.join(lost)}" if lost else "")
        )


def now() -> str:
    """In UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
