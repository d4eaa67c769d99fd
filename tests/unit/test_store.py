"""The shared store: what survives crashes, what verify finds, and what is known of layers."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chunkstore import holdings
from chunkstore.codec import pack, pack_all
from chunkstore.digest import ChunkId, LayerId, chunk_id
from chunkstore.errors import (
    ChunkMissing,
    DiskFull,
    FormatMismatch,
    LayerUnknown,
    StoreBusy,
    StoreClosed,
    StoreDamaged,
)
from chunkstore.holdings import Holdings
from chunkstore.packs import PackFiles
from chunkstore.records import record_bytes
from chunkstore.store import ChunkStore, GcPolicy
from tests.support.content import (
    Chunk,
    Clock,
    add_each,
    crash_copy,
    flip,
    groups_of,
    ids_of,
    make_chunks,
    noise_chunks,
    put_layer,
    read_all,
    serve_all,
)

CHUNKS = make_chunks(1, 40, 3000)
NOBODY = LayerId(b"nobody" + bytes(26))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reopen(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., ChunkStore]]:
    """Open a store of this test, by default its first one, closing it if it is open."""
    opened: dict[Path, ChunkStore] = {}

    def open_again(name: str = "store", *, pack_bytes: int = 50_000) -> ChunkStore:
        path = tmp_path / name
        if path in opened:
            opened[path].close()
        opened[path] = ChunkStore.open(path, reserve_bytes=0, pack_bytes=pack_bytes, clock=clock)
        return opened[path]

    yield open_again
    for store in opened.values():
        store.close()


@pytest.fixture
def store(reopen: Callable[..., ChunkStore]) -> ChunkStore:
    return reopen()


def pack_files(folder: Path) -> list[Path]:
    return sorted((folder / "packs").iterdir())


# -- adding


def test_a_group_is_stored_as_received_when_most_of_it_is_new(store: ChunkStore) -> None:
    known, group = pack(CHUNKS[:2]), pack(CHUNKS[:10])
    store.add([known])
    before = store.stats().stored_bytes
    store.add([group])
    assert store.stats().stored_bytes - before == record_bytes(group)
    (served,) = store.groups(ids_of(CHUNKS[2:10]))
    assert served.ids == tuple(ids_of(CHUNKS[2:10])), "the copies of the others are not read from there"


def test_a_group_is_repacked_when_little_of_it_is_new(store: ChunkStore) -> None:
    store.add([pack(CHUNKS[:6])])
    before = store.stats().stored_bytes
    store.add([pack(CHUNKS[:10])])
    (served,) = store.groups(ids_of(CHUNKS[6:10]))
    assert served.ids == tuple(ids_of(CHUNKS[6:10]))
    assert store.stats().stored_bytes - before == record_bytes(served)


def test_concurrent_adders_store_nothing_twice(store: ChunkStore) -> None:
    def add(worker: int) -> int:
        return sum(store.add([pack([chunk])]) for chunk in CHUNKS[worker:] + CHUNKS[:worker])

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(8))) == 40 * 3000
    assert store.stats().stored_bytes == sum(record_bytes(pack([chunk])) for chunk in CHUNKS)


def test_stats(store: ChunkStore) -> None:
    assert (store.stats().chunks, store.stats().packs, store.stats().stored_bytes) == (0, 0, 0)
    store.add(groups_of(CHUNKS, 10))
    put_layer(store, CHUNKS)
    stats = store.stats()
    manifest_bytes = len(b"manifest of layer")
    assert (stats.chunks, stats.layers, stats.raw_bytes) == (41, 1, 40 * 3000 + manifest_bytes)
    assert stats.packs == len(pack_files(store._path)) == 2
    assert stats.stored_bytes == sum(path.stat().st_size for path in pack_files(store._path))
    assert stats.free_bytes > 0


def test_the_smallest_ids_come_in_order(store: ChunkStore) -> None:
    assert store.smallest(8) == []
    store.add(groups_of(CHUNKS, 10))
    assert store.smallest(8) == sorted(name for name, _ in CHUNKS)[:8]
    assert len(store.smallest(1000)) == len(CHUNKS)


def test_a_reserve_is_kept(tmp_path: Path) -> None:
    with ChunkStore.open(tmp_path / "full", reserve_bytes=1 << 60) as store:
        with pytest.raises(DiskFull):
            store.add(pack_all(CHUNKS))
        assert store.stats().free_bytes == 0
        assert store.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS))


def test_an_index_without_room_leaves_no_orphans(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    store.add([pack(CHUNKS[:5])])
    before = store.stats().stored_bytes
    with monkeypatch.context() as patch:
        patch.setattr("chunkstore.store.insert_group", full)
        with pytest.raises(DiskFull):
            store.add([pack(CHUNKS[5:])])
    assert store.stats().stored_bytes == before
    assert store.add([pack(CHUNKS)]) == 35 * 3000
    assert serve_all(store, ids_of(CHUNKS)) == dict(CHUNKS)


def test_a_failed_add_leaves_no_bits(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = put_layer(store, CHUNKS)
    assert store.holding(layer) == (0, 40)
    arrived = Holdings.arrived

    def fail(*args: Any) -> None:
        arrived(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Holdings, "arrived", fail)
        with pytest.raises(KeyboardInterrupt):
            store.add([pack(CHUNKS)])
    assert store.holding(layer) == (0, 40)
    assert store.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS))
    store.add([pack(CHUNKS)])
    assert store.holding(layer) == (40, 40)


# -- opening


def test_a_store_is_open_once(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    reopen()
    with pytest.raises(StoreBusy):
        ChunkStore.open(tmp_path / "store")


def test_a_closed_store_says_so(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    store = reopen()
    store.add([pack(CHUNKS)])
    store.close()
    store.close()
    size = sum(path.stat().st_size for path in pack_files(tmp_path / "store"))
    for use in (
        lambda: store.missing(ids_of(CHUNKS)),
        lambda: store.add([pack(make_chunks(2, 1))]),
        lambda: list(store.read(ids_of(CHUNKS))),
        store.commit,
        store.layers,
        store.stats,
    ):
        with pytest.raises(StoreClosed):
            use()
    assert sum(path.stat().st_size for path in pack_files(tmp_path / "store")) == size


def test_other_formats_are_refused(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    reopen().close()
    with sqlite3.connect(tmp_path / "store" / "index.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(FormatMismatch) as caught:
        reopen()
    assert (caught.value.found, caught.value.expected) == (99, 1)


def test_a_kill_loses_nothing(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    store = reopen()
    add_each(store, CHUNKS[:20], 5)
    store.commit()
    add_each(store, CHUNKS[20:], 5)  # not committed, and into several packs
    crash_copy(tmp_path / "store", tmp_path / "killed")
    again = reopen("killed")
    assert again.recovery.adopted_chunks == 20
    assert again.recovery.lost_chunks == again.recovery.cut_bytes == 0
    assert read_all(again, ids_of(CHUNKS)) == dict(CHUNKS)
    assert again.verify() == []
    assert reopen("killed").recovery.adopted_chunks == 0


def test_a_torn_tail_is_cut_and_its_chunks_are_missing(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    store = reopen(pack_bytes=1 << 20)
    store.add([pack(CHUNKS[:20])])
    store.commit()
    sizes = []
    for first in range(20, 40, 5):
        store.add([pack(CHUNKS[first : first + 5])])
        sizes.append(store.stats().stored_bytes)
    for lost in (1, 100, 7000, 20_000):
        name = f"torn{lost}"
        pack_file = pack_files(crash_copy(tmp_path / "store", tmp_path / name))[0]
        os.truncate(pack_file, sizes[-1] - lost)
        again = reopen(name, pack_bytes=1 << 20)
        whole = 20 + 5 * sum(size <= sizes[-1] - lost for size in sizes)
        assert read_all(again, ids_of(CHUNKS)) == dict(CHUNKS[:whole])
        assert again.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS[whole:]))
        assert again.recovery.lost_chunks == 40 - whole
        assert again.recovery.cut_bytes == sizes[-1] - lost - again.stats().stored_bytes
        again.add(groups_of(CHUNKS, 4))
        assert serve_all(again, ids_of(CHUNKS)) == dict(CHUNKS)
        assert again.verify() == []


def test_after_a_power_cut_sound_records_behind_a_hole_are_kept(
    reopen: Callable[..., ChunkStore], tmp_path: Path
) -> None:
    store = reopen(pack_bytes=1 << 20)
    store.add([pack(CHUNKS[:10])])
    store.commit()
    mark = store.stats().stored_bytes
    store.add(groups_of(CHUNKS[10:], 10))
    pack_file = pack_files(crash_copy(tmp_path / "store", tmp_path / "cut"))[0]
    with pack_file.open("r+b") as file:  # the first unmarked record never reached the disk, the others did
        file.seek(mark)
        file.write(bytes(record_bytes(pack(CHUNKS[10:20]))))
    again = reopen("cut", pack_bytes=1 << 20)
    assert again.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS[10:20]))
    assert (again.recovery.adopted_chunks, again.recovery.lost_chunks) == (20, 10)
    assert read_all(again, ids_of(CHUNKS)) == dict(CHUNKS[:10] + CHUNKS[20:])


def test_unmarked_bytes_are_adopted_only_if_their_digests_hold(
    reopen: Callable[..., ChunkStore], tmp_path: Path
) -> None:
    reopen().close()
    liar = pack([(CHUNKS[0][0], b"not what the name says"), CHUNKS[1]])
    PackFiles(tmp_path / "store" / "packs").append([liar, pack(CHUNKS[2:4])])
    assert reopen().missing(ids_of(CHUNKS[:4])) == set(ids_of(CHUNKS[:2]))


def test_a_lost_pack_makes_its_chunks_missing(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    store = reopen()
    add_each(store, CHUNKS, 5)
    store.close()
    pack_files(tmp_path / "store")[0].unlink()
    store = reopen()
    missing = store.missing(ids_of(CHUNKS))
    assert 0 < len(missing) < 40
    assert store.recovery.lost_chunks == len(missing)
    assert set(read_all(store, ids_of(CHUNKS))) == set(ids_of(CHUNKS)) - missing
    assert store.verify() == []


def test_pack_numbers_are_never_used_again(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    store = reopen()
    add_each(store, CHUNKS, 5)
    store.forget(ids_of(CHUNKS))
    store.collect(GcPolicy())
    last = reopen()
    assert pack_files(tmp_path / "store") == []
    last.add([pack(CHUNKS)])
    assert [path.name for path in pack_files(tmp_path / "store")] > ["000002.pack"]


@pytest.mark.parametrize("harm", ["deleted", "emptied", "garbage", "flipped"])
def test_a_lost_index_is_rebuilt(reopen: Callable[..., ChunkStore], tmp_path: Path, clock: Clock, harm: str) -> None:
    store = reopen()
    store.add(groups_of(CHUNKS, 10))
    put_layer(store, CHUNKS)
    store.close()
    index = tmp_path / "store" / "index.sqlite"
    if harm == "deleted":
        index.unlink()
    elif harm == "emptied":
        index.write_bytes(b"")
    elif harm == "garbage":
        index.write_bytes(b"not a database" * 1000)
    else:
        index.write_bytes(index.read_bytes()[:100] + os.urandom(len(index.read_bytes()) - 100))
    store = reopen()
    assert store.recovery.rebuilt
    assert store.recovery.adopted_chunks == 41
    assert read_all(store, ids_of(CHUNKS)) == dict(CHUNKS)
    assert store.layers() == []
    # Nothing refers to the chunks now: they are kept for long enough to pull their layers again.
    clock.now += 6 * 86400
    assert store.collect(GcPolicy()).chunks == 0
    put_layer(store, CHUNKS[:30])
    clock.now += 2 * 86400
    assert store.collect(GcPolicy()).chunks == 10
    assert not reopen().recovery.rebuilt


KILLED = """
import sys
from pathlib import Path
from typing import Any
from chunkstore.store import ChunkStore
from tests.support.content import groups_of, make_chunks

