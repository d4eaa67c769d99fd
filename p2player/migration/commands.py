"""Commands for the apps of this node: plan and begin a migration, call it off, settle one that is in doubt."""

import json
import secrets
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import trio

from chunkstore.digest import LayerId
from chunkstore.vault import Vault
from gossip.messages import NodeId
from p2player import errors
from p2player.apprecord import AppRecord
from p2player.appstate import AppState
from p2player.log import Log
from p2player.migration.basis import wipe
from p2player.migration.images import SourceImages, size_of_tree
from p2player.migration.kept import VAULT
from p2player.migration.parts import Parts
from p2player.migration.ports import network_here
from p2player.migration.preflight import advise_cold, no_room
from p2player.migration.register import Register
from p2player.migration.source import SourceWork
from p2player.planning import Experience, Question, learn, make_plan
from p2player.proto.handoff import events, messages
from p2player.proto.handoff.machine import HandoffConfig
from p2player.proto.handoff.messages import Mode, Need, Offer
from p2player.proto.handoff.source import SourceMachine
from p2player.proto.handoff.table import OVER

MAX_OUTGOING = 32
MAX_OBSTACLES = 16
PREFLIGHT_S = 30.0
CANCEL_S = 60.0
ANSWER_S = 10.0
POLL_S = 0.5


