"""One application on this node: its record, its engine, and the single steps that change both.

A record says what shall be, the engine what is. Each step is made under the application's lock, in one worker thread,
in an order that a crash cannot confuse:

    start, resume    record `running`, then the engine      crash between: nothing runs, started at the next node start
    stop             record `stopped`, then the engine      crash between: still runs, stopped at the next node start
    suspend          the engine, then record `suspended`    crash between: resumed, as nothing was given away yet
    restore          the engine, then record `running`      crash between: the migration asks whether it executes

Cancelling a step lets it come to its end, in the engine and on disk, before the cancellation takes effect.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from backends import errors as engine_errors
from backends import procfs
from backends.base import AppLayout, Backend, Checkpoint, EngineState, Started, Status, Workspace
from backends.errors import BackendError
from backends.folders import remove_tree
from backends.hooks import run_hook
from backends.memory import anonymous_bytes
from chunkstore.digest import LayerId
from p2player import appstate, faults
from p2player.apprecord import AppRecord, AppShelf, moved
from p2player.appstate import AppState
from p2player.errors import Failed, NotFound, P2PlayerError, Refused
from p2player.proto.handoff.messages import MEMORY_FACT

THREADS = 16
"""Of each engine."""

T = TypeVar("T")
Checkout = Callable[[LayerId], Awaitable[Path]]
"""Gives the folder in which a layer is checked out, read-only; pulls what is missing."""


class AppStartFailed(Failed):
    """The application did not start; `executed` is False when it is certain that nothing of it ran."""

    def __init__(self, message: str, *, executed: bool) -> None:
        super().__init__(message)
        self.executed = executed


class AppSuspendFailed(Failed):
    """The application was not suspended; `running` tells whether it runs here as before."""

    def __init__(self, message: str, *, running: bool) -> None:
        super().__init__(message)
        self.running = running


class AppNotSaved(Refused):
    """The engine cannot save the application as it is; nothing was suspended, it runs as before."""


@dataclass(frozen=True, slots=True)
class AppEvent:
    """Something happened to an application.

    Attributes:
        type: `app.` and one of created, started, stopped, removed; suspended, resumed, staged, restored, discarded,
            changed (its state was set); adopted, restarted, failed; warning.
        record: the application as it now is; as it last was when it is gone.
        message: what a person should read; may be empty.
        exit_code: with `app.failed`, where the application ended with one.
    """

    type: str
    record: AppRecord
    message: str = ""
    exit_code: int | None = None


class Surroundings:
    """What all applications of a node share.

    Args:
        checkout: makes a layer a folder.
        on_change: told of every event, in the trio thread; must not block or raise.
    """

    def __init__(self, shelf: AppShelf, checkout: Checkout, on_change: Callable[[AppEvent], None]) -> None:
        self.shelf = shelf
        self.checkout = checkout
        self.on_change = on_change
        self._limiters: dict[str, trio.CapacityLimiter] = {}

    async def in_thread(self, engine: str, function: Callable[..., T], *args: object) -> T:
        """Run a blocking step. Cancelling does not abandon it: its result is returned, then the caller is cancelled.

        Args:
            engine: the backend's name; one whose daemon hangs holds up its own applications only.

        Raises:
            P2PlayerError: in place of the engine's errors.
        """
        limiter = self._limiters.setdefault(engine, trio.CapacityLimiter(THREADS))
        try:
            return await trio.to_thread.run_sync(function, *args, limiter=limiter)
        except BackendError as error:
            raise told(error) from error


class HostedApp:
    """One application. Whoever calls a step holds `lock`.

    Attributes:
        record: as it is on disk.
        alive: it was seen to execute, and nothing of ours has ended it since.
        gone: it was erased; whoever waited for the lock finds nothing to do.
    """

    def __init__(self, record: AppRecord, workspace: Workspace, backend: Backend, around: Surroundings) -> None:
        self.record = record
        self.workspace = workspace
        self.backend = backend
        self.lock = trio.Lock()
        self.alive = False
        self.gone = False
        self._around = around

    def check(self, what: str) -> None:
        """Make sure that `what` may be done to it now.

        Raises:
            Refused: not in this state.
            NotFound: it is gone.
        """
        if self.gone:
            raise NotFound(f"{self.record.name} is not on this node any more")
        appstate.check(what, self.record.name, self.record.state)

    def tell(self, verb: str, message: str = "", exit_code: int | None = None) -> None:
        """Tell the node what happened."""
        self._around.on_change(AppEvent(f"app.{verb}", self.record, message, exit_code))

    async def layout(self) -> AppLayout:
        """The workspace with its layers, which are pulled when they are not here."""
        space = self.workspace
        base = await self._around.checkout(self.record.base)
        app = await self._around.checkout(self.record.app)
        return AppLayout(space.app_id, space.name, space.folder, space.config, base=base, app=app)

    async def status(self) -> Status:
        """What the engine says of it."""
        return await self._around.in_thread(self.backend.name, self.backend.status, self.workspace)

    async def write(self, record: AppRecord) -> None:
        """Make `record` the durable one."""
        if self.alive and record.state not in (AppState.RUNNING, AppState.MIGRATING):
            raise Refused(f"{record.name} cannot become {record.state.value}: it is executing")
        await self._around.in_thread(self.backend.name, self._around.shelf.write, record)
        self.record = record

    async def create(self, layout: AppLayout) -> None:
        """First step of a new application."""

        def work() -> None:
            try:
                self.backend.create(layout)
                self._around.shelf.write(self.record)
            except BaseException:
                self._around.shelf.delete(self.record.id)
                raise

        await self._around.in_thread(self.backend.name, work)

    async def stage(self) -> None:
        """First step of an incoming application: its record, and an empty instance folder."""

        def work() -> None:
            if self.backend.status(self.workspace).executing:
                raise Refused(f"{self.record.name} is executing on this node already")
            self._around.shelf.write(self.record)
            remove_tree(self.workspace.state_dir)
            for folder in (self.workspace.state_dir, self.workspace.run_dir):
                folder.mkdir(mode=0o700, exist_ok=True)

        await self._around.in_thread(self.backend.name, work)

    async def run(
        self, layout: AppLayout, begin: Callable[[AppLayout], Started], target: AppRecord, *, record_first: bool = True
    ) -> Started:
        """Have the engine run it and the record be `target`; a copy that runs already is taken over.

        Raises:
            AppStartFailed: it does not run. The record is `failed` now; unchanged when it was not to be written first
                and nothing of the application executed.
            Failed: likewise; the engine broke off in between, or cannot be asked.
        """
        shelf = self._around.shelf

        def work() -> tuple[AppRecord, Started | BackendError | OSError]:
            if record_first:
                shelf.write(target)
            else:
                self.backend.status(self.workspace)  # an engine that does not even answer shall not begin
            try:
                try:
                    started = begin(layout)
                except engine_errors.AlreadyRunning:
                    started = self.backend.resume(layout)  # leaves a running copy alone, and tells of it
            except (BackendError, OSError) as error:
                if not record_first and not self._may_have_executed(error):
                    return self.record, error
                failed = moved(target, AppState.FAILED, reason=str(error))
                shelf.write(failed)
                return failed, error
            if not record_first:
                shelf.write(target)
            return target, started

        self.record, outcome = await self._around.in_thread(self.backend.name, work)
        self.alive = isinstance(outcome, Started)
        if isinstance(outcome, Started):
            return outcome
        if self.record.state is AppState.FAILED:
            self.tell("failed", self.record.reason, _exit_code(outcome))
        raise told(outcome) from outcome

    def _may_have_executed(self, error: BackendError | OSError) -> bool:
        """Whether anything of it may have executed, or may yet, of a start that ended with this error.

        Only `StartFailed` tells. After anything else, as from an engine that broke off in the middle, it is asked; one
        that does not answer may have done it.
        """
        match error:
            case engine_errors.StartFailed():
                return error.executed
            case engine_errors.ConfigError():
                return False
        try:
            found = self.backend.status(self.workspace)
        except (BackendError, OSError):
            return True
        return found.executing or found.state not in (EngineState.ABSENT, EngineState.SUSPENDED)

    async def facts(self, layout: AppLayout) -> dict[str, str]:
        """What the engine says that another machine must match to restore its memory, and how much memory that is.

        Where the engine does not tell, that is looked up of its processes: without it a migration would take a large
        application for a small one, and go without pre-copy.
        """

        def work() -> dict[str, str]:
            facts = dict(self.backend.facts(layout))
            if self.backend.capabilities.live and MEMORY_FACT not in facts:
                pid = self.backend.status(self.workspace).pid
                family = () if pid is None else (pid, *(process.pid for process in procfs.descendants(pid)))
                facts[MEMORY_FACT] = str(anonymous_bytes(family))
            return facts

        return await self._around.in_thread(self.backend.name, work)

    async def save(self, layout: AppLayout) -> Checkpoint:
        """Have the engine bring the instance folder up to date while it runs.

        Raises:
            AppNotSaved: an engine that keeps its memory cannot.
            Refused: it does not run.
            Failed: its `save` hook failed.
        """
        try:
            return await self._around.in_thread(
                self.backend.name, lambda: self.backend.checkpoint(layout, leave_running=True)
            )
        except (Failed, OSError) as error:
            if self.backend.capabilities.live:
                raise AppNotSaved(faults.describe(error).message) from error
            raise

    async def suspend(self, layout: AppLayout, *, memory: bool) -> Checkpoint:
        """Have the engine end it with its instance folder final, then the record say `suspended`.

        Args:
            memory: whether what it has in memory is kept, where the engine can.

        Raises:
            AppSuspendFailed: it runs as before, or neither here nor anywhere and the record is `failed` now.
        """

        def work() -> tuple[AppRecord, Checkpoint | engine_errors.SuspendFailed]:
            outcome: Checkpoint | engine_errors.SuspendFailed
            try:
                outcome = self.backend.suspend(layout, memory=memory)
                record = moved(self.record, AppState.SUSPENDED)
            except engine_errors.SuspendFailed as error:
                if error.running:
                    return self.record, error
                outcome, record = error, moved(self.record, AppState.FAILED, reason=str(error))
            self._around.shelf.write(record)
            return record, outcome

        self.record, outcome = await self._around.in_thread(self.backend.name, work)
        if isinstance(outcome, Checkpoint):
            self.alive = False
            self.tell("suspended")
            return outcome
        self.alive = outcome.running
        if not outcome.running:
            self.tell("failed", self.record.reason)
        raise told(outcome) from outcome

    async def way_on(self) -> Callable[[AppLayout], Started]:
        """How the engine lets it go on: from where it was suspended; afresh where it was lost before it was.

        What an engine saved earlier, while the application ran on, is older than its files and must not be resumed.
        """
        suspended = self.record.state in (AppState.SUSPENDED, AppState.IN_DOUBT)
        if suspended or (await self.status()).state in (EngineState.RUNNING, EngineState.SUSPENDED):
            return self.backend.resume
        return self.backend.start

    async def halt(self, target: AppRecord) -> None:
        """Write `target`, then have the engine end everything.

        Raises:
            Failed: something survived; the record is `failed` now.
        """

        def work() -> tuple[AppRecord, BackendError | None]:
            self._around.shelf.write(target)
            try:
                self.backend.stop(self.workspace)
            except BackendError as error:
                failed = moved(target, AppState.FAILED, reason=str(error))
                self._around.shelf.write(failed)
                return failed, error
            return target, None

        self.record, error = await self._around.in_thread(self.backend.name, work)
        self.alive = False
        if error is not None:
            self.tell("failed", self.record.reason)
            raise told(error) from error

    async def fail(self, reason: str, exit_code: int | None = None) -> None:
        """Note that it does not run any more, though it should."""
        self.alive = False
        await self.write(moved(self.record, AppState.FAILED, reason=reason))
        self.tell("failed", reason, exit_code)

    async def erase(self) -> None:
        """End it and delete all that it has here."""

        def work() -> None:
            self.backend.destroy(self.workspace)
            self._around.shelf.delete(self.record.id)

        await self._around.in_thread(self.backend.name, work)
        self.alive = False
        self.gone = True

    async def after_restore(self, layout: AppLayout) -> str | None:
        """Run that hook. Returns a warning when it failed."""
        try:
            await self._around.in_thread(self.backend.name, run_hook, "after_restore", layout)
        except P2PlayerError as error:
            self.tell("warning", error.message)
            return error.message
        return None


def told(error: BackendError | OSError) -> P2PlayerError:
    """An engine's error as users and peers are told."""
    match error:
        case engine_errors.StartFailed():
            return AppStartFailed(str(error), executed=error.executed)
        case engine_errors.SuspendFailed():
            return AppSuspendFailed(str(error), running=error.running)
        case _:
            return faults.describe(error)


def _exit_code(error: BackendError | OSError) -> int | None:
    return error.exit.code if isinstance(error, engine_errors.StartFailed) and error.exit else None
