"""Containers under runc, saved and restored by CRIU.

Theory of operation
-------------------
The root of a container is an overlay of base and app layer with the instance's `upper` folder on top. `runc run -d` or
`runc restore -d` is the *launcher* of a shim (`shim`), which supervises the container's first process as it would any
other; containers outlive the node, and end as a whole with their first process. `container` has the files.

Which images count: only those of an application that is SUSPENDED, or of one that is restored. A start removes them,
and so does a restore that went well; the images of pre-copy rounds lie there in between and are never restored here.
A dump is made aside and takes its place at once when it is complete. A node that is killed during the final dump does
not stop it: its successor finds the application ended and the dump complete, and takes it. Images of which a restore
failed count as before.

CRIU dumps and restores all or nothing. A dump that fails leaves the processes running as before, and in a restore
that fails no process got as far as its next instruction: all are made stopped, and resumed together at the end.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from backends import applog, criu, oci, procfs, runcprobe, saving, shim, supervised
from backends.base import (
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
from backends.container import Container
from backends.errors import (
    AlreadyRunning,
    BackendError,
    ConfigError,
    HookFailed,
    NotRunning,
    StartFailed,
    SuspendFailed,
)
from backends.folders import remove_tree
from backends.hooks import run_hook
from backends.procfs import ProcessId
from backends.rundir import Ended, Live, RunDir

_RESTORED_AFTER_S = 0.05  # what lived before needs no second to prove itself
_TAIL_BYTES = 2048


class RuncBackend:
    """See `backends.base.Backend`.

    Args:
        settings: which `criu` to use.
        healthy_after_s: a command that lives shorter counts as failed.
        netns: the network namespace of applications and bridges, when not that of this process.
        log_limit_bytes: size at which an application's log is rotated.
    """

    name = "runc"
    capabilities = Capabilities(live=True, cooperative=False, leave_running=True, root=True)

    def __init__(
        self,
        settings: EngineSettings | None = None,
        *,
        healthy_after_s: float = 1.0,
        netns: Path | None = None,
        log_limit_bytes: int = applog.LIMIT_BYTES,
    ) -> None:
        self._settings = settings or EngineSettings()
        self._healthy_after_s = healthy_after_s
        self._netns = netns
        self._log_limit_bytes = log_limit_bytes

    def probe(self) -> Probe:
        """Needs root, runc, overlayfs and a CRIU that fits the kernel."""
        return runcprobe.probe(self.name, self._settings)

    def create(self, layout: AppLayout) -> None:
        """Needs `command`, and `[runc]` must make sense."""
        _options(layout)
        _make_folders(layout)

    def start(self, layout: AppLayout) -> Started:
        """`runc run`; images of an earlier life are removed first."""
        options = self._prepare(layout)
        self._container(layout).dumps.release()
        return self._launch(layout, options, restoring=False)

    def stop(self, workspace: Workspace) -> None:
        """SIGTERM to the first process, SIGKILL to all, then take the container's mounts and network away."""
        container = self._container(workspace)
        saving.settle(workspace, container, interrupt=True)
        container.thaw()
        supervised.end(workspace)
        self._clear(workspace)

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> Checkpoint:
        """Dump its memory to `state/images`."""
        status = self.status(layout)
        if status.state is not EngineState.RUNNING:
            raise NotRunning(f"{layout.name} is not running")
        if leave_running:
            return saving.save_and_go_on(layout, self._container(layout), _options(layout))
        return saving.save_and_end(layout, self._container(layout), _options(layout))

    def obstacles(self, layout: AppLayout) -> Sequence[str]:
        """What CRIU is known not to save, of all processes of the container."""
        pids = [process.pid for process in self._container(layout).processes()]
        return criu.obstacles(pids, tcp_established=_options(layout).tcp_established)

    def facts(self, layout: AppLayout) -> Mapping[str, str]:
        """Processor, kernel and CRIU of this machine."""
        return criu.facts(criu.find(self._settings))

    def mismatches(self, facts: Mapping[str, str]) -> Sequence[str]:
        """What this machine's processor or CRIU lacks."""
        return criu.mismatches(criu.find(self._settings), facts)

    def suspend(self, layout: AppLayout, *, memory: bool = True) -> Checkpoint:
        """`before_suspend`, then the final dump; without memory, a stop."""
        status = self.status(layout)
        if status.state is not EngineState.RUNNING:
            how = f" ({status.exit})" if status.exit else ""
            raise SuspendFailed(f"{layout.name} is not running{how}", running=False)
        try:
            run_hook("before_suspend", layout, pid=status.pid)
        except HookFailed as error:
            raise SuspendFailed(f"{layout.name}: {error}", running=True) from error
        if not memory:
            return self._end_cold(layout)
        return saving.save_and_end(layout, self._container(layout), _options(layout))

    def resume(self, layout: AppLayout) -> Started:
        """From its images, or afresh when it was suspended without; a running one is left alone."""
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            assert status.pid is not None
            assert status.started is not None
            return Started(status.pid, status.started)
        return self.restore(layout) if status.state is EngineState.SUSPENDED else self.start(layout)

    def restore(self, layout: AppLayout) -> Started:
        """`runc restore` from `state/images`; a start where there are none.

        Connections cannot go on where the address is not that they were made with; the application then finds them
        closed, as after any failure of the network.
        """
        container = self._container(layout)
        if not container.dumps.images.exists():
            return self.start(layout)
        if (problem := container.dumps.damage()) is not None:
            raise StartFailed(f"cannot restore {layout.name}: {problem}", executed=False)
        options = self._prepare(layout)
        try:
            started = self._launch(layout, options, restoring=True)
        except StartFailed as error:
            if error.executed or not container.lacks_address():
                raise
            started = self._launch(layout, options, restoring=True, closing=True)
        container.dumps.release()
        return started

    def destroy(self, workspace: Workspace) -> None:
        """Stop, then delete run folder, state folder and log."""
        self.stop(workspace)
        self._container(workspace).dumps.release()
        for folder in (workspace.run_dir, workspace.state_dir):
            remove_tree(folder)
        applog.remove(str(workspace.log_path))

    def logs(self, workspace: Workspace, max_bytes: int) -> bytes:
        """What its command, its hooks and runc printed, oldest first."""
        return applog.tail(str(workspace.log_path), max_bytes)

    def status(self, workspace: Workspace) -> Status:
        """Read the run folder and ask the kernel."""
        container = self._container(workspace)

        def leftovers(live: Live, ended: Ended | None) -> list[ProcessId]:
            if ended is None:
                return container.processes(live.run)
            return [process for process in ended.left if procfs.alive(process)]

        found = supervised.status(workspace, leftovers)
        live = RunDir(str(workspace.run_dir)).live()
        if found.state is EngineState.RUNNING and live is not None:
            # What a node left undone that was killed while it started or saved the application.
            container.announce_for_another(live.app)
            saving.settle(workspace, container)
        if found.state is not EngineState.EXITED or found.leftovers:
            return found
        # A node may have been killed between the end of a dump that went well and its own note of that.
        failed = live is not None and container.restore_failed(live.run)
        if not failed and not saving.take_final_dump(workspace, container):
            return found
        return Status(EngineState.SUSPENDED, started=found.started, exit=found.exit)

    def _container(self, workspace: Workspace) -> Container:
        return Container(workspace, self._settings, self._netns)

    def _prepare(self, layout: AppLayout) -> oci.Options:
        """All that comes before a launch: nothing of an earlier run is left after it."""
        options = _options(layout)
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            raise AlreadyRunning(f"{layout.name} is running already, as process {status.pid}")
        try:
            _make_folders(layout)
        except OSError as error:
            raise StartFailed(f"cannot start {layout.name}: {error}", executed=False) from error
        self._clear(layout)
        return options

    def _clear(self, workspace: Workspace) -> None:
        """Take away what a run left whose supervisor is gone."""
        run_dir = RunDir(str(workspace.run_dir))
        live = run_dir.live()
        if live is not None:
            procfs.reap(live.shim)
        killed = live is not None and live.boot == procfs.boot_id() and run_dir.ended(live.run) is None
        self._container(workspace).clear(live.run if live is not None and killed else None)

    def _launch(self, layout: AppLayout, options: oci.Options, *, restoring: bool, closing: bool = False) -> Started:
        """Furnish the container, have a shim run the launcher, and see the application live a while."""
        container = self._container(layout)
        run = secrets.token_hex(16)
        log_mark = applog.mark(str(layout.log_path))
        try:
            container.furnish(layout, options, run, restoring=restoring, closing=closing)
            spec = shim.Spec(
                run=run,
                argv=container.launcher(options, restoring=restoring),
                env=container.environment(run),
                cwd=str(container.bundle),
                run_dir=str(layout.run_dir),
                log_path=str(layout.log_path),
                log_limit_bytes=self._log_limit_bytes,
                stop_timeout_s=layout.config.stop_timeout_s,
                pid_file=str(container.pid_file),
            )
            live, report = supervised.launch(layout, spec, timeout_s=container.launch_limit_s(restoring=restoring))
        except AlreadyRunning:
            raise
        except (BackendError, OSError) as error:
            container.clear()
            raise StartFailed(f"cannot start {layout.name}: {error}", executed=False) from error
        if report.problem is not None:
            reason, executed = container.why_not_launched(restoring=restoring)
            self.stop(layout)
            executed = executed or (restoring and container.resumed())  # while it was being ended
            verb = "restore" if restoring else "start"
            raise StartFailed(
                f"cannot {verb} {layout.name}: {reason or report.problem}", executed=report.executed and executed
            )
        try:
            container.announce()
        except BackendError as error:
            self.stop(layout)
            raise StartFailed(f"cannot start {layout.name}: {error}", executed=True) from error
        healthy_after_s = min(self._healthy_after_s, _RESTORED_AFTER_S) if restoring else self._healthy_after_s
        if not procfs.wait_end(live.app, healthy_after_s):
            return Started(live.app.pid, Moment(live.wall_s, live.monotonic_s))
        procfs.wait_end(live.shim, supervised.END_TIMEOUT_S)
        self.stop(layout)
        ended = self.status(layout).exit
        raise StartFailed(
            f"{layout.name} ended within {healthy_after_s:g} s: {ended or 'its supervisor was killed'}",
            executed=True,
            exit=ended,
            log_tail=supervised.last_lines(applog.since(str(layout.log_path), log_mark, _TAIL_BYTES)),
        )

    def _end_cold(self, layout: AppLayout) -> Checkpoint:
        container, run_dir = self._container(layout), RunDir(str(layout.run_dir))
        live = run_dir.live()
        assert live is not None
        container.dumps.release()
        at = Moment.now()
        self.stop(layout)
        run_dir.write_intent(live.run, supervised.SUSPENDED)
        return Checkpoint(at, paused_s=time.monotonic() - at.monotonic_s)


def _options(layout: AppLayout) -> oci.Options:
    if not layout.config.command:
        raise ConfigError("command", "the runc backend needs a command")
    return oci.parse(layout.config)


def _make_folders(workspace: Workspace) -> None:
    for folder in (workspace.run_dir, workspace.state_dir):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
