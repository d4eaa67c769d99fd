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

import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from backends import applog, criu, oci, procfs, shim, supervised
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
from backends.container import ENGINE_TIMEOUT_S, Container, EngineFailed
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

_VERSION = re.compile(r"runc version (\S+)")
_PROBE_TIMEOUT_S = 3.0
_RESTORED_AFTER_S = 0.05  # what lived before needs no second to prove itself
_TAIL_BYTES = 2048

SAVING = "save"
"""Intent of a node that has CRIU save the application, and does not know yet how that went."""


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
        self._taking = threading.Lock()

    def probe(self) -> Probe:
        """Needs root, runc, overlayfs and a CRIU that fits the kernel."""
        version = _runc_version()
        problem = None
        for tool in ("runc", "ip", "nsenter"):
            if shutil.which(tool) is None:
                problem = problem or f"{tool} is not installed; {criu.HOW_TO_GET}"
        if problem is None and version is None:
            problem = "runc --version does not answer"
        if problem is None and os.geteuid() != 0:
            problem = "needs root: run the node as root"
        if problem is None and not _has_overlay():
            problem = "the kernel has no overlayfs: modprobe overlay"
        if problem is None:
            found = criu.find(self._settings)
            checked = criu.check(found) if found else criu.Checked(None, f"criu is not installed; {criu.HOW_TO_GET}")
            version, problem = f"{version}, CRIU {checked.version}", checked.problem
        return Probe(self.name, problem is None, version, problem)

    def create(self, layout: AppLayout) -> None:
        """Needs `command`, and `[runc]` must make sense."""
        _options(layout)
        _make_folders(layout)

    def start(self, layout: AppLayout) -> Started:
        """`runc run`; images of an earlier life are removed first."""
        options = self._prepare(layout)
        self._container(layout).release()
        return self._launch(layout, options, restoring=False)

    def stop(self, workspace: Workspace) -> None:
        """SIGTERM to the first process, SIGKILL to all, then take the container's mounts and network away."""
        self._container(workspace).thaw()
        supervised.end(workspace)
        self._clear(workspace)

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> Checkpoint:
        """Dump its memory to `state/images`."""
        status = self.status(layout)
        if status.state is not EngineState.RUNNING:
            raise NotRunning(f"{layout.name} is not running")
        if leave_running:
            return self._dump_and_go_on(layout)
        return self._dump_and_end(layout)

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
        return self._dump_and_end(layout) if memory else self._end_cold(layout)

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
        if not container.images.exists():
            return self.start(layout)
        options = self._prepare(layout)
        try:
            started = self._launch(layout, options, restoring=True)
        except StartFailed as error:
            if error.executed or not container.lacks_address():
                raise
            started = self._launch(layout, options, restoring=True, closing=True)
        container.restored()
        return started

    def destroy(self, workspace: Workspace) -> None:
        """Stop, then delete run folder, state folder and log."""
        self.stop(workspace)
        self._container(workspace).release()
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
        if found.state is not EngineState.EXITED or found.leftovers:
            return found
        # A node may have been killed between the end of a dump that went well and its own note of that.
        live = RunDir(str(workspace.run_dir)).live()
        failed = live is not None and container.restore_failed(live.run)
        if not failed and not self._take_final_dump(workspace):
            return found
        return Status(EngineState.SUSPENDED, started=found.started, exit=found.exit)

    def _take_final_dump(self, workspace: Workspace) -> bool:
        """Let a final dump count, if there is a whole one and its container is gone; again, it changes nothing.

        Whoever asks for the status may come between the end of a container and the note of that.
        """
        container, run_dir = self._container(workspace), RunDir(str(workspace.run_dir))
        with self._taking:
            live = run_dir.live()
            assert live is not None
            if run_dir.intent(live.run) == SAVING and container.dump_is_complete():
                container.take_final_dump()
                run_dir.write_intent(live.run, supervised.SUSPENDED)
                container.forget_old_dump()
            return run_dir.intent(live.run) == supervised.SUSPENDED

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
            live, report = supervised.launch(layout, spec, timeout_s=ENGINE_TIMEOUT_S)
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
            container.announce(options)
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

    def _dump_and_go_on(self, layout: AppLayout) -> Checkpoint:
        container = self._container(layout)
        RunDir(str(layout.run_dir)).clear_intent()  # of a node that was killed in a final dump: this one is none
        at = Moment.now()
        try:
            container.dump(_options(layout), leave_running=True)
            took_s = time.monotonic() - at.monotonic_s
            container.take_dump()
        except (EngineFailed, OSError) as error:
            raise self._not_dumped(layout, container, error) from error
        paused_s = container.paused_s()
        return Checkpoint(at, paused_s=took_s if paused_s is None else paused_s)

    def _dump_and_end(self, layout: AppLayout) -> Checkpoint:
        container, run_dir = self._container(layout), RunDir(str(layout.run_dir))
        live = run_dir.live()
        assert live is not None
        container.forget_dump()
        run_dir.write_intent(live.run, SAVING)
        at = Moment.now()
        try:
            container.dump(_options(layout), leave_running=False)
        except (EngineFailed, OSError) as error:
            run_dir.clear_intent()
            raise self._not_dumped(layout, container, error) from error
        procfs.wait_end(live.shim, supervised.END_TIMEOUT_S)
        procfs.reap(live.shim)
        if not self._take_final_dump(layout):
            raise SuspendFailed(f"{layout.name} has ended, and its memory was not saved", running=False)
        container.clear()
        return Checkpoint(at, paused_s=time.monotonic() - at.monotonic_s)

    def _not_dumped(self, layout: AppLayout, container: Container, error: Exception) -> SuspendFailed:
        """What became of an application that could not be saved."""
        container.thaw()
        container.forget_dump()
        running = self.status(layout).state is EngineState.RUNNING
        return SuspendFailed(f"{layout.name} could not be saved: {error}", running=running)

    def _end_cold(self, layout: AppLayout) -> Checkpoint:
        container, run_dir = self._container(layout), RunDir(str(layout.run_dir))
        live = run_dir.live()
        assert live is not None
        container.release()
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


def _runc_version() -> str | None:
    try:
        done = subprocess.run(
            ["runc", "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(done.stdout.decode(errors="replace"))
    return match[1] if match else None


def _has_overlay() -> bool:
    """Whether the kernel knows overlayfs, or has it as a module that a mount would load."""
    try:
        if "\toverlay\n" in Path("/proc/filesystems").read_text():
            return True
        names = Path(f"/lib/modules/{os.uname().release}/modules.dep").read_text()
    except OSError:
        return False
    return "/overlay.ko" in names
