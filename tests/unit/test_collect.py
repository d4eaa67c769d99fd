"""Garbage collection: the pure plan, then what its execution spares, frees and survives."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chunkstore import leases, sweep
from chunkstore.codec import pack
from chunkstore.collect import GcPlan, GcPolicy, GcReport, GcSnapshot, Share, plan_gc
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import DiskFull
from chunkstore.index import Index
from chunkstore.packs import PackFiles
from chunkstore.store import ChunkStore
from tests.support.content import (
    Chunk,
    Clock,
    add_each,
    crash_copy,
    flip,
    ids_of,
    make_chunks,
    put_layer,
    read_all,
    serve_all,
)

A, B, C = (LayerId(letter * 32) for letter in (b"a", b"b", b"c"))
CHUNKS = make_chunks(1, 40, 3000)


# -- the plan


def snapshot(*shares: Share, used: dict[LayerId, float] | None = None, size: int = 1000) -> GcSnapshot:
    packs = dict.fromkeys(sorted({share.pack for share in shares}), size)
    return GcSnapshot(packs, used or {A: 1.0, B: 2.0, C: 3.0}, shares)


def kept(pack: int, stored_bytes: int, *keepers: LayerId, protected: bool = False) -> Share:
    return Share(pack, frozenset(keepers), protected, 1, stored_bytes)


def test_nothing_to_do() -> None:
    assert plan_gc(snapshot(), GcPolicy()) == GcPlan((), (), (), 0)
    assert plan_gc(snapshot(kept(1, 1000, A)), GcPolicy()) == GcPlan((), (), (), 0)


def test_packs_without_live_bytes_go_and_sparse_ones_are_rewritten() -> None:
    some = snapshot(kept(1, 900, A), kept(2, 300, A), kept(3, 699, protected=True), kept(4, 700, protected=True))
    some = GcSnapshot({**some.packs, 5: 4000}, some.evictable, some.shares)
    assert plan_gc(some, GcPolicy()) == GcPlan((), (5,), (2, 3), 4000 + 700 + 301)
    assert plan_gc(some, GcPolicy(rewrite_below=0)).rewrite == ()


def test_nothing_is_evicted_below_the_high_watermark() -> None:
    some = snapshot(kept(1, 500, A), kept(1, 500, B))
    assert plan_gc(some, GcPolicy(high_bytes=1000, low_bytes=0)).evict == ()
    assert plan_gc(some, GcPolicy(high_bytes=None, low_bytes=0)).evict == ()


def test_the_least_recently_used_go_until_the_low_watermark_is_reached() -> None:
    some = snapshot(kept(1, 400, A), kept(2, 400, B), kept(3, 400, C))
    assert plan_gc(some, GcPolicy(1100, 900)).evict == (A,)
    assert plan_gc(some, GcPolicy(1100, 800)).evict == (A,)
    assert plan_gc(some, GcPolicy(1100, 799)).evict == (A, B)
    assert plan_gc(some, GcPolicy(1100, 0)).evict == (A, B, C)
    assert plan_gc(some, GcPolicy(1100, 799)).delete == (1, 2)
    recent = snapshot(*some.shares, used={A: 9.0, B: 2.0, C: 3.0})
    assert plan_gc(recent, GcPolicy(1100, 799)).evict == (B, C)


def test_shared_bytes_go_with_their_last_keeper() -> None:
    some = snapshot(kept(1, 100, A), kept(2, 500, A, B), kept(3, 600, C))
    plan = plan_gc(some, GcPolicy(1100, 700))
    assert plan.evict == (A, B)
    assert plan.delete == (1, 2)


def test_a_layer_that_frees_nothing_stays() -> None:
    some = snapshot(kept(1, 900, A, protected=True), kept(2, 300, B), kept(3, 300, A, C))
    assert plan_gc(some, GcPolicy(1000, 1200)).evict == (B,)


def test_protected_bytes_are_never_freed() -> None:
    some = snapshot(kept(1, 2000, A, protected=True), kept(1, 2000, protected=True))
    assert plan_gc(some, GcPolicy(100, 0)) == GcPlan((), (), (), 0)


# -- the execution


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[ChunkStore]:
    with ChunkStore.open(tmp_path / "store", reserve_bytes=0, pack_bytes=20_000, clock=clock) as made:
        yield made


def pack_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "packs").iterdir())


def age(clock: Clock) -> None:
    """Let chunks that no layer refers to be no longer young."""
    clock.now += 3 * 3600


def left(store: ChunkStore, chunks: list[Chunk]) -> list[ChunkId]:
    """Which of these chunks are here, readable and served."""
    found = read_all(store, ids_of(chunks))
    assert serve_all(store, ids_of(chunks)) == found
    assert store.missing(ids_of(chunks)) == set(ids_of(chunks)) - found.keys()
    return [name for name in ids_of(chunks) if name in found]


def test_a_dropped_layer_is_freed_at_once(store: ChunkStore, tmp_path: Path) -> None:
    add_each(store, CHUNKS, 4)
    layer = put_layer(store, CHUNKS)
    before = pack_bytes(tmp_path / "store")
    assert store.collect(GcPolicy()) == GcReport(0, 0, 0, ())
    store.drop_layer(layer)
    report = store.collect(GcPolicy())
    assert report == GcReport(before, 41, report.packs, ())
    assert pack_bytes(tmp_path / "store") == 0
    assert store.layers() == []
    assert store.stats().chunks == 0
    assert left(store, CHUNKS) == []
    assert store.add([pack(CHUNKS)]) == 40 * 3000
    assert left(store, CHUNKS) == ids_of(CHUNKS)


def test_shared_chunks_stay(store: ChunkStore) -> None:
    add_each(store, CHUNKS, 4)
    old = put_layer(store, CHUNKS[:30], tag="old")
    new = put_layer(store, CHUNKS[10:], tag="new")
    store.holding(new)
    store.drop_layer(old)
    assert store.collect(GcPolicy()).chunks == 11
    assert left(store, CHUNKS) == ids_of(CHUNKS[10:])
    assert [record.id for record in store.layers()] == [new]
    assert store.holding(new) == (30, 30)
    assert store.verify() == []


def test_what_is_spared_and_what_is_not(store: ChunkStore, clock: Clock) -> None:
    add_each(store, CHUNKS, 1)
    held = put_layer(store, CHUNKS[0:4], tag="held")
    pinned = put_layer(store, CHUNKS[4:8], tag="pinned")
    bound = put_layer(store, CHUNKS[8:12], tag="bound")
    dropped = put_layer(store, CHUNKS[12:16], tag="dropped")
    known = put_layer(store, CHUNKS[16:20], tag="known", hold=False)
    store.pin(pinned, True)
    for layer in (pinned, bound, dropped):
        store.drop_layer(layer)
    age(clock)
    store.lease(ids_of(CHUNKS[20:24]), 60, "session")
    store.lease(ids_of(CHUNKS[24:28]), 10, "short")
    store.lease(ids_of(CHUNKS[28:30]), 60, "released")
    store.release("released")
    clock.now += 30
    young = make_chunks(2, 4)
    store.add([pack(young)])
    report = store.collect(GcPolicy(), bound=[bound], extra_roots=ids_of(CHUNKS[36:]))
    assert left(store, CHUNKS) == ids_of(CHUNKS[0:12] + CHUNKS[20:24] + CHUNKS[36:])
    assert left(store, young) == ids_of(young)
    assert report.chunks == 20 + 2  # and the manifests of what was dropped, or only known
    assert {record.id for record in store.layers()} == {held, pinned, bound}
    assert known not in {record.id for record in store.layers()}
    # What protected them ends:
    clock.now += 60
    age(clock)
    store.pin(pinned, False)
    store.collect(GcPolicy())
    assert left(store, CHUNKS) == ids_of(CHUNKS[0:4])
    assert left(store, young) == []


def test_a_layer_whose_manifest_is_kept_loses_bits(store: ChunkStore) -> None:
    add_each(store, CHUNKS, 4)
    layer = put_layer(store, CHUNKS[:10])
    record = store.layer(layer)
    assert record is not None
    assert store.holding(layer) == (10, 10)
    store.lease([*record.manifest_chunks, *ids_of(CHUNKS[:3])], 60, "session")
    store.drop_layer(layer)
    store.collect(GcPolicy())
    assert store.holding(layer) == (3, 10)
    assert store.bitmap(layer) == bytes([0b0000_0111, 0])


def test_leases_survive_a_restart_and_young_chunks_do_not(store: ChunkStore, tmp_path: Path, clock: Clock) -> None:
    add_each(store, CHUNKS, 4)
    store.lease(ids_of(CHUNKS[:8]), 3600, "pull")
    assert store.collect(GcPolicy()).chunks == 0
    store.close()
    with ChunkStore.open(tmp_path / "store", clock=clock) as again:
        assert again.collect(GcPolicy()).chunks == 32
        assert left(again, CHUNKS) == ids_of(CHUNKS[:8])
        again.release("pull")
        assert again.collect(GcPolicy()).chunks == 8


def test_a_young_chunk_grows_up(store: ChunkStore, clock: Clock) -> None:
    store.add([pack(CHUNKS[:1])])
    clock.now += 3500
    store.add([pack(CHUNKS[1:2])])
    clock.now += 200
    store.add([pack(CHUNKS[2:3])])
    assert store.collect(GcPolicy()).chunks == 0
    clock.now += 3700
    assert store.collect(GcPolicy()).chunks == 2
    assert left(store, CHUNKS) == [CHUNKS[2][0]]
    clock.now += 3700
    assert store.collect(GcPolicy()).chunks == 1


def test_chunks_that_arrive_for_a_known_layer_are_as_protected_as_it_is(store: ChunkStore) -> None:
    layer = put_layer(store, CHUNKS)
    add_each(store, CHUNKS, 4)
    store.drop_layer(layer)
    assert store.collect(GcPolicy()).chunks == 41


def test_eviction(store: ChunkStore, clock: Clock) -> None:
    add_each(store, CHUNKS, 4)
    layers = []
    for first in range(0, 40, 10):
        clock.now += 1
        layers.append(put_layer(store, CHUNKS[first : first + 10], tag=f"{first}"))
    live = store.stats().stored_bytes
    clock.now += 1
    store.touch(layers[0])
    store.pin(layers[1], True)
    assert store.collect(GcPolicy(high_bytes=live, low_bytes=0)).evicted == ()
    report = store.collect(GcPolicy(high_bytes=live - 1000, low_bytes=live - 1000), bound=[layers[2]])
    assert report.evicted == (layers[3],)
    assert left(store, CHUNKS) == ids_of(CHUNKS[:30])
    report = store.collect(GcPolicy(high_bytes=1, low_bytes=0), bound=[layers[2]])
    assert report.evicted == (layers[0],)
    assert left(store, CHUNKS) == ids_of(CHUNKS[10:30])


def test_a_layer_that_is_used_after_the_snapshot_is_not_evicted(
    store: ChunkStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_each(store, CHUNKS, 4)
    layer = put_layer(store, CHUNKS)
    snap = sweep.Sweep.snapshot

    def then_touch(self: sweep.Sweep) -> GcSnapshot:
        found = snap(self)
        clock.now += 1
        store.touch(layer)
        return found

    monkeypatch.setattr(sweep.Sweep, "snapshot", then_touch)
    assert store.collect(GcPolicy(high_bytes=0, low_bytes=0)) == GcReport(0, 0, 0, ())
    assert store.holding(layer) == (40, 40)


def test_sparse_packs_are_rewritten_and_dense_ones_are_not(store: ChunkStore, tmp_path: Path) -> None:
    add_each(store, CHUNKS, 4)
    layer = put_layer(store, CHUNKS[:2] + CHUNKS[16:32], tag="kept")
    before = {path.name: path.stat().st_size for path in (tmp_path / "store" / "packs").iterdir()}
    dropped = put_layer(store, CHUNKS, tag="dropped")
    store.drop_layer(dropped)
    told: list[tuple[int, int]] = []
    report = store.collect(GcPolicy(), progress=lambda done, total: told.append((done, total)))
    after = {path.name: path.stat().st_size for path in (tmp_path / "store" / "packs").iterdir()}
    assert "000001.pack" not in after
    assert any(name in after for name in before), "a pack that is mostly live is left alone"
    assert report.freed_bytes > 0
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 0
    assert left(store, CHUNKS) == ids_of(CHUNKS[:2] + CHUNKS[16:32])
    assert store.holding(layer) == (18, 18)
    assert store.verify() == []
    assert store.collect(GcPolicy()).chunks == 0


def test_a_group_keeps_only_what_lives(store: ChunkStore) -> None:
    store.add([pack(CHUNKS)])
    put_layer(store, CHUNKS[::8])
    store.add([pack(make_chunks(2, 20))])
    report = store.collect(GcPolicy())
    assert report.chunks == 0, "the rest is young"
    dropped = put_layer(store, CHUNKS, tag="dropped")
    store.drop_layer(dropped)
    store.collect(GcPolicy())
    (group,) = store.groups(ids_of(CHUNKS[::8]))
    assert group.ids == tuple(ids_of(CHUNKS[::8]))


def test_leases_and_chunks_that_come_during_the_sweep_are_spared(
    store: ChunkStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_each(store, CHUNKS, 4)
    age(clock)
    late = make_chunks(2, 4)
    snap = sweep.Sweep.snapshot

    def meanwhile(self: sweep.Sweep) -> GcSnapshot:
        found = snap(self)
        store.lease(ids_of(CHUNKS[:4]), 60, "late")
        store.add([pack(late)])
        put_layer(store, CHUNKS[4:8], tag="late")
        return found

    monkeypatch.setattr(sweep.Sweep, "snapshot", meanwhile)
    store.collect(GcPolicy())
    assert left(store, CHUNKS) == ids_of(CHUNKS[:8])
    assert left(store, late) == ids_of(late)


def test_a_reader_in_the_middle_gets_right_bytes_or_nothing(store: ChunkStore) -> None:
    add_each(store, CHUNKS, 1)
    put_layer(store, CHUNKS[::2], tag="kept")
    dropped = put_layer(store, CHUNKS, tag="dropped")
    store.drop_layer(dropped)
    readers = [store.read(ids_of(CHUNKS)), store.read(ids_of(CHUNKS))]
    served = store.groups(ids_of(CHUNKS))
    found: list[dict[ChunkId, bytes]] = [{}, {}]
    name, data = next(readers[0])
    found[0][name] = bytes(data)
    first = next(served)
    store.collect(GcPolicy(rewrite_below=1.0))
    for reader, into in zip(readers, found, strict=True):
        into.update((name, bytes(data)) for name, data in reader)
        assert into.items() <= dict(CHUNKS).items()
        assert into.keys() >= set(ids_of(CHUNKS[::2])), "what was rewritten is found in its new place"
    got = set(first.ids)
    for group in served:
        got |= set(group.ids)
    assert got >= set(ids_of(CHUNKS[::2]))


def test_damage_keeps_its_pack_for_verify(store: ChunkStore, tmp_path: Path) -> None:
    add_each(store, CHUNKS, 4)
    put_layer(store, CHUNKS[:2], tag="kept")
    dropped = put_layer(store, CHUNKS, tag="dropped")
    store.drop_layer(dropped)
    flip(tmp_path / "store" / "packs" / "000001.pack", 300)
    store.collect(GcPolicy())
    damages = store.verify()
    assert {damage.chunk_id for damage in damages} == set(ids_of(CHUNKS[:2]))
    store.forget(damage.chunk_id for damage in damages)
    store.collect(GcPolicy())
    assert not (tmp_path / "store" / "packs" / "000001.pack").exists()


def test_without_room_to_rewrite_empty_packs_still_go(
    store: ChunkStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: PackFiles, groups: object) -> None:
        raise DiskFull(tmp_path, 1, 0)

    add_each(store, CHUNKS, 4)
    put_layer(store, CHUNKS[:2], tag="kept")
    dropped = put_layer(store, CHUNKS, tag="dropped")
    store.drop_layer(dropped)
    before = pack_bytes(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(PackFiles, "append", full)
        report = store.collect(GcPolicy())
    assert report.freed_bytes == before - pack_bytes(tmp_path / "store") > 0
    assert left(store, CHUNKS) == ids_of(CHUNKS[:2])
    assert store.collect(GcPolicy()).freed_bytes > 0


def test_damaged_and_swept_chunks_are_no_longer_suspect(store: ChunkStore, tmp_path: Path, clock: Clock) -> None:
    add_each(store, CHUNKS, 4)
    flip(tmp_path / "store" / "packs" / "000001.pack", 300)
    read_all(store, ids_of(CHUNKS))
    assert store.stats().suspects == 4
    age(clock)
    store.collect(GcPolicy())
    assert store.stats().suspects == 0


@pytest.mark.parametrize("end", ["kill", "power cut"])
def test_an_end_at_any_point_loses_nothing_protected(
    store: ChunkStore, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    chunks = CHUNKS[:18]
    add_each(store, chunks, 2)
    kept = put_layer(store, chunks[::3], tag="kept")
    dropped = put_layer(store, chunks, tag="dropped")
    store.drop_layer(dropped)
    store.commit()
    synced = {path.name: path.stat().st_size for path in (tmp_path / "store" / "packs").iterdir()}
    copies: list[Path] = []
    fdatasync = os.fdatasync

    def sync(fd: int) -> None:
        fdatasync(fd)
        synced[Path(f"/proc/self/fd/{fd}").readlink().name] = os.fstat(fd).st_size

    def end_here() -> None:
        copy = crash_copy(tmp_path / "store", tmp_path / f"ended{len(copies)}")
        copies.append(copy)
        if end == "power cut":
            for path in (copy / "packs").iterdir():
                os.truncate(path, min(path.stat().st_size, synced.get(path.name, 0)))

    def around(owner: type, name: str) -> None:
        """Take a copy before and after each call of a method."""
        method: Callable[..., object] = getattr(owner, name)

        def watched(*args: object, **named: object) -> object:
            end_here()
            result = method(*args, **named)
            end_here()
            return result

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((PackFiles, "append"), (PackFiles, "sync"), (PackFiles, "remove"), (Index, "move_mark")):
        around(owner, name)
    leave = Index.write

    def write(self: Index, *, durable: bool = False) -> object:
        end_here()
        return leave(self, durable=durable)

    monkeypatch.setattr(Index, "write", write)
    monkeypatch.setattr(os, "fdatasync", sync)
    store.collect(GcPolicy(rewrite_below=1.0))
    end_here()
    monkeypatch.undo()
    assert len(copies) > 15
    for copy in copies:
        with ChunkStore.open(copy, reserve_bytes=0, clock=clock) as again:
            assert left(again, chunks[::3]) == ids_of(chunks[::3])
            assert again.holding(kept) == (6, 6)
            assert again.verify() == []
            again.collect(GcPolicy(rewrite_below=1.0))
            assert left(again, chunks) == ids_of(chunks[::3])
            assert again.verify() == []
        shutil.rmtree(copy)


def test_one_store_after_another_run(store: ChunkStore, clock: Clock) -> None:
    """Space does not leak over many rounds of adding, dropping and collecting."""
    sizes = []
    layers: list[LayerId] = []
    for seed in range(100, 108):
        chunks = make_chunks(seed, 20, 2000)
        add_each(store, chunks, 3)
        layers.append(put_layer(store, chunks, tag=f"{seed}"))
        for older in layers[-2:-1]:
            store.drop_layer(older)
        clock.now += 10
        store.collect(GcPolicy())
        assert left(store, chunks) == ids_of(chunks)
        sizes.append(store.stats().stored_bytes)
    assert max(sizes) < 2 * sizes[0]


def test_a_renewed_lease_takes_the_place_of_the_one_before(store: ChunkStore, clock: Clock) -> None:
    add_each(store, CHUNKS, 4)
    store.lease(ids_of(CHUNKS[:8]), 60, "session")
    store.lease(ids_of(CHUNKS[8:12]), 60, "session")
    store.lease(ids_of(CHUNKS[12:16]), 1e6, "other")
    age(clock)
    store.lease(ids_of(CHUNKS[:8]), 60, "session")
    store.renew(ids_of(CHUNKS[4:8]), 60, "session")
    store.collect(GcPolicy())
    assert left(store, CHUNKS) == ids_of(CHUNKS[4:8] + CHUNKS[12:16])


def test_a_lease_of_any_length_is_kept_in_slices(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_SLICE_IDS", 3)
    add_each(store, CHUNKS, 4)
    put_layer(store, CHUNKS, tag="all", hold=False)
    store.lease(ids_of(CHUNKS[:10]), 60, "session")
    store.collect(GcPolicy())
    assert left(store, CHUNKS) == ids_of(CHUNKS[:10])
    store.release("session")
    store.collect(GcPolicy())
    assert left(store, CHUNKS) == []
