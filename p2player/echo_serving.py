"""Answer the destination of a migration, which asks for a guest's memory and has the layers of its disk.

What of the memory lies in these layers is looked up in an index of their pages. Each request lets it grow for a moment,
until it is whole, and is answered with what there is of it: nobody waits for an index long enough to be taken for dead.
It belongs to what is exposed, and ends with that. Patches cost what those of `patch_serving` do, and are made likewise:
one unit at a time, in worker threads.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import trio

from chunkstore.content import Content
from chunkstore.delta.kinship import RELATIVE_BYTES, RELATIVE_CHUNKS, UNIT_BYTES
from chunkstore.delta.pageindex import PageIndex
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
from p2player.proto.frames import MAX_PAYLOAD_BYTES, RemoteProtocolError
from p2player.sources import JoinedIds, Source
from p2player.turns import Turns

THREADS = 2
GROW_S = 0.3
"""By which a request may be answered later, as long as the index is not whole."""
MAX_MANIFEST_BYTES = 16 << 20
"""Of a layer that is looked at; 400,000 chunks have that."""


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


class _Index:
    """The pages of the layers of one migration, as far as they were looked at. Safe for many threads."""

    def __init__(self, shared: Source, layers: Sequence[LayerId]) -> None:
        self.pages = PageIndex()
        self.names = JoinedIds([])
        self._shared = shared
        self._layers = list(layers)
        self._steps = self._grow()
        self._growing = threading.Lock()

    def grow(self, seconds: float) -> None:
        """Look at more for some seconds, or wait that long for another thread that does."""
        until = time.monotonic() + seconds
        if not self._growing.acquire(timeout=seconds):
            return
        try:
            for _ in self._steps:
                if time.monotonic() >= until:
                    break
        finally:
            self._growing.release()

    def _grow(self) -> Iterator[None]:
        for layer in self._layers:
            try:
                chunks, size = self._shared.manifest_of(layer)
                if size > MAX_MANIFEST_BYTES:
                    return
                self.names.add(self._shared.chunks_of(layer))
                yield from self.pages.grow(load(self._shared.content, chunks, layer), self._shared.content)
            except (LayerUnknown, ChunkMissing, ManifestInvalid):
                return


class EchoServing:
    """The serving side of `chunks.echoes`.

    Args:
        source: what a peer may see under a scope; raises NotFound.
        shared: the layers of the whole mesh.
        turns: each peer's place in the queue of those that want chunks.
    """

    def __init__(self, source: Callable[[str, NodeId], Source], shared: Source, turns: Turns) -> None:
        self._source = source
        self._shared = shared
        self._turn: Callable[[NodeId], AbstractAsyncContextManager[None]] = turns.take
        self._threads = trio.CapacityLimiter(THREADS)
        self._indices: dict[str, _Index] = {}
        self.bytes_served = 0

    @property
    def handlers(self) -> dict[str, Handler]:
        """The method that peers may call."""
        return {echo_wire.CHUNKS_ECHOES: self.chunks_echoes}

    def forget(self, scope: str) -> None:
        """What was exposed so is not any more."""
        self._indices.pop(scope, None)

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
            sendings = self._sendings(ask, self._source(ask.scope, peer), outflow_rate(call.link()))
            here = 0
            while (sending := await trio.to_thread.run_sync(next, sendings, None, limiter=self._threads)) is not None:
                self._source(ask.scope, peer)
                await call.send_part(sending.header, sending.payload)
                self.bytes_served += len(sending.payload)
                here += sending.chunks
        return {"missing": len(ask.ids) - here}

    def _sendings(self, ask: EchoAsk, source: Source, rate: float | None) -> Iterator[_Sending]:
        """The parts of an answer; for worker threads, one after the other."""
        content, plain = source.content, list[ChunkId]()
        index = self._index(ask, source)
        if index is None or (rate is not None and rate > FAIR_RATE):
            plain += ask.ids
        else:
            index.grow(GROW_S)
            number = {chunk: at for at, chunk in enumerate(ask.ids)}
            encoder = PatchEncoder(rate)
            for unit in _units(index.pages, content, ask.ids, plain):
                relative = sorted(unit.relative)
                names = [index.names[at] for at in relative]
                held = hold(self._shared.content.read(list(dict.fromkeys(names))), 2 * RELATIVE_BYTES)
                if len(held) < len(set(names)):  # a layer was removed meanwhile
                    plain += unit.targets
                    continue
                cuts = index.pages.cuts(relative)
                patch = encoder.encode(list(unit.targets.values()), [held[name] for name in names], cuts)
                if len(patch) > MAX_PAYLOAD_BYTES:
                    plain += unit.targets
                    continue
                header = echo_wire.echo_header((number[chunk] for chunk in unit.targets), relative)
                yield _Sending(header, patch, len(unit.targets))
        for group in exact_groups(content, plain, rate, bundles=True) if plain else ():
            yield _Sending(content_wire.group_header(group), group.payload, len(group.ids))

    def _index(self, ask: EchoAsk, source: Source) -> _Index | None:
        """The index for a migration; None where the asker has other layers than it should."""
        if not source.layers or list(ask.layers) != list(source.layers):
            return None
        return self._indices.setdefault(ask.scope, _Index(self._shared, source.layers))


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
