"""Groups survive the round trip, and no hostile group gets through or costs memory."""

import random
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from chunkstore.codec import (
    FAIR_GROUP_BYTES,
    MAX_GROUP_BYTES,
    MAX_GROUP_CHUNKS,
    Codec,
    Group,
    Packer,
    compress,
    compress_against,
    decompress,
    decompress_against,
    open_group,
    pack,
    pack_all,
    split,
    take,
    unpack,
)
from chunkstore.digest import ChunkId, chunk_id
from chunkstore.errors import BadGroup, CorruptChunk
from tests.support.content import Chunk, ids_of, make_chunks, noise_chunks

datas = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=20, unique=True)


def named(datas: list[bytes]) -> list[Chunk]:
    return [(chunk_id(data), data) for data in datas]


@given(datas, st.sampled_from([1, 3, 9]))
def test_round_trip(contents: list[bytes], level: int) -> None:
    chunks = named(contents)
    group = pack(chunks, level)
    assert [(name, bytes(data)) for name, data in open_group(group)] == chunks
    assert bytes(unpack(group)) == b"".join(contents)
    assert group.raw_bytes == sum(map(len, contents))
    assert len(group.payload) <= group.raw_bytes


def test_bytes_that_do_not_shrink_are_stored_raw() -> None:
    for level in (1, 19):
        group = pack(noise_chunks(1, 8), level)
        assert group.codec is Codec.RAW
        assert len(group.payload) == group.raw_bytes


def test_bytes_that_shrink_are_compressed_and_a_higher_level_shrinks_more() -> None:
    chunks = [(chunk_id(text), text) for text in (b"line %d of a text\n" % n * 20 for n in range(50))]
    quick, slow = pack(chunks, 1), pack(chunks, 12)
    assert quick.codec is slow.codec is Codec.ZSTD
    assert len(slow.payload) < len(quick.payload) < quick.raw_bytes / 4


@pytest.mark.parametrize(
    "contents",
    [
        [],
        [b""],
        [b"a", b""],
        [bytes(MAX_GROUP_BYTES), b"x"],
        [bytes(MAX_GROUP_BYTES + 1)],
        [b"x"] * (MAX_GROUP_CHUNKS + 1),
    ],
    ids=["none", "empty", "one empty", "sum", "chunk", "count"],
)
def test_pack_refuses_what_no_group_can_hold(contents: list[bytes]) -> None:
    with pytest.raises(BadGroup):
        pack([(ChunkId(bytes(32)), data) for data in contents])


def test_pack_all_fills_groups_with_neighbours() -> None:
    chunks = make_chunks(2, 40, 60_000)
    groups = list(pack_all(iter(chunks)))
    assert [name for group in groups for name in group.ids] == ids_of(chunks)
    assert all(group.raw_bytes <= MAX_GROUP_BYTES for group in groups)
    assert all(group.raw_bytes >= FAIR_GROUP_BYTES for group in groups[:-1])
    assert list(pack_all([])) == []


def test_groups_end_at_the_same_chunks_whatever_came_before() -> None:
    chunks = make_chunks(4, 400, 30_000)
    whole = {group.ids[0] for group in pack_all(chunks)}
    rest = [group.ids[0] for group in pack_all(chunks[7:])]
    assert len(whole.intersection(rest)) > 0.7 * len(rest)


def test_a_packer_goes_on_over_batches_and_takes_nothing_twice() -> None:
    chunks = make_chunks(5, 60, 40_000)
    packer = Packer()
    groups = [group for at in range(0, 60, 7) for group in packer.take(chunks[at : at + 7])]
    assert packer.held
    assert list(packer.take([chunks[-1]])) == []
    groups += packer.finish()
    assert groups == list(pack_all(chunks))
    assert not packer.held


def test_pack_all_counts_tiny_chunks() -> None:
    tiny = [(chunk_id(b"%d" % n), b"%d" % n) for n in range(MAX_GROUP_CHUNKS + 1)]
    assert [len(group.ids) for group in pack_all(tiny)] == [MAX_GROUP_CHUNKS, 1]


GOOD = pack(make_chunks(3, 4))
RAW = pack(noise_chunks(3, 4))


def test_the_samples_are_what_they_should_be() -> None:
    assert GOOD.codec is Codec.ZSTD
    assert RAW.codec is Codec.RAW


