"""What peers say about migrations: to one that is open, about one that is over, or the beginning of one.

A message is believed only from the other end of its migration, and only the sort that this end says. What a message
asks of a migration that is not open is answered in the reply itself.
"""

import json
from functools import partial
from typing import Any

import trio

from gossip.messages import NodeId
from p2player import faults
from p2player.apprecord import AppRecord
from p2player.errors import Failed, P2PlayerError, Refused, Unreachable, Usage
from p2player.log import Log
from p2player.migration import leftover
from p2player.migration.destination import DestinationWork
from p2player.migration.driver import JOURNAL
from p2player.migration.leftover import Left
from p2player.migration.preflight import preflight
from p2player.migration.register import Register
from p2player.migration.source import SourceWork, spoken
from p2player.net.connection import Incoming
from p2player.proto.handoff import events, memory, messages
from p2player.proto.handoff.destination import DestinationMachine
from p2player.proto.handoff.fields import Malformed, Text
from p2player.proto.handoff.machine import HandoffConfig
from p2player.proto.handoff.messages import Grant, Message, Offer
from p2player.proto.handoff.source import SourceMachine
from p2player.proto.handoff.table import End

MAX_INCOMING = 32
RECOVERY_S = 5.0

_ID = Text(32, hex_digits=32)


class Desk:
    """Answers `handoff` and `migration.preflight`.

    Args:
        recovered: set once the migrations of earlier runs are open again; nothing is answered before.
    """

    def __init__(self, register: Register, config: HandoffConfig, recovered: trio.Event, log: Log) -> None:
        self._register = register
        self._config = config
        self._recovered = recovered
        self._log = log
        self._told: set[str] = set()

    async def handoff(self, call: Incoming) -> dict[str, Any]:
        """Serve `handoff {migration}` + message -> `{answer: message or None}`.

        Raises:
            Usage: that is no message, or not one for this end.
            Refused: the migration is between other nodes.
            Unreachable: the node is only starting, or cannot take part in another migration now.
            Failed: what an earlier run of the node wrote about this migration cannot be read.
        """
        await self._wait_recovered()
        try:
            migration, message = _ID.load(call.body.get("migration")), messages.decode(call.payload)
        except Malformed as error:
            raise Usage(f"malformed hand-off message: {error}") from None
        peer = NodeId(call.peer)
        if isinstance(message, Offer | Grant):
            await self._look_for_leftover(migration, message)
        each = self._register.get(migration)
        if each is not None:
            if each.machine.peer != peer:
                raise Refused("this migration is between other nodes")
            expected = messages.FROM_DESTINATION if each.machine.end is End.SOURCE else messages.FROM_SOURCE
            if type(message).__name__ not in expected:
                raise Usage(f"{type(message).__name__} is not for this end")
            if isinstance(each.machine, SourceMachine) and isinstance(each.work, SourceWork):
                each.work.spoken_bytes += 0 if each.machine.expected_outcome else spoken(message)
            each.driver.post(events.Received(message))
            return {}
        answer = self._answer(migration, peer, message)
        return {} if answer is None else {"answer": messages.encode(answer)}

    def _answer(self, migration: str, peer: NodeId, message: Message) -> Message | None:
        entry = self._register.history.get(migration)
        if entry is not None:
            if entry.peer != peer:
                raise Refused("this migration is between other nodes")
            return memory.answer(entry.epitaph, message)
        match message:
            case messages.Offer():
                return self._begin_offered(migration, peer, message)
            case messages.Grant():
                return self._begin_asked(migration, peer, message)
            case _:
                return memory.answer_unknown(message, self._owned_epoch(message))

    def _begin_offered(self, migration: str, peer: NodeId, offer: Offer) -> Message | None:
        try:
            record = read_record(offer)
            self._check_parties(peer, offer.source, offer.destination)
            if self._is_full():
                raise Refused(f"{self._me()} takes part in {MAX_INCOMING} migrations already")
        except P2PlayerError as error:
            return messages.Failed(error.code, error.message)
        self._begin(migration, peer, DestinationMachine.offered(offer, self._config), record)
        return None

    def _begin_asked(self, migration: str, peer: NodeId, grant: Grant) -> Message | None:
        self._check_parties(peer, grant.source, grant.destination)
        if self._is_full():
            # Not `Failed`: that would void the grant, and this node may own the app. The source asks again.
            raise Unreachable(f"{self._me()} takes part in {MAX_INCOMING} migrations already")
        self._begin(migration, peer, DestinationMachine.asked(grant, self._config), None)
        return None

    def _is_full(self) -> bool:
        return sum(isinstance(each.machine, DestinationMachine) for each in self._register.all()) >= MAX_INCOMING

    def _owned_epoch(self, message: Message) -> int:
        """At which this node owns the app that the message is about; 0 where it does not, or cannot tell."""
        if isinstance(message, messages.Restored):
            for record in self._register.parts.apps.records():
                if record.id == message.app_id:
                    return record.epoch
        return 0

    async def _look_for_leftover(self, migration: str, message: Offer | Grant) -> None:
        """Before a migration is begun: see that no earlier one of the id lies on the disk; see `leftover`."""
        if self._is_known(migration):
            return
        folder = self._register.parts.root / migration
        left = await self._register.parts.in_thread(leftover.look, folder, message)
        if left is Left.NOTHING or self._is_known(migration):  # another message of it may have begun it meanwhile
            return
        if left is Left.VOID:
            try:
                aside = leftover.put_aside(folder)
            except OSError as error:
                raise faults.describe(error) from error
            self._log.error("put a damaged journal of a refused migration aside", file=str(aside))
            return
        if migration not in self._told:
            self._told.add(migration)
            self._log.error("asked about a migration whose journal cannot be read", file=str(folder / JOURNAL))
        raise Failed(f"{self._me()} cannot read its journal of migration {migration[:12]}")

    def _is_known(self, migration: str) -> bool:
        return self._register.get(migration) is not None or self._register.history.get(migration) is not None

    def _begin(self, migration: str, peer: NodeId, machine: DestinationMachine, record: AppRecord | None) -> None:
        register = self._register
        make_work = partial(destination_work, register, migration, machine, record)
        driver = register.admit(migration, machine, make_work)
        register.start(driver, machine.begin(register.clock.now()))

    def _check_parties(self, peer: NodeId, source: str, destination: str) -> None:
        if source != peer or destination != self._register.parts.members.me:
            raise Refused("this migration is between other nodes")

    def _me(self) -> str:
        return self._register.parts.name(self._register.parts.members.me)

    async def preflight(self, call: Incoming) -> dict[str, Any]:
        """Serve `migration.preflight` + offer -> `{refusals, base, app, basis}`: what a plan needs; nothing is begun.

        Raises:
            Usage: that is no offer.
        """
        await self._wait_recovered()
        try:
            offer = messages.decode(call.payload)
        except Malformed as error:
            raise Usage(f"malformed offer: {error}") from None
        if not isinstance(offer, Offer):
            raise Usage("not an offer")
        checked = await check_offer(self._register, "", read_record(offer), offer)
        return {
            "refusals": list(checked.refusals),
            "base": [checked.base.total, checked.base.missing],
            "app": [checked.app.total, checked.app.missing],
            "basis": checked.basis_bytes,
        }

    async def _wait_recovered(self) -> None:
        with trio.move_on_after(RECOVERY_S):
            await self._recovered.wait()
            return
        raise Unreachable(f"{self._me()} is only starting")


def destination_work(
    register: Register, migration: str, machine: DestinationMachine, record: AppRecord | None, folder: Any
) -> DestinationWork:
    """The hands of a destination machine."""
    check = partial(check_offer, register, migration, record)
    peer = NodeId(machine.peer)
    return DestinationWork(register.parts, migration, peer, machine.app_id, folder, record, register.bases, check)


async def check_offer(register: Register, migration: str, record: AppRecord | None, offer: Offer) -> events.Checked:
    """What `preflight` finds now about an offer; `migration` itself does not stand in its way."""
    busy = register.busy(offer.app_id, migration)
    return await preflight(register.parts, offer, record, register.bases, busy, register.clock.wall())


def read_record(offer: Offer) -> AppRecord:
    """The app's record in an offer.

    Raises:
        Usage: it is none, or contradicts the offer.
    """
    try:
        document = json.loads(offer.record)
    except (ValueError, RecursionError):
        raise Usage("the offer has no readable application record") from None
    record = AppRecord.from_dict(document)
    told = (record.id, record.name, record.backend, record.epoch, record.base, record.app)
    if told != (offer.app_id, offer.app_name, offer.backend, offer.epoch, offer.base, offer.app):
        raise Usage("the offer contradicts its application record")
    return record
