"""Answer what peers ask about content: a layer's manifest, how much of it is here, and chunks.

Groups are read from the store in worker threads, a few MiB at a time, and sent as they are stored; so serving a layer
costs a read and TLS. What a peer can make this node do is bounded: ids in a request, bytes held for one, requests in
work at a time. The others of that peer wait their turn, in order.

Every node of the mesh may read the shared store. The content of an instance is *exposed* under a scope, to one peer;
to everybody else it does not exist.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from chunkstore.codec import Group
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.store import ChunkStore
from gossip.messages import NodeId
from p2player import errors
from p2player.echo_serving import EchoServing
from p2player.net.connection import Handler, Incoming
from p2player.outflow import exact_groups, outflow_rate
from p2player.patch_serving import PatchServing
from p2player.proto import content_wire as wire
from p2player.proto.frames import RemoteProtocolError
from p2player.sources import SharedLayers, Source
from p2player.turns import Turns

READ_BYTES = 2 << 20
AT_A_TIME = 2
THREADS = 4
LEASE_S = 720.0
RENEW_S = 120.0
FRESH_S = 0.15
MAX_PROMISES = 256

T = TypeVar("T")


@dataclass(slots=True)
class _Exposed:
    source: Source
    peer: NodeId


class Serving:
    """The serving side of transfers on this node.

    Args:
        store: the shared content.
    """

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._exposed: dict[str, _Exposed] = {}
        self._turns = Turns(AT_A_TIME)
        self._promises = _Promises(store)
        layers = SharedLayers(store)
        self._shared = Source(store, layers.chunks_of, layers.manifest_of)
        self._patches = PatchServing(self._source, self._turns.take)
        self._echoes = EchoServing(self._source, self._shared, self._turns)
        self._threads = trio.CapacityLimiter(THREADS)
        self._bytes_served = 0

    @property
    def bytes_served(self) -> int:
        """Payload bytes that were sent to peers since the start."""
        return self._bytes_served + self._patches.bytes_served + self._echoes.bytes_served

    @property
    def handlers(self) -> dict[str, Handler]:
        """The methods that peers may call."""
        return {
            wire.LAYER_MANIFEST: self.layer_manifest,
            wire.LAYER_HAVE: self.layer_have,
            wire.CHUNKS_WANT: self.chunks_want,
            **self._patches.handlers,
            **self._echoes.handlers,
        }

    @property
    def load(self) -> float:
        """Requests for chunks in work or waiting, for each one that can be worked on at a time; 0 is idle."""
        return self._turns.requests / THREADS

    def expose(self, scope: str, source: Source, peer: NodeId) -> None:
        """Let `peer`, and nobody else, read what `source` has under the name `scope`."""
        if not 0 < len(scope) <= wire.MAX_SCOPE_CHARS:
            raise ValueError("a scope is a short, non-empty text")
        self._exposed[scope] = _Exposed(source, peer)

    def withdraw(self, scope: str) -> None:
        """End `expose`; requests under way end with the groups that they have read."""
        self._exposed.pop(scope, None)
        self._echoes.forget(scope)

    async def layer_manifest(self, call: Incoming) -> dict[str, Any]:
        """`layer.manifest`: a page of the chunks of a layer's manifest.

        Raises:
            NotFound: the layer, or a part of its manifest, is not here.
            Usage: there is no such page.
        """
        layer, start = _read(wire.read_manifest_ask, call.body)
        total, page = await trio.to_thread.run_sync(self._manifest, layer, start, limiter=self._threads)
        return wire.manifest_body(total, [chunk for chunk, _ in page], [length for _, length in page])

    async def layer_have(self, call: Incoming) -> dict[str, Any]:
        """`layer.have`: which content chunks of a layer are here; they are kept for ten minutes.

        Raises:
            NotFound: the layer is not known here.
        """
        layer = _read(wire.read_layer, call.body)
        total, bitmap = await trio.to_thread.run_sync(self._have, layer, limiter=self._threads)
        return wire.have_body(total, bitmap)

    async def chunks_want(self, call: Incoming) -> dict[str, Any]:
        """`chunks.want`: send the chunks that are here. Cancellation stops after the group that is being sent.

        Raises:
            NotFound: there is nothing of that scope for this peer.
        """
        scope, ids = _read(wire.read_want, call.body)
        peer = NodeId(call.peer)
        self._source(scope, peer)
        async with self._turns.take(peer):
            sent = await self._send(call, scope, ids)
        return {"missing": len(set(ids)) - sent}

    async def _send(self, call: Incoming, scope: str, ids: Sequence[ChunkId]) -> int:
        """Send groups until there are no more, or the scope is withdrawn; how many chunks went."""
        peer = NodeId(call.peer)
        content, rate = self._source(scope, peer).content, outflow_rate(call.link())
        groups = exact_groups(content, ids, rate, bundles=wire.takes_bundles(call.body))
        sent = 0
        while batch := await trio.to_thread.run_sync(_next_batch, groups, limiter=self._threads):
            self._source(scope, peer)
            for group in batch:
                await call.send_part(wire.group_header(group), group.payload)
                self._bytes_served += len(group.payload)
                sent += len(group.ids)
        return sent

    def _source(self, scope: str, peer: NodeId) -> Source:
        if scope == wire.SHARED:
            return self._shared
        exposed = self._exposed.get(scope)
        if exposed is None or exposed.peer != peer:
            raise errors.NotFound("there is no such content")
        return exposed.source

    def _manifest(self, layer: LayerId, start: int) -> tuple[int, list[tuple[ChunkId, int]]]:
        record = self._store.layer(layer)
        if record is None:
            raise errors.NotFound(f"layer {layer.hex()[:16]} is not on this node")
        total = len(record.manifest_chunks)
        page = record.manifest_chunks[start : start + wire.PAGE_CHUNKS]
        if not page:
            raise errors.Usage(f"the manifest of layer {layer.hex()[:16]} has {total} chunks")
        lengths = {chunk: len(data) for chunk, data in self._store.read(list(dict.fromkeys(page)))}
        if len(lengths) != len(set(page)) or self._store.missing(record.manifest_chunks):
            raise errors.NotFound(f"the manifest of layer {layer.hex()[:16]} is not whole on this node")
        return total, [(chunk, lengths[chunk]) for chunk in page]

    def _have(self, layer: LayerId) -> tuple[int, bytes]:
        try:
            return self._promises.bitmap(layer, time.monotonic())
        except LayerUnknown:
            raise errors.NotFound(f"layer {layer.hex()[:16]} is not on this node") from None


@dataclass(slots=True)
class _Promise:
    """What of a layer was told to be here, and since when that is leased.

    Attributes:
        told: a bitmap, as a number.
        looked_s, answer: when the store was asked last, and what was said then.
    """

    renewed_s: float
    told: int
    looked_s: float = 0.0
    answer: tuple[int, bytes] = (0, b"")


class _Promises:
    """Tells peers what is here of a layer, and leases what it tells; safe for many threads.

    A lease is the layer's and not a peer's: all of them are told the same. It is renewed as a whole when it is older
    than `RENEW_S`; in between, only what came since is added. So what a peer is told is spared for
    `LEASE_S - RENEW_S` at least, and peers that ask often cost little: for `FRESH_S` they hear the same.
    """

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._made: OrderedDict[LayerId, _Promise] = OrderedDict()
        self._lock = threading.Lock()

    def bitmap(self, layer: LayerId, now: float) -> tuple[int, bytes]:
        """How many content chunks a layer has, and which of them are here and stay for a while.

        Raises:
            LayerUnknown
        """
        with self._lock:
            promise = self._made.get(layer)
            if promise is not None and now - promise.looked_s < FRESH_S:
                return promise.answer
            chunks = self._store.layer_chunks(layer)
            here = int.from_bytes(self._store.bitmap(layer), "little")
            promise = self._made.pop(layer, None)
            owner = f"have {layer.hex()}"
            if promise is None or now - promise.renewed_s >= RENEW_S:
                promise = _Promise(now, here)
                self._store.renew(_marked(chunks, here), LEASE_S, owner)
            elif new := here & ~promise.told:
                self._store.lease(_marked(chunks, new), LEASE_S, owner)
                promise.told |= new
            self._made[layer] = promise
            if len(self._made) > MAX_PROMISES:
                self._made.popitem(last=False)
            # What gc took between the look and the lease is not told.
            here &= int.from_bytes(self._store.bitmap(layer), "little")
            promise.looked_s, promise.answer = now, (len(chunks), here.to_bytes((len(chunks) + 7) // 8, "little"))
            return promise.answer


def _marked(chunks: Iterable[ChunkId], bitmap: int) -> Iterator[ChunkId]:
    marks = bitmap.to_bytes((bitmap.bit_length() + 7) // 8, "little")
    for at, chunk in enumerate(chunks):
        if at >> 3 >= len(marks):
            break
        if marks[at >> 3] >> (at & 7) & 1:
            yield chunk


def _next_batch(groups: Iterator[Group]) -> list[Group]:
    batch, size = list[Group](), 0
    for group in groups:
        batch.append(group)
        size += len(group.payload)
        if size >= READ_BYTES:
            break
    return batch


def _read(reader: Callable[[Mapping[str, Any]], T], body: Mapping[str, Any]) -> T:
    """What a request says; nonsense is the asker's fault."""
    try:
        return reader(body)
    except RemoteProtocolError as error:
        raise errors.Usage(str(error)) from None
