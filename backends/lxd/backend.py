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

from collections.abc import Mapping, Sequence
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
from backends.errors import AlreadyRunning, BackendError, HookFailed, NotRunning, StartFailed, SuspendFailed
from backends.folders import remove_tree
from backends.hooks import run_hook
from backends.lxd import adopt, ending, fitness, groups, inside, predump, saving, starting, takeover, verdict, volume
from backends.lxd.application import Application, await_monitor, started
from backends.lxd.daemon import Daemon, StillAtWork
from backends.lxd.notes import Phase
from backends.memory import anonymous_bytes, size_of


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
        starting.configuration(layout)
        for folder in (layout.run_dir, layout.state_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self, layout: AppLayout) -> Started:
        """Make the container, mount its volume, and wait until it has lived for `healthy_after_s`."""
        app = self._application(layout)
        _await_earlier(app)
        self._refuse_second(layout)
        return starting.begin(app, layout, self._healthy_after_s, memory=False)

    def stop(self, workspace: Workspace) -> None:
        """Ask its first process to end, then kill it; then the volume is unmounted."""
        ending.stop(self._application(workspace))

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> Checkpoint:
        """With `leave_running` a dump past LXD; else a stateful stop."""
        app = self._application(layout)
        row = app.container.row()
        init = None if row is None or row.stopped else app.container.pid()
        if init is None:
            raise NotRunning(f"{layout.name} is not running")
        if not leave_running:
            return saving.save(app)
        at = Moment.now()
        paused_s = predump.dump(app.process, app.volume, layout, app.container.name, init, app.patience_s())
        return Checkpoint(at, paused_s)

    def obstacles(self, layout: AppLayout) -> Sequence[str]:
        """Open devices and sockets that CRIU cannot save, of any process in the container."""
        init = self._application(layout).container.pid()
        return () if init is None else criu.obstacles(inside.processes(init))

    def facts(self, layout: AppLayout) -> Mapping[str, str]:
        """The processor, the kernel, CRIU, LXD, the place of its folder; and how much memory there is to save."""
        init = self._application(layout).container.pid()
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
        app = self._application(layout)
        try:
            app.await_idle()
        except StillAtWork as error:
            raise SuspendFailed(f"{layout.name}: {error}", running=True) from error
        status = self.status(layout)
        note = app.note()
        if memory and status.state is EngineState.SUSPENDED and note is not None and note.phase is Phase.SUSPENDING:
            return saving.accept(app)
        if status.state is not EngineState.RUNNING:
            how = f" ({status.exit})" if status.exit else ""
            raise SuspendFailed(f"{layout.name} is not running{how}", running=False)
        try:
            run_hook("before_suspend", layout, pid=status.pid)
        except HookFailed as error:
            raise SuspendFailed(f"{layout.name}: {error}", running=True) from error
        return self.checkpoint(layout, leave_running=False) if memory else saving.shelve(app)

    def resume(self, layout: AppLayout) -> Started:
        """A stateful start here, or a plain one when it was shelved; a running one is left alone."""
        app = self._application(layout)
        _await_earlier(app)
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            assert status.pid is not None
            assert status.started is not None
            note = app.note()
            if note is not None and note.phase is Phase.STARTING:  # begun, and broken off before it was connected
                starting.connect(app, memory=note.memory)
            elif note is not None and note.phase is Phase.SUSPENDING:
                takeover.finish(app, note)
            return Started(status.pid, status.started)
        row = app.container.row()
        memory = status.state is EngineState.SUSPENDED and row is not None and row.stateful
        memory = memory and starting.final_images(layout)
        return starting.begin(app, layout, self._healthy_after_s, memory=memory)

    def restore(self, layout: AppLayout) -> Started:
        """A stateful start of a container that is made for it; a plain one when no memory came along."""
        app = self._application(layout)
        _await_earlier(app)
        self._refuse_second(layout)
        images = volume.images_of(layout)
        if (images / predump.MARK).exists():
            raise StartFailed(f"cannot restore {layout.name}: its images are those of a pre-copy round", executed=False)
        return starting.begin(app, layout, self._healthy_after_s, memory=starting.final_images(layout))

    def destroy(self, workspace: Workspace) -> None:
        """Stop it, unmount, delete the container, then all folders and the log."""
        app = self._application(workspace)
        if app.container.row() is not None:
            ending.stop(app)
            app.volume.unmount()
            app.container.remove()
            groups.remove_empty(app.container.name)
        for folder in (workspace.run_dir, workspace.state_dir):
            remove_tree(folder)
        applog.remove(str(workspace.log_path))

    def logs(self, workspace: Workspace, max_bytes: int) -> bytes:
        """The node's log, of hooks and of what was printed before the last suspend; then that in the container."""
        printed = inside.tail(volume.root_of(workspace), max_bytes)
        return applog.tail(str(workspace.log_path), max_bytes - len(printed)) + printed

    def status(self, workspace: Workspace) -> Status:
        """Ask LXD, and read the note. What a killed node had begun is finished here: see `takeover`."""
        app = self._application(workspace)
        note = app.note()
        row = app.container.row()
        if row is None:
            return Status(EngineState.ABSENT) if note is None else verdict.without_container(note)
        if row.stopped:
            if note is None:
                return Status(EngineState.ABSENT)
            await_monitor(note)
            return verdict.not_running(workspace, note, row)
        if note is not None and takeover.pending(note):
            takeover.finish(app, note)
            note = app.note()
        if note is None or note.init is None or not procfs.alive(note.init):
            restoring = note is not None and note.phase is Phase.STARTING and note.memory
            note = app.unnoted()
            if note.init is None and restoring:  # CRIU lets nothing execute before all is restored
                return Status(EngineState.SUSPENDED)
            if note.init is None:  # it ended just now
                return Status(EngineState.LOST, reason="it ended while it was looked at")
        assert note.init is not None
        return Status(EngineState.RUNNING, app.main_process(note.init), note.started or started(note.init))

    def adopt(self, source: str, into: Path, base: Path | None) -> Adopted:
        """`INSTANCE`, or `image:ALIAS` or `image:FINGERPRINT`; see `backends.lxd.adopt`."""
        return adopt.take_apart(self._daemon, source, into, base)

    def _application(self, workspace: Workspace) -> Application:
        return Application(self._daemon, workspace)

    def _refuse_second(self, layout: AppLayout) -> None:
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            raise AlreadyRunning(f"{layout.name} is running already, as process {status.pid}")


def _await_earlier(app: Application) -> None:
    """Before anything is begun: the end of what a killed node began.

    Raises:
        StartFailed: it does not come; the container may be started yet.
    """
    try:
        app.await_idle()
    except StillAtWork as error:
        raise StartFailed(f"cannot start {app.name}: {error}", executed=True) from error
