"""What a peer was told to be here stays for a while, however large the layer, and while the promise is renewed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkstore.codec import pack
from chunkstore.collect import GcPolicy
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.store import ChunkStore
from p2player import serving
from p2player.serving import FRESH_S, LEASE_S, RENEW_S, _Promises
from tests.support.content import Clock, add_each, ids_of, make_chunks, put_layer

CHUNKS = make_chunks(3, 20, 2000)
OLD_S = 3 * 3600.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[ChunkStore]:
    with ChunkStore.open(tmp_path / "store", clock=clock) as opened:
        yield opened


def after_gc(store: ChunkStore) -> list[ChunkId]:
    store.collect(GcPolicy(rewrite_below=1.0))
    missing = store.missing(ids_of(CHUNKS))
    return [chunk for chunk in ids_of(CHUNKS) if chunk not in missing]


def drop_but_for_manifest(store: ChunkStore, layer: LayerId) -> None:
    record = store.layer(layer)
    assert record is not None
    store.lease(record.manifest_chunks, 1e6, "manifest")
    store.drop_layer(layer)


def test_what_was_told_is_spared_until_the_lease_ends(store: ChunkStore, clock: Clock) -> None:
    add_each(store, CHUNKS[:12], 4)
    layer = put_layer(store, CHUNKS)
    assert _Promises(store).bitmap(layer, 0.0) == (20, b"\xff\x0f\x00")
    store.drop_layer(layer)
    clock.now += LEASE_S - 1
    assert after_gc(store) == ids_of(CHUNKS[:12])
    clock.now += 2
    assert after_gc(store) == []


def test_what_came_since_is_promised_too(store: ChunkStore, clock: Clock) -> None:
    add_each(store, CHUNKS[:4], 4)
    layer = put_layer(store, CHUNKS)
    promises = _Promises(store)
    assert promises.bitmap(layer, 0.0)[1] == b"\x0f\x00\x00"
    store.add([pack(CHUNKS[10:14])])
    assert promises.bitmap(layer, 1.0)[1] == b"\x0f\x3c\x00"
    store.drop_layer(layer)
    assert after_gc(store) == ids_of(CHUNKS[:4] + CHUNKS[10:14])


def test_a_promise_is_renewed_after_a_while_and_not_before(
    store: ChunkStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_each(store, CHUNKS, 4)
    layer = put_layer(store, CHUNKS)
    promises = _Promises(store)
    renewed: list[float] = []
    renew = store.renew

    def note(ids: Iterator[ChunkId], ttl_s: float, owner: str) -> None:
        renewed.append(clock.now)
        renew(ids, ttl_s, owner)

    monkeypatch.setattr(store, "renew", note)
    began = clock.now
    for passed in (0.0, RENEW_S - 1, RENEW_S, 2 * RENEW_S - 1, 2 * RENEW_S):
        clock.now = began + passed
        promises.bitmap(layer, passed)
    assert [at - began for at in renewed] == [0.0, RENEW_S, 2 * RENEW_S]


def test_gc_in_the_middle_of_a_renewal_takes_nothing(
    store: ChunkStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_each(store, CHUNKS, 4)
    layer = put_layer(store, CHUNKS)
    promises = _Promises(store)
    promises.bitmap(layer, 0.0)
    drop_but_for_manifest(store, layer)
    renew, seen = store.renew, list[int]()

    def collect_around(ids: Iterator[ChunkId], ttl_s: float, owner: str) -> None:
        seen.append(len(after_gc(store)))
        renew(ids, ttl_s, owner)
        seen.append(len(after_gc(store)))

    monkeypatch.setattr(store, "renew", collect_around)
    promises.bitmap(layer, RENEW_S)
    assert seen == [20, 20]


def test_what_gc_takes_before_the_lease_is_not_told(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add_each(store, CHUNKS, 4)
    layer = put_layer(store, CHUNKS)
    drop_but_for_manifest(store, layer)
    renew = store.renew

    def collect_before(ids: Iterator[ChunkId], ttl_s: float, owner: str) -> None:
        kept = list(ids)
        after_gc(store)
        renew(kept, ttl_s, owner)

    monkeypatch.setattr(store, "renew", collect_before)
    assert _Promises(store).bitmap(layer, 0.0) == (20, bytes(3))


def test_promises_are_bounded_and_a_forgotten_one_is_made_again(
    store: ChunkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "MAX_PROMISES", 2)
    add_each(store, CHUNKS[:12], 4)
    layers = [put_layer(store, CHUNKS[at : at + 4], tag=str(at)) for at in (0, 4, 8)]
    promises = _Promises(store)
    for layer in (*layers, *layers):
        promises.bitmap(layer, 0.0)
        store.drop_layer(layer)
    assert after_gc(store) == ids_of(CHUNKS[:12])


def test_an_unknown_layer_is_said_to_be_unknown(store: ChunkStore) -> None:
    with pytest.raises(LayerUnknown):
        _Promises(store).bitmap(LayerId(bytes(32)), 0.0)


def test_many_who_ask_at_the_same_time_are_told_the_same(store: ChunkStore) -> None:
    layer = put_layer(store, CHUNKS)
    promises = _Promises(store)
    assert promises.bitmap(layer, 10.0) == (20, bytes(3))
    add_each(store, CHUNKS[:4], 2)
    assert promises.bitmap(layer, 10.0 + 0.9 * FRESH_S) == (20, bytes(3))
    assert promises.bitmap(layer, 10.0 + FRESH_S) == (20, b"\x0f\x00\x00")
