"""Which old layers a pull may take deltas of: by name, by sketch, and only what is here."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from chunkstore.digest import LayerId
from chunkstore.store import ChunkStore
from gossip.inventory import Holding
from gossip.ledger import Ledger
from gossip.sketch import sketch
from p2player.relatives import AT_MOST, HeldRelatives, most_alike
from tests.support.content import Chunk, add_each, make_chunks, put_layer
from tests.support.layerroom import OffThread
from tests.support.ledgers import START_S, exchange, layer, ledger

CHUNKS = make_chunks(8, 200, 64)
WANTED = LayerId(layer(1))


class Place:
    """A node's store and ledger, and what it finds."""

    def __init__(self, store: ChunkStore) -> None:
        self.store = store
        self.ledger: Ledger = ledger(1)
        self.relatives = HeldRelatives(cast(ChunkStore, OffThread(store)), self.ledger)

    def hold(self, chunks: list[Chunk], tag: str, *, here: int | None = None) -> LayerId:
        """A layer on record, of whose chunks the first `here` are stored."""
        add_each(self.store, chunks[:here], 32)
        return put_layer(self.store, chunks, tag=tag)

    def bind(self, name: str, layer: LayerId, chunks: list[Chunk]) -> None:
        self.ledger.bind(
            name,
            layer,
            kind="app",
            size=1000,
            chunks=len(chunks),
            sketch=sketch(chunk for chunk, _ in chunks),
            now=START_S,
        )

    async def find(self) -> list[LayerId]:
        return [relative.layer for relative in await self.relatives(WANTED)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with ChunkStore.open(tmp_path / "store") as store:
        yield Place(store)


async def test_other_versions_come_newest_first_and_then_what_is_alike(place: Place) -> None:
    alike = place.hold(CHUNKS[20:120], "alike")
    versions = [place.hold(CHUNKS[:10], tag) for tag in ("one", "two")]
    for version in (*versions, WANTED):
        place.bind("game", version, CHUNKS[:100])
    assert await place.find() == [versions[1], versions[0], alike]


async def test_there_are_never_more_than_a_few(place: Place) -> None:
    for number in range(AT_MOST + 2):
        place.bind("game", place.hold(CHUNKS[:10], str(number)), CHUNKS)
    place.bind("game", WANTED, CHUNKS)
    assert len(await place.find()) == AT_MOST


async def test_what_is_hardly_alike_is_left_out(place: Place) -> None:
    place.hold(CHUNKS[100:], "unlike")
    place.bind("game", WANTED, CHUNKS[:100])
    assert await place.find() == []


async def test_most_of_a_layer_has_to_be_here(place: Place) -> None:
    nearly = place.hold(CHUNKS[:100], "nearly", here=90)
    part = place.hold(CHUNKS[100:], "part", here=89)
    empty = place.hold([], "empty")
    for version in (nearly, part, empty, LayerId(layer(2)), WANTED):
        place.bind("game", version, CHUNKS)
    assert await place.find() == [nearly]


async def test_a_layer_whose_manifest_is_gone_is_of_no_use(place: Place) -> None:
    version = place.hold(CHUNKS[:10], "old")
    record = place.store.layer(version)
    assert record is not None
    place.store.forget(record.manifest_chunks)
    place.bind("game", version, CHUNKS)
    place.bind("game", WANTED, CHUNKS)
    assert await place.find() == []


async def test_an_unnamed_layer_that_is_begun_is_compared_by_its_own_chunks(place: Place) -> None:
    alike = place.hold(CHUNKS[50:150], "alike")
    begun = place.hold(CHUNKS[:100], "begun")
    assert [relative.layer for relative in await place.relatives(begun)] == [alike]
    assert [relative.layer for relative in await place.relatives(begun)] == [alike]


async def test_an_unknown_layer_has_no_relatives(place: Place) -> None:
    place.hold(CHUNKS, "old")
    assert await place.find() == []


async def test_holders_are_those_that_say_they_have_all(place: Place) -> None:
    old = place.hold(CHUNKS[:10], "old")
    place.bind("game", old, CHUNKS)
    place.bind("game", WANTED, CHUNKS)
    whole, part = ledger(2), ledger(3)
    for other, have in ((whole, 10), (part, 9)):
        other.publish_inventory(
            layers={old: Holding(have, 10, 640)}, free_bytes=1, load=0.0, labels={}, apps=(), now=START_S
        )
        exchange(other, place.ledger)
    [relative] = await place.relatives(WANTED)
    assert relative.also_at(whole.node)
    assert not relative.also_at(part.node)
    assert place.relatives.holders(old) == {whole.node}


def test_the_most_alike_come_first() -> None:
    sketches = {
        LayerId(layer(number)): sketch(chunk for chunk, _ in CHUNKS[start : start + 100])
        for number, start in ((2, 60), (3, 10), (4, 100))
    }
    assert most_alike(sketch(chunk for chunk, _ in CHUNKS[:100]), sketches) == [layer(3), layer(2)]
