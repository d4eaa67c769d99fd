"""The parts of the node that both ends of a migration work with, and what both do with them."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from backends.base import Moment
from chunkstore.digest import LayerId
from chunkstore.errors import StoreError
from gossip.messages import NodeId
from p2player import faults
from p2player.migration.seams import Apps, Exposure, LayerTrees, Members, Peers, Progress, Pulls, Stock
from p2player.proto.handoff import messages
from p2player.proto.handoff.fields import Malformed
from p2player.proto.handoff.messages import Message, Offer
from p2player.proto.roster import HolderHint

HANDOFF = "handoff"
SEND_S = 10.0
THREADS = 8
MIN_TELL_S = 0.1

T = TypeVar("T")


Publish = Callable[[], Awaitable[None]]


async def _nobody_listens() -> None:
    """The default of `Parts.publish`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """See `seams`.

    Attributes:
        root: STATE/migrations.
        publish: tells the mesh what lives here now; awaited before a migration to here is reported done.
        monotonic: tells how long ago a process was started.
    """

    root: Path
    apps: Apps
    layers: LayerTrees
    stock: Stock
    pulls: Pulls
    exposure: Exposure
    peers: Peers
    members: Members
    publish: Publish = _nobody_listens
    monotonic: Callable[[], float] = time.monotonic
    threads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(THREADS))

    async def in_thread(self, function: Callable[..., T], *args: object, **kwargs: object) -> T:
        """Run a blocking step; cancelling waits for it unless its progress callback ends it.

        Raises:
            P2PlayerError: in place of the store's and the system's errors.
        """
        try:
            return await trio.to_thread.run_sync(partial(function, *args, **kwargs), limiter=self.threads)
        except (StoreError, OSError) as error:
            raise faults.describe(error) from error

    async def send(self, migration: str, peer: NodeId, message: Message) -> Message | None:
        """Bring a message of a migration to its other end; the answer, where that had one at once."""
        body = {"migration": migration}
        reply = await self.peers.call(peer, HANDOFF, body, timeout_s=SEND_S, payload=messages.encode(message))
        answer = reply.get("answer")
        if not isinstance(answer, bytes):
            return None
        try:
            return messages.decode(answer)
        except Malformed:
            return None

    def name(self, node: str) -> str:
        """What a node is called."""
        return self.members.name_of(NodeId(node))

    def hint(self, node: NodeId) -> HolderHint:
        """A node that has everything of what is asked for."""
        member = self.members.member(node)
        return HolderHint(node, None if member is None else member.rtt_s)

    def echoed_layers(self, offer: Offer) -> tuple[LayerId, ...]:
        """The layers of an app that its instance may repeat: both ends look for it there, or neither does."""
        if not self.apps.has_guest_memory(offer.backend):
            return ()
        return tuple(dict.fromkeys((LayerId(offer.base), LayerId(offer.app))))

    def since(self, moment: Moment) -> float:
        """Seconds since then, on this machine's clock."""
        return max(self.monotonic() - moment.monotonic_s, 0.0)

    def from_thread(self, progress: Progress) -> Progress:
        """A callback for a worker thread: reports now and then in the trio thread, and ends the work once cancelled."""
        told = -MIN_TELL_S

        def report(done: int, total: int) -> None:
            nonlocal told
            trio.from_thread.check_cancelled()
            now = time.monotonic()
            if now - told >= MIN_TELL_S or done >= total:
                told = now
                trio.from_thread.run_sync(progress, done, total)

        return report
