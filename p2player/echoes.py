"""What becomes of chunks of a guest's memory that arrive as patches of shared layers: see `proto.echo_wire`.

Both ends have the layers of the application. What a patch refers to is read from the store here, what it makes is
verified and goes where the transfer's chunks go.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import trio

from chunkstore.codec import Group
from chunkstore.content import Content
from chunkstore.delta.kinship import RELATIVE_BYTES
from chunkstore.digest import Buffer, ChunkId, LayerId
from chunkstore.pinning import hold
from p2player.landing import BATCH_BYTES, Landed, Landing
from p2player.patching import rebuild
from p2player.proto import content_wire, echo_wire
from p2player.proto.echo_wire import EchoAsk
from p2player.proto.frames import Part, RemoteProtocolError
from p2player.sources import JoinedIds


@dataclass(frozen=True, slots=True)
class Echoed:
    """Shared layers that are here as a whole.

    Attributes:
        layers: their ids.
        chunks: those of all layers, one layer after the other, each in the order of its manifest.
        content: has them.
    """

    layers: Sequence[LayerId]
    chunks: JoinedIds
    content: Content


class EchoLanding:
    """The way of one transfer's patches into its content.

    Args:
        content: gets the chunks.
        threads: how many worker threads apply patches at a time.
    """

    def __init__(self, landing: Landing, echoed: Echoed, content: Content, threads: trio.CapacityLimiter) -> None:
        self._landing = landing
        self._echoed = echoed
        self._content = content
        self._threads = threads

    def ask(self, scope: str, ids: Sequence[ChunkId]) -> EchoAsk:
        """The request for these chunks."""
        return EchoAsk(scope, ids, self._echoed.layers)

    async def receive(self, ask: EchoAsk, parts: AsyncIterator[Part], landed: Landed) -> list[ChunkId]:
        """Take the answer to `ask`; `landed`, the result and errors as of `patching.PatchLanding.receive`."""
        due = set(ask.ids)
        failed: list[ChunkId] = []
        batch, size = list[Group](), 0
        async for part in parts:
            unit = echo_wire.read_echo_header(part.header, len(ask.ids), len(self._echoed.chunks))
            if unit is None:
                group = content_wire.read_group(part.header, part.payload)
                self._landing.expect(group, due)
                batch.append(group)
                size += group.raw_bytes
                if size >= BATCH_BYTES:
                    landed(await self._landing.keep(batch))
                    batch, size = [], 0
                continue
            wanted = [ask.ids[at] for at in unit.wants]
            if not due.issuperset(wanted):
                raise RemoteProtocolError("a chunk that came twice")
            due.difference_update(wanted)
            names = [self._echoed.chunks[at] for at in unit.relative]
            if await trio.to_thread.run_sync(self._apply, names, wanted, part.payload, limiter=self._threads):
                landed(self._landing.kept(wanted))
            else:
                failed += wanted
        if batch:
            landed(await self._landing.keep(batch))
        return failed

    def _apply(self, names: Sequence[ChunkId], wanted: Sequence[ChunkId], patch: Buffer) -> bool:
        """Make chunks and store them; in a worker thread. False: they are not what they should be."""
        distinct = list(dict.fromkeys(names))
        held = hold(_bounded(self._echoed.content.read(distinct)), 2 * RELATIVE_BYTES)
        if len(held) < len(distinct):
            return False  # a layer was removed meanwhile, or that is too much
        relative = [held[name] for name in names]
        return rebuild(self._landing, self._content, wanted, relative, patch)


def _bounded(chunks: Iterable[tuple[ChunkId, memoryview]]) -> Iterator[tuple[ChunkId, memoryview]]:
    """As many as a patch may refer to."""
    size = 0
    for chunk, data in chunks:
        size += len(data)
        if size > RELATIVE_BYTES:
            return
        yield chunk, data
