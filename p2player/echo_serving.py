"""Answer peers that ask for chunks of a guest's memory and have the layers of its disk.

What of the memory lies in these layers is looked up in an index of their pages, made when the first such request comes
and kept until nothing is exposed any more: the layers of one application, or of the last one that was asked for. A
patch costs what one of `patch_serving` does, and is made in the same way: one unit at a time, in worker threads.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import trio

from chunkstore.content import Content
from chunkstore.delta.kinship import RELATIVE_BYTES, RELATIVE_CHUNKS, UNIT_BYTES
from chunkstore.delta.pageindex import PageIndex, is_memory
from chunkstore.delta.patch import PatchEncoder
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import ChunkMissing, LayerUnknown
from chunkstore.manifest import load
from chunkstore.pinning import hold
from chunkstore.tree_errors import ManifestInvalid
from gossip.messages import NodeId
from p2player import errors
from p2player.net.connection import Handler, Incoming
from p2player.outflow import exact_groups, outflow_rate
from p2player.proto import content_wire, echo_wire
from p2player.proto.delta_choice import FAIR_RATE
from p2player.proto.echo_wire import EchoAsk
from p2player.proto.frames import RemoteProtocolError
from p2player.sources import Source

THREADS = 2
_SAMPLES = 8


class _Index(NamedTuple):
    """The pages of some layers, and the chunks that have them by position."""

    layers: tuple[LayerId, ...]
    pages: PageIndex
    names: Sequence[ChunkId]


class _Sending(NamedTuple):
    """A part of an answer, and how many chunks it brings."""

    header: dict[str, Any]
    payload: bytes
    chunks: int


@dataclass(slots=True)
class _Unit:
    """Chunks that are carried as one patch, and the positions of what it refers to."""

    targets: dict[ChunkId, bytes] = field(default_factory=dict)
    relative: set[int] = field(default_factory=set)


class EchoServing:
    """The serving side of `chunks.echoes`.

    Args:
        source: what a peer may see under a scope; raises NotFound.
        shared: the layers of the whole mesh.
        turn: a peer's place in the queue of those that want chunks.
    """

    def __init__(
        self,
        source: Callable[[str, NodeId], Source],
        shared: Source,
        turn: Callable[[NodeId], AbstractAsyncContextManager[None]],
    ) -> None:
        self._source = source
        self._shared = shared
        self._turn = turn
        self._threads = trio.CapacityLimiter(THREADS)
        self._making = threading.Lock()
        self._index: _Index | None = None
        self.bytes_served = 0

    @property
    def handlers(self) -> dict[str, Handler]:
        """The method that peers may call."""
        return {echo_wire.CHUNKS_ECHOES: self.chunks_echoes}

    def forget(self) -> None:
        """Nobody will ask soon."""
        self._index = None

    async def chunks_echoes(self, call: Incoming) -> dict[str, Any]:
        """`chunks.echoes`: send chunks as patches of what is in shared layers, or as they are.

        Raises:
            NotFound: there is nothing of that scope for this peer.
        """
        try:
            ask = EchoAsk.read(call.body)
        except RemoteProtocolError as error:
            raise errors.Usage(str(error)) from None
        peer = NodeId(call.peer)
        async with self._turn(peer):
            content, rate = self._source(ask.scope, peer).content, outflow_rate(call.link())
            sendings = self._sendings(ask, content, rate)
            here = 0
            while (sending := await trio.to_thread.run_sync(next, sendings, None, limiter=self._threads)) is not None:
                self._source(ask.scope, peer)
                await call.send_part(sending.header, sending.payload)
                self.bytes_served += len(sending.payload)
                here += sending.chunks
        return {"missing": len(ask.ids) - here}

    def _sendings(self, ask: EchoAsk, content: Content, rate: float | None) -> Iterator[_Sending]:
        """The parts of an answer; for worker threads, one after the other."""
        plain = list[ChunkId]()
        index = self._index_for(ask, content) if rate is None or rate <= FAIR_RATE else None
        if index is None:
            plain += ask.ids
        else:
            number = {chunk: at for at, chunk in enumerate(ask.ids)}
            encoder = PatchEncoder(rate)
            for unit in _units(index.pages, content, ask.ids, plain):
                relative = sorted(unit.relative)
                names = [index.names[at] for at in relative]
                held = hold(self._shared.content.read(names), 2 * RELATIVE_BYTES)
                if len(held) < len(set(names)):  # a layer was removed meanwhile
                    plain += unit.targets
                    continue
                cuts = index.pages.cuts(relative)
                patch = encoder.encode(list(unit.targets.values()), [held[name] for name in names], cuts)
                header = echo_wire.echo_header((number[chunk] for chunk in unit.targets), relative)
                yield _Sending(header, patch, len(unit.targets))
        for group in exact_groups(content, plain, rate, bundles=True) if plain else ():
            yield _Sending(content_wire.group_header(group), group.payload, len(group.ids))

    def _index_for(self, ask: EchoAsk, content: Content) -> _Index | None:
        """The index of the layers that an ask names; None where it would be of no use."""
        some = ask.ids[:: len(ask.ids) // _SAMPLES or 1]
        if not any(is_memory(data) for _, data in content.read(some)):
            return None
        layers = tuple(ask.layers)
        with self._making:
            if self._index is None or self._index.layers != layers:
                try:
                    self._index = self._make(layers)
                except (LayerUnknown, ChunkMissing, ManifestInvalid):
                    return None
            return self._index

    def _make(self, layers: tuple[LayerId, ...]) -> _Index:
        pages, names = PageIndex(), list[ChunkId]()
        for layer in layers:
            chunks, _ = self._shared.manifest_of(layer)
            manifest = load(self._shared.content, chunks, layer)
            names += manifest.chunks()
            pages.add_layer(manifest, self._shared.content)
        return _Index(layers, pages, names)


def _units(pages: PageIndex, content: Content, ids: Sequence[ChunkId], plain: list[ChunkId]) -> Iterator[_Unit]:
    """What is here of `ids`, in units that one patch may have; chunks that repeat nothing are added to `plain`."""
    unit, size, relative_bytes = _Unit(), 0, 0
    for chunk, data in content.read(ids):
        found = _within(pages, pages.positions(data))
        if not found:
            plain.append(chunk)
            continue
        more = sum(pages.lengths[at] for at in found - unit.relative)
        if unit.targets and (
            size + len(data) > UNIT_BYTES
            or relative_bytes + more > RELATIVE_BYTES
            or len(found | unit.relative) > RELATIVE_CHUNKS
        ):
            yield unit
            unit, size, relative_bytes = _Unit(), 0, 0
            more = sum(pages.lengths[at] for at in found)
        unit.targets[chunk] = bytes(data)
        unit.relative |= found
        size += len(data)
        relative_bytes += more
    if unit.targets:
        yield unit


def _within(pages: PageIndex, positions: set[int]) -> set[int]:
    """As many of these as one patch may refer to."""
    kept, size = set[int](), 0
    for at in sorted(positions)[:RELATIVE_CHUNKS]:
        size += pages.lengths[at]
        if size > RELATIVE_BYTES:
            break
        kept.add(at)
    return kept
