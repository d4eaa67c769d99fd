"""The open migrations of this node and those that are over: who runs, what is told of each, what is left behind.

An open migration is a `Driver` and the hands of its machine. When the machine is done with, its row goes into the
history, and its folder becomes a return basis or is wiped. A migration whose driver was cancelled, because the node
stops, keeps its journal; an app that was suspended for it, and not granted, is resumed on the way out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from gossip.messages import NodeId
from p2player import errors
from p2player.events import EventBus
from p2player.log import Log
from p2player.migration import rows
from p2player.migration.basis import BasisShelf, has_image, wipe
from p2player.migration.destination import DestinationWork
from p2player.migration.driver import JOURNAL, Clock, Driver, Machine, OnRecord
from p2player.migration.history import Entry, History
from p2player.migration.parts import Parts
from p2player.migration.source import SourceWork
from p2player.planning import Lesson
from p2player.proto.handoff import events
from p2player.proto.handoff.memory import Fate
from p2player.proto.handoff.source import SourceMachine
from p2player.proto.handoff.table import OVER, End, Phase

CLEANUP_S = 15.0
EXPIRE_S = 30.0
TELL_S = 0.5
TELLING_BYTES = 64 << 10

Moved = Callable[[str, str], None]
"""Told the sites (from, to) of every app that moved away from this node."""


@dataclass(eq=False, slots=True)
class Open:
    """One open migration."""

    driver: Driver
    work: SourceWork | DestinationWork
    state: str = ""
    round: int = 0
    told_at: float = 0.0

    @property
    def machine(self) -> Machine:
        return self.driver.machine


class Register:
    """See the module.

    Args:
        history: what is over; closed by whoever opened it.
        nursery: in which drivers run.
        return_basis_s: how long the final image of a moved app is kept sealed; 0: not at all.
    """

    def __init__(
        self,
        parts: Parts,
        history: History,
        clock: Clock,
        nursery: trio.Nursery,
        log: Log,
        bus: EventBus,
        *,
        return_basis_s: float,
        moved: Moved,
        on_record: OnRecord | None,
    ) -> None:
        self.parts = parts
        self.history = history
        self.clock = clock
        self.bases = BasisShelf()
        self._nursery = nursery
        self._log = log
        self._bus = bus
        self._return_basis_s = return_basis_s
        self._moved = moved
        self._on_record = on_record
        self._open: dict[str, Open] = {}
        self._changed = trio.Event()

    # -- what there is

    def get(self, migration: str) -> Open | None:
        """The open migration of that id."""
        return self._open.get(migration)

    def all(self) -> list[Open]:
        """Every open migration."""
        return list(self._open.values())

    def of_app(self, app_id: str) -> list[Open]:
        """The open migrations of one app."""
        return [each for each in self._open.values() if each.machine.app_id == app_id]

    def moved_away(self, ref: str) -> tuple[NodeId, str] | None:
        """Where the app of that name or id went last from here, and its id."""
        for entry in reversed(list(self.history)):
            moved = entry.epitaph.end is End.SOURCE and entry.epitaph.fate is Fate.MOVED
            if moved and ref in (entry.row["app"], entry.row["app_id"]):
                return NodeId(entry.peer), entry.row["app_id"]
        return None

    def busy(self, app_id: str, but: str = "") -> str:
        """Why no other migration of the app may begin here; empty when one may. `but`: does not count itself."""
        for each in self.of_app(app_id):
            if each.driver.migration != but and not each.machine.settled:
                here = self.parts.members.name_of(self.parts.members.me)
                return f"migration {each.driver.migration[:12]} of this app is not over on {here}"
        return ""

    def row(self, migration: str) -> dict[str, Any] | None:
        """The row of a migration that is open or remembered."""
        each = self._open.get(migration)
        if each is not None:
            return self._row(each)
        entry = self.history.get(migration)
        return None if entry is None else dict(entry.row)

    def final_row(self, migration: str) -> dict[str, Any]:
        """The row of an open migration that goes from here, as the other end is to keep it."""
        each = self._open[migration]
        assert isinstance(each.machine, SourceMachine)
        assert isinstance(each.work, SourceWork)
        spoken, now = each.work.spoken_bytes, self.clock.now()
        return rows.of_source(migration, each.machine, self.parts.name, now, spoken, final=True)

    def rows(self) -> list[dict[str, Any]]:
        """All of them, newest first."""
        found = {entry.row["id"]: dict(entry.row) for entry in self.history}
        found |= {migration: self._row(each) for migration, each in self._open.items()}
        return sorted(found.values(), key=lambda row: row["started_at"], reverse=True)

    def ids(self, prefix: str) -> list[str]:
        """The ids that begin so."""
        known = {*self._open, *(entry.row["id"] for entry in self.history)}
        return [migration for migration in known if migration.startswith(prefix)]

    async def wait_change(self) -> None:
        """Return when any row has changed."""
        await self._changed.wait()

    def _row(self, each: Open) -> dict[str, Any]:
        now, migration = self.clock.now(), each.driver.migration
        if isinstance(each.machine, SourceMachine):
            spoken = each.work.spoken_bytes if isinstance(each.work, SourceWork) else 0
            return rows.of_source(migration, each.machine, self.parts.name, now, spoken)
        pulled = each.work.pulled if isinstance(each.work, DestinationWork) else {}
        return rows.of_destination(migration, each.machine, pulled, self.parts.name, now)

    # -- what runs

    def admit(
        self, migration: str, machine: Machine, make_work: Callable[[Path], SourceWork | DestinationWork]
    ) -> Driver:
        """Make a migration known; `start` begins it."""
        folder = self.parts.root / migration
        work = make_work(folder)
        driver = Driver(
            migration,
            machine,
            folder,
            work,
            self.clock,
            self._log.bind(migration=migration),
            lambda: self._tell(migration),
            self._on_record,
        )
        work.progress = driver.advance
        self._open[migration] = Open(driver, work)
        return driver

    def start(self, driver: Driver, first: list[events.Output]) -> None:
        """Run it from its first outputs on."""
        self._nursery.start_soon(self._run, self._open[driver.migration], first)

    async def _run(self, each: Open, first: list[events.Output]) -> None:
        driver, over = each.driver, False
        try:
            await driver.run(first)
            over = True
            await self._conclude(each)
        except Exception as error:
            # A defect in one migration must not end the node: its journal is taken up again at the next start.
            self._log.failure("migration broken off", error, migration=driver.migration)
        finally:
            if not over:
                with trio.move_on_after(CLEANUP_S, shield=True):
                    await self._thaw(each)
            each.work.close()
            self._open.pop(driver.migration, None)
            self._wake()

    async def _thaw(self, each: Open) -> None:
        """An app that was suspended and not granted shall not wait for the node's next start."""
        if isinstance(each.machine, SourceMachine) and isinstance(each.work, SourceWork) and each.machine.froze:
            try:
                await each.work.do(events.Resume(each.machine.offer.epoch))
            except errors.P2PlayerError as error:
                self._log.error("cannot resume the app", app=each.machine.offer.app_name, error=error.message)

    async def _conclude(self, each: Open) -> None:
        """Both ends know how it ended: remember it, and clear up."""
        driver, machine = each.driver, each.machine
        row = self._row(each)
        each.work.close()
        known = self.history.get(driver.migration) is not None  # killed before the folder was cleared
        if not known and (driver.written or isinstance(machine, SourceMachine)):
            lesson = lesson_of(machine) if isinstance(machine, SourceMachine) else None
            entry = Entry(row, machine.peer, machine.epitaph, lesson)
            self.history.put(entry)
            try:
                await self.parts.in_thread(self.history.write, entry)
            except (errors.P2PlayerError, ValueError) as error:
                self._log.error("cannot remember a migration", migration=driver.migration, error=str(error))
        moved = machine.epitaph.fate is Fate.MOVED
        expires_at = self.clock.now() + self._return_basis_s if moved else 0.0
        size = row["layers"]["instance"]["total"]
        await self.parts.in_thread(self._leave, driver.folder, machine.app_id, size, expires_at)

    def _leave(self, folder: Path, app_id: str, size: int, expires_at: float) -> None:
        """For a worker thread: what becomes of the folder."""
        if expires_at > 0 and self._return_basis_s > 0 and has_image(folder):
            self.bases.keep(folder, app_id, size, expires_at)
            (folder / JOURNAL).unlink()
        else:
            wipe(folder)

    async def expire_bases(self) -> None:
        """Wipe return bases in time; runs until cancelled."""
        while True:
            await self.parts.in_thread(self.bases.expire, self.clock.now())
            await trio.sleep(EXPIRE_S)

    # -- telling

    def _tell(self, migration: str) -> None:
        each = self._open.get(migration)
        if each is None:
            return
        row, now = self._row(each), self.clock.now()
        round_ = each.machine.round if isinstance(each.machine, SourceMachine) else 0
        if row["state"] != each.state:
            self._log.info("migration", migration=migration, state=row["state"], app=row["app"])
            source = isinstance(each.machine, SourceMachine)
            if row["state"] == Phase.DONE.value and source:
                site_of = self.parts.members.site_of
                self._moved(site_of(self.parts.members.me), site_of(NodeId(each.machine.peer)))
        elif round_ == each.round and now - each.told_at < TELL_S:
            return
        each.state, each.round, each.told_at = row["state"], round_, now
        self._bus.emit("migration.changed", **row)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def lesson_of(machine: SourceMachine) -> Lesson | None:
    """What a migration taught, if it went through in one run of the node."""
    if machine.outcome is None or machine.outcome.phase not in OVER or machine.final_s is None:
        return None
    tally, policy, offer = machine.tally, machine.policy, machine.offer
    link, deltas = policy.link, policy.delta_link
    return Lesson(
        offer.app_id,
        offer.backend,
        offer.destination,
        goodput_bytes_s=link.goodput_bytes_s if link.measured else None,
        overhead_s=link.overhead_s,
        wire_ratio=machine.plain.ratio(TELLING_BYTES),
        engine_s=max(tally.freeze_s - machine.pauses[1] - machine.final_s, 0.0) if offer.running else None,
        health_s=machine.health_s if offer.running else None,
        dirty_bytes_s=policy.dirty_bytes_s,
        delta_goodput_bytes_s=deltas.goodput_bytes_s if deltas.measured else None,
        delta_ratio=machine.deltas.ratio(TELLING_BYTES),
        pause_s=machine.pauses[1] / machine.pauses[0] if machine.pauses[0] else None,
    )
