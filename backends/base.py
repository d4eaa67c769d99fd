"""What the node asks of an engine that runs applications.

Theory of operation
-------------------
An application is made of a base layer and an app layer, both read-only folders, and of an *instance*: one folder,
`Workspace.state_dir`, that holds all that a migration must move, and nothing else. Engines that keep more than
files (memory images, a disk overlay) put it there too:

    process   the files that the application writes
    runc      upper/ of the overlay, images/ of CRIU
    lxd       upper/ of the overlay, with CRIU's state/ in it
    libvirt   the overlay qcow2, the save file

What is only of use on this machine and until the next boot goes to `Workspace.run_dir`.

    create -> start -> [checkpoint(leave_running=True)]* -> suspend -> (moved) -> restore  at the destination
                 ^                                             |
                 +------------------- resume ------------------+       at the source, when the move is called off

A backend keeps no memory of its own between calls: everything is asked of the engine and of `run_dir`, so that a
node that was killed finds its applications again. Calls block, for seconds at times, and may come from any thread;
for one application they never overlap.
"""

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time on two clocks: `wall_s` to compare with other machines, `monotonic_s` to subtract on this one."""

    wall_s: float
    monotonic_s: float

    @classmethod
    def now(cls) -> "Moment":
        return cls(time.time(), time.monotonic())


@dataclass(frozen=True, slots=True)
class Hooks:
    """Commands of the operator, as argv with placeholders; empty means none. Each may take `timeout_s` seconds."""

    before_suspend: tuple[str, ...] = ()
    after_restore: tuple[str, ...] = ()
    save: tuple[str, ...] = ()
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class AppConfig:
    """One application's configuration file, checked by `backends.config.parse`.

    `command` and `env` hold placeholders still; `engines` are the tables of single backends, which only those read.
    """

    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    stop_timeout_s: float = 10.0
    hooks: Hooks = Hooks()
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Workspace:
    """One application's own folder on this node, and what the application is."""

    app_id: str
    name: str
    folder: Path
    config: AppConfig

    @property
    def state_dir(self) -> Path:
        """The instance layer: all that a migration moves."""
        return self.folder / "state"

    @property
    def run_dir(self) -> Path:
        """The engine's notes; worth nothing on another machine or after a boot."""
        return self.folder / "run"

    @property
    def log_path(self) -> Path:
        return self.folder / "log"


@dataclass(frozen=True, slots=True)
class AppLayout(Workspace):
    """A workspace with its two shared layers checked out: what it takes to start the application."""

    base: Path
    app: Path


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether an engine can be used here, and if not, why."""

    name: str
    available: bool
    version: str | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do.

    Attributes:
        live: memory moves with the application, which notices nothing.
        cooperative: the application is asked to write its state and to end, and starts again from it elsewhere.
        leave_running: `checkpoint(leave_running=True)` brings the instance folder up to date, so pre-copy rounds pay.
        root: needs to run as root.
        guest_memory: an instance has the memory of a guest, as QEMU writes it, and with it what that read of its disk.
    """

    live: bool
    cooperative: bool
    leave_running: bool
    root: bool
    guest_memory: bool = False


class EngineState(StrEnum):
    """What the engine knows of an application.

    ABSENT: nothing, it was never started here. SUSPENDED: it was suspended and can be resumed. EXITED: it ended, and
    how is known. LOST: it ran, is gone, and nobody saw the end: the machine restarted or its supervisor was killed.
    """

    ABSENT = "absent"
    RUNNING = "running"
    SUSPENDED = "suspended"
    EXITED = "exited"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Exit:
    """How an application ended: a code or a signal.

    `asked` tells that it had been told to end, by `stop`, by a suspend or by a signal to its supervisor, and did not
    end by itself. `forced` tells that it had to be killed.
    """

    code: int | None
    signal: int | None
    asked: bool = False
    forced: bool = False

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit code {self.code}"
        try:
            return f"killed by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"killed by signal {self.signal}"


@dataclass(frozen=True, slots=True)
class Status:
    """The engine's answer about one application.

    `leftovers` are processes of a LOST application that still exist: until `stop`, a copy may be executing. `reason`
    explains LOST.
    """

    state: EngineState
    pid: int | None = None
    started: Moment | None = None
    exit: Exit | None = None
    leftovers: tuple[int, ...] = ()
    reason: str = ""

    @property
    def executing(self) -> bool:
        """Whether any part of the application may be executing."""
        return self.state is EngineState.RUNNING or bool(self.leftovers)


