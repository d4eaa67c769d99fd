"""Whatever the bytes: a patch gives its target, is no larger than the target alone, and cannot harm who applies it."""

import random
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from chunkstore.codec import compress
from chunkstore.delta.errors import BadPatch
from chunkstore.delta.levels import way_for
from chunkstore.delta.patch import PatchDecoder, PatchEncoder
from chunkstore.delta.signature import Signature, sign
from tests.support.revisions import PAGE, pages, ram_records, touched

RATES = (None, 1e9, 60e6, 5e6, 2.5e6, 1e5)
FEW_BYTES = 1  # the first byte of a plain patch

seeds = st.integers(0, 2**32)


@st.composite
def old_chunks(draw: st.DrawFn) -> bytes:
    rng = random.Random(draw(seeds))
    kind = draw(st.integers(0, 4))
    size = draw(st.integers(0, 12_000))
    if kind == 0:
        return rng.randbytes(size)
    if kind == 1:
        return b"".join(rng.choices([rng.randbytes(9) for _ in range(20)], k=size // 9))
    if kind == 2:
        return b"".join(pages(rng, size // PAGE))
    if kind == 3:
        return ram_records(pages(rng, size // PAGE), rng.randrange(1 << 20), rng.choice((b"", b"pc.ram")))
    return bytes(size)


@st.composite
def revised(draw: st.DrawFn, old: bytes) -> bytes:
    """A chunk that was perhaps made from `old`."""
    rng = random.Random(draw(seeds))
    new = bytearray(old)
    for change in draw(st.lists(st.sampled_from(("insert", "delete", "rewrite", "count", "page")), max_size=5)):
        at, size = rng.randrange(len(new) + 1), rng.randrange(400)
        if change == "insert":
            new[at:at] = rng.randbytes(size)
        elif change == "delete":
            del new[at : at + size]
        elif change == "rewrite":
            new[at : at + size] = rng.randbytes(len(new[at : at + size]))
        elif change == "count":
            new[at : at + 1] = bytes((byte + 1) & 0xFF for byte in new[at : at + 1])
        elif len(new) >= PAGE:
            at -= at % PAGE
            page = bytes(new[at : at + PAGE])
            new[at : at + PAGE] = touched(page, rng, 3) if len(page) == PAGE else page
    return bytes(new)


@st.composite
def units(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    relative = draw(st.lists(old_chunks(), max_size=4))
    sources = st.one_of(old_chunks(), *[st.just(old) for old in relative])
    targets = [draw(revised(draw(sources))) for _ in range(draw(st.integers(0, 4)))]
    return targets, relative


@settings(max_examples=150, deadline=None)
@given(units(), st.sampled_from(RATES))
def test_a_patch_gives_its_target(unit: tuple[list[bytes], list[bytes]], rate: float | None) -> None:
    targets, relative = unit
    data = b"".join(targets)
    patch = PatchEncoder(rate).encode(targets, relative)
    assert PatchDecoder().decode(patch, len(data), relative) == data
    assert len(patch) <= len(compress(data, way_for(rate).literals)) + FEW_BYTES
    told = sign(relative)
    assert Signature.decode(told.encode(), sum(map(len, relative))) == told
    patch = PatchEncoder(rate).encode(targets, told)
    assert PatchDecoder().decode(patch, len(data), relative) == data
    assert len(patch) <= len(compress(data, way_for(rate).literals)) + FEW_BYTES


@settings(max_examples=300, deadline=None)
@given(units(), st.sampled_from(RATES), seeds)
def test_a_damaged_patch_gives_its_length_or_nothing(
    unit: tuple[list[bytes], list[bytes]], rate: float | None, seed: int
) -> None:
    targets, relative = unit
    size = sum(map(len, targets))
    rng = random.Random(seed)
    patch = bytearray(PatchEncoder(rate).encode(targets, relative))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(patch) + 1)
        way = rng.randrange(4)
        if way == 0:
            patch[at : at + 1] = rng.randbytes(1)
        elif way == 1:
            del patch[at:]
        elif way == 2:
            patch[at:at] = rng.randbytes(rng.randrange(5))
        elif patch:
            patch[0] = rng.randrange(4)
    due = rng.choice((size, size, size, 0, size + 1, size // 2))
    relative = rng.choice((relative, relative[1:], []))
    with suppress(BadPatch):
        assert len(PatchDecoder().decode(patch, due, relative)) == due


@given(st.binary(max_size=60), st.integers(0, 300))
def test_bytes_from_anywhere_are_refused_or_read(data: bytes, size: int) -> None:
    for attempt in (data, b"\1" + data, b"\2" + data):
        with suppress(BadPatch):
            assert len(PatchDecoder().decode(attempt, size, [bytes(100)])) == size
    try:
        signature = Signature.decode(data, size)
    except BadPatch:
        return
    assert sum(signature.lengths) <= size
    assert len(signature.lengths) == len(signature.fingerprints)
