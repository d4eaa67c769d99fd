"""The parts of the patch codec: cuts, signatures, ops, arithmetic, levels, and groups packed again."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkstore.codec import Codec, open_group, pack, recompress
from chunkstore.delta.bytewise import add, count_equal, subtract
from chunkstore.delta.errors import BadPatch
from chunkstore.delta.finecuts import content_cuts, fine_cuts, sector_cuts
from chunkstore.delta.levels import LEVELS, RESERVE, WAYS, level_for, way_for
from chunkstore.delta.ops import Kind, Op, decode_ops, encode_ops
from chunkstore.delta.signature import MAX_PIECES, Signature, sign
from tests.support.content import make_chunks, noise_chunks
from tests.support.revisions import PAGE, pages, ram_records


def test_content_is_cut_finely() -> None:
    data = random.Random(1).randbytes(200_001)
    cuts = fine_cuts(data)
    assert sum(cuts) == len(data)
    assert 100 < len(cuts) < 200
    assert max(cuts) <= 4096
    assert fine_cuts(b"") == []
    assert fine_cuts(b"x") == [1]
    assert fine_cuts(memoryview(data)) == cuts


def test_pages_are_cut_by_content_or_in_sectors() -> None:
    assert fine_cuts(bytes(5 * PAGE)) == content_cuts(bytes(5 * PAGE))
    assert sector_cuts(bytes(5 * PAGE)) == [PAGE // 4] * 20


def test_records_are_cut_around_their_pages() -> None:
    first, second = (random.Random(n).randbytes(PAGE) for n in (1, 2))
    empty = bytes(PAGE)
    records = ram_records([empty, first, second, empty, empty], 1 << 20, b"pc.ram")
    assert fine_cuts(records) == [9 + 7 + 8, PAGE, 8, PAGE, 18]
    assert fine_cuts(ram_records([empty] * 3, 5)) == [27]


@pytest.mark.parametrize(
    "damage", [b"x", b"\0" * 8, (1 << 12 | 0x28).to_bytes(8, "big") + b"short", b"\0" * 7 + b"\x02"]
)
def test_what_is_no_sequence_of_records(damage: bytes) -> None:
    records = ram_records(pages(random.Random(3), 3), 0) + damage
    cuts = fine_cuts(records)
    assert sum(cuts) == len(records)
    assert 8 not in cuts


def test_a_signature_is_short() -> None:
    relative = [random.Random(4).randbytes(100_000), bytes(64 * PAGE)]
    signature = sign(relative)
    encoded = signature.encode()
    assert Signature.decode(encoded, sum(map(len, relative))) == signature
    assert signature.paged
    assert not sign(relative[:1]).paged
    assert len(encoded) <= 8 * len(signature.lengths) + 8
    assert len(sign(relative[1:]).encode()) <= 64 * 4 * 6 + 8


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        b"\1\0" + bytes(6),
        b"\1\2" + bytes(5),
        b"\1\2" + bytes(7),
        b"\1\6" + bytes(6),
        b"\2\3\2" + bytes(18),
        b"\2\3\1" + bytes(12),
        b"\4\3\3" + bytes(24),
        b"\xff\xff\xff\xff\x7f\3\xff\xff\xff\xff\x7f",
    ],
)
def test_a_signature_that_is_none(data: bytes) -> None:
    with pytest.raises(BadPatch):
        Signature.decode(data, 1)


def test_signatures_have_a_limit() -> None:
    with pytest.raises(BadPatch, match="pieces"):
        Signature.decode(b"\xff\xff\xff\x7f", 1 << 30)
    with pytest.raises(ValueError, match="pieces"):
        sign([b"x"] * (MAX_PIECES + 1))


@given(st.binary(max_size=300), st.integers(0, 255))
def test_differences_are_undone(new: bytes, salt: int) -> None:
    old = bytes((byte * 7 + salt) & 0xFF for byte in new)
    difference = subtract(new, old)
    assert difference == bytes((a - b) & 0xFF for a, b in zip(new, old, strict=True))
    assert add(old, difference) == new
    assert count_equal(new, old) == difference.count(0)


def test_differences_of_many_bytes() -> None:
    rng = random.Random(5)
    new, old = rng.randbytes(150_001), rng.randbytes(150_001)
    assert add(memoryview(old), subtract(new, old)) == new
    with pytest.raises(ValueError, match="bytes"):
        subtract(new, old[1:])


@given(st.lists(st.tuples(st.sampled_from(Kind), st.integers(1, 1 << 20), st.integers(0, 1 << 20)), max_size=20))
def test_ops_round_trip(rows: list[tuple[Kind, int, int]]) -> None:
    ops = [Op(kind, length, 0 if kind is Kind.LITERAL else offset) for kind, length, offset in rows]
    data = encode_ops(ops)
    total = sum(op.length for op in ops)
    assert decode_ops(data + b"more", total, 1 << 21, len(data)) == (ops, len(data))
    if ops:
        with pytest.raises(BadPatch):
            decode_ops(data, total, 1 << 21, len(data) - 1)
        with pytest.raises(BadPatch):
            decode_ops(data, total + 1, 1 << 21, len(data))


def test_content_changed_in_place_takes_one_byte_to_find() -> None:
    ops = [Op(Kind.COPY, 20, 5), Op(Kind.LITERAL, 10), Op(Kind.COPY, 20, 35)]
    assert encode_ops(ops) == bytes((80, 10, 42, 80, 0))


def test_levels_keep_up_with_the_link() -> None:
    assert level_for(None) is None
    assert level_for(125e6) is None
    assert [level_for(rate) for rate in (40e6, 20e6, 12.5e6, 2.5e6, 1e5)] == [3, 6, 9, 9, 9]
    for rate in (40e6, 20e6, 10e6, 5e6, 1e6, 3e5):
        level = next(level for level in LEVELS if level.number == level_for(rate))
        assert level.output_per_s >= RESERVE * rate


def test_slow_links_get_the_dense_way() -> None:
    assert way_for(None).up_to < 1
    assert way_for(1e9) is WAYS[-1]
    assert way_for(float("inf")) is WAYS[-1]
    assert way_for(1e9).dictionary is None
    assert way_for(2.5e6).up_to == 1
    assert way_for(0) is WAYS[0]


def test_groups_are_packed_again_where_it_pays() -> None:
    rng = random.Random(6)
    words = [rng.randbytes(6) for _ in range(400)]
    chunks = [(name, b"".join(rng.choices(words, k=3000))) for name, _ in make_chunks(1, 4)]
    stored = pack(chunks, 1)
    small = recompress(stored, 19)
    assert small.codec is Codec.ZSTD
    assert len(small.payload) <= 0.97 * len(stored.payload)
    assert (small.ids, small.lengths) == (stored.ids, stored.lengths)


def test_groups_stay_as_they_are_where_it_does_not() -> None:
    raw = pack(noise_chunks(2, 4))
    assert recompress(raw, 19) is raw
    half_noise = pack(make_chunks(3, 4))
    assert recompress(half_noise, 19) is half_noise
    assert len(open_group(half_noise)) == 4
