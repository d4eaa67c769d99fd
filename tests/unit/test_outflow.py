"""What leaves for a peer: exactly what was asked for, and what is sound, however it is packed."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest

from chunkstore.codec import MAX_BUNDLE_BYTES, Codec, Group, open_group, pack
from chunkstore.digest import ChunkId, chunk_id
from p2player.outflow import exact_groups
from tests.support.memory_content import MemoryContent

SLOW = 2e6


class Packed(MemoryContent):
    """Content that gives just these groups."""

    def __init__(self, packed: Sequence[Group], key: bytes | None = None) -> None:
        super().__init__(key)
        self._packed = packed

    def groups(self, ids: Sequence[ChunkId]) -> Iterator[Group]:
        wanted = set(ids)
        return (group for group in self._packed if not wanted.isdisjoint(group.ids))


def texts(count: int, seed: int, key: bytes | None = None) -> Group:
    """A group of chunks that compress well."""
    rng = Random(seed)
    words = [rng.randbytes(5) for _ in range(200)]
    data = [b"".join(rng.choices(words, k=8000)) for _ in range(count)]
    return pack([(chunk_id(each, key), each) for each in data])


def ids_of(groups: Sequence[Group]) -> list[ChunkId]:
    return [name for group in groups for name in group.ids]


@pytest.mark.parametrize("rate", [None, SLOW])
@pytest.mark.parametrize("bundles", [True, False])
def test_nothing_else_than_what_was_asked_for(rate: float | None, bundles: bool) -> None:
    key = b"k" * 32
    stored = [texts(5, seed, key) for seed in range(40)]
    noise = Random(1).randbytes(300_000)
    stored.insert(7, pack([(chunk_id(noise, key), noise)]))
    assert stored[7].codec is Codec.RAW
    stored = [replace(group, payload=memoryview(group.payload)) for group in stored]  # type: ignore[arg-type]
    wanted = ids_of(stored)
    del wanted[3::5]
    found = list(exact_groups(Packed(stored, key), wanted, rate, bundles=bundles))
    assert sorted(ids_of(found)) == sorted(wanted)
    for group in found:
        open_group(group, key, MAX_BUNDLE_BYTES if bundles else 1 << 20)


@pytest.mark.parametrize("damaged", [0, 3, 59])
def test_a_damaged_group_takes_no_other_with_it(damaged: int) -> None:
    stored = [texts(3, seed) for seed in range(60)]
    lost = set(stored[damaged].ids)
    payload = bytearray(stored[damaged].payload)
    payload[0] ^= 0xFF
    stored[damaged] = replace(stored[damaged], payload=bytes(payload))
    found = list(exact_groups(Packed(stored), ids_of(stored), SLOW, bundles=True))
    assert set(ids_of(found)) == set(ids_of(stored)) - lost
    assert len(ids_of(found)) == len(set(ids_of(found)))
