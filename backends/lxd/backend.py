"""LXD as `backends.base.Backend`: system containers that move with their memory.

Theory of operation
-------------------
An application is one container of LXD's, `p2p-` and the first digits of its id, whose volume is an overlay of the
layers (`volume`). The container itself is worth nothing: it is made anew for every start from the configuration and
deleted at will (`instance`); all that matters is in the instance folder.

*Suspend* is LXD's stateful stop: CRIU writes the memory to `state/` of the volume, hence to the instance folder.
*Restore* and *resume* are a stateful start; where the folder has no saved memory they are a plain one. *Pre-copy* dumps
are made past LXD (`predump`), and marked, so that they are never restored: a later plain start deletes them.

With a `command`, the container's first process is a small script (`inside`), which keeps the output and the exit code;
without one it is the layers' own /sbin/init, of whose end nothing is known but that it came.

What runs is asked of LXD every time. What it cannot know, that a stop was asked for or since when a container runs, is
in a note of the run folder (`notes`):

    nothing noted, or not executed since         -> ABSENT, or what was before
    LXD runs it                                  -> RUNNING
    LXD holds its memory, or it was shelved      -> SUSPENDED
    it stopped, in the boot in which it ran      -> EXITED, with the code that the script left
    the machine restarted, or LXD has forgotten  -> LOST
"""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from backends import applog, criu, procfs
from backends.base import (
    Adopted,
    AppLayout,
    Capabilities,
    Checkpoint,
    EngineSettings,
    EngineState,
    Moment,
    Probe,
    Started,
    Status,
    Workspace,
)
from backends.command import IN_CONTAINER, environment
from backends.errors import (
    AlreadyRunning,
    BackendError,
    ConfigError,
    HookFailed,
    NotRunning,
    StartFailed,
    StopFailed,
    SuspendFailed,
)
from backends.folders import remove_tree
from backends.hooks import run_hook
from backends.lxd import (
    adopt,
    bridge,
    failing,
    fitness,
    groups,
    inside,
    instance,
    notes,
    predump,
    settings,
    verdict,
    volume,
)
from backends.lxd.daemon import Daemon, LxdError, Process, StillAtWork
from backends.lxd.instance import Instance, Row
from backends.lxd.notes import Note, Phase
from backends.lxd.volume import Volume
from backends.memory import anonymous_bytes, size_of
from backends.procfs import ProcessId

_TAIL_BYTES = 2048
_TAIL_LINES = 5
_RESTORED_AFTER_S = 0.05  # what lived before needs no second to prove itself
_MONITOR_TIMEOUT_S = 5.0
_SCRIPT_TIMEOUT_S = 2.0
_POLL_S = 0.01


