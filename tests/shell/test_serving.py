"""What a node answers about content: to whom, how much at a time, and nothing that was not asked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from chunkstore.codec import MAX_GROUP_BYTES, Group, open_group
from chunkstore.digest import ChunkId
from chunkstore.ingest import Imported
from chunkstore.store import ChunkStore
from gossip.messages import NodeId
from p2player import errors
from p2player.net.connection import Incoming
from p2player.net.link import UNKNOWN, LinkEstimate
from p2player.proto import content_wire as wire
from p2player.proto.frames import Buffer
from p2player.serving import AT_A_TIME, READ_BYTES, THREADS, Serving
from p2player.sources import Source
from tests.support.memory_content import MemoryContent
from tests.support.pullmesh import put_tree
from tests.support.swarmnet import node

PEER, OTHER = node(1), node(2)
SCOPE = "5c" * 16


@dataclass
class Call:
    """A request as a handler sees it; keeps the groups that are sent. `gate`, if any, holds them back."""

    body: Mapping[str, Any]
    peer: NodeId = PEER
    gate: trio.Event | None = None
    payload: bytes = b""
    groups: list[Group] = field(default_factory=list)

    async def send_part(self, header: Mapping[str, Any], payload: Buffer) -> None:
        if self.gate is not None:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        self.groups.append(wire.read_group(header, payload))

    def link(self) -> LinkEstimate:
        return UNKNOWN

    @property
    def incoming(self) -> Incoming:
        return cast(Incoming, self)

    @property
    def ids(self) -> list[ChunkId]:
        return [name for group in self.groups for name in group.ids]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    with ChunkStore.open(tmp_path / "store", reserve_bytes=0) as opened:
        yield opened


@pytest.fixture
def imported(store: ChunkStore, tmp_path: Path) -> Imported:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "noise").write_bytes(Random(1).randbytes(6_000_000))
    (tree / "text").write_bytes(b"".join(b"line %d\n" % number for number in range(200_000)))
    return put_tree(store, tree)


def want(ids: Sequence[ChunkId], scope: str = wire.SHARED, peer: NodeId = PEER, gate: trio.Event | None = None) -> Call:
    return Call(wire.want_body(scope, ids), peer, gate)


async def test_everything_asked_comes_once_and_verifies(store: ChunkStore, imported: Imported) -> None:
    serving = Serving(store)
    chunks = list(imported.manifest.chunks())
    call = want(chunks)
    assert await serving.chunks_want(call.incoming) == {"missing": 0}
    assert sorted(call.ids) == sorted(chunks)
    for group in call.groups:
        open_group(group)
    assert serving.bytes_served == sum(len(group.payload) for group in call.groups)
    assert serving.bytes_served < imported.size, "sent as stored: compressed"


@pytest.mark.parametrize("skip", [2, 7, 40])
async def test_nothing_comes_that_was_not_asked(store: ChunkStore, imported: Imported, skip: int) -> None:
    chunks = list(imported.manifest.chunks())
    asked = [chunk for number, chunk in enumerate(chunks) if number % skip]
    call = want(asked)
    await Serving(store).chunks_want(call.incoming)
    assert sorted(call.ids) == sorted(asked)


async def test_what_is_not_here_is_counted(store: ChunkStore, imported: Imported) -> None:
    chunks = list(imported.manifest.chunks())
    store.forget(chunks[:2])
    call = want([*chunks[:5], ChunkId(b"?" * 32)])
    assert await Serving(store).chunks_want(call.incoming) == {"missing": 3}
    assert sorted(call.ids) == sorted(chunks[2:5])


@pytest.mark.parametrize("body", [{}, {"scope": "", "ids": b"short"}, {"scope": 5, "ids": bytes(32)}])
async def test_nonsense_is_the_askers_fault(store: ChunkStore, body: dict[str, Any]) -> None:
    serving = Serving(store)
    for handler in serving.handlers.values():
        with pytest.raises(errors.Usage):
            await handler(Call(body).incoming)


async def test_an_unknown_layer_is_not_found(store: ChunkStore) -> None:
    serving = Serving(store)
    with pytest.raises(errors.NotFound):
        await serving.layer_have(Call({"layer": bytes(32)}).incoming)
    with pytest.raises(errors.NotFound):
        await serving.layer_manifest(Call({"layer": bytes(32), "start": 0}).incoming)


async def test_a_holder_tells_what_it_has(store: ChunkStore, imported: Imported) -> None:
    chunks = list(imported.manifest.chunks())
    store.forget([chunks[0], chunks[9]])
    body = await Serving(store).layer_have(Call(wire.layer_body(imported.layer_id)).incoming)
    bitmap = wire.read_have(body, len(chunks))
    here = [bool(bitmap[number >> 3] >> (number & 7) & 1) for number in range(len(chunks))]
    assert [number for number, bit in enumerate(here) if not bit] == [0, 9]


async def test_exposed_content_is_for_one_peer_until_it_is_withdrawn(store: ChunkStore) -> None:
    serving, content = Serving(store), MemoryContent()
    with ChunkStore.open(store._path.parent / "second", reserve_bytes=0) as second:
        tree = store._path.parent / "small"
        tree.mkdir()
        (tree / "file").write_bytes(b"instance" * 1000)
        chunks = list(put_tree(second, tree).manifest.chunks())
        content.add(second.groups(chunks))
    serving.expose(SCOPE, Source(content), PEER)
    call = want(chunks, SCOPE)
    await serving.chunks_want(call.incoming)
    assert call.ids == chunks
    for refused in (want(chunks, SCOPE, OTHER), want(chunks, "another scope")):
        with pytest.raises(errors.NotFound):
            await serving.chunks_want(refused.incoming)
    shared = want(chunks)
    assert await serving.chunks_want(shared.incoming) == {"missing": 1}
    serving.withdraw(SCOPE)
    with pytest.raises(errors.NotFound):
        await serving.chunks_want(want(chunks, SCOPE).incoming)


@pytest.mark.parametrize("scope", ["", "x" * 200])
def test_a_scope_is_a_short_text(store: ChunkStore, scope: str) -> None:
    with pytest.raises(ValueError, match="scope"):
        Serving(store).expose(scope, Source(MemoryContent()), PEER)


async def test_a_peer_is_served_a_few_requests_at_a_time_in_order(store: ChunkStore, imported: Imported) -> None:
    serving = Serving(store)
    chunks = list(imported.manifest.chunks())
    gates = [trio.Event() for _ in range(4)]
    calls = [want([chunk], gate=gate) for chunk, gate in zip(chunks[:4], gates, strict=True)]
    other = want(chunks[4:5], peer=OTHER)
    assert serving.load == 0
    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(serving.chunks_want, call.incoming)
            await wait_all_tasks_blocked()
        await serving.chunks_want(other.incoming)
        assert other.ids == chunks[4:5], "another peer does not wait"
        assert serving.load == len(calls) / THREADS
        for gate in gates[AT_A_TIME:]:
            gate.set()
        await wait_all_tasks_blocked()
        assert not any(call.groups for call in calls)
        gates[0].set()
        gates[1].set()
    assert [call.ids for call in calls] == [[chunk] for chunk in chunks[:4]]
    assert serving.load == 0


async def test_a_cancelled_request_frees_its_place(store: ChunkStore, imported: Imported) -> None:
    serving = Serving(store)
    chunks = list(imported.manifest.chunks())
    async with trio.open_nursery() as nursery:
        for _ in range(AT_A_TIME):
            nursery.start_soon(serving.chunks_want, want(chunks, gate=trio.Event()).incoming)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert serving.load == 0
    call = want(chunks[:1])
    await serving.chunks_want(call.incoming)
    assert call.ids == chunks[:1]


async def test_a_slow_peer_makes_the_node_hold_little(store: ChunkStore, imported: Imported) -> None:
    read: list[int] = []

    class Watched(MemoryContent):
        def groups(self, ids: Sequence[ChunkId]) -> Iterator[Group]:
            for group in store.groups(ids):
                read.append(len(group.payload))
                yield group

    serving = Serving(store)
    serving.expose(SCOPE, Source(Watched()), PEER)
    with trio.move_on_after(0.2):
        await serving.chunks_want(want(list(imported.manifest.chunks()), SCOPE, gate=trio.Event()).incoming)
    assert 0 < sum(read) <= READ_BYTES + MAX_GROUP_BYTES