class Commands:
    """See the module. Every method raises NotFound for an app or a migration that is not here.

    Attributes:
        starting: apps whose migration is just being prepared.
    """

    def __init__(self, register: Register, config: HandoffConfig, log: Log) -> None:
        self._register = register
        self._parts = register.parts
        self._config = config
        self._log = log
        self.starting: set[str] = set()

    async def plan(self, app_id: str, to: NodeId, mode: Mode, max_freeze_s: float | None) -> dict[str, Any]:
        """What a migration would move and cost, and what stands against it; nothing is done.

        Raises:
            Unreachable: the destination does not answer.
        """
        parts = self._parts
        record = parts.apps.find(app_id)
        refusals = self._against(record, to, mode)
        if not refusals:
            refusals = await self._obstacles(record, mode)
        offer = await self._offer(record, to, mode)
        refusals += await self._no_room(offer)
        checked = events.Checked(())
        if to != parts.members.me:
            self._check_alive(to)
            payload = messages.encode(offer)
            reply = await parts.peers.call(to, "migration.preflight", {}, timeout_s=PREFLIGHT_S, payload=payload)
            checked = _read_checked(reply)
        question = Question(
            record.name,
            parts.name(parts.members.me),
            parts.name(to),
            mode,
            checked.base,
            checked.app,
            offer.instance_bytes,
            checked.basis_bytes,
            offer.running,
            max_freeze_s,
        )
        return make_plan(question, self._experience(record, to), [*refusals, *checked.refusals]).document()

    async def start(self, app_id: str, to: NodeId, mode: Mode, max_freeze_s: float | None) -> dict[str, Any]:
        """Begin to move an app; the row tells how it goes on.

        Raises:
            Unreachable: the destination is not alive.
            Refused: it is there already, moves already, is in no state to be moved, or cannot be saved as it is.
        """
        record = self._parts.apps.find(app_id)
        for refusal in self._against(record, to, mode):
            raise errors.Refused(refusal)
        self._check_alive(to)
        if sum(isinstance(each.machine, SourceMachine) for each in self._register.all()) >= MAX_OUTGOING:
            raise errors.Refused(f"{MAX_OUTGOING} apps move away from this node already")
        self.starting.add(record.id)
        try:
            for refusal in await self._obstacles(record, mode):
                raise errors.Refused(refusal)
            return await self._begin(record, to, mode, max_freeze_s)
        finally:
            self.starting.discard(record.id)

    def _against(self, record: AppRecord, destination: NodeId, mode: Mode) -> list[str]:
        """What this node alone can tell against a migration."""
        found = []
        if destination == self._parts.members.me:
            found.append(f"{record.name} is on {self._parts.name(destination)} already")
        busy = f"{record.name} is being migrated already" if record.id in self.starting else ""
        busy = busy or self._register.busy(record.id)
        if busy:
            found.append(busy)
        elif record.state is AppState.STOPPED and mode is Mode.LIVE:
            found.append(f"{record.name} is stopped: only --mode cold can move it")
        elif record.state not in (AppState.RUNNING, AppState.STOPPED):
            found.append(f"{record.name} is {record.state.value}")
        return found

    async def _obstacles(self, record: AppRecord, mode: Mode) -> list[str]:
        """What the engine knows against saving the app as it is."""
        if mode is Mode.COLD:
            return []
        found = await self._parts.apps.obstacles(record.id)
        return advise_cold(found[:MAX_OBSTACLES], record.name, alone=True)

    async def _no_room(self, offer: Offer) -> list[str]:
        """Why the images cannot be taken here: sealed ones, beside what the engine saves."""
        needed = offer.instance_bytes + messages.memory_bytes(offer.facts)
        return await self._parts.in_thread(no_room, self._parts, needed)

    def _check_alive(self, destination: NodeId) -> None:
        if not any(member.id == destination for member in self._parts.members.alive()):
            raise errors.Unreachable(f"node {self._parts.name(destination)} is not alive")

    async def _offer(self, record: AppRecord, destination: NodeId, mode: Mode) -> Offer:
        parts = self._parts
        sizes = await parts.in_thread(lambda: [_size(parts, layer) for layer in (record.base, record.app)])
        running = record.state in (AppState.RUNNING, AppState.MIGRATING)
        facts = await parts.apps.facts(record.id) if running and mode is Mode.LIVE else {}
        instance_bytes = await parts.in_thread(size_of_tree, parts.apps.state_path(record.id))
        return Offer(
            step=1,
            app_id=record.id,
            app_name=record.name,
            backend=record.backend,
            epoch=record.epoch,
            source=parts.members.me,
            destination=destination,
            base=record.base,
            app=record.app,
            record=json.dumps(record.to_dict()).encode(),
            mode=mode,
            running=running,
            base_bytes=sizes[0],
            app_bytes=sizes[1],
            instance_bytes=instance_bytes + messages.memory_bytes(facts),
            facts=messages.FACTS.fitting(facts),
            sent_at=self._register.clock.wall(),
            network=network_here(),
        )

    def _experience(self, record: AppRecord, destination: NodeId) -> Experience:
        member = self._parts.members.member(destination)
        return learn(
            self._register.history.lessons(),
            app_id=record.id,
            backend=record.backend,
            peer=destination,
            rtt_s=None if member is None else member.rtt_s,
        )

    async def _begin(
        self, record: AppRecord, destination: NodeId, mode: Mode, max_freeze_s: float | None
    ) -> dict[str, Any]:
        parts, register = self._parts, self._register
        migration = secrets.token_hex(16)
        folder = parts.root / migration
        offer = await self._offer(record, destination, mode)
        for refusal in await self._no_room(offer):
            raise errors.Refused(refusal)
        experience = self._experience(record, destination)
        try:
            images = await parts.in_thread(_make_images, folder, parts.apps.state_path(record.id))
            machine = SourceMachine(offer, images.vault.key, self._config, experience.policy(max_freeze_s))
            await parts.apps.set_state(record.id, AppState.MIGRATING)
        except BaseException:
            with trio.CancelScope(shield=True):
                await parts.in_thread(wipe, folder)
            raise

        def make_work(_: Path) -> SourceWork:
            row = partial(register.final_row, migration)
            return SourceWork(parts, migration, offer, images, register.bases, experience, max_freeze_s, row)

        driver = register.admit(migration, machine, make_work)
        register.start(driver, machine.begin(register.clock.now()))
        self._log.info("migration begun", migration=migration, app=record.name, to=parts.name(destination))
        row = register.row(migration)
        assert row is not None
        return row

    async def row(self, migration: str, wait_s: float) -> dict[str, Any]:
        """One row; with `wait_s`, as soon as it has changed or that time is over."""
        register = self._register
        first = register.row(migration)
        with trio.move_on_after(wait_s):
            while wait_s > 0 and first is not None and first["state"] not in OVER:
                await register.wait_change()
                if register.row(migration) != first:
                    break
        row = register.row(migration)
        if row is None:
            raise errors.NotFound(f"no migration {migration}")
        return row

    async def cancel(self, migration: str) -> dict[str, Any]:
        """Call a migration off; returns its row when the app runs on as before.

        Raises:
            Refused: it is over, or the app was granted to the destination already, or comes from another node.
        """
        each = self._register.get(migration)
        if each is None:
            if self._register.row(migration) is None:
                raise errors.NotFound(f"no migration {migration}")
            raise errors.Refused(f"migration {migration[:12]} is over")
        if not isinstance(each.machine, SourceMachine):
            raise errors.Refused(f"migration {migration[:12]} is called off at its source")
        if not each.machine.cancellable:
            phase = each.machine.phase.value
            raise errors.Refused(f"migration {migration[:12]} cannot be cancelled any more: it is in {phase}")
        each.driver.post(events.Cancel("cancelled"))
        with trio.move_on_after(CANCEL_S):
            while each.machine.outcome is None:
                await self._register.wait_change()
        row = self._register.row(migration)
        assert row is not None
        if row["state"] != "cancelled":
            raise errors.Refused(f"migration {migration[:12]} could not be cancelled: it is in {row['state']}")
        return row

    async def recover(self, app_id: str, force: bool) -> AppRecord:
        """Settle an app that is in doubt by the destination's answer; `force` takes it back where there is none.

        Returns:
            Its record as it then is; as it last was when it lives at the destination.

        Raises:
            Refused: it is not in doubt, or the destination does not answer and `force` is not set, or works on it.
        """
        record = self._parts.apps.record(app_id)
        each = next((e for e in self._register.of_app(app_id) if isinstance(e.machine, SourceMachine)), None)
        if each is None or not isinstance(each.machine, SourceMachine) or each.machine.settled:
            return await self._recover_lost(record, force)
        machine, name = each.machine, self._parts.name(each.machine.peer)
        each.driver.post(events.Ask())
        with trio.move_on_after(ANSWER_S):
            while machine.in_doubt and not machine.restoring:
                await self._wait_or_poll()
        if machine.in_doubt:
            if machine.restoring:
                raise errors.Refused(f"{name} has accepted {record.name} and is restoring it: wait for the outcome")
            if not force:
                raise errors.Refused(
                    f"{name} does not answer, and may be running {record.name}; --force takes it back all the same"
                )
            each.driver.post(events.Force())
        with trio.move_on_after(CANCEL_S):
            while not machine.settled:
                await self._wait_or_poll()
        with suppress(errors.NotFound):
            record = self._parts.apps.record(app_id)
        return record

    async def _wait_or_poll(self) -> None:
        with trio.move_on_after(POLL_S):
            await self._register.wait_change()

    async def _recover_lost(self, record: AppRecord, force: bool) -> AppRecord:
        """An app that is held by a migration of which nothing is left here."""
        if record.state not in (AppState.SUSPENDED, AppState.IN_DOUBT):
            raise errors.Refused(f"{record.name} is not in doubt: it is {record.state.value}")
        if not force:
            raise errors.Refused(
                f"the journal of the migration that holds {record.name} is lost; --force takes it back all the same"
            )
        await self._parts.apps.set_state(record.id, record.state, record.epoch + 2)
        await self._parts.apps.resume(record.id)
        return self._parts.apps.record(record.id)


def _make_images(folder: Path, state: Path) -> SourceImages:
    """For a worker thread: a new vault, and the images that will be taken into it."""
    folder.mkdir(mode=0o700)
    Vault.create(folder / VAULT).close()
    return SourceImages(folder, state)


def _size(parts: Parts, layer: LayerId) -> int:
    record = parts.stock.layer(layer)
    return 0 if record is None else record.size


def _read_checked(reply: dict[str, Any]) -> events.Checked:
    """What a peer's preflight found.

    Raises:
        Unreachable: its answer makes no sense.
    """
    try:
        refusals, basis = reply["refusals"], reply["basis"]
        base, app = (_read_need(reply[layer]) for layer in ("base", "app"))
        if not isinstance(refusals, list) or len(refusals) > 64:
            raise TypeError("refusals")
        return events.Checked(tuple(str(text)[:500] for text in refusals), base, app, _count(basis))
    except (KeyError, TypeError, ValueError):
        raise errors.Unreachable("the destination answered nonsense to a preflight") from None


def _read_need(value: object) -> Need:
    if not isinstance(value, list):
        raise TypeError("need")
    total, missing = map(_count, value)
    return Need(total, missing)


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 62:
        raise ValueError("not a count")
    return value
