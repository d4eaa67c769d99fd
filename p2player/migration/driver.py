"""Run one machine of one migration: its journal, its timers, its messages, its actions.

One task takes events in order and carries out the outputs of each, so that a record is on the disk before anything
behind it begins. Messages and actions run beside it. An action that is stopped has ended before the next one begins.
Whatever an action raises becomes an event: an engine's defect must not leave an app suspended.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import trio

from p2player import errors, faults
from p2player.journal import Journal
from p2player.log import Log
from p2player.proto.handoff import events, records
from p2player.proto.handoff.destination import DestinationMachine
from p2player.proto.handoff.events import Action, AppState, Event, Output, Result, Timer
from p2player.proto.handoff.fields import Malformed
from p2player.proto.handoff.messages import Message
from p2player.proto.handoff.records import Record
from p2player.proto.handoff.source import SourceMachine
from p2player.proto.handoff.table import End
from p2player.statedir import sync_folder

JOURNAL = "journal"
MAX_WAITING_MESSAGES = 64

Machine = SourceMachine | DestinationMachine
OnRecord = Callable[[End, Record, Literal["before", "after"]], None]
"""Called around every append to a journal, in the worker thread that appends; for tests that kill the node there."""


class Work(Protocol):
    """What a machine's outputs ask of this node."""

    async def do(self, action: Action) -> Result:
        """Carry out one action; P2PlayerError says why not."""
        ...

    def executed(self) -> bool:
        """After a failed restore: whether the app may have executed an instruction here."""
        ...

    async def mark(self, state: AppState) -> None:
        """Write `state` into the app's record."""
        ...

    async def send(self, message: Message) -> Message | None:
        """Bring a message to the other end; its answer, where it had one at once.

        Raises:
            P2PlayerError: it did not arrive, or nobody knows.
        """
        ...


@dataclass(eq=False)
class _Running:
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)


class Clock:
    """Seconds since the Unix epoch that never go back while the node runs, and trio's time for the same instant.

    Attributes:
        wall: the machine's clock itself, which may be set at any time.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self.wall = wall
        self._offset_s = wall() - trio.current_time()

    def now(self) -> float:
        """Now."""
        return trio.current_time() + self._offset_s

    def trio_time(self, at: float) -> float:
        """`at` on trio's clock."""
        return at - self._offset_s