@dataclass(frozen=True, slots=True)
class Started:
    """The application runs and lived through its first second; `at` is when it was executed, before that second."""

    pid: int
    at: Moment


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The instance folder was brought up to date.

    Attributes:
        at: the moment from which the application served nobody (for `leave_running`: began to write).
        paused_s: seconds in which it did not execute; 0 for a cooperative checkpoint that leaves it running.
        saved: False when nothing could be done, as without a `save` hook: the folder is as the application left it.
    """

    at: Moment
    paused_s: float = 0.0
    saved: bool = True


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Where this node finds its engines; None: where the engine's own tools look.

    Attributes:
        criu: path of the `criu` program.
        lxd_socket: path of LXD's unix socket.
        lxd_pool: name of LXD's storage pool, of driver `dir`, on which instances are made.
        libvirt_uri: as in `virsh -c`.
    """

    criu: Path | None = None
    lxd_socket: Path | None = None
    lxd_pool: str | None = None
    libvirt_uri: str | None = None


@dataclass(frozen=True, slots=True)
class Adopted:
    """An application that an engine had before p2player knew of it, taken apart into layers.

    Attributes:
        base, app: folders to be added as layers. `base` is None when a given base layer was used.
        config: text of a configuration file that runs it.
    """

    base: Path | None
    app: Path
    config: str


class Adopter(Protocol):
    """A backend whose engine may have applications of its own."""

    def adopt(self, source: str, into: Path, base: Path | None) -> Adopted:
        """Take an instance of the engine apart; it is only read, and must not be running.

        Args:
            source: what the engine calls it.
            into: an empty folder for what is made.
            base: a checked-out base layer; the app layer then holds what the instance has beside it.

        Raises:
            BackendError: there is none, it runs, or it is of a kind that cannot be taken apart.
        """
        ...


class Backend(Protocol):
    """One engine. All methods block; see the module for the order of calls.

    Every method may raise `BackendError`, also where only narrower classes are named.
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def probe(self) -> Probe:
        """Whether the engine can be used here. Never raises; takes at most a few seconds."""
        ...

    def create(self, layout: AppLayout) -> None:
        """Check the configuration and prepare an instance that never ran.

        Raises:
            ConfigError: this engine cannot run that configuration.
        """
        ...

    def start(self, layout: AppLayout) -> Started:
        """Start the application from its instance folder, afresh; return once it is healthy.

        Raises:
            AlreadyRunning: a copy runs.
            StartFailed: it did not start or ended at once; nothing of it is left running.
        """
        ...

    def stop(self, workspace: Workspace) -> None:
        """End the application with all its processes; killed when it takes too long. Idempotent.

        Raises:
            StopFailed: something survived.
        """
        ...

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> Checkpoint:
        """Write the running state into the instance folder; the application ends unless `leave_running`.

        Raises:
            NotRunning: there is nothing to save.
            SuspendFailed: not `leave_running`, and it did not end as it should; `running` tells what became of it.
        """
        ...

    def obstacles(self, layout: AppLayout) -> Sequence[str]:
        """Why this running application cannot be checkpointed, one sentence each, as far as can be told without
        touching it: an open device, a socket of a kind that the engine cannot save. Empty when nothing was found."""
        ...

    def facts(self, layout: AppLayout) -> Mapping[str, str]:
        """What a machine that is to restore this application's memory must match: few and short texts.

        They travel to the destination, whose backend reads them in `mismatches`. Processor features, the kernel, the
        engine's version: whatever this engine cares for.

        At most 64 texts of 4096 characters under keys of 64; more are not sent. One has a meaning to the node too:
        `memory_bytes`, in decimal digits, is what memory will add to the instance folder as that is now. Room and
        time of a migration are reckoned with it.
        """
        ...

    def mismatches(self, facts: Mapping[str, str]) -> Sequence[str]:
        """Why memory that was saved on a machine of those `facts` cannot be restored here, one sentence each.

        The facts come from a peer: absent and strange ones must do no harm. Takes at most a few seconds.
        """
        ...

    def suspend(self, layout: AppLayout, *, memory: bool = True) -> Checkpoint:
        """Run the `before_suspend` hook, then `checkpoint(leave_running=False)`: the instance folder is final.

        Args:
            memory: when False, the application is ended as by `stop` instead, and only its files are kept; `resume`
                and `restore` then start it afresh. For engines that could not restore its memory elsewhere.

        Raises:
            SuspendFailed: it was not suspended; unless `running` is False, it serves as before.
        """
        ...

    def resume(self, layout: AppLayout) -> Started:
        """Let a suspended application continue here, as if nothing had happened; a running one is left alone.

        Raises:
            StartFailed: as for `start`.
        """
        ...

    def restore(self, layout: AppLayout) -> Started:
        """Continue an application whose instance folder came from another node; return once it is healthy.

        Raises:
            AlreadyRunning, StartFailed: as for `start`.
        """
        ...

    def destroy(self, workspace: Workspace) -> None:
        """Stop it, and remove the instance folder and all else that was made for it. Idempotent."""
        ...

    def logs(self, workspace: Workspace, max_bytes: int) -> bytes:
        """The last `max_bytes` of what the application and its hooks printed."""
        ...

    def status(self, workspace: Workspace) -> Status:
        """What the engine knows of it. Cheap: the node asks once a second."""
        ...