@pytest.mark.parametrize(
    "group",
    [
        replace(GOOD, ids=()),
        replace(GOOD, ids=GOOD.ids[:3]),
        replace(GOOD, ids=(ChunkId(b"short"), *GOOD.ids[1:])),
        replace(GOOD, lengths=(2000, 2000, 2000, 1999)),
        replace(GOOD, lengths=(2000, 2000, 2000, 2001)),
        replace(GOOD, lengths=(2000, 2000, 4000, 0)),
        replace(GOOD, lengths=(2000, 2000, 5000, -1000)),
        replace(GOOD, lengths=(2000, 2000, 2000, 1 << 40)),
        replace(GOOD, payload=b""),
        replace(GOOD, payload=GOOD.payload[:-1]),
        replace(GOOD, payload=GOOD.payload + b"x"),
        replace(GOOD, payload=GOOD.payload + GOOD.payload),
        replace(GOOD, payload=b"\0" * 100),
        replace(GOOD, payload=struct.pack("<II", 0x184D2A50, 8000) + bytes(7992)),
        replace(GOOD, codec=Codec.RAW),
        replace(RAW, codec=Codec.ZSTD),
        replace(RAW, payload=RAW.payload[:-1]),
        replace(GOOD, codec=cast(Any, 7)),
    ],
    ids=lambda group: f"{len(group.ids)}-{group.lengths[-1:]}-{group.codec!r}-{len(group.payload)}",
)
def test_a_group_that_contradicts_itself_is_refused(group: Group) -> None:
    for use in (unpack, split, open_group):
        with pytest.raises(BadGroup):
            use(group)


def test_a_frame_that_declares_more_than_its_table_is_not_decompressed() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    assert len(bomb) < 8000
    with pytest.raises(BadGroup, match="declares"):
        unpack(replace(GOOD, payload=bomb))


def test_a_frame_that_declares_nothing_is_refused() -> None:
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(8000))
    with pytest.raises(BadGroup, match="declares"):
        unpack(replace(GOOD, payload=silent))


def test_a_frame_that_holds_more_than_it_declares_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(b"a" * 200))
    assert frame[5] == 200  # the one-byte content size of a small single segment
    frame[5] = 100
    with pytest.raises(BadGroup):
        unpack(Group((ChunkId(bytes(32)),), (100,), Codec.ZSTD, bytes(frame)))


@given(st.binary(max_size=200))
def test_noise_as_a_frame_raises_nothing_else(noise: bytes) -> None:
    with pytest.raises(BadGroup):
        unpack(replace(GOOD, payload=noise))


@pytest.mark.parametrize("key", [None, bytes(range(32))])
def test_open_group_names_the_wrong_chunk(key: bytes | None) -> None:
    chunks = make_chunks(4, 3, key=key)
    wrong = [chunks[0], (chunks[1][0], b"other bytes"), chunks[2]]
    assert [name for name, _ in open_group(pack(chunks), key)] == ids_of(chunks)
    with pytest.raises(CorruptChunk) as caught:
        open_group(pack(wrong), key)
    assert caught.value.chunk_id == chunks[1][0]


def test_open_group_needs_the_right_key() -> None:
    with pytest.raises(CorruptChunk):
        open_group(pack(make_chunks(4, 3, key=bytes(32))))


def test_take_keeps_some() -> None:
    chunks = make_chunks(5, 6)
    group = pack(chunks)
    kept = take(group, {chunks[1][0], chunks[4][0], ChunkId(b"u" * 32)})
    assert kept is not None
    assert [(name, bytes(data)) for name, data in open_group(kept)] == [chunks[1], chunks[4]]
    assert take(group, set(ids_of(chunks))) is group
    assert take(group, set()) is None


def test_take_keeps_a_repeated_chunk_once() -> None:
    chunk = make_chunks(6, 1)[0]
    kept = take(pack([chunk, chunk]), {chunk[0]})
    assert kept is not None
    assert kept.ids == (chunk[0],)


def test_threads_have_their_own_contexts() -> None:
    def trip(seed: int) -> bool:
        chunks = make_chunks(seed, 4, 20_000)
        return [(name, bytes(data)) for name, data in open_group(pack(chunks))] == chunks

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(trip, range(40)))


@given(st.binary(max_size=2000))
def test_single_frames(data: bytes) -> None:
    frame = compress(data)
    assert decompress(frame, len(data)) == data
    if data:
        with pytest.raises(BadGroup):
            decompress(frame, len(data) - 1)


def test_a_relative_makes_the_frame_small() -> None:
    rng = random.Random(7)
    old = bytearray(rng.randbytes(2 << 20))
    new = bytearray(old)
    for _ in range(20):
        at = rng.randrange(len(new) - 8)
        new[at : at + 8] = rng.randbytes(8)
    del new[1000:1777]  # nothing is aligned after this
    frame = compress_against(new, old)
    assert len(frame) < 2000
    assert decompress_against(frame, old, len(new)) == new
    with pytest.raises(BadGroup):
        decompress_against(frame, old, len(new) - 1)


@given(st.binary(max_size=500), st.binary(min_size=8, max_size=500), st.sampled_from([1, 3, 9]))
def test_any_relative_will_do(data: bytes, relative: bytes, level: int) -> None:
    assert decompress_against(compress_against(data, relative, level), relative, len(data)) == data


def test_a_wrong_relative_never_gives_the_right_bytes_by_accident() -> None:
    rng = random.Random(8)
    old, other = rng.randbytes(5000), rng.randbytes(5000)
    frame = compress_against(old, old)
    with suppress(BadGroup):
        assert decompress_against(frame, other, 5000) != old


def test_relatives_beyond_one_window_are_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        compress_against(memoryview(bytes(1 << 27)), b"relative")
