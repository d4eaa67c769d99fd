"""Answer peers that ask for deltas: of a layer's manifest, and of chunks.

A delta is made anew for each answer, in worker threads, one unit at a time; so what it costs is bounded by the size of
a unit, and by `THREADS` for all peers together. Nothing of a request is unfolded before its turn, since its positions
take far fewer bytes on the wire than here. Where this node lacks the relative, or a part of what is wanted, the
chunks that are here go as they are stored: the asker cannot tell beforehand, and need not.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio

from chunkstore.codec import Group, compress, compress_against
from chunkstore.delta.errors import BadPatch
from chunkstore.delta.kinship import RELATIVE_BYTES, UNIT_BYTES
from chunkstore.delta.patch import PatchEncoder
from chunkstore.delta.signature import Signature
from chunkstore.digest import Buffer, ChunkId, LayerId
from chunkstore.errors import ChunkMissing, LayerUnknown
from chunkstore.manifest import load_encoded
from chunkstore.pinning import hold
from chunkstore.tree_errors import ManifestInvalid
from gossip.messages import NodeId
from p2player import errors
from p2player.net.connection import Handler, Incoming
from p2player.outflow import exact_groups, outflow_rate
from p2player.proto import content_wire, delta_wire
from p2player.proto.delta_wire import DeltaAsk
from p2player.proto.frames import MAX_PAYLOAD_BYTES, RemoteProtocolError
from p2player.sources import Source
from p2player.turns import Turns

THREADS = 2
MANIFESTS_AT_A_TIME = 2
PIECE_BYTES = 256 << 10
MANIFEST_LEVEL = 3


class PatchServing:
    """The serving side of deltas on this node.

    Args:
        source: what a peer may see under a scope; raises NotFound.
        turn: a peer's place in the queue of those that want chunks.
    """

    def __init__(
        self,
        source: Callable[[str, NodeId], Source],
        turn: Callable[[NodeId], AbstractAsyncContextManager[None]],
    ) -> None:
        self._source = source
        self._turn = turn
        self._manifest_turns = Turns(MANIFESTS_AT_A_TIME)
        self._threads = trio.CapacityLimiter(THREADS)
        self.bytes_served = 0

    @property
    def handlers(self) -> dict[str, Handler]:
        """The methods that peers may call."""
        return {delta_wire.LAYER_DELTA: self.layer_delta, delta_wire.CHUNKS_DELTA: self.chunks_delta}

    async def layer_delta(self, call: Incoming) -> dict[str, Any]:
        """`layer.delta`: a layer's manifest in one answer.

        Raises:
            NotFound: it is not here.
            Refused: it is too large for that.
        """
        try:
            scope, layer, bases = delta_wire.read_manifest_ask(call.body)
        except RemoteProtocolError as error:
            raise errors.Usage(str(error)) from None
        peer = NodeId(call.peer)
        async with self._manifest_turns.take(peer):
            source = self._source(scope, peer)
            frame, basis = await trio.to_thread.run_sync(_manifest_frame, source, layer, bases, limiter=self._threads)
            for start in range(0, len(frame), PIECE_BYTES):
                await call.send_part({}, frame[start : start + PIECE_BYTES])
            self.bytes_served += len(frame)
        return delta_wire.manifest_reply(basis)

    async def chunks_delta(self, call: Incoming) -> dict[str, Any]:
        """`chunks.delta`: send units of chunks as patches, or as they are.

        Raises:
            NotFound: there is nothing of that scope for this peer, or no such layer.
        """
        peer = NodeId(call.peer)
        async with self._turn(peer):
            ask = await trio.to_thread.run_sync(_read_ask, call.body, bytes(call.payload), limiter=self._threads)
            answer = await trio.to_thread.run_sync(_Answer, self._source(ask.scope, peer), ask, limiter=self._threads)
            for number in range(len(ask.units)):
                self._source(ask.scope, peer)
                rate = outflow_rate(call.link())
                sending = await trio.to_thread.run_sync(answer.unit, number, rate, limiter=self._threads)
                if isinstance(sending, bytes):
                    await call.send_part(delta_wire.patch_header(number), sending)
                    self.bytes_served += len(sending)
                    continue
                for group in sending:
                    await call.send_part(content_wire.group_header(group), group.payload)
                    self.bytes_served += len(group.payload)
        return {"missing": answer.missing}


def _read_ask(body: Mapping[str, Any], payload: bytes) -> DeltaAsk:
    try:
        return DeltaAsk.read(body, payload)
    except RemoteProtocolError as error:
        raise errors.Usage(str(error)) from None


def _manifest_frame(source: Source, layer: LayerId, bases: Sequence[LayerId]) -> tuple[bytes, LayerId | None]:
    """A frame of a manifest, and the basis that it refers to; for a worker thread."""
    encoded = _encoded(source, layer)
    if encoded is None:
        raise errors.NotFound(f"the manifest of layer {layer.hex()[:16]} is not whole on this node")
    for basis in bases:
        try:
            old = _encoded(source, basis)
        except errors.Refused:
            continue
        if old:
            return compress_against(encoded, old, MANIFEST_LEVEL), basis
    return compress(encoded, MANIFEST_LEVEL), None


def _encoded(source: Source, layer: LayerId) -> bytearray | None:
    """The encoding of a manifest, None when it is not here.

    Raises:
        Refused: it is too large to be sent at once.
    """
    try:
        chunks, size = source.manifest_of(layer)
        if size > delta_wire.MAX_WHOLE_MANIFEST_BYTES:
            raise errors.Refused(f"the manifest of layer {layer.hex()[:16]} is too large for one answer")
        return load_encoded(source.content, chunks, layer)
    except (LayerUnknown, ChunkMissing, ManifestInvalid):
        return None


class _Answer:
    """One answer under way; made and used in worker threads, one after the other.

    Raises:
        NotFound: there is no such layer.
        Usage: it asks for positions that the layer does not have, or for a unit that is too large.
    """

    def __init__(self, source: Source, ask: DeltaAsk) -> None:
        self.missing = 0
        self._content = source.content
        self._ask = ask
        self._encoder: PatchEncoder | None = None
        try:
            wanted = source.chunks_of(ask.layer)
        except LayerUnknown:
            raise errors.NotFound(f"layer {ask.layer.hex()[:16]} is not on this node") from None
        self._wants = [_named(wanted, unit.wants) for unit in ask.units]
        try:
            old = source.chunks_of(ask.basis) if any(self._by_itself(unit) for unit in range(len(ask.units))) else ()
        except LayerUnknown:
            old = ()
        self._relatives = [_named(old, unit.relative) if old else [] for unit in ask.units]

    def _by_itself(self, unit: int) -> bool:
        """Whether we are to read the relative of a unit."""
        return bool(self._ask.units[unit].relative) and not self._ask.signatures[unit]

    def unit(self, number: int, rate: float | None) -> bytes | list[Group]:
        """The patch of a unit, or what is here of it as it is.

        Args:
            rate: bytes a second that the link takes, None while unknown.

        Raises:
            Usage: it is too large, or its signature is none.
        """
        wanted = self._wants[number]
        relative = self._relative(number)
        if relative:
            targets = self._read(wanted, UNIT_BYTES)
            if targets:
                if self._encoder is None:
                    self._encoder = PatchEncoder(rate)
                patch = self._encoder.encode(targets, relative)
                if len(patch) <= MAX_PAYLOAD_BYTES:  # what does not compress may take a few bytes more than it has
                    return patch
        groups, size = list[Group](), 0
        for group in exact_groups(self._content, wanted, rate, bundles=True):
            groups.append(group)
            size += group.raw_bytes
            if size > UNIT_BYTES:
                raise errors.Usage("a unit that is too large")
        self.missing += len(wanted) - sum(len(group.ids) for group in groups)
        return groups

    def _relative(self, number: int) -> Signature | Sequence[Buffer]:
        signature = self._ask.signatures[number]
        if not signature:
            return self._read(self._relatives[number], RELATIVE_BYTES)
        try:
            return Signature.decode(signature, RELATIVE_BYTES)
        except BadPatch as error:
            raise errors.Usage(str(error)) from None

    def _read(self, ids: Sequence[ChunkId], most_bytes: int) -> list[Buffer]:
        """The bytes of these chunks; empty unless all of them are here.

        Raises:
            Usage: they are more than `most_bytes`.
        """
        if len(set(ids)) < len(ids):
            raise errors.Usage("a unit that names a chunk twice")
        found = hold(_within(self._content.read(ids), most_bytes), 2 * most_bytes)
        return [found[chunk] for chunk in ids] if len(found) == len(ids) else []


def _within(chunks: Iterable[tuple[ChunkId, memoryview]], most_bytes: int) -> Iterator[tuple[ChunkId, memoryview]]:
    size = 0
    for chunk, data in chunks:
        size += len(data)
        if size > most_bytes:
            raise errors.Usage("a unit that is too large")
        yield chunk, data


def _named(chunks: Sequence[ChunkId], positions: Sequence[int]) -> list[ChunkId]:
    if positions and max(positions) >= len(chunks):
        raise errors.Usage("a position that the layer does not have")
    return [chunks[at] for at in positions]
