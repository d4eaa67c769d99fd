"""One application of this node's LXD: its container, its volume and its note, seen together."""

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from backends import applog, procfs
from backends.base import Moment, Workspace
from backends.lxd import bridge, failing, inside, instance, notes, settings, volume
from backends.lxd.daemon import Daemon, LxdError, Process
from backends.lxd.instance import Instance
from backends.lxd.notes import Note, Phase
from backends.lxd.settings import LxdSettings
from backends.lxd.volume import Volume
from backends.memory import anonymous_bytes, size_of
from backends.procfs import ProcessId

MONITOR_TIMEOUT_S = 5.0

_POLL_S = 0.01


class Application:
    """For one call of the backend; it asks for the daemon's process and pool once, when they are needed."""

    def __init__(self, daemon: Daemon, workspace: Workspace) -> None:
        self.workspace = workspace
        self.name = workspace.name
        self.container = Instance(daemon, instance.name_of(workspace.app_id))
        self._daemon = daemon

    @cached_property
    def process(self) -> Process:
        return self._daemon.process()

    @cached_property
    def pool(self) -> str:
        return self._daemon.pool()

    @property
    def volume(self) -> Volume:
        return Volume(self.process, self.pool, self.container.name)

    @property
    def table(self) -> LxdSettings:
        return settings.read(self.workspace.config, self.workspace.app_id)

    def note(self) -> Note | None:
        return notes.read(self.workspace)

    def remember(self, note: Note | None) -> None:
        notes.write(self.workspace, note)

    def begun(self, note: Note) -> None:
        """Note what this process is about to ask LXD for."""
        me = procfs.stat(os.getpid())
        with notes.held(self.workspace):
            self.remember(replace(note, owner=None if me is None else me.process))

    def unnoted(self) -> Note:
        """A note for a container that runs, and of which there is none."""
        pid = self.container.pid()
        found = None if pid is None else procfs.stat(pid)
        if found is None:
            return Note(Phase.RUNNING, procfs.boot_id())
        monitor = procfs.stat(found.parent)
        return Note(
            Phase.RUNNING,
            procfs.boot_id(),
            init=found.process,
            monitor=None if monitor is None else monitor.process,
            started=started(found.process),
        )

    def main_process(self, init: ProcessId) -> int:
        """What users take for the application's process."""
        if not self.workspace.config.command:
            return init.pid
        return inside.main_process(volume.root_of(self.workspace), init.pid) or init.pid

    def connect(self, init: ProcessId) -> None:
        """Let packets through to the container.

        Raises:
            BackendError: the kernel refused.
        """
        bridge.connect(self.process, self.table, self.outer(), init.pid)

    def patience_s(self) -> float:
        """How long LXD may take to save or restore the memory of this application as it is now."""
        size = size_of(volume.images_of(self.workspace))
        with contextlib.suppress(LxdError):  # there is no such container
            if (init := self.container.pid()) is not None:
                size += anonymous_bytes(inside.processes(init))
        return instance.memory_timeout_s(size)

    def await_idle(self, timeout_s: float | None = None) -> None:
        """Have LXD end what a node began that was killed then: it goes on by itself.

        Args:
            timeout_s: None for what such things may take.

        Raises:
            StillAtWork: it takes too long.
        """
        note = self.note()
        if note is None or note.phase not in (Phase.STARTING, Phase.STOPPING, Phase.SUSPENDING):
            return
        log = self.volume.seen / volume.STATE / "restore.log"

        def watch() -> None:
            if note.phase is Phase.STARTING and note.memory:
                failing.end(log, self.container.name)

        self.container.await_idle(watch, self.patience_s() if timeout_s is None else timeout_s)

    def take_log(self, root: Path) -> None:
        """Move what was printed into the node's log: it is not to travel.

        Args:
            root: the root file system: that of the volume while it is mounted.
        """
        printed = inside.take_log(root, 2 * applog.LIMIT_BYTES)
        log = applog.AppLog(str(self.workspace.log_path))
        log.write(printed)
        log.close()

    def outer(self) -> str:
        """What LXD calls the outer end of the container's network device; empty when it has none."""
        row = self.container.row()
        return "" if row is None else row.outer


def await_monitor(note: Note) -> None:
    """LXC's watcher cleans up for a moment after the container ended."""
    if note.monitor is not None:
        procfs.wait_end(note.monitor, MONITOR_TIMEOUT_S)


def started(init: ProcessId) -> Moment:
    """When a process was made, of the kernel's own account."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - init.start / os.sysconf("SC_CLK_TCK")
    now = Moment.now()
    return Moment(now.wall_s - age_s, now.monotonic_s - age_s)


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