class Driver:
    """One migration at one end, while it is open.

    Args:
        folder: of the migration; made with its first record.
        work: the parts of this node.
        changed: told after every step.
        on_record: see `OnRecord`.
    """

    def __init__(
        self,
        migration: str,
        machine: Machine,
        folder: Path,
        work: Work,
        clock: Clock,
        log: Log,
        changed: Callable[[], None],
        on_record: OnRecord | None = None,
    ) -> None:
        self.migration = migration
        self.machine = machine
        self.folder = folder
        self.written = False
        self._work = work
        self._clock = clock
        self._log = log
        self._changed = changed
        self._on_record = on_record
        self._journal: Journal | None = None
        self._events: deque[Event] = deque()
        self._wake = trio.Event()
        self._timers: dict[Timer, float] = {}
        self._actions: dict[int, _Running] = {}
        self._stopped: list[_Running] = []
        self._sending: list[Message] = []
        self._over = False

    def adopt(self, journal: Journal) -> None:
        """Go on with a journal that was found."""
        self._journal = journal
        self.written = True

    def post(self, event: Event) -> None:
        """Have the machine handle this next; a message to one that is far behind is lost."""
        if isinstance(event, events.Received) and len(self._events) >= MAX_WAITING_MESSAGES:
            return
        self._events.append(event)
        self._wake.set()

    def advance(self, done: int, total: int) -> None:
        """The running action has moved so far; call it in the trio thread."""
        if not (self._events and isinstance(self._events[-1], events.Advanced)):
            self.post(events.Advanced(done, total))

    async def run(self, first: list[Output]) -> None:
        """Until the machine is done with; cancelling it leaves a journal that `restart` goes on with."""
        try:
            async with trio.open_nursery() as nursery:
                await self._carry_out(first, nursery)
                while not self._over:
                    event = await self._next()
                    await self._carry_out(self.machine.handle(event, self._clock.now()), nursery)
                for running in self._actions.values():
                    running.scope.cancel()
                # What was said last may still be on its way: `send` bounds how long that takes.
        finally:
            if self._journal is not None:
                self._journal.close()

    async def _next(self) -> Event:
        while True:
            if self._events:
                return self._events.popleft()
            timer = min(self._timers, key=self._timers.__getitem__, default=None)
            if timer is not None and self._timers[timer] <= self._clock.now():
                del self._timers[timer]
                return events.Fired(timer)
            self._wake = trio.Event()
            deadline = float("inf") if timer is None else self._clock.trio_time(self._timers[timer])
            with trio.move_on_at(deadline):
                await self._wake.wait()

    async def _carry_out(self, outputs: list[Output], nursery: trio.Nursery) -> None:
        waiting = deque(outputs)
        while waiting:
            output = waiting[0]
            match output:
                case events.Journal(record):
                    if not await self._write(record):
                        waiting = deque(self.machine.handle(events.Unwritten(tuple(waiting)), self._clock.now()))
                        continue
                case events.Send(message):
                    if message not in self._sending:
                        self._sending.append(message)
                        nursery.start_soon(self._send, message)
                case events.Act(token, action):
                    running = self._actions[token] = _Running()
                    nursery.start_soon(self._act, token, action, running, self._stopped)
                    self._stopped = []
                case events.StopAct(token):
                    if (stopped := self._actions.pop(token, None)) is not None:
                        stopped.scope.cancel()
                        self._stopped.append(stopped)
                case events.SetTimer(timer, at):
                    self._timers[timer] = at
                case events.ClearTimer(timer):
                    self._timers.pop(timer, None)
                case events.Mark(state):
                    await self._mark(state)
                case events.Finished():
                    self._tell_finished()
                case events.Forget():
                    self._over = True
            waiting.popleft()
        self._changed()

    # -- the journal

    async def _write(self, record: Record) -> bool:
        try:
            await trio.to_thread.run_sync(self._append, record)
        except (OSError, ValueError, Malformed) as error:
            self._log.error("cannot write the journal", record=type(record).__name__, error=str(error))
            return False
        self._log.debug("journalled", record=type(record).__name__)
        return True

    def _append(self, record: Record) -> None:
        document = records.dump(record)
        records.load([document])  # what a restart could not read must not be acted upon
        if self._journal is None:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._journal = Journal.open(self.folder / JOURNAL)
            sync_folder(self.folder.parent)
        if self._on_record is not None:
            self._on_record(self.machine.end, record, "before")
        self._journal.append(document)
        self.written = True
        if self._on_record is not None:
            self._on_record(self.machine.end, record, "after")

    # -- beside the machine

    async def _send(self, message: Message) -> None:
        try:
            answer = await self._work.send(message)
        except errors.Unreachable as error:
            self._log.debug("message not delivered", message=type(message).__name__, error=error.message)
            self.post(events.Undelivered(error.message))
        except errors.P2PlayerError as error:
            self._log.warning("message rejected", message=type(message).__name__, error=error.message)
            self.post(events.Rejected(error.code, error.message))
        else:
            if answer is not None:
                self.post(events.Received(answer))
        finally:
            self._sending.remove(message)

    async def _act(self, token: int, action: Action, running: _Running, stopped: list[_Running]) -> None:
        event: Event | None = None
        try:
            for earlier in stopped:
                await earlier.ended.wait()
            with running.scope:
                event = await self._outcome(token, action)
        finally:
            running.ended.set()
        if event is not None and self._actions.pop(token, None) is running:
            self.post(event)

    async def _outcome(self, token: int, action: Action) -> Event:
        # Whatever an engine or a store meets must reach the machine, which alone knows what is safe now.
        try:
            return events.Done(token, await self._work.do(action))
        except Exception as error:
            told = faults.describe(error)
            if not isinstance(error, errors.P2PlayerError):
                self._log.failure(f"{type(action).__name__} failed", error)
            else:
                self._log.info("step failed", step=type(action).__name__, error=told.message)
            executed = isinstance(action, events.Restore) and self._work.executed()
            return events.Broke(token, told.code, told.message, executed)

    async def _mark(self, state: AppState) -> None:
        try:
            await self._work.mark(state)
        except (errors.P2PlayerError, OSError) as error:
            # The journal decides; the record's state only keeps users from acting in between.
            self._log.warning("cannot mark the app", state=state.value, error=str(error))

    def _tell_finished(self) -> None:
        outcome = self.machine.outcome
        if outcome is not None:
            self._log.info("migration finished", state=outcome.phase.value, reason=outcome.reason)
