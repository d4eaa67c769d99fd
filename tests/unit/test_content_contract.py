"""What every implementation of `Content` promises, over all of them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chunkstore.codec import Codec, Group, pack, pack_all
from chunkstore.content import Content
from chunkstore.digest import ChunkId, chunk_id
from chunkstore.errors import BadGroup, DiskFull
from chunkstore.store import ChunkStore
from chunkstore.vault import Vault
from tests.support.content import Chunk, groups_of, ids_of, make_chunks, noise_chunks, read_all, serve_all
from tests.support.memory_content import MemoryContent

KEY = bytes(range(32))


def open_store(folder: Path) -> ChunkStore:
    return ChunkStore.open(folder, reserve_bytes=0, pack_bytes=200_000)


def open_vault(folder: Path) -> Vault:
    return Vault.open(folder, reserve_bytes=0) if folder.exists() else Vault.create(folder, KEY, reserve_bytes=0)


Durable = ChunkStore | Vault


@pytest.fixture(params=[open_store, open_vault], ids=["store", "vault"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Durable]]:
    """Open the content, closing it first if it is open."""
    opened: list[Durable] = []

    def open_again() -> Durable:
        for content in opened:
            content.close()
        opened.append(request.param(tmp_path / "content"))
        return opened[-1]

    yield open_again
    for content in opened:
        content.close()


@pytest.fixture(params=["store", "vault", "memory"])
def content(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Content]:
    if request.param == "memory":
        yield MemoryContent()
        return
    made = open_store(tmp_path / "content") if request.param == "store" else open_vault(tmp_path / "content")
    yield made
    made.close()


def some(content: Content, seed: int = 1, count: int = 60, size: int = 5000) -> list[Chunk]:
    return make_chunks(seed, count, size, key=content.key)


def test_what_was_added_is_here(content: Content) -> None:
    chunks = some(content)
    absent = ids_of(some(content, seed=2))
    assert content.missing(ids_of(chunks)) == set(ids_of(chunks))
    assert content.add(groups_of(chunks, 7)) == sum(len(data) for _, data in chunks)
    assert content.missing(ids_of(chunks) + absent) == set(absent)
    assert read_all(content, ids_of(chunks) + absent) == dict(chunks)
    assert serve_all(content, ids_of(chunks) + absent) == dict(chunks)
    content.commit()
    assert read_all(content, ids_of(chunks)) == dict(chunks)


def test_nothing_asked_nothing_given(content: Content) -> None:
    assert content.missing([]) == set()
    assert list(content.read([])) == []
    assert list(content.groups([])) == []
    assert content.add([]) == 0
    content.commit()


def test_repeats_are_ignored(content: Content) -> None:
    chunks = some(content, count=10)
    twice = [*groups_of(chunks, 5), *groups_of(chunks, 2)]
    assert content.add(twice) == sum(len(data) for _, data in chunks)
    assert content.add(twice) == 0
    assert content.add([pack([chunks[0], chunks[0]])]) == 0
    assert read_all(content, ids_of(chunks) * 2) == dict(chunks)


def test_of_a_half_known_group_the_new_half_counts(content: Content) -> None:
    chunks = some(content, count=8)
    content.add([pack(chunks[:4])])
    assert content.add([pack(chunks)]) == sum(len(data) for _, data in chunks[4:])
    assert content.add([pack(some(content, seed=3, count=1) + chunks)]) == 5000
    assert read_all(content, ids_of(chunks)) == dict(chunks)


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 30])
def test_any_subset_can_be_had(content: Content, stride: int) -> None:
    chunks = some(content)
    content.add(groups_of(chunks, 8))
    wanted = chunks[::stride]
    assert read_all(content, ids_of(wanted)) == dict(wanted)
    assert serve_all(content, ids_of(wanted)) == dict(wanted)


def test_overlapping_groups_give_each_chunk_once(content: Content) -> None:
    chunks = some(content, count=12)
    content.add([pack(chunks[:8])])
    content.add([pack([chunks[0], *chunks[8:]])])  # stored as received: its first chunk is here twice
    assert read_all(content, ids_of(chunks)) == dict(chunks)
    assert serve_all(content, ids_of(chunks)) == dict(chunks)
    assert serve_all(content, ids_of(chunks[6:9])) == dict(chunks[6:9])


def test_one_chunk_after_the_other(content: Content) -> None:
    chunks = some(content)
    content.add(groups_of(chunks, 8))
    for chunk in chunks + chunks[::-1]:
        assert read_all(content, [chunk[0]]) == dict([chunk])


def test_incompressible_and_large(content: Content) -> None:
    chunks = noise_chunks(1, 3, 1 << 20, key=content.key)
    content.add(pack_all(chunks))
    assert read_all(content, ids_of(chunks)) == dict(chunks)
    assert all(group.codec is Codec.RAW for group in content.groups(ids_of(chunks)))


def test_many_tiny_chunks(content: Content) -> None:
    chunks = [(chunk_id(b"%d" % n, content.key), b"%d" % n) for n in range(6000)]
    content.add(pack_all(chunks))
    assert read_all(content, ids_of(chunks)) == dict(chunks)
    assert serve_all(content, ids_of(chunks[::7])) == dict(chunks[::7])


def test_an_impossible_group_is_refused(content: Content) -> None:
    good = some(content, count=2)
    with pytest.raises(BadGroup):
        content.add([pack(good), Group((ChunkId(b"short"),), (3,), Codec.RAW, b"abc")])
    with pytest.raises(BadGroup):
        content.add([Group((ChunkId(bytes(32)),), (3,), Codec.RAW, b"")])
    content.add([pack(good)])
    assert read_all(content, ids_of(good)) == dict(good)


def test_threads_share_it(content: Content) -> None:
    chunks = some(content, count=120, size=2000)

    def work(worker: int) -> int:
        mine = chunks[worker * 10 :] + chunks[: worker * 10]
        new = content.add(groups_of(mine, 9))
        assert serve_all(content, ids_of(mine[::2])) == dict(mine[::2])
        assert read_all(content, ids_of(mine[worker::3])) == dict(mine[worker::3])
        content.commit()
        return new

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 120 * 2000, "each chunk is new to exactly one of them"


def test_it_is_still_here_tomorrow(reopen: Callable[[], Durable]) -> None:
    content = reopen()
    chunks = some(content)
    content.add(groups_of(chunks[:50], 7))
    content.commit()
    content.add(groups_of(chunks[50:], 7))
    again = reopen()
    assert again.missing(ids_of(chunks)) == set()
    assert read_all(again, ids_of(chunks)) == dict(chunks)
    assert again.add(groups_of(chunks, 11)) == 0


def test_a_full_disk_is_told_and_survived(reopen: Callable[[], Durable], monkeypatch: pytest.MonkeyPatch) -> None:
    content = reopen()
    chunks = some(content)
    content.add(groups_of(chunks[:20], 5))
    with monkeypatch.context() as patch:
        patch.setattr("chunkstore.packs.free_bytes", lambda folder, reserve: 40_000)
        with pytest.raises(DiskFull) as caught:
            content.add([pack(noise_chunks(9, 20, 3000, key=content.key))])
        assert caught.value.needed_bytes > caught.value.free_bytes == 40_000
    assert content.missing(ids_of(chunks)) == set(ids_of(chunks[20:]))
    content.add(groups_of(chunks, 5))
    assert read_all(content, ids_of(chunks)) == dict(chunks)
