"""Chunk lists of layers, as deltas need them: at hand, and small."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.store import ChunkStore
from p2player import sources
from p2player.sources import SharedLayers
from tests.support.content import add_each, make_chunks, put_layer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    with ChunkStore.open(tmp_path / "store", reserve_bytes=0) as opened:
        yield opened


def test_a_layer_and_its_basis_stay_at_hand_however_large(store: ChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_KNOWN_CHUNKS", 10)
    kept: list[LayerId] = []
    for number in range(3):
        chunks = make_chunks(number, 8, 64)
        add_each(store, chunks, 8)
        kept.append(put_layer(store, chunks, tag=str(number)))
    reads: list[LayerId] = []
    look_up = store.layer_chunks

    def layer_chunks(layer: LayerId) -> dict[ChunkId, int]:
        reads.append(layer)
        return look_up(layer)

    monkeypatch.setattr(store, "layer_chunks", layer_chunks)
    layers = SharedLayers(store)
    for _ in range(3):
        for layer in kept[:2]:
            assert list(layers.chunks_of(layer)) == list(look_up(layer))
    assert reads == kept[:2]
    layers.chunks_of(kept[2])
    layers.chunks_of(kept[0])
    assert reads == [*kept, kept[0]]
    with pytest.raises(LayerUnknown):
        layers.chunks_of(LayerId(bytes(32)))
