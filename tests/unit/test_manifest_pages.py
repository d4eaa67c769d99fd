"""The list of a manifest's chunks, asked for and answered in pages."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from chunkstore.codec import pack
from chunkstore.digest import ChunkId, LayerId
from chunkstore.store import ChunkStore
from p2player import errors
from p2player.manifests import ManifestHunt
from p2player.net.connection import Incoming
from p2player.proto import content_wire as wire
from p2player.proto.frames import RemoteProtocolError
from p2player.serving import Serving
from p2player.swarming import Session
from tests.support.content import ids_of, make_chunks

LAYER = LayerId(b"L" * 32)
PIECES = make_chunks(4, 5, 3000)
CONTENT = make_chunks(5, 1)


@dataclass
class Call:
    """A request, as a handler sees it."""

    body: Mapping[str, Any]
    peer: str = "1" * 32


@dataclass
class Direct:
    """A session whose peer is `serving`, without a network."""

    serving: Serving
    starts: list[int] = field(default_factory=list)

    async def call(self, method: str, body: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        assert method == wire.LAYER_MANIFEST
        self.starts.append(body["start"])
        return await self.serving.layer_manifest(cast(Incoming, Call(body)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    with ChunkStore.open(tmp_path / "store") as opened:
        opened.add([pack(PIECES)])
        ids = ids_of([*PIECES, PIECES[0], PIECES[1]])
        opened.put_layer(LAYER, 1, ids, 7 * 3000, {ids_of(CONTENT)[0]: 1})
        yield opened


def hunt(store: ChunkStore) -> ManifestHunt:
    return ManifestHunt(store, LAYER, list, cast(Any, None), cast(Any, None), Random(1))


@pytest.mark.parametrize(("page", "starts"), [(7, [0]), (6, [0, 6]), (3, [0, 3, 6]), (1, list(range(7)))])
async def test_all_pages_together_are_the_list(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch, page: int, starts: list[int]
) -> None:
    monkeypatch.setattr(wire, "PAGE_CHUNKS", page)
    session = Direct(Serving(store))
    listed = await hunt(store)._list(cast(Session, session))
    assert listed == [(chunk, 3000) for chunk in ids_of([*PIECES, PIECES[0], PIECES[1]])]
    assert session.starts == starts


async def test_there_is_no_page_behind_the_last(store: ChunkStore) -> None:
    with pytest.raises(errors.Usage, match="7 chunks"):
        await Serving(store).layer_manifest(cast(Incoming, Call(wire.manifest_ask(LAYER, 7))))


async def test_no_page_is_given_of_a_manifest_that_is_not_whole(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "PAGE_CHUNKS", 2)
    store.forget([ids_of(PIECES)[4]])
    with pytest.raises(errors.NotFound, match="not whole"):
        await Serving(store).layer_manifest(cast(Incoming, Call(wire.manifest_ask(LAYER, 0))))


async def test_a_holder_that_never_ends_its_list_is_cut_short(store: ChunkStore) -> None:
    class Endless:
        async def call(self, method: str, body: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
            total = body["start"] + wire.PAGE_CHUNKS + 1
            return wire.manifest_body(total, [ChunkId(bytes(32))] * wire.PAGE_CHUNKS, [1] * wire.PAGE_CHUNKS)

    with pytest.raises(RemoteProtocolError):
        await hunt(store)._list(cast(Session, Endless()))
