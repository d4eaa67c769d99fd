"""Patches carry what is new and little else, for each kind of content; and no hostile patch gets through."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
import zstandard

from chunkstore.chunker import CONTENT, cut
from chunkstore.codec import compress
from chunkstore.delta.errors import BadPatch
from chunkstore.delta.ops import Kind, Op, encode_ops, put_varint
from chunkstore.delta.patch import PatchDecoder, PatchEncoder
from chunkstore.delta.signature import Signature, sign
from tests.support.revisions import PAGE, edited, pages, ram_records, touched

SEGMENT = 64 * PAGE


def carried(targets: Sequence[bytes], relative: Sequence[bytes], rate: float | None = None) -> int:
    """Size of the patch, which gives the targets."""
    patch = PatchEncoder(rate).encode(targets, relative)
    assert PatchDecoder().decode(patch, sum(map(len, targets)), relative) == b"".join(targets)
    return len(patch)


def carried_by_signature(targets: Sequence[bytes], relative: Sequence[bytes]) -> tuple[int, int]:
    """Sizes of the signature and of the patch."""
    told = sign(relative).encode()
    patch = PatchEncoder(None).encode(targets, Signature.decode(told, sum(map(len, relative))))
    assert PatchDecoder().decode(patch, sum(map(len, targets)), relative) == b"".join(targets)
    return len(told), len(patch)


def chunks(data: bytes) -> list[bytes]:
    return [bytes(chunk) for chunk in cut(data, CONTENT)]


def segments(data: bytes) -> list[bytes]:
    return [data[at : at + SEGMENT] for at in range(0, len(data), SEGMENT)]


def test_scattered_edits_cost_what_is_new() -> None:
    rng = random.Random(1)
    old = rng.randbytes(1 << 20)
    new = edited(old, rng, 4, 5000)
    new = new[:300_000] + rng.randbytes(1000) + new[300_000:]
    assert carried(chunks(new), chunks(old)) < 4 * 5000 + 1000 + 200


def test_a_log_that_grew() -> None:
    rng = random.Random(2)
    lines = [
        b"%d INFO request %d served in %d ms\n" % (n, rng.randrange(10**6), rng.randrange(500)) for n in range(9000)
    ]
    old, new = b"".join(lines[:8500]), b"".join(lines)
    assert carried(chunks(new), chunks(old)) < len(compress(b"".join(lines[8500:]))) + 100


def test_chunks_of_another_order_and_number() -> None:
    rng = random.Random(3)
    old = [rng.randbytes(50_000) for _ in range(6)]
    assert carried([old[4], old[1] + old[0], old[5][:20_000]], old) < 200


def test_rewritten_rows_of_a_database() -> None:
    rng = random.Random(4)
    old = b"".join(touched(bytes(PAGE), rng, 300) for _ in range(64))
    new = bytearray(old)
    for page in rng.sample(range(64), 20):
        new[page * PAGE + 24 : page * PAGE + 28] = rng.randbytes(4)
    assert carried([bytes(new)], [old]) < 20 * 12


@pytest.mark.parametrize("rate", [None, 2.5e6])
def test_pages_that_changed_in_a_few_words(rate: float | None) -> None:
    rng = random.Random(5)
    old = pages(rng, 512)
    new = [touched(page, rng, 6) if rng.random() < 0.2 else page for page in old]
    changed = sum(a != b for a, b in zip(old, new, strict=True))
    assert carried(segments(b"".join(new)), segments(b"".join(old)), rate) < changed * 6 * 8


def test_pages_that_moved_and_changed() -> None:
    rng = random.Random(6)
    old = pages(rng, 256)
    new = [touched(page, rng, 4) if rng.random() < 0.2 else page for page in old]
    inserted = pages(rng, 3)
    new[100:100] = inserted
    changed = sum(a != b for a, b in zip(old, new, strict=False))
    limit = len(compress(b"".join(inserted), 1)) + 256 * 0.2 * 4 * 12
    assert changed > 100
    assert carried(segments(b"".join(new)), segments(b"".join(old))) < limit


def test_every_page_of_a_segment_changed() -> None:
    rng = random.Random(7)
    others = [b"".join(pages(rng, 64)) for _ in range(3)]
    old = pages(rng, 64)
    new = b"".join(bytes((page[0] ^ 1,)) + touched(page, rng, 2)[1:-1] + bytes((page[-1] ^ 1,)) for page in old)
    assert carried([new], [*others, b"".join(old)]) < 64 * 4 * 8


def test_a_recorded_page_that_is_found_elsewhere() -> None:
    rng = random.Random(8)
    old = pages(rng, 64)
    new = [*old[:10], old[40], *old[11:]]
    records = ram_records(new, 64)
    assert carried([records], [ram_records(old, 64, b"pc.ram")]) < 100


def test_pages_of_a_saved_machine() -> None:
    rng = random.Random(9)
    old = pages(rng, 256)
    new = [touched(page, rng, 4) if rng.random() < 0.1 else page for page in old]
    new[17] = bytes(PAGE)  # the record becomes short, and all that follow move
    old[90], new[91] = bytes(PAGE), pages(rng, 1)[0]
    saved, before = ([ram_records(side[at : at + 64], at) for at in range(0, 256, 64)] for side in (new, old))
    fresh = len(compress(new[90] + new[91], 1))
    assert carried(saved, before) < fresh + 256 * 0.1 * 4 * 12


def test_slow_links_get_programs_against_their_old_versions() -> None:
    rng = random.Random(10)
    words = [rng.randbytes(12) for _ in range(5000)]
    old = b"".join(rng.choices(words, k=20_000))
    order = [old[at : at + 96] for at in range(0, len(old), 96)]
    rng.shuffle(order)  # nothing that is as long as a piece remains
    new = b"".join(order)
    assert carried(chunks(new), chunks(old), 2.5e6) < carried(chunks(new), chunks(old)) / 2


def test_a_signature_is_enough() -> None:
    rng = random.Random(11)
    old = rng.randbytes(1 << 20)
    new = edited(old, rng, 8, 500)
    new = new[:1000] + b"inserted" + new[1000:]
    told, patch = carried_by_signature(chunks(new), chunks(old))
    assert told < len(old) // 120
    assert patch < 9 * (500 + 4000)


def test_a_signature_of_pages() -> None:
    rng = random.Random(12)
    old = pages(rng, 256)
    new = [touched(page, rng, 4) if number % 32 == 0 else page for number, page in enumerate(old)]
    told, patch = carried_by_signature(segments(b"".join(new)), segments(b"".join(old)))
    assert told < 256 * 4 * 6 + 50
    assert patch < 8 * 4 * 1024


def test_a_chunk_that_is_no_sequence_of_pages_except_by_its_length() -> None:
    rng = random.Random(13)
    old = rng.randbytes(60_001)
    new = [b"!" + old + rng.randbytes(61_440 - 60_002)]
    assert len(new[0]) % PAGE == 0
    assert carried(new, [old]) < 61_440 - 60_000 + 100
    assert carried([old], new) < 100
    assert carried_by_signature(new, [old])[1] < 8000


def test_a_chunk_of_the_largest_size_is_not_taken_for_pages() -> None:
    rng = random.Random(18)
    old = [rng.randbytes(CONTENT.maximum)]
    new = [b"inserted" + old[0][:-8]]
    assert carried(new, old) < 100


def test_unrelated_content_costs_what_it_costs_alone() -> None:
    rng = random.Random(14)
    text = b" ".join(rng.choices([rng.randbytes(5).hex().encode() for _ in range(500)], k=40_000))
    other = [rng.randbytes(300_000)]
    for rate in (None, 100e6, 5e6, 2.5e6):
        plain = min(len(compress(text, level)) for level in (1, 3))
        assert carried([text], other, rate) < plain * 1.02 + 64


def test_content_that_repeats_itself_is_not_named_piece_by_piece() -> None:
    rng = random.Random(15)
    words = [rng.randbytes(700) for _ in range(4)]
    old = [b"".join(rng.choices(words, k=3000))]
    new = b"".join(rng.choices(words, k=3000))
    assert carried([new], old) <= len(compress(new, 3)) + 16


@pytest.mark.parametrize("rate", [None, 1e9, 60e6, 5e6, 2.5e6, 1e5])
def test_every_way_gives_the_target(rate: float | None) -> None:
    rng = random.Random(16)
    old = b"".join(rng.choices([rng.randbytes(60) for _ in range(300)], k=4000))
    new = edited(edited(old, rng, 30, 3), rng, 5, 2000)
    carried(chunks(new), chunks(old), rate)
    carried(chunks(new), [], rate)
    carried([], chunks(old), rate)
    carried([b""], [b"", b""], rate)


def test_slower_links_get_smaller_patches() -> None:
    rng = random.Random(17)
    words = [rng.randbytes(8) for _ in range(3000)]
    old = b"".join(rng.choices(words, k=30_000))
    order = [old[at : at + 200] for at in range(0, len(old), 200)]
    rng.shuffle(order)
    new = b"".join(order)
    sizes = [carried([new], [old], rate) for rate in (None, 2.5e6, 1e5)]
    assert all(slower < faster for faster, slower in pairwise(sizes))


def framed(script: bytes, literals: bytes = b"", form: int = 1) -> bytes:
    out = bytearray((form,))
    frame = compress(script)
    put_varint(len(frame), out)
    return bytes(out) + frame + (compress(literals) if literals else b"")


OLD = [bytes(range(200)), bytes(100)]


def test_the_wire_form() -> None:
    script = encode_ops([Op(Kind.COPY, 50, 10), Op(Kind.CHANGE, 3, 60), Op(Kind.LITERAL, 2), Op(Kind.COPY, 200, 100)])
    patch = framed(script + b"\1\0\xff", b"ab")
    old = b"".join(OLD)
    assert PatchDecoder().decode(patch, 255, OLD) == old[10:60] + bytes((61, 61, 61)) + b"ab" + old[100:300]
    assert script == bytes((200, 1, 20, 13, 0, 10, 160, 6, 70))


@pytest.mark.parametrize(
    "patch",
    [
        b"",
        b"\3",
        b"\0",
        b"\0" + compress(bytes(99)),
        b"\0" + compress(bytes(101)),
        b"\0" + compress(bytes(100)) + b"x",
        b"\0" + zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100)),
        b"\1",
        b"\1\xff\xff\xff\xff\xff\xff",
        b"\1\5abc",
        b"\2" + framed(encode_ops([Op(Kind.LITERAL, 100)]))[1:],
        b"\2" + framed(encode_ops([Op(Kind.LITERAL, 100)]))[1:] + compress(bytes(100))[:-1],
        framed(b""),
        framed(b"\3\0"),
        framed(b"\0\0"),
        framed(encode_ops([Op(Kind.COPY, 99, 0)])),
        framed(encode_ops([Op(Kind.COPY, 101, 0)])),
        framed(encode_ops([Op(Kind.COPY, 100, 201)])),
        framed(encode_ops([Op(Kind.COPY, 100, 1 << 33)])),
        framed(encode_ops([Op(Kind.COPY, 100, 0)]) + b"x"),
        framed(encode_ops([Op(Kind.COPY, 100, 0)]), b"x"),
        framed(encode_ops([Op(Kind.CHANGE, 100, 0)]) + bytes(99)),
        framed(encode_ops([Op(Kind.LITERAL, 100)]), bytes(99)),
        framed(encode_ops([Op(Kind.COPY, 1, 0)] * 100)),
        framed(bytes(1 << 20)),
    ],
)
def test_a_patch_that_is_none(patch: bytes) -> None:
    with pytest.raises(BadPatch):
        PatchDecoder().decode(patch, 100, OLD)


def test_the_relative_may_only_be_read_where_it_is() -> None:
    before = bytearray()
    put_varint(100 << 2, before)
    put_varint(1, before)  # one byte in front of the relative
    with pytest.raises(BadPatch, match="relative"):
        PatchDecoder().decode(framed(bytes(before)), 100, OLD)


def test_a_frame_is_refused_by_what_it_declares() -> None:
    bomb = compress(bytes(64 << 20))
    out = bytearray((1,))
    put_varint(len(bomb), out)
    for patch in (b"\0" + bomb, bytes(out) + bomb):
        with pytest.raises(BadPatch, match="declares"):
            PatchDecoder().decode(patch, 100, OLD)
