"""What the source of a migration does when its machine says so."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from gossip.messages import NodeId
from p2player.appstate import AppState
from p2player.errors import Failed, NotFound, P2PlayerError
from p2player.migration.basis import BasisShelf
from p2player.migration.images import SourceImages
from p2player.migration.parts import Parts
from p2player.migration.rows import write_row
from p2player.migration.seams import Progress
from p2player.planning import Experience, Question, make_plan
from p2player.proto.handoff import events, messages
from p2player.proto.handoff.events import Action, Result
from p2player.proto.handoff.messages import Message, Mode, Offer

FRAME_BYTES = 80


class SourceWork:
    """One migration's hands at its source.

    Args:
        images: None after a restart of the node, when none is taken any more.
        experience: of earlier migrations, for the plan.
        max_freeze_s: the operator's bound.
        row: the migration's final row, when that is told to the destination.

    Attributes:
        spoken_bytes: of the hand-off's own messages in both directions, without the last words: those carry the row.
    """

    def __init__(
        self,
        parts: Parts,
        migration: str,
        offer: Offer,
        images: SourceImages | None,
        bases: BasisShelf,
        experience: Experience,
        max_freeze_s: float | None,
        row: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._parts = parts
        self._migration = migration
        self._offer = offer
        self._images = images
        self._bases = bases
        self._experience = experience
        self._max_freeze_s = max_freeze_s
        self._row = row
        self.progress: Progress = _ignore
        self.spoken_bytes = 0

    async def do(self, action: Action) -> Result:
        match action:
            case events.MakePlan():
                await self._seed(action.basis_bytes)
                return self._plan(action)
            case events.TakeImage(_, final):
                return await self._image(final)
            case events.Resume(epoch):
                return await self._resume(epoch)
            case events.Suspend():
                await self._suspend()
            case events.EnsureSuspended():
                await self._ensure_suspended()
            case events.Release():
                await self._release()
            case events.Destroy(epoch):
                await self._destroy(epoch)
            case _:
                raise Failed(f"a source has no {type(action).__name__}")
        return None

    def executed(self) -> bool:
        return True  # nothing is restored here

    async def mark(self, state: events.AppState) -> None:
        await self._parts.apps.set_state(self._offer.app_id, AppState(state.value))

    async def send(self, message: Message) -> Message | None:
        match message:
            case messages.Sync() if self._images is not None:
                layers = self._parts.echoed_layers(self._offer)
                source = replace(self._images.source, layers=layers)
                self._parts.exposure.expose(self._migration, source, NodeId(self._offer.destination))
                self.spoken_bytes += spoken(message)
            case messages.Commit() | messages.Abort():
                message = replace(message, row=write_row(self._row()))
            case messages.Supersede():
                pass
            case _:
                self.spoken_bytes += spoken(message)
        return await self._parts.send(self._migration, NodeId(self._offer.destination), message)

    def close(self) -> None:
        """Nothing of the instance is served or read any more."""
        self._parts.exposure.withdraw(self._migration)
        if self._images is not None:
            self._images.close()
            self._images = None

    # -- actions

    async def _seed(self, basis_bytes: int) -> None:
        """Take up what an earlier migration left here of the app, if it left something at the destination too."""
        images, basis = self._images, self._bases.find(self._offer.app_id)
        if images is None or basis is None or not basis_bytes:
            return
        progress = self._parts.from_thread(self.progress)
        with suppress(P2PlayerError):  # then the first image is no delta
            await self._parts.in_thread(images.seed, basis.folder, progress)

    def _plan(self, action: events.MakePlan) -> events.Planned:
        offer, name = self._offer, self._parts.members.name_of
        question = Question(
            offer.app_name,
            name(NodeId(offer.source)),
            name(NodeId(offer.destination)),
            offer.mode,
            action.base,
            action.app,
            offer.instance_bytes,
            action.basis_bytes,
            offer.running,
            self._max_freeze_s,
        )
        plan = make_plan(question, self._experience)
        return events.Planned(plan.prediction, plan.refusals)

    async def _image(self, final: bool) -> events.Imaged:
        images, parts = self._images, self._parts
        if images is None:
            raise Failed("the source node was restarted")
        paused_s = 0.0
        if not final and self._offer.mode is Mode.LIVE:
            paused_s = (await parts.apps.save(self._offer.app_id)).paused_s
        progress = parts.from_thread(self.progress)
        taken = await parts.in_thread(images.take, final=final, progress=progress)
        return events.Imaged(taken.image, taken.fresh_bytes, paused_s, taken.as_delta)

    async def _suspend(self) -> None:
        if self._offer.running:
            await self._parts.apps.suspend(self._offer.app_id, memory=self._offer.mode is Mode.LIVE)

    async def _ensure_suspended(self) -> None:
        apps, app_id = self._parts.apps, self._offer.app_id
        if not await apps.engine_running(app_id):
            return
        if apps.record(app_id).state in (AppState.RUNNING, AppState.MIGRATING):
            await apps.suspend(app_id, memory=self._offer.mode is Mode.LIVE)
            return
        raise Failed("the app executes here although it was granted")

    async def _resume(self, epoch: int) -> events.Resumed:
        apps, app_id = self._parts.apps, self._offer.app_id
        record = apps.record(app_id)
        if not self._offer.running:
            await apps.set_state(app_id, AppState.STOPPED, epoch)
            return events.Resumed()
        if epoch > record.epoch:
            await apps.set_state(app_id, record.state, epoch)
        started = await apps.resume(app_id)
        return events.Resumed(self._parts.since(started.at))

    async def _release(self) -> None:
        apps, app_id = self._parts.apps, self._offer.app_id
        if apps.record(app_id).state is not AppState.MIGRATING:
            return
        if not self._offer.running:
            await apps.set_state(app_id, AppState.STOPPED)
        elif await apps.engine_running(app_id):
            await apps.set_state(app_id, AppState.RUNNING)
        else:
            await apps.resume(app_id)

    async def _destroy(self, epoch: int) -> None:
        with suppress(NotFound):
            if self._parts.apps.record(self._offer.app_id).epoch <= epoch:
                await self._parts.apps.discard(self._offer.app_id)


def spoken(message: Message) -> int:
    """Wire bytes of one message, about: its frame, and TLS's."""
    return len(messages.encode(message)) + FRAME_BYTES


def _ignore(_done: int, _total: int) -> None:
    """Nobody watches."""
