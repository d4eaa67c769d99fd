"""What becomes of chunks of a guest's memory that arrive as patches of shared layers: see `proto.echo_wire`.

Both ends have the layers of the application. What a patch refers to is read from the store here, what it makes is
verified and goes where the transfer's chunks go.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from chunkstore.content import Content
from chunkstore.delta.kinship import RELATIVE_BYTES
from chunkstore.digest import Buffer, ChunkId, LayerId
from chunkstore.pinning import hold
from p2player.landing import Landed, Landing
from p2player.patching import Patch, receive_patches
from p2player.proto import echo_wire
from p2player.proto.echo_wire import EchoAsk
from p2player.proto.frames import Part
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

        def read(header: Mapping[str, Any]) -> Patch | None:
            unit = echo_wire.read_echo_header(header, len(ask.ids), len(self._echoed.chunks))
            if unit is None:
                return None
            names = [self._echoed.chunks[at] for at in unit.relative]
            return Patch([ask.ids[at] for at in unit.wants], partial(self._relative, names))

        return await receive_patches(self._landing, self._content, self._threads, set(ask.ids), parts, landed, read)

    def _relative(self, names: Sequence[ChunkId]) -> list[Buffer]:
        """The bytes of chunks of the layers; empty when a layer was removed meanwhile, or when they are too many."""
        distinct = list(dict.fromkeys(names))
        held = hold(_bounded(self._echoed.content.read(distinct)), 2 * RELATIVE_BYTES)
        return [held[name] for name in names] if len(held) == len(distinct) else []


def _bounded(chunks: Iterable[tuple[ChunkId, memoryview]]) -> Iterator[tuple[ChunkId, memoryview]]:
    """As many as a patch may refer to."""
    size = 0
    for chunk, data in chunks:
        size += len(data)
        if size > RELATIVE_BYTES:
            return
        yield chunk, data
