"""Migrations as the rest of the node sees them.

seams, parts             what is needed of the node
register                 the open migrations and those that are over
  leftover               journals for which no migration is open
  driver                 runs one machine of `p2player.proto.handoff`
  source, destination    what the two ends do when their machine says so
  preflight, ports       what a destination looks at before anything moves
  images, basis          the sealed content of the instance layer, and what is kept of it for the way back
  rows, history          what is told, and what is remembered
commands                 plan, start, cancel, recover
desk                     what peers say
revival                  what an earlier run of the node left
remote                   commands for apps that live on other nodes
fence                    no app runs here that another node owns at a higher epoch
service                  this: all of it as one
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import trio

from chunkstore.digest import LayerId
from gossip.messages import NodeId
from p2player import errors
from p2player.apprecord import AppRecord
from p2player.events import EventBus
from p2player.log import Log
from p2player.migration import fence
from p2player.migration.commands import Commands
from p2player.migration.desk import Desk
from p2player.migration.driver import Clock, OnRecord
from p2player.migration.history import History
from p2player.migration.parts import Parts
from p2player.migration.register import Moved, Register
from p2player.migration.remote import Remote, serve
from p2player.migration.revival import revive_all
from p2player.migration.seams import Claims, Locate
from p2player.net.connection import Handler, Incoming
from p2player.proto.handoff.destination import DestinationMachine
from p2player.proto.handoff.machine import HandoffConfig
from p2player.proto.handoff.messages import Mode
from p2player.proto.handoff.source import SourceMachine

MIN_ID_DIGITS = 8
STALE_S = 5.0
LOOK_AGAIN_S = 0.2


class Migrations:
    """Every migration that this node takes part in; use it with `async with`, then `recover_all`.

    Args:
        parts: the other services of the node.
        locate: the node of an app. claims: which others say that they own it.
        return_basis_s: how long both ends keep the final image of a moved app, sealed, for the way back; 0: not at
        all. moved: told the sites of each move away from here. on_record: called around every record of a journal;
        see `driver.OnRecord`. wall: seconds since the Unix epoch.
    """

    def __init__(
        self,
        parts: Parts,
        locate: Locate,
        claims: Claims,
        bus: EventBus,
        log: Log,
        *,
        wall: Callable[[], float],
        return_basis_s: float = 3600.0,
        config: HandoffConfig | None = None,
        moved: Moved = lambda _source, _destination: None,
        on_record: OnRecord | None = None,
    ) -> None:
        self._parts = parts
        self._locate = locate
        self._claims = claims
        self._bus = bus
        self._log = log
        self._wall = wall
        self._return_basis_s = return_basis_s
        self._config = config or HandoffConfig()
        self._moved = moved
        self._on_record = on_record
        self._recovered = trio.Event()
        self._remote = Remote(parts)
        self._closing = AsyncExitStack()
        self._nursery: trio.Nursery
        self._history: History
        self._register: Register
        self._commands: Commands
        self._desk: Desk

    async def __aenter__(self) -> Self:
        parts = self._parts
        self._history, damage = await parts.in_thread(History.open, parts.root)
        if damage is not None:
            self._log.error("the history of migrations was damaged and is put aside", error=damage)
        self._closing.callback(self._history.close)
        self._nursery = await self._closing.enter_async_context(trio.open_nursery())
        self._register = Register(
            parts,
            self._history,
            Clock(self._wall),
            self._nursery,
            self._log,
            self._bus,
            return_basis_s=self._return_basis_s,
            moved=self._moved,
            on_record=self._on_record,
        )
        self._commands = Commands(self._register, self._config, self._log)
        self._desk = Desk(self._register, self._config, self._recovered, self._log)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._nursery.cancel_scope.cancel()
        return await self._closing.__aexit__(kind, error, trace)  # noqa: ASYNC102 - cancelled just above

    async def recover_all(self) -> None:
        """Take up what an earlier run of the node left open; call it once, after `Apps.adopt_all`."""
        await revive_all(self._register, self._config, self._log)
        self._recovered.set()
        self._nursery.start_soon(self._register.expire_bases)
        self._nursery.start_soon(fence.keep_fenced, self._parts, self._claims, self.holds, self._log)

    def handlers(self) -> dict[str, Handler]:
        """What peers may ask; they are answered once `recover_all` was called."""
        return {
            "handoff": self._handoff,
            "migration.preflight": self._preflight,
            fence.OWNED: fence.serve(self._parts.apps),
            **serve(lambda: self._commands),
        }

    async def _handoff(self, call: Incoming) -> dict[str, Any]:
        return await self._desk.handoff(call)

    async def _preflight(self, call: Incoming) -> dict[str, Any]:
        return await self._desk.preflight(call)

    # -- what there is

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `/v1/migrations`, newest first."""
        return self._register.rows()

    def states(self) -> dict[str, int]:
        """How many migrations are in which state."""
        return dict(Counter(row["state"] for row in self.rows()))

    def running(self) -> bool:
        """Whether a migration is under way, but for one that waits for an answer which may never come."""
        return any(
            each.machine.outcome is None and not (isinstance(each.machine, SourceMachine) and each.machine.forsaken)
            for each in self._register.all()
        )

    def holds(self, app_id: str) -> bool:
        """Whether nobody but a migration may start, stop or remove the app here."""
        if app_id in self._commands.starting:
            return True
        return any(each.machine.holds for each in self._register.of_app(app_id))

    def layers_in_use(self) -> set[LayerId]:
        """Layers of apps that are on their way here: their trees must last from the first pull on."""
        offers = [
            each.machine.offer
            for each in self._register.all()
            if isinstance(each.machine, DestinationMachine) and not each.machine.settled
        ]
        return {LayerId(layer) for offer in offers if offer is not None for layer in (offer.base, offer.app)}

    async def row(self, migration: str, *, wait_s: float = 0.0) -> dict[str, Any]:
        """One row; with `wait_s`, as soon as it has changed or that time is over.

        Args:
            migration: its id, or a unique beginning of one with 8 digits or more.

        Raises:
            NotFound: there is none.
            Unreachable: it was begun from here on another node, which does not answer.
        """
        known = self._known(migration)
        if known is not None:
            return await self._commands.row(known, wait_s)
        return await self._remote.row(migration, wait_s)

    def _known(self, migration: str) -> str | None:
        if self._register.row(migration) is not None:
            return migration
        found = self._register.ids(migration.lower()) if len(migration) >= MIN_ID_DIGITS else []
        if len(found) > 1:
            raise errors.Refused(f"migration id {migration} is not unique")
        return found[0] if found else None

    # -- commands; for an app on another node they are passed on to that node

    async def plan(self, app: str, to: str, *, mode: str = "live", max_freeze_s: float | None = None) -> dict[str, Any]:
        """What a migration would move and cost, and what stands against it; nothing is done.

        Raises:
            NotFound: no such app or node.
            Unreachable: one of the nodes does not answer.
        """
        destination = self._parts.members.find(to)

        async def ask(node: NodeId, app_id: str) -> dict[str, Any]:
            if node == self._parts.members.me:
                return await self._commands.plan(app_id, destination, Mode(mode), max_freeze_s)
            return await self._remote.plan(node, app_id, destination, mode, max_freeze_s)

        return await self._where_it_is(app, ask)

    async def start(
        self, app: str, to: str, *, mode: str = "live", max_freeze_s: float | None = None
    ) -> dict[str, Any]:
        """Begin to move an app; the row tells how it goes on.

        Raises:
            NotFound: no such app or node.
            Unreachable: the destination, or the node of the app, does not answer.
            Refused: it is there already, moves already, or is in no state to be moved.
        """
        destination = self._parts.members.find(to)

        async def ask(node: NodeId, app_id: str) -> dict[str, Any]:
            if node == self._parts.members.me:
                return await self._commands.start(app_id, destination, Mode(mode), max_freeze_s)
            return await self._remote.start(node, app_id, destination, mode, max_freeze_s)

        return await self._where_it_is(app, ask)

    async def _where_it_is(self, app: str, ask: Callable[[NodeId, str], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Ask the app's node; where that does not have it any more, gossip will soon tell who does."""
        deadline = trio.current_time() + STALE_S
        while True:
            node, app_id = self._find(app)
            try:
                return await ask(node, app_id)
            except errors.NotFound:
                if trio.current_time() > deadline:
                    raise
            await trio.sleep(LOOK_AGAIN_S)

    def _find(self, app: str) -> tuple[NodeId, str]:
        try:
            node, row = self._locate(app)
        except errors.NotFound:
            # It may have moved away from here a moment ago, and its new node not have told yet.
            moved = self._register.moved_away(app)
            if moved is None:
                raise
            return moved
        return node, row.id

    async def cancel(self, migration: str) -> dict[str, Any]:
        """Call a migration off; returns its row when the app runs on as before.

        Raises:
            NotFound: there is none.
            Refused: it is over, or the app was granted to the destination already.
            Unreachable: its source does not answer.
        """
        known = self._known(migration)
        each = None if known is None else self._register.get(known)
        if known is None:
            return await self._remote.cancel(migration)
        if each is not None and not isinstance(each.machine, SourceMachine):
            return await self._remote.cancel_at(NodeId(each.machine.peer), known)
        return await self._commands.cancel(known)

    async def recover(self, app_id: str, force: bool) -> AppRecord:
        """Settle an app of this node that is in doubt; see `Commands.recover`."""
        return await self._commands.recover(app_id, force)
