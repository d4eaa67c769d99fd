"""The layer service asks the store in worker threads only, and keeps trees that apps need."""

import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import trio

from chunkstore.collect import GcPolicy
from chunkstore.digest import ChunkId, LayerId
from chunkstore.treerecall import remember, survey
from gossip.inventory import Holding
from p2player import errors
from p2player.operations import Operation
from tests.support.content import Clock, add_each, make_chunks, put_layer
from tests.support.layerroom import Room, room
from tests.support.ledgers import START_S, layer

CHUNKS = make_chunks(8, 12, 2000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def here(tmp_path: Path, clock: Clock) -> Iterator[Room]:
    with room(tmp_path, clock) as opened:
        yield opened


def bind(room: Room, name: str, layer: LayerId, chunks: int) -> None:
    room.ledger.bind(name, layer, kind="app", size=24_000, chunks=chunks, now=START_S)


async def test_rows_say_what_is_here_named_or_not(here: Room) -> None:
    add_each(here.store, CHUNKS[:6], 3)
    named, unnamed = put_layer(here.store, CHUNKS, tag="named"), put_layer(here.store, CHUNKS[:4], tag="unnamed")
    here.store.pin(unnamed, True)
    dropped = put_layer(here.store, CHUNKS[:1], tag="dropped", hold=False)
    bind(here, "game", named, 12)
    bind(here, "elsewhere", LayerId(layer(1)), 7)
    rows = {row["id"]: row for row in await here.layers.rows()}
    assert rows.keys() == {named.hex(), unnamed.hex(), layer(1).hex()}
    assert dropped.hex() not in rows
    game = rows[named.hex()]
    assert (game["name"], game["chunks"], game["have_chunks"], game["pinned"]) == ("game", 12, 6, False)
    loose = rows[unnamed.hex()]
    assert (loose["name"], loose["chunks"], loose["have_chunks"], loose["pinned"]) == (None, 4, 4, True)
    away = rows[layer(1).hex()]
    assert (away["name"], away["size"], away["chunks"], away["have_chunks"]) == ("elsewhere", 24_000, 7, 0)


async def test_rows_cost_one_visit_to_a_worker_thread(here: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        bind(here, f"layer-{number}", put_layer(here.store, CHUNKS[number : number + 2], tag=str(number)), 2)
    visits = 0
    run_sync: Callable[..., Awaitable[object]] = trio.to_thread.run_sync

    async def counted(*args: object, **kwargs: object) -> object:
        nonlocal visits
        visits += 1
        return await run_sync(*args, **kwargs)

    monkeypatch.setattr("trio.to_thread.run_sync", counted)
    assert len(await here.layers.rows()) == 5
    assert visits == 1


async def test_a_layer_that_gc_takes_while_rows_are_made_is_left_out(
    here: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = put_layer(here.store, CHUNKS[:1], tag="kept"), put_layer(here.store, CHUNKS[1:2], tag="gone")
    records = here.store.layers()
    here.store.drop_layer(gone)
    here.store.collect(GcPolicy())
    monkeypatch.setattr(here.store, "layers", lambda: records)
    assert [row["id"] for row in await here.layers.rows()] == [kept.hex()]


async def test_a_prefix_of_an_id_is_looked_up_here(here: Room) -> None:
    known = put_layer(here.store, CHUNKS[:1], tag="known")
    assert await here.layers.known(known.hex()[:10]) == known
    assert await here.layers.known("nothing") is None
    assert "find_layers" in here.asked.asked


async def test_sizes_are_known_here_by_name_or_by_hearsay(here: Room) -> None:
    stored = put_layer(here.store, CHUNKS[:2])
    named, told, unknown = (LayerId(layer(number)) for number in (1, 2, 3))
    bind(here, "named", named, 7)
    here.ledger.publish_inventory(
        layers={told: Holding(1, 2, 333)}, free_bytes=1, load=0.0, labels={}, apps=(), now=START_S
    )
    sizes = await here.layers.sizes([stored, named, told, unknown])
    assert sizes == {stored: 4000, named: 24_000, told: 333, unknown: 0}


async def test_the_mesh_hears_of_the_first_of_a_layer_that_arrives_and_not_of_each(here: Room) -> None:
    here.nobody.arriving = 10
    seen: list[tuple[int, int]] = []
    report = await here.layers.fetch(LayerId(layer(9)), lambda done, total: seen.append((done, total)))
    assert here.nobody.news == 1
    assert seen == [(done, 10) for done in range(1, 11)]
    assert report.duplicates == 5
    bind(here, "new", LayerId(layer(9)), 1)
    row = await here.layers.pull("new", operation=Operation("pull", "new"))
    assert row["bytes"] == {"total": 10, "deduplicated": 0, "transferred": 0, "duplicates": 5}


async def test_pinning_and_removing_look_first(here: Room) -> None:
    held = put_layer(here.store, CHUNKS[:1], tag="held")
    bind(here, "held", held, 1)
    assert (await here.layers.pin("held", True))["pinned"]
    here.in_use = {held}
    with pytest.raises(errors.Refused, match="in use"):
        await here.layers.remove("held")
    here.in_use = set()
    await here.layers.remove("held")
    record = here.store.layer(held)
    assert record is not None and record.pinned and not record.held
    with pytest.raises(errors.NotFound):
        await here.layers.manifest(LayerId(layer(9)))


async def test_an_unchanged_folder_is_added_without_a_look_at_its_files(here: Room, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    old_s = time.time() - 60

    async def add(name: str) -> LayerId:
        added = await here.layers.add(source, name, "app", operation=Operation("layer.add"))
        return LayerId(bytes.fromhex(added["id"]))

    first = await add("game")
    seen = await trio.to_thread.run_sync(survey, source)
    assert seen is not None
    here.store.remember(seen.dev, seen.ino, b"")  # its times are too young to be remembered
    remember(here.store, replace(seen, settled=True), first)
    here.ledger.publish_inventory(
        layers={first: Holding(1, 1, 7)}, free_bytes=1, load=0.0, labels={}, apps=(), now=old_s
    )
    here.asked.asked.clear()
    published = here.nobody.published
    assert await add("game") == first
    assert (here.ledger.catalog()["game"].version, here.nobody.published) == (1, published)
    assert not {"add", "put_layer", "read"} & set(here.asked.asked)
    assert await add("alias") == first
    assert here.ledger.catalog()["alias"].sketch == here.ledger.catalog()["game"].sketch
    (source / "more").touch()
    assert await add("game") != first
    assert here.ledger.catalog()["game"].version == 2


async def test_a_folder_is_added_and_its_tree_made_shared_and_swept(here: Room, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/file").write_bytes(b"content" * 1000)
    added = await here.layers.add(tmp_path / "source", "game", "app", operation=Operation("layer.add"))
    layer_id = LayerId(bytes.fromhex(added["id"]))
    path = await here.layers.tree(layer_id)
    assert (path / "file").read_bytes() == b"content" * 1000
    here.in_use = {layer_id}
    assert await here.layers.sweep_trees(0.0) == 0
    here.in_use = set()
    assert await here.layers.sweep_trees(3600.0) == 0
    assert await here.layers.sweep_trees(0.0) == 1
    assert not path.exists()
    again = await here.layers.add(tmp_path / "source", "game", "app", operation=Operation("layer.add"))
    assert again["id"] == added["id"]


async def test_the_tree_of_a_new_version_takes_what_stayed_from_the_tree_of_the_old_one(
    here: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "stays").write_bytes(Random(1).randbytes(300_000))
    ids = []
    for text in (b"old", b"new"):
        (source / "goes").write_bytes(text * 1000)
        added = await here.layers.add(source, "game", "app", operation=Operation("layer.add"))
        ids.append(LayerId(bytes.fromhex(added["id"])))
    await here.layers.tree(ids[0])
    here.nobody.old_layers = [ids[0]]
    wanted: list[ChunkId] = []
    read = here.store.read

    def watched(names: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
        wanted.extend(names)
        return read(names)

    monkeypatch.setattr(here.store, "read", watched)
    path = await here.layers.tree(ids[1])
    assert (path / "stays").read_bytes() == (source / "stays").read_bytes()
    assert (path / "goes").read_bytes() == b"new" * 1000
    old, new = (here.store.layer_chunks(layer).keys() for layer in ids)
    assert old & new
    assert not old & new & set(wanted)
    assert set(new - old) <= set(wanted)
