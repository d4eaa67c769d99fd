"""What a node does for a peer that asks for deltas: exactly so much as it may ask for, whatever it says."""

import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import pytest
import trio

from chunkstore.codec import pack, pack_all
from chunkstore.delta.kinship import UNIT_BYTES, Unit
from chunkstore.delta.patch import PatchDecoder
from chunkstore.digest import ChunkId, LayerId, chunk_id
from chunkstore.errors import LayerUnknown
from gossip.messages import NodeId
from p2player import errors
from p2player.net.connection import Incoming
from p2player.net.link import UNKNOWN, LinkEstimate
from p2player.patch_serving import MANIFESTS_AT_A_TIME, PatchServing
from p2player.proto import delta_wire
from p2player.proto.delta_wire import DeltaAsk
from p2player.proto.frames import Buffer
from p2player.sources import Source
from p2player.turns import Turns
from tests.support.memory_content import MemoryContent
from tests.support.swarmnet import node

NEW, OLD = LayerId(b"n" * 32), LayerId(b"o" * 32)
PEER = node(1)


@dataclass
class Call:
    """A request as a handler sees it; keeps the parts that are sent. `gate`, if any, holds them back."""

    body: Mapping[str, Any]
    payload: bytes = b""
    gate: trio.Event | None = None
    peer: NodeId = PEER
    parts: list[tuple[Mapping[str, Any], bytes]] = field(default_factory=list)

    async def send_part(self, header: Mapping[str, Any], payload: Buffer) -> None:
        self.parts.append((header, bytes(payload)))
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()

    def link(self) -> LinkEstimate:
        return UNKNOWN

    @property
    def incoming(self) -> Incoming:
        return cast(Incoming, self)


def noise(count: int, length: int, seed: int = 1) -> list[tuple[ChunkId, bytes]]:
    rng = Random(seed)
    made = [rng.randbytes(length) for _ in range(count)]
    return [(chunk_id(data), data) for data in made]


def asked(*units: Unit) -> Call:
    ask = DeltaAsk("", NEW, OLD, units, [b""] * len(units))
    return Call(ask.body(), ask.payload)


