"""What the destination of a migration does when its machine says so."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from chunkstore.digest import LayerId
from gossip.messages import NodeId
from p2player import faults
from p2player.apprecord import AppRecord
from p2player.appstate import AppState
from p2player.errors import Failed, NotFound, P2PlayerError
from p2player.migration.basis import BasisShelf
from p2player.migration.images import DestinationImages
from p2player.migration.parts import Parts
from p2player.migration.preflight import is_obsolete
from p2player.migration.seams import Progress
from p2player.proto.handoff import events
from p2player.proto.handoff.events import Action, Result
from p2player.proto.handoff.messages import Image, Message, Offer, Pulled, largest_sources
from p2player.proto.handoff.source_end import add_image
from p2player.proto.roster import HolderHint
from p2player.transfer import PullReport


class DestinationWork:
    """One migration's hands at its destination.

    Args:
        folder: of the migration.
        record: the app as the source has it; None after a restart of the node, when it was staged long ago.
        check: looks for reasons to refuse an offer, and at what of it is here already.

    Attributes:
        pulled: what came so far, by layer.
    """

    def __init__(
        self,
        parts: Parts,
        migration: str,
        peer: NodeId,
        app_id: str,
        folder: Path,
        record: AppRecord | None,
        bases: BasisShelf,
        check: Callable[[Offer], Awaitable[events.Checked]],
    ) -> None:
        self._parts = parts
        self._migration = migration
        self._peer = peer
        self._app_id = app_id
        self._folder = folder
        self._record = record
        self._bases = bases
        self._check = check
        self._images: DestinationImages | None = None
        self._layers: tuple[LayerId, ...] = ()
        self.pulled: dict[str, Pulled] = {}
        self.progress: Progress = _ignore

    async def do(self, action: Action) -> Result:
        match action:
            case events.Preflight(offer):
                return await self._check(offer)
            case events.PullLayers(offer, key):
                return await self._pull_layers(offer, key)
            case events.PullImage(_, image, final):
                return await self._pull_image(image, final)
            case events.FindCopy(_, epoch):
                return await self._find_copy(epoch)
            case events.Restore(epoch, running, owned):
                return await self._restore_or_keep(epoch, running, owned)
            case events.RunHook():
                return await self._announce()
            case events.Discard(epoch):
                await self._discard(epoch)
                return None
            case _:
                raise Failed(f"a destination has no {type(action).__name__}")

    def executed(self) -> bool:
        """The apps service leaves an app staged exactly when nothing of it executed."""
        try:
            return self._parts.apps.record(self._app_id).state is not AppState.STAGED
        except NotFound:
            return False

    async def mark(self, state: events.AppState) -> None:
        """The states of a destination are those of the apps service."""

    async def send(self, message: Message) -> Message | None:
        return await self._parts.send(self._migration, self._peer, message)

    def close(self) -> None:
        """Nothing of the instance is read any more."""
        if self._images is not None:
            self._images.close()
            self._images = None

    # -- before the grant

    async def _pull_layers(self, offer: Offer, key: bytes) -> events.LayersPulled:
        if self._record is None:
            raise Failed("the destination node was restarted")
        moved = _Sum(self.progress)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pull_layer, "base", LayerId(offer.base), moved.part())
                nursery.start_soon(self._pull_layer, "app", LayerId(offer.app), moved.part())
        except ExceptionGroup as group:
            raise faults.describe(group) from group
        self.close()
        self._layers = self._parts.echoed_layers(offer)
        self._images = await self._parts.in_thread(DestinationImages, self._folder, key)
        basis = self._bases.find(offer.app_id)
        if basis is not None:
            progress = self._parts.from_thread(self.progress)
            await self._parts.in_thread(self._images.seed, basis.folder, progress)
        with suppress(NotFound):
            if is_obsolete(self._parts.apps.record(offer.app_id), offer.epoch):
                await self._parts.apps.discard(offer.app_id)
        await self._parts.apps.stage(self._record)
        return events.LayersPulled(self.pulled["base"], self.pulled["app"])

    async def _pull_layer(self, what: str, layer: LayerId, progress: Progress) -> None:
        def holders() -> list[HolderHint]:
            others = [hint for hint in self._parts.layers.holder_hints(layer) if hint.node != self._peer]
            return [self._parts.hint(self._peer), *others]

        self.pulled[what] = _told(await self._parts.pulls.pull_layer(layer, holders, progress=progress))
        await self._parts.layers.tree(layer)

    async def _pull_image(self, image: Image, final: bool) -> Pulled:
        images, parts = self._images, self._parts
        if images is None:
            raise Failed("the destination node was restarted")
        pull = partial(
            parts.pulls.pull_chunks,
            images.vault,
            holders=lambda: [parts.hint(self._peer)],
            scope=self._migration,
            progress=self.progress,
        )
        began_at = trio.current_time()
        moved = PullReport()
        if not await parts.in_thread(images.unfold, image):
            moved = await pull(images.first_wants(image), layers=self._layers)
        lacking = await parts.in_thread(images.lacking, image)
        moved = moved.merge(await pull(lacking.wants, kin=lacking.kin, layers=self._layers))
        target = parts.apps.state_path(self._app_id) if final else None
        await parts.in_thread(images.place, image, target, parts.from_thread(self.progress))
        pulled = Pulled(
            total=lacking.total_bytes,
            deduplicated=max(lacking.total_bytes - (moved.total - moved.deduplicated), 0),
            transferred=moved.transferred,
            sources={str(node): count for node, count in moved.sources.items()},
            seconds=trio.current_time() - began_at,
        )
        self.pulled["instance"] = add_image(self.pulled.get("instance", Pulled()), pulled)
        return pulled

    # -- from the grant on

    async def _find_copy(self, epoch: int) -> events.Found:
        apps = self._parts.apps
        try:
            record = apps.record(self._app_id)
        except NotFound:
            return events.Found(owned=False, running=False)
        running = await apps.engine_running(self._app_id)
        if running and record.state is AppState.STAGED:
            await apps.restore(self._app_id, epoch)  # take it over: it was started, and its record not written
            return events.Found(owned=True, running=True)
        return events.Found(owned=record.state is not AppState.STAGED and record.epoch >= epoch, running=running)

    async def _restore_or_keep(self, epoch: int, running: bool, owned: bool) -> events.Resumed:
        """As `_restore`; an app that belongs here already stays in the books when it cannot be restored."""
        try:
            return await self._restore(epoch, running)
        except P2PlayerError as error:
            failure = error
        if owned:
            await self._keep(epoch, failure.message)
        raise failure

    async def _restore(self, epoch: int, running: bool) -> events.Resumed:
        if not running:
            await self._parts.apps.set_state(self._app_id, AppState.STOPPED, epoch)
            return events.Resumed()
        started = await self._parts.apps.restore(self._app_id, epoch)
        return events.Resumed(self._parts.since(started.at))

    async def _keep(self, epoch: int, reason: str) -> None:
        """The app belongs here although it was not restored: nobody may take it for one that is only staged."""
        if not self.executed():
            await self._parts.apps.set_state(self._app_id, AppState.FAILED, epoch, reason=reason)

    async def _announce(self) -> str:
        """Let traffic and commands find the app here; a hook that failed is a warning."""
        warning = await self._parts.apps.run_after_restore(self._app_id)
        await self._parts.publish()
        return warning or ""

    async def _discard(self, epoch: int) -> None:
        self.close()
        with suppress(NotFound):
            record = self._parts.apps.record(self._app_id)
            if record.state is AppState.STAGED or record.epoch <= epoch:
                await self._parts.apps.discard(self._app_id)


def _told(report: PullReport) -> Pulled:
    sources = largest_sources({str(node): count for node, count in report.sources.items()})
    return Pulled(report.total, report.deduplicated, report.transferred, sources, report.seconds)


class _Sum:
    """Two pulls at once as one progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._parts: list[tuple[int, int]] = []

    def part(self) -> Progress:
        """A callback for one of them."""
        at = len(self._parts)
        self._parts.append((0, 0))

        def report(done: int, total: int) -> None:
            self._parts[at] = (done, total)
            self._progress(sum(part[0] for part in self._parts), sum(part[1] for part in self._parts))

        return report


def _ignore(_done: int, _total: int) -> None:
    """Nobody watches."""
