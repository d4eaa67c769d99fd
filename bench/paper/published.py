"""The published method: three layers, moved with rsync.

The base layer is at both ends. While the service runs, the application layer is synchronised; whether it was at the
destination already or not, rsync looks for itself. Then the service is suspended, the instance layer is synchronised,
and the application is restored from the three. It is the same engine that suspends and restores, through the same
backend, as with p2player: what differs is how bytes travel, and what is moved while the service runs.

rsync pushes from the source, over ssh as published (OpenSSH's defaults, a connection for each of the two layers).
"""

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends import config
from backends.base import AppLayout
from backends.folders import remove_tree
from bench.netlab import Host
from bench.paper.engines import Engine
from bench.paper.workloads import Seen, Watch, Workload
from bench.ssh import SshServer
from bench.sync.measured import command

SYNC_LIMIT_S = 900.0


@dataclass(frozen=True, slots=True)
class Moved:
    """What one migration took; `freeze_s` by the method's own account."""

    total_s: float
    freeze_s: float
    link_bytes: int
    seen: Seen
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """One end: its host, its engine, and a folder of its own."""

    host: Host
    engine: Engine
    folder: Path

    def layout(self, workload: Workload, app_id: str, app_layer: Path) -> AppLayout:
        """Where an application is laid out here."""
        folder = self.folder / app_id
        folder.mkdir(parents=True)
        parsed = config.parse(workload.config)
        return AppLayout(app_id, workload.name, folder, parsed, base=workload.layers.base, app=app_layer)


class Rsync:
    """The method between two places.

    Args:
        server: an ssh server on the destination.
        counted: bytes on the link so far, both directions.
        compress: `-z`.
    """

    def __init__(
        self,
        source: Place,
        destination: Place,
        server: SshServer,
        counted: Callable[[], int],
        *,
        compress: bool = False,
    ) -> None:
        self._source = source
        self._destination = destination
        self._server = server
        self._counted = counted
        self._compress = ("-z",) if compress else ()

    def run(self, workload: Workload, watch: Watch, *, present: bool, engine_too: bool) -> Moved:
        """Start the application at the source, migrate it, look at it, end it.

        Args:
            present: have the application layer at the destination beforehand.
            engine_too: afterwards, measure a checkpoint and a restore without any move.
        """
        arrived = self._destination.folder / f"layer-{secrets.token_hex(4)}"
        if present:
            command(["rsync", *self.options(workload), f"{workload.layers.app}/", f"{arrived}/"])
        app_id = secrets.token_hex(16)
        source = self._source.layout(workload, app_id, workload.layers.app)
        destination = self._destination.layout(workload, app_id, arrived)
        here, there = self._source.engine.backend, self._destination.engine.backend
        try:
            for folder in (destination.state_dir, destination.run_dir):
                folder.mkdir(mode=0o700)
            here.create(source)
            here.start(source)
            watch.begin()
            os.sync()  # what was prepared is not to be written out while it is measured
            moved = self._migrate(workload, source, destination)
            seen = watch.end()
            engine = self._engine_alone(destination) if engine_too else {}
            notes = {"flags": " ".join(self.options(workload))}
            return Moved(moved["total_s"], moved["freeze_s"], int(moved["bytes"]), seen, {**moved, **engine}, notes)
        finally:
            watch.close()
            there.destroy(destination)
            here.destroy(source)
            for folder in (source.folder, destination.folder, arrived):
                remove_tree(folder)

    def _migrate(self, workload: Workload, source: AppLayout, destination: AppLayout) -> dict[str, float]:
        here, there = self._source.engine.backend, self._destination.engine.backend
        clock, before = _Clock(), self._counted()
        self._sync(workload, source.app, destination.app)
        clock.mark("app_s")
        app_bytes = self._counted() - before
        suspended = here.suspend(source)
        clock.mark("suspend_s")
        self._sync(workload, source.state_dir, destination.state_dir)
        clock.mark("instance_s")
        restored = there.restore(destination)
        clock.mark("restore_s")
        moved = self._counted() - before
        return {
            **clock.seconds,
            "total_s": sum(clock.seconds.values()),
            "freeze_s": restored.at.monotonic_s - suspended.at.monotonic_s,
            "bytes": moved,
            "app_bytes": app_bytes,
            "instance_bytes": moved - app_bytes,
        }

    def options(self, workload: Workload) -> Sequence[str]:
        """What rsync is run with."""
        return ("-a", *workload.rsync, *self._compress)

    def _sync(self, workload: Workload, folder: Path, target: Path) -> None:
        words = ["rsync", *self.options(workload), "-e", self._server.shell]
        command(
            self._source.host.command([*words, f"{folder}/", f"{self._server.source(target)}/"]), limit_s=SYNC_LIMIT_S
        )

    def _engine_alone(self, layout: AppLayout) -> dict[str, float]:
        backend, clock = self._destination.engine.backend, _Clock()
        suspended = backend.suspend(layout)
        clock.mark("engine_suspend_s")
        resumed = backend.resume(layout)
        clock.mark("engine_resume_s")
        return {**clock.seconds, "engine_s": resumed.at.monotonic_s - suspended.at.monotonic_s}


class _Clock:
    """Seconds from one mark to the next, whole calls; the backends tell themselves when the service stood and ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