class Counted(MemoryContent):
    """Tells how many bytes were read of it."""

    read_bytes = 0

    def read(self, ids: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
        for name, data in super().read(ids):
            self.read_bytes += len(data)
            yield name, data


def serve(
    new: Sequence[tuple[ChunkId, bytes]], old: Sequence[tuple[ChunkId, bytes]], content: MemoryContent
) -> PatchServing:
    content.add(pack_all([*new, *old]))
    lists = {NEW: [name for name, _ in new], OLD: [name for name, _ in old]}

    def chunks_of(layer: LayerId) -> Sequence[ChunkId]:
        if layer not in lists:
            raise LayerUnknown(layer)
        return lists[layer]

    return PatchServing(lambda scope, peer: Source(content, chunks_of), Turns(2).take)


async def test_a_unit_comes_as_a_patch() -> None:
    old = noise(4, 50_000)
    new = [(chunk_id(data), data) for data in (b"new" + data for _, data in old)]
    call = asked(Unit((0, 2), (0, 1, 2, 3)))
    assert await serve(new, old, MemoryContent()).chunks_delta(call.incoming) == {"missing": 0}
    [(header, patch)] = call.parts
    assert header == {"unit": 0}
    assert len(patch) < 200
    made = PatchDecoder().decode(patch, 100_006, [data for _, data in old])
    assert made == new[0][1] + new[2][1]


async def test_one_chunk_again_and_again_is_not_joined() -> None:
    content = Counted()
    serving = serve(noise(1, 200_000), noise(1, 200_000, 2), content)
    for unit in (Unit((0,) * 4096, (0,)), Unit((0,), (0,) * 4096)):
        with pytest.raises(errors.Usage):
            await serving.chunks_delta(asked(unit).incoming)
    with pytest.raises(errors.Usage):
        await serving.chunks_delta(asked(*[Unit((0,), (0,))] * 1024).incoming)
    assert not content.read_bytes


@pytest.mark.parametrize("relative", [(), (0,)], ids=["as it is", "as a patch"])
async def test_a_unit_that_is_too_large_is_not_read_whole(relative: tuple[int, ...]) -> None:
    content, chunks = Counted(), noise(80, 200_000)
    call = asked(Unit(tuple(range(80)), relative))
    with pytest.raises(errors.Usage, match="too large"):
        await serve(chunks, noise(1, 100, 2), content).chunks_delta(call.incoming)
    assert content.read_bytes <= 2 * UNIT_BYTES
    assert not call.parts


async def test_small_chunks_do_not_keep_the_groups_that_they_come_from() -> None:
    small = noise(64, 1000)

    class Scattered(MemoryContent):
        """Every chunk lies in a large group of its own."""

        def read(self, ids: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
            for name, data in super().read(ids):
                yield name, memoryview(bytes(data) + bytes(1 << 20))[: len(data)]

    serving = serve(small, noise(1, 1000, 2), Scattered())
    tracemalloc.start()
    try:
        await serving.chunks_delta(asked(Unit(tuple(range(64)), (0,))).incoming)
        assert tracemalloc.get_traced_memory()[1] < 2 * UNIT_BYTES + (4 << 20)
    finally:
        tracemalloc.stop()


async def test_positions_that_a_layer_does_not_have() -> None:
    serving = serve(noise(2, 100), noise(2, 100, 2), MemoryContent())
    for unit in (Unit((2,), (0,)), Unit((0,), (2,))):
        with pytest.raises(errors.Usage, match="position"):
            await serving.chunks_delta(asked(unit).incoming)


async def test_a_layer_may_be_its_own_basis() -> None:
    chunks = noise(2, 1000)
    call = asked(Unit((0,), (0, 1)))
    call.body = {**call.body, "basis": NEW}
    await serve(chunks, [], MemoryContent()).chunks_delta(call.incoming)
    assert PatchDecoder().decode(call.parts[0][1], 1000, [data for _, data in chunks]) == chunks[0][1]


async def test_requests_wait_for_their_turn_before_they_are_unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    honest = DeltaAsk.read

    def counted(body: Mapping[str, Any], payload: bytes) -> DeltaAsk:
        read.append(payload)
        return honest(body, payload)

    monkeypatch.setattr(DeltaAsk, "read", staticmethod(counted))
    serving = serve(noise(2, 1000), noise(1, 1000, 2), MemoryContent())
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            call = asked(Unit((0,), (0,)))
            call.gate = trio.Event()
            nursery.start_soon(serving.chunks_delta, call.incoming)
        with trio.move_on_after(0.2):
            await trio.sleep_forever()
        assert len(read) == 2
        nursery.cancel_scope.cancel()


async def test_a_peer_that_does_not_read_gets_few_manifests() -> None:
    content, looked = MemoryContent(), list[LayerId]()
    data = b"manifest"
    content.add([pack([(chunk_id(data), data)])])

    def manifest_of(layer: LayerId) -> tuple[Sequence[ChunkId], int]:
        looked.append(layer)
        return [chunk_id(data)], len(data)

    serving = PatchServing(lambda scope, peer: Source(content, manifest_of=manifest_of), Turns(2).take)
    layer = LayerId(chunk_id(data))
    calls = [Call(delta_wire.manifest_ask("", layer, []), gate=trio.Event()) for _ in range(8)]
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(serving.layer_delta, call.incoming)
        with trio.move_on_after(0.2):
            await trio.sleep_forever()
        assert len(looked) == MANIFESTS_AT_A_TIME
        nursery.cancel_scope.cancel()
    again = Call(delta_wire.manifest_ask("", layer, []))
    assert await serving.layer_delta(again.incoming) == {"basis": b""}