store = ChunkStore.open(Path(sys.argv[1]), pack_bytes=300_000)
for seed in range(1000):
    store.add(groups_of(make_chunks(seed, 20, 3000), 4))
    store.commit()
    print(seed, flush=True)
"""


def test_sigkill_never_loses_what_was_committed(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "store")], stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        committed = [int(victim.stdout.readline()) for _ in range(8)]
        victim.send_signal(signal.SIGKILL)
        committed += [int(line) for line in victim.stdout]
    store = reopen()
    for seed in committed:
        chunks = make_chunks(seed, 20, 3000)
        assert read_all(store, ids_of(chunks)) == dict(chunks)
    assert store.verify() == []


# -- damage


def regions(store: ChunkStore, group_ids: list[ChunkId]) -> dict[str, int]:
    """Offsets into each part of the record that holds a group of these chunks, the first of its pack."""
    (group,) = store.groups(group_ids)
    table = 24 + 36 * len(group.ids)
    return {
        "magic": 0,
        "codec": 4,
        "padding": 5,
        "count": 6,
        "stored": 8,
        "raw": 12,
        "header sum": 16,
        "id": 24,
        "length": 24 + 32,
        "table end": table - 1,
        "payload": table,
        "payload end": table + len(group.payload) - 1,
        "checksum": table + len(group.payload),
        "checksum end": record_bytes(group) - 1,
    }


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_verify_finds_damage_in_every_region(reopen: Callable[..., ChunkStore], tmp_path: Path, codec: str) -> None:
    made = make_chunks if codec == "zstd" else noise_chunks
    chunks, others = made(1, 10, 300), made(2, 10, 300)
    store = reopen(pack_bytes=1)
    store.add(pack_all(chunks))
    store.add(pack_all(others))
    layers = {put_layer(store, chunks[:5], tag="a"), put_layer(store, chunks + others, tag="b")}
    first = pack_files(tmp_path / "store")[0]
    assert store.verify() == []
    for region, offset in regions(store, ids_of(chunks)).items():
        flip(first, offset)
        damages = store.verify()
        assert {damage.chunk_id for damage in damages} == set(ids_of(chunks)), region
        for damage in damages:
            assert set(damage.layers) <= layers
            assert (len(damage.layers) == 2) == (damage.chunk_id in ids_of(chunks[:5]))
            assert damage.reason
        assert serve_all(store, ids_of(chunks + others)) == dict(others), region
        assert read_all(store, ids_of(chunks + others)) == dict(others), region
        flip(first, offset)
        store._retrieval.suspects.clear()
    assert store.verify() == []


def test_damage_heals(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    store = reopen(pack_bytes=1)
    add_each(store, CHUNKS, 10)
    layer = put_layer(store, CHUNKS)
    flip(pack_files(tmp_path / "store")[1], 400)
    damaged = [damage.chunk_id for damage in store.verify()]
    assert set(damaged) == set(ids_of(CHUNKS[10:20]))
    assert store.holding(layer) == (40, 40)
    store.forget(damaged)
    assert store.missing(ids_of(CHUNKS)) == set(damaged)
    assert store.holding(layer) == (30, 40)
    assert list(store.lacking(layer)) == ids_of(CHUNKS[10:20])
    assert store.verify() == []
    assert store.add(groups_of(CHUNKS, 10)) == 10 * 3000
    assert store.holding(layer) == (40, 40)
    assert read_all(store, ids_of(CHUNKS)) == dict(CHUNKS)


def test_what_a_read_found_damaged_counts_as_missing_and_is_replaced(
    reopen: Callable[..., ChunkStore], tmp_path: Path
) -> None:
    store = reopen(pack_bytes=1)
    add_each(store, CHUNKS, 10)
    flip(pack_files(tmp_path / "store")[0], 400)
    assert store.missing(ids_of(CHUNKS)) == set()
    assert serve_all(store, ids_of(CHUNKS)) == dict(CHUNKS[10:])
    assert store.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS[:10]))
    assert store.stats().suspects == 10
    assert len(store.verify()) == 10
    store.add([pack(CHUNKS[:10])])
    assert store.stats().suspects == 0
    assert read_all(store, ids_of(CHUNKS)) == dict(CHUNKS)
    assert store.verify() == []


def test_verify_finds_content_that_was_wrong_from_the_start(store: ChunkStore) -> None:
    store.add([pack([CHUNKS[0], (CHUNKS[1][0], b"another content"), CHUNKS[2]])])
    (damage,) = store.verify()
    assert damage.chunk_id == CHUNKS[1][0]
    store.forget([damage.chunk_id])
    assert serve_all(store, ids_of(CHUNKS[:3])) == dict(CHUNKS[:3:2])
    store.add([pack(CHUNKS[1:2])])
    assert read_all(store, ids_of(CHUNKS[:3])) == dict(CHUNKS[:3])
    assert serve_all(store, ids_of(CHUNKS[:3])) == dict(CHUNKS[:3])


def test_verify_finds_rows_that_point_nowhere(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    store = reopen()
    store.add([pack(CHUNKS)])
    store.close()
    with sqlite3.connect(tmp_path / "store" / "index.sqlite") as db:
        db.execute("UPDATE chunks SET place = place + 8 WHERE id = ?", (CHUNKS[3][0],))
    db.close()
    store = reopen()
    assert [damage.chunk_id for damage in store.verify()] == [CHUNKS[3][0]]
    assert read_all(store, [CHUNKS[3][0]]) == {}
    assert store.missing(ids_of(CHUNKS)) == {CHUNKS[3][0]}, "who looked for it in vain makes it fetched again"


def test_verify_finds_a_pack_that_vanished_while_open(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    store = reopen(pack_bytes=1)
    add_each(store, CHUNKS, 10)
    store.close()
    store = reopen(pack_bytes=1)
    pack_files(tmp_path / "store")[2].unlink()
    assert {damage.chunk_id for damage in store.verify()} == set(ids_of(CHUNKS[20:30]))


def test_a_damaged_index_is_told(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    store = reopen()
    store.add(pack_all(make_chunks(3, 2000, 50)))
    store.close()
    index = tmp_path / "store" / "index.sqlite"
    store = reopen()
    with index.open("r+b") as file:  # some page in the middle, of the chunk table
        file.seek(index.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(StoreDamaged):
        store.verify()


def test_verify_tells_its_progress_and_can_be_cancelled(store: ChunkStore) -> None:
    store.add(groups_of(CHUNKS, 5))
    told: list[tuple[int, int]] = []
    store.verify(lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == store.stats().stored_bytes

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.verify(stop)
    assert store.verify() == []


# -- layers


def test_a_layer_record(store: ChunkStore, clock: Clock) -> None:
    store.add(pack_all(CHUNKS))
    id = put_layer(store, CHUNKS, tag="one")
    record = store.layer(id)
    assert record is not None
    assert (record.id, record.size, record.chunks) == (id, 40 * 3000, 40)
    assert record.manifest_chunks == (chunk_id(b"manifest of one"),)
    assert record.manifest_size == len(b"manifest of one")
    assert (record.held, record.pinned) == (True, False)
    assert record.added_s == record.used_s == clock.now
    assert store.layer_chunks(id) == {name: 3000 for name, _ in CHUNKS}
    assert list(store.layer_chunks(id)) == ids_of(CHUNKS)
    assert store.layer(NOBODY) is None


def test_a_layer_is_recorded_and_looked_at_in_slices(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "_SLICE", 7)
    store.add([pack(CHUNKS[5:20])])
    id = put_layer(store, CHUNKS)
    assert list(store.layer_chunks(id).items()) == [(name, 3000) for name, _ in CHUNKS]
    assert store.bitmap(id) == bytes([0b1110_0000, 0xFF, 0b0000_1111, 0, 0])
    store.add([pack(CHUNKS[20:21])])
    assert store.holding(id) == (16, 40)


def test_what_is_given_back_is_read_again(store: ChunkStore) -> None:
    store.add(pack_all(CHUNKS))
    list(store.read(ids_of(CHUNKS[:3])))
    store.give_back()
    assert {name: bytes(data) for name, data in store.read(ids_of(CHUNKS))} == dict(CHUNKS)
    store.close()
    with pytest.raises(StoreClosed):
        store.give_back()


def test_a_layer_may_be_here_in_part(store: ChunkStore) -> None:
    store.add(groups_of(CHUNKS[:7], 7))
    id = put_layer(store, CHUNKS)
    assert store.holding(id) == (7, 40)
    assert store.bitmap(id) == bytes([0b0111_1111, 0, 0, 0, 0])
    assert store.lacking(id) == {name: 3000 for name, _ in CHUNKS[7:]}
    store.add([pack(CHUNKS[8:10])])
    assert store.holding(id) == (9, 40)
    assert store.bitmap(id) == bytes([0b0111_1111, 0b0000_0011, 0, 0, 0])
    store.forget([CHUNKS[0][0], CHUNKS[1][0], ChunkId(b"u" * 32)])
    assert store.bitmap(id) == bytes([0b0111_1100, 0b0000_0011, 0, 0, 0])
    store.add(pack_all(CHUNKS))
    assert store.holding(id) == (40, 40)
    assert store.lacking(id) == {}


def test_holdings_are_the_same_after_a_restart(reopen: Callable[..., ChunkStore]) -> None:
    store = reopen()
    store.add([pack(CHUNKS[3:20])])
    id = put_layer(store, CHUNKS)
    bitmap = store.bitmap(id)
    store = reopen()
    assert store.bitmap(id) == bitmap
    assert store.holding(id) == (17, 40)


def test_the_manifest_must_be_here(store: ChunkStore) -> None:
    with pytest.raises(ChunkMissing) as caught:
        store.put_layer(NOBODY, 0, [CHUNKS[0][0]], 10, {})
    assert caught.value.chunk_id == CHUNKS[0][0]
    assert store.layers() == []


def test_putting_a_layer_again_renews_it(store: ChunkStore, clock: Clock) -> None:
    store.add(pack_all(CHUNKS))
    id = put_layer(store, CHUNKS[:20])
    assert store.holding(id) == (20, 20)
    added_s = clock.now
    clock.now += 10
    put_layer(store, CHUNKS[:20], hold=False)
    record = store.layer(id)
    assert record is not None
    assert record.held, "holding is not undone by mentioning a layer again"
    assert (record.added_s, record.used_s) == (added_s, clock.now)
    put_layer(store, CHUNKS[10:])
    assert store.layer_chunks(id) == {name: 3000 for name, _ in CHUNKS[10:]}
    assert store.holding(id) == (30, 30)
    store.forget(ids_of(CHUNKS[:10]))
    assert store.holding(id) == (30, 30), "what the layer no longer lists has no part in it"


def test_a_chunk_may_be_content_and_manifest(store: ChunkStore) -> None:
    store.add([pack(CHUNKS[:2])])
    store.put_layer(NOBODY, 3000, ids_of(CHUNKS[:2]), 6000, {CHUNKS[0][0]: 3000})
    assert store.holding(NOBODY) == (1, 1)
    store.forget([CHUNKS[0][0]])
    assert store.holding(NOBODY) == (0, 1)


def test_layers_are_found_by_prefix(store: ChunkStore) -> None:
    ids = [put_layer(store, [], tag=f"{n}") for n in range(40)]
    assert [record.id for record in store.layers()] == ids
    for prefix in ("", "a", "3f", ids[7].hex()[:8], ids[7].hex(), ids[7].hex().upper()):
        expected = [id for id in ids if id.hex().startswith(prefix.lower())]
        assert [record.id for record in store.find_layers(prefix)] == expected
    assert store.find_layers("%") == store.find_layers("_") == store.find_layers("x") == []


def test_hold_pin_touch(store: ChunkStore, clock: Clock) -> None:
    id = put_layer(store, [])
    clock.now += 5
    store.pin(id, True)
    store.drop_layer(id)
    record = store.layer(id)
    assert record is not None
    assert (record.held, record.pinned, record.used_s) == (False, True, clock.now)
    clock.now += 5
    store.touch(id)
    store.pin(id, False)
    record = store.layer(id)
    assert record is not None
    assert (record.pinned, record.used_s) == (False, clock.now)


@pytest.mark.parametrize("method", ["drop_layer", "touch", "holding", "bitmap", "lacking", "layer_chunks"])
def test_unknown_layers_are_told(store: ChunkStore, method: str) -> None:
    with pytest.raises(LayerUnknown) as caught:
        getattr(store, method)(NOBODY)
    assert caught.value.layer_id == NOBODY
    with pytest.raises(LayerUnknown):
        store.pin(NOBODY, True)


# -- the stat cache


def test_the_stat_cache(reopen: Callable[..., ChunkStore], clock: Clock) -> None:
    store = reopen()
    assert store.cached(1, 2) is None
    store.remember(1, 2, b"old")
    store.remember(1, 2, b"new")
    store.remember((1 << 64) - 1, (1 << 64) - 2, b"all bits")
    assert store.cached(1, 2) == b"new"
    store.commit()
    store = reopen()
    assert store.cached(1, 2) == b"new"
    assert store.cached((1 << 64) - 1, (1 << 64) - 2) == b"all bits"
    store.remember(1, 2, b"newest")
    assert reopen().cached(1, 2) == b"newest"
    for inode in range(2500):
        store = reopen() if not inode else store
        store.remember(7, inode, b"%d" % inode)
    assert store.cached(7, 5) == b"5"
    clock.now += 91 * 86400
    store.remember(7, 5, b"again")
    store.commit()
    store.collect(GcPolicy())
    assert store.cached(7, 6) is None
    assert store.cached(7, 5) == b"again"


def test_the_folder_is_private(reopen: Callable[..., ChunkStore], tmp_path: Path) -> None:
    store = reopen()
    store.add([pack(CHUNKS)])
    store.commit()
    for path in pack_files(tmp_path / "store"):
        assert path.stat().st_mode & 0o077 == 0


def test_scattered_chunks_are_served(store: ChunkStore) -> None:
    chunks: list[Chunk] = noise_chunks(4, 64, 16_000)
    store.add(pack_all(chunks))
    for start in range(0, 64, 5):
        wanted = chunks[start::13]
        assert serve_all(store, ids_of(wanted)) == dict(wanted)
