"""What an import builds on is spared from gc until the import is over."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkstore.collect import GcPolicy
from chunkstore.importer import import_tree
from chunkstore.reserving import RESERVED_S, Reserving
from chunkstore.store import ChunkStore
from tests.support.content import Clock, add_each, ids_of, make_chunks, put_layer, read_all

CHUNKS = make_chunks(6, 12, 2000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[ChunkStore]:
    with ChunkStore.open(tmp_path / "store", clock=clock) as opened:
        yield opened


def test_what_is_said_to_be_here_stays_until_the_end(store: ChunkStore, clock: Clock) -> None:
    add_each(store, CHUNKS[:8], 4)
    layer = put_layer(store, CHUNKS[:8])
    with Reserving(store) as content:
        assert content.missing(ids_of(CHUNKS[4:])) == set(ids_of(CHUNKS[8:]))
        store.drop_layer(layer)
        clock.now += RESERVED_S - 1
        store.collect(GcPolicy(rewrite_below=1.0))
        assert store.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS[:4] + CHUNKS[8:]))
    store.collect(GcPolicy(rewrite_below=1.0))
    assert store.missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS))


def test_what_goes_before_it_is_reserved_is_missing(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    add_each(store, CHUNKS, 4)
    layer = put_layer(store, CHUNKS)
    lease = store.lease

    def collect_first(ids: set[bytes], ttl_s: float, owner: str) -> None:
        store.drop_layer(layer)
        store.collect(GcPolicy())
        lease(ids, ttl_s, owner)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "lease", collect_first)
    assert Reserving(store).missing(ids_of(CHUNKS)) == set(ids_of(CHUNKS))


def test_a_tree_is_imported_whole_though_its_older_self_is_collected_meanwhile(
    store: ChunkStore, tmp_path: Path, clock: Clock
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(bytes(range(256)) * 4000)
    old = import_tree(store, source)
    store.put_layer(old.layer_id, old.size, old.manifest_chunks, old.manifest_size, old.manifest.chunks())
    (source / "new").write_bytes(b"new")
    with Reserving(store) as content:
        new = import_tree(content, source)
        store.drop_layer(old.layer_id)
        store.collect(GcPolicy(rewrite_below=1.0))
        assert read_all(content, new.manifest.chunks()).keys() == new.manifest.chunks().keys()
        assert list(content.groups(list(new.manifest.chunks())))
        store.put_layer(new.layer_id, new.size, new.manifest_chunks, new.manifest_size, new.manifest.chunks())
    store.collect(GcPolicy(rewrite_below=1.0))
    assert store.holding(new.layer_id) == (new.chunks, new.chunks)