class LxdBackend:
    """See `backends.base.Backend` and `backends.base.Adopter`.

    Args:
        engines: where the daemon is; whatever it leaves open is found as LXD's own tools find it.
        healthy_after_s: an application that lives shorter counts as failed.
    """

    name = "lxd"
    capabilities = Capabilities(live=True, cooperative=False, leave_running=True, root=True)

    def __init__(self, engines: EngineSettings | None = None, *, healthy_after_s: float = 1.0) -> None:
        self._engines = engines or EngineSettings()
        self._healthy_after_s = healthy_after_s

    @cached_property
    def _daemon(self) -> Daemon:
        return Daemon(self._engines)

    def probe(self) -> Probe:
        """Needs root, pylxd, a daemon with a pool of driver `dir`, and a CRIU that works for this kernel."""
        version = None
        try:
            version = self._daemon.version()
            fitness.check(self._daemon)
        except BackendError as error:
            return Probe(self.name, False, version, str(error))
        except Exception as error:  # pylxd and what it stands on may raise anything; a probe must not
            return Probe(self.name, False, version, f"{type(error).__name__}: {error}")
        return Probe(self.name, True, version)

    def create(self, layout: AppLayout) -> None:
        """Needs layers with `rootfs/`; the container itself is made when it is started."""
        self._configuration(layout)
        for folder in (layout.run_dir, layout.state_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self, layout: AppLayout) -> Started:
        """Make the container, mount its volume, and wait until it has lived for `healthy_after_s`."""
        self._await_earlier(layout)
        self._refuse_second(layout)
        return self._begin(layout, memory=False)

    def stop(self, workspace: Workspace) -> None:
        """Ask its first process to end, then kill it; then the volume is unmounted."""
        container = self._instance(workspace)
        try:
            self._await_idle(workspace, instance.OP_TIMEOUT_S)
        except StillAtWork as error:
            if (row := container.row()) is not None and row.stopped:  # it may be started yet
                raise StopFailed(f"{workspace.name} cannot be ended: {error}", ()) from error
        row = container.row()
        note = notes.read(workspace)
        if row is not None and not row.stopped:
            running = note if note is not None else self._unnoted(container)
            notes.write(workspace, running.to(Phase.STOPPING))
            try:
                forced = container.stop(workspace.config.stop_timeout_s)
            except LxdError as error:
                pid = container.pid()
                raise StopFailed(f"{workspace.name} cannot be ended: {error}", () if pid is None else (pid,)) from error
            _await_monitor(running)
            notes.write(workspace, running.to(Phase.STOPPED, verdict.asked_exit(workspace, forced=forced)))
        elif row is not None and note is not None and note.phase in (Phase.STOPPING, Phase.SUSPENDING):
            notes.write(workspace, note.to(Phase.STOPPED, verdict.asked_exit(workspace, forced=False)))
        if row is not None:
            self._volume(workspace).unmount()

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> Checkpoint:
        """With `leave_running` a dump past LXD; else a stateful stop."""
        container = self._instance(layout)
        row = container.row()
        init = None if row is None or row.stopped else container.pid()
        if init is None:
            raise NotRunning(f"{layout.name} is not running")
        if not leave_running:
            return self._save(layout, container)
        process = self._daemon.process()
        at = Moment.now()
        paused_s = predump.dump(process, self._volume(layout, process), layout, container.name, init)
        return Checkpoint(at, paused_s)

    def obstacles(self, layout: AppLayout) -> Sequence[str]:
        """Open devices and sockets that CRIU cannot save, of any process in the container."""
        init = self._instance(layout).pid()
        return () if init is None else criu.obstacles(inside.processes(init))

    def facts(self, layout: AppLayout) -> Mapping[str, str]:
        """The processor, the kernel, CRIU, LXD, the place of its folder; and how much memory there is to save."""
        init = self._instance(layout).pid()
        size = 0 if init is None else anonymous_bytes(inside.processes(init))
        more = max(0, size - size_of(volume.images_of(layout)))
        return {**fitness.facts(self._daemon), "memory_bytes": str(more)}

    def mismatches(self, facts: Mapping[str, str]) -> Sequence[str]:
        """Another processor, an older CRIU, another series of LXD, another place of its folder."""
        try:
            return fitness.mismatches(self._daemon, facts)
        except BackendError as error:
            return (str(error),)

    def suspend(self, layout: AppLayout, *, memory: bool = True) -> Checkpoint:
        """`before_suspend`, then a stateful stop; without `memory` a plain one, after which no images are left."""
        status = self.status(layout)
        if status.state is not EngineState.RUNNING:
            how = f" ({status.exit})" if status.exit else ""
            raise SuspendFailed(f"{layout.name} is not running{how}", running=False)
        try:
            run_hook("before_suspend", layout, pid=status.pid)
        except HookFailed as error:
            raise SuspendFailed(f"{layout.name}: {error}", running=True) from error
        if memory:
            return self.checkpoint(layout, leave_running=False)
        at = Moment.now()
        try:
            self.stop(layout)
        except StopFailed as error:
            raise SuspendFailed(f"{layout.name}: {error}", running=True) from error
        self._volume(layout).forget_memory(layout)
        self._volume(layout).tidy(layout)
        self._take_log(layout, volume.root_of(layout))
        note = notes.read(layout)
        assert note is not None
        notes.write(layout, note.to(Phase.SHELVED, note.exit))
        return Checkpoint(at, paused_s=time.monotonic() - at.monotonic_s)

    def resume(self, layout: AppLayout) -> Started:
        """A stateful start here, or a plain one when it was shelved; a running one is left alone."""
        self._await_earlier(layout)
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            assert status.pid is not None
            assert status.started is not None
            note = notes.read(layout)
            if note is not None and note.phase is Phase.STARTING:  # by a node that was killed then
                self._connect(layout, self._instance(layout), self._daemon.process(), memory=note.memory)
            return Started(status.pid, status.started)
        row = self._instance(layout).row()
        memory = status.state is EngineState.SUSPENDED and row is not None and row.stateful
        return self._begin(layout, memory=memory and _final_images(layout))

    def restore(self, layout: AppLayout) -> Started:
        """A stateful start of a container that is made for it; a plain one when no memory came along."""
        self._await_earlier(layout)
        self._refuse_second(layout)
        images = volume.images_of(layout)
        if (images / predump.MARK).exists():
            raise StartFailed(f"cannot restore {layout.name}: its images are those of a pre-copy round", executed=False)
        return self._begin(layout, memory=_final_images(layout))

    def destroy(self, workspace: Workspace) -> None:
        """Stop it, unmount, delete the container, then all folders and the log."""
        row = self._instance(workspace).row()
        if row is not None:
            self.stop(workspace)
            place = self._volume(workspace)
            place.unmount()
            self._instance(workspace).remove()
            groups.remove_empty(instance.name_of(workspace.app_id))
        for folder in (workspace.run_dir, workspace.state_dir):
            remove_tree(folder)
        applog.remove(str(workspace.log_path))

    def logs(self, workspace: Workspace, max_bytes: int) -> bytes:
        """The node's log, of hooks and of what was printed before the last suspend; then that in the container."""
        printed = inside.tail(volume.root_of(workspace), max_bytes)
        return applog.tail(str(workspace.log_path), max_bytes - len(printed)) + printed

    def status(self, workspace: Workspace) -> Status:
        """Ask LXD, and read the note."""
        note = notes.read(workspace)
        container = self._instance(workspace)
        row = container.row()
        if row is None:
            return Status(EngineState.ABSENT) if note is None else verdict.without_container(note)
        if row.stopped:
            if note is None:
                return Status(EngineState.ABSENT)
            _await_monitor(note)
            return verdict.not_running(workspace, note, row)
        if note is None or note.init is None or not procfs.alive(note.init):
            starting = note is not None and note.phase is Phase.STARTING and note.memory
            note = self._unnoted(container)
            if note.init is None and starting:  # CRIU lets nothing execute before all is restored
                return Status(EngineState.SUSPENDED)
            if note.init is None:  # it ended just now
                return Status(EngineState.LOST, reason="it ended while it was looked at")
        assert note.init is not None
        pid = self._main_process(workspace, note.init)
        return Status(EngineState.RUNNING, pid, note.started or _started(note.init))

    def adopt(self, source: str, into: Path, base: Path | None) -> Adopted:
        """`INSTANCE`, or `image:ALIAS` or `image:FINGERPRINT`; see `backends.lxd.adopt`."""
        return adopt.take_apart(self._daemon, source, into, base)

    def _instance(self, workspace: Workspace) -> Instance:
        return Instance(self._daemon, instance.name_of(workspace.app_id))

    def _volume(self, workspace: Workspace, process: Process | None = None) -> Volume:
        name = instance.name_of(workspace.app_id)
        return Volume(process or self._daemon.process(), self._daemon.pool(), name)

    def _configuration(self, layout: AppLayout) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        """What LXD is to know of the container.

        Raises:
            ConfigError: this engine cannot run it.
        """
        table = settings.read(layout.config, layout.app_id)
        try:
            volume.check_layers(layout)
        except BackendError as error:
            raise ConfigError("", str(error)) from error
        variables = environment(layout, {}, IN_CONTAINER)
        return instance.configuration(layout.config, table, variables), bridge.devices(table)

    def _refuse_second(self, layout: AppLayout) -> None:
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            raise AlreadyRunning(f"{layout.name} is running already, as process {status.pid}")

    def _begin(self, layout: AppLayout, *, memory: bool) -> Started:
        """Start the container, of which no copy runs."""
        config, devices = self._configuration(layout)
        process = self._daemon.process()
        pool = self._daemon.pool()
        container = self._instance(layout)
        place = Volume(process, pool, container.name)
        try:
            volume.check_instance(layout)
            bridge.check(process, settings.read(layout.config, layout.app_id))
            row = container.row()
            if not memory:
                place.unmount()
                place.forget_memory(layout)
            if row is None or not memory or not row.stateful:
                place.unmount()
                container.make(pool, config, devices)
                row = container.row()
            place.mount(layout)
            if not memory:
                self._take_log(layout, place.seen / "rootfs")
            if not memory and layout.config.command:
                text = inside.script(
                    instance.words(layout.config), environment(layout, {}, IN_CONTAINER), IN_CONTAINER.state
                )
                inside.write_script(place.seen / "rootfs", text)
        except (BackendError, OSError) as error:
            raise StartFailed(f"cannot start {layout.name}: {error}", executed=False) from error
        assert row is not None
        return self._execute(layout, container, place, row, memory)

    def _execute(self, layout: AppLayout, container: Instance, place: Volume, row: Row, memory: bool) -> Started:
        """Have LXD start it, and see it live."""
        before = notes.read(layout)
        if before is not None and before.phase is Phase.STARTING:
            before = before.before
        note = Note(
            Phase.STARTING,
            procfs.boot_id(),
            used_at=row.used_at,
            memory=memory,
            before=None if before is None else before.to(before.phase, before.exit),
        )
        notes.write(layout, note)
        restore_log = place.seen / volume.STATE / "restore.log"
        seen: list[str] = []
        try:
            if memory:
                container.restore(lambda: seen.extend(filter(None, [failing.end(restore_log, container.name)])))
            else:
                container.start()
        except StillAtWork as error:
            self.stop(layout)
            raise StartFailed(f"{layout.name}: {error}; it was ended", executed=True) from error
        except (BackendError, OSError) as error:
            after = container.row()
            if after is not None and not after.stopped:
                self.stop(layout)
                raise StartFailed(f"{layout.name} started badly and was ended: {error}", executed=True) from error
            reason = seen[0] if seen else criu.why(restore_log) if memory and restore_log.exists() else str(error)
            place.tidy(layout)
            # CRIU lets nothing execute before all is restored; of another start LXC may have got far enough.
            executed = not memory and (after is None or after.used_at != row.used_at)
            if not executed:
                notes.write(layout, before)
            raise StartFailed(f"cannot start {layout.name}: {reason}", executed=executed) from error
        running = self._connect(layout, container, place.process, memory=memory)
        return self._see_it_live(layout, running, _RESTORED_AFTER_S if memory else self._healthy_after_s)

    def _connect(self, layout: AppLayout, container: Instance, process: Process, *, memory: bool) -> Note:
        """Let packets through to a container that was started, and note that it runs."""
        table = settings.read(layout.config, layout.app_id)
        running = self._unnoted(container)
        if running.init is not None:
            try:
                bridge.connect(process, table, _outer(container), running.init.pid)
            except BackendError as error:
                self.stop(layout)
                raise StartFailed(f"{layout.name} was ended again: {error}", executed=True) from error
        running = replace(running, started=Moment.now())
        notes.write(layout, running)
        if memory:
            bridge.remove_spare(process, table)
        return running

    def _await_earlier(self, layout: AppLayout) -> None:
        """Before anything is begun: the end of what a killed node began.

        Raises:
            StartFailed: it does not come; the container may be started yet.
        """
        try:
            self._await_idle(layout, instance.MEMORY_TIMEOUT_S)
        except StillAtWork as error:
            raise StartFailed(f"cannot start {layout.name}: {error}", executed=True) from error

    def _await_idle(self, workspace: Workspace, timeout_s: float) -> None:
        """Have LXD end what a node began that was killed then: it goes on by itself.

        Raises:
            StillAtWork: it takes too long.
        """
        note = notes.read(workspace)
        if note is None or note.phase not in (Phase.STARTING, Phase.STOPPING, Phase.SUSPENDING):
            return
        container = self._instance(workspace)
        log = self._volume(workspace).seen / volume.STATE / "restore.log"

        def watch() -> None:
            if note.phase is Phase.STARTING and note.memory:
                failing.end(log, container.name)

        container.await_idle(watch, timeout_s)

    def _see_it_live(self, layout: AppLayout, note: Note, healthy_after_s: float) -> Started:
        init, at = note.init, note.started
        assert at is not None
        if init is not None and not procfs.wait_end(init, healthy_after_s):
            if layout.config.command:
                _until(lambda: inside.main_process(volume.root_of(layout), init.pid) is not None, _SCRIPT_TIMEOUT_S)
            return Started(self._main_process(layout, init), at)
        self._await_stopped(layout)
        _await_monitor(note)
        root = volume.root_of(layout)
        tail = _last_lines(inside.tail(root, _TAIL_BYTES))
        if inside.absent(root):
            notes.write(layout, None)
            raise StartFailed(f"cannot start {layout.name}: {tail}", executed=False)
        ended = inside.ended(root)
        raise StartFailed(
            f"{layout.name} ended within {healthy_after_s:g} s" + (f": {ended}" if ended else ""),
            executed=True,
            exit=ended,
            log_tail=tail,
        )

    def _await_stopped(self, layout: AppLayout) -> None:
        """LXD learns of a container's end a moment later."""
        container = self._instance(layout)

        def stopped() -> bool:
            row = container.row()
            return row is None or row.stopped

        if not _until(stopped, _MONITOR_TIMEOUT_S):
            self.stop(layout)

    def _save(self, layout: AppLayout, container: Instance) -> Checkpoint:
        """A stateful stop; when it fails, the application runs on."""
        place = self._volume(layout)
        # Before the application is stopped: it takes time where there is much.
        place.forget_memory(layout)
        self._take_log(layout, place.seen / "rootfs")
        note = notes.read(layout) or self._unnoted(container)
        notes.write(layout, note.to(Phase.SUSPENDING))
        at = Moment.now()
        table = settings.read(layout.config, layout.app_id)
        try:
            bridge.disconnect(place.process, table, _outer(container))
            container.save()
        except (BackendError, OSError) as error:
            row = container.row()
            if row is not None and not row.stopped:
                log = place.seen / volume.STATE / "dump.log"
                reason = criu.why(log) if log.exists() else str(error)
                place.tidy(layout)
                place.forget_memory(layout)
                if note.init is not None:
                    with contextlib.suppress(BackendError):  # the first trouble is the one to tell of
                        bridge.connect(place.process, table, row.outer, note.init.pid)
                notes.write(layout, note)
                raise SuspendFailed(f"{layout.name} cannot be saved: {reason}", running=True) from error
            if row is None or not row.stateful:
                raise SuspendFailed(f"{layout.name} ended while it was saved: {error}", running=False) from error
        paused_s = time.monotonic() - at.monotonic_s
        place.tidy(layout)
        _await_monitor(note)
        notes.write(layout, note.to(Phase.SUSPENDED))
        return Checkpoint(at, paused_s)

    def _take_log(self, layout: AppLayout, root: Path) -> None:
        """Move what was printed into the node's log: it is not to travel.

        Args:
            root: the root file system: that of the volume while it is mounted.
        """
        printed = inside.take_log(root, 2 * applog.LIMIT_BYTES)
        log = applog.AppLog(str(layout.log_path))
        log.write(printed)
        log.close()

    def _unnoted(self, container: Instance) -> Note:
        """A note for a container that runs, and of which there is none."""
        pid = container.pid()
        found = None if pid is None else procfs.stat(pid)
        if found is None:
            return Note(Phase.RUNNING, procfs.boot_id())
        monitor = procfs.stat(found.parent)
        return Note(
            Phase.RUNNING,
            procfs.boot_id(),
            init=found.process,
            monitor=None if monitor is None else monitor.process,
            started=_started(found.process),
        )

    def _main_process(self, workspace: Workspace, init: ProcessId) -> int:
        if not workspace.config.command:
            return init.pid
        return inside.main_process(volume.root_of(workspace), init.pid) or init.pid


def _outer(container: Instance) -> str:
    """What LXD calls the outer end of its network device; empty when it has none."""
    row = container.row()
    return "" if row is None else row.outer


def _final_images(layout: AppLayout) -> bool:
    images = volume.images_of(layout)
    return (images / "inventory.img").exists() and not (images / predump.MARK).exists()


def _await_monitor(note: Note) -> None:
    """LXC's watcher cleans up for a moment after the container ended."""
    if note.monitor is not None:
        procfs.wait_end(note.monitor, _MONITOR_TIMEOUT_S)


def _started(init: ProcessId) -> Moment:
    """When a process was made, of the kernel's own account."""
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - init.start / os.sysconf("SC_CLK_TCK")
    now = Moment.now()
    return Moment(now.wall_s - age_s, now.monotonic_s - age_s)


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _last_lines(output: bytes) -> str:
    """The last few lines, as one line for an error message."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line][-_TAIL_LINES:])
