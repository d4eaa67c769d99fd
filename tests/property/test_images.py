"""Whatever an image holds, its segments cover it, its chunks are its bytes, and damage is told or passed over."""

import random
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkstore.chunker import cut_file
from chunkstore.codec import MAX_CHUNK_BYTES
from chunkstore.holes import BLOCK_BYTES, Window
from chunkstore.images import criu, qcow2
from chunkstore.images.errors import ImageInvalid
from chunkstore.images.layout import REGION_BYTES, Layout, Prepared, ReadAt, Segment
from chunkstore.images.qemu import SavedMemory
from chunkstore.images.raw import RawDisk
from tests.support import images
from tests.support.images import PAGE, PRESENT, ZERO_PAGE, libvirt_save, pagemap, stream

SEGMENT_LIMIT = REGION_BYTES + 64 * (8 + 256) + (16 << 10)
NOISE = random.Random(11).randbytes(1 << 20)


def some_page(number: int) -> bytes:
    """Cheap bytes that differ from page to page."""
    at = number * 37 % (len(NOISE) - PAGE)
    return NOISE[at : at + PAGE]


def reads(data: bytes) -> ReadAt:
    return lambda offset, length: data[offset : offset + length]


def windows_of(data: bytes, sizes: list[int]) -> Iterator[Window]:
    """The file in windows of these sizes (in blocks), zeros as a count where a window has nothing else."""
    at = 0
    turn = 0
    while at < len(data):
        window = data[at : at + BLOCK_BYTES * sizes[turn % len(sizes)]]
        turn += 1
        at += len(window)
        yield len(window) if not any(window) else window


def check(data: bytes, make: Callable[[], Layout], sizes: list[int]) -> list[int]:
    """Cut a file; everything that holds for any image, sound or not. Returns lengths, holes negative."""
    pieces = list(cut_file(windows_of(data, sizes), make()))
    assert b"".join(bytes(piece) for piece in pieces) == data
    found = [-piece if isinstance(piece, int) else len(piece) for piece in pieces]
    assert all(0 < length <= min(SEGMENT_LIMIT, MAX_CHUNK_BYTES) for length in found if length > 0)
    at = 0
    for length, following in pairwise([*found, 1]):
        assert length > 0 or (at % BLOCK_BYTES == 0 and following > 0)
        at += abs(length)
    assert found == [
        -piece if isinstance(piece, int) else len(piece) for piece in cut_file(windows_of(data, [512]), make())
    ]
    return found


def strict(data: bytes, layout: Layout) -> list[Segment]:
    """The segments of a file, all of them, or an error."""
    found: list[Segment] = []
    layout.feed(data)
    layout.finish()
    at = 0
    while at < len(data):
        segment = layout.segment_at(at)
        assert segment is not None and segment.offset <= at < segment.end
        found.append(segment)
        at = segment.end
    return found


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4)
flags = st.sampled_from((PRESENT, PRESENT, PRESENT, images.LAZY, images.PARENT))


@st.composite
def dumps(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A pagemap and its pages."""
    address = draw(st.integers(1, 1 << 20)) * PAGE
    runs: list[tuple[int, int, int]] = []
    for gap, pages, flag in draw(
        st.lists(st.tuples(st.sampled_from((0, 1, 63, 64, 5000)), st.integers(1, 150), flags), max_size=8)
    ):
        address += gap * PAGE
        runs.append((address, pages, flag))
        address += pages * PAGE
    zero_every = draw(st.integers(2, 90))
    numbers = (number for vaddr, pages, flag in runs if flag == PRESENT for number in range(vaddr, vaddr + pages))
    content = b"".join(ZERO_PAGE if number % zero_every == 0 else some_page(number) for number in numbers)
    return pagemap(1, runs), content


@settings(max_examples=60, deadline=None)
@given(dumps(), sizes)
def test_dumps(dump: tuple[bytes, bytes], sizes: list[int]) -> None:
    mapped, pages = dump
    check(pages, lambda: Prepared(criu.segments(criu.Pagemap(reads(mapped)), len(pages))), sizes)
    found = strict(pages, Prepared(criu.segments(criu.Pagemap(reads(mapped)), len(pages))))
    for before, after in pairwise(found):
        assert before.end == after.offset
        assert before.key and after.key and before.key.address // REGION_BYTES < after.key.address // REGION_BYTES
    if found:
        assert found[-1].end == len(pages)


@st.composite
def saves(draw: st.DrawFn) -> bytes:
    """A saved memory, of libvirt or bare."""
    blocks = [(b"pc.ram", 8 << 20), (b"n" * 255, 4 << 20)]
    sections: list[list[tuple[bytes, int, bytes]]] = []
    for parts in draw(
        st.lists(
            st.lists(
                st.tuples(st.sampled_from(blocks), st.integers(0, 900), st.integers(0, 150), st.booleans()), max_size=4
            ),
            min_size=1,
            max_size=3,
        )
    ):
        pages: list[tuple[bytes, int, bytes]] = []
        for (name, _), first, count, zero in parts:
            for number in range(first, min(first + count, 1024)):
                pages.append((name, number * PAGE, ZERO_PAGE if zero else some_page(number)))
        sections.append(pages)
    made = stream(blocks, sections)
    return libvirt_save(made, b"<domain/>".ljust(draw(st.integers(9, 20_000)), b"\0")) if draw(st.booleans()) else made


@settings(max_examples=60, deadline=None)
@given(saves(), sizes)
def test_saves(save: bytes, sizes: list[int]) -> None:
    check(save, SavedMemory, sizes)
    found = strict(save, SavedMemory())
    assert sum(segment.length for segment in found) == len(save)
    assert found[0].key is None and found[-1].key is None


@st.composite
def disks(draw: st.DrawFn) -> bytes:
    """A qcow2 disk of small or usual clusters."""
    bits = draw(st.sampled_from((9, 12, 15, 16)))
    most = {9: 300, 12: 120, 15: 30, 16: 12}[bits]
    numbers = draw(
        st.lists(st.one_of(st.none(), st.integers(0, 400)), max_size=most, unique_by=lambda n: n or object())
    )
    if draw(st.booleans()):
        start = draw(st.integers(0, 100))
        numbers = [*range(start, start + most)]
    return images.qcow2([None if n == 0 else n for n in numbers], bits=bits)


@settings(max_examples=40, deadline=None)
@given(disks(), sizes)
def test_disks(disk: bytes, sizes: list[int]) -> None:
    check(disk, lambda: Prepared(qcow2.segments(reads(disk), len(disk))), sizes)
    found = strict(disk, Prepared(qcow2.segments(reads(disk), len(disk))))
    assert found[0].offset == 0 and found[-1].end == len(disk)
    assert all(before.end == after.offset for before, after in pairwise(found))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 700_000), st.lists(st.tuples(st.integers(0, 170), st.integers(1, 90)), max_size=4), sizes)
def test_raw_disks(size: int, zeros: list[tuple[int, int]], sizes: list[int]) -> None:
    disk = bytearray(NOISE[:size])
    for start, count in zeros:
        disk[start * PAGE : min(size, (start + count) * PAGE)] = bytes(
            max(0, min(size, (start + count) * PAGE) - start * PAGE)
        )
    check(bytes(disk), RawDisk, sizes)


# Damage

SMALL_RUNS = [(0x400000, 3, PRESENT), (0x500000, 2, images.PARENT), (0x7F0000001000, 70, PRESENT)]
SMALL_MAP = pagemap(1, SMALL_RUNS)
SMALL_PAGES = b"".join(map(some_page, range(73)))
SMALL_SAVE = libvirt_save(
    stream(
        [(b"pc.ram", 1 << 20)],
        [
            [(b"pc.ram", number * PAGE, ZERO_PAGE if number % 3 else some_page(number)) for number in range(12)],
            [(b"pc.ram", number * PAGE, some_page(number)) for number in range(12, 14)],
        ],
    ),
    b"<domain/>\0\0",
)
INSIDE_PAGES = {
    at
    for number in (0, 3, 6, 9, 12, 13)
    for at in range(SMALL_SAVE.index(some_page(number)) + 2, SMALL_SAVE.index(some_page(number)) + PAGE - 2)
}
SMALL_DISK = images.qcow2([5, 6, None, 80, 1], bits=9)


def lay_out_map(data: bytes, size: int = len(SMALL_PAGES)) -> list[Segment]:
    return list(criu.segments(criu.Pagemap(reads(data)), size))


def lay_out_disk(data: bytes) -> list[Segment]:
    return list(qcow2.segments(reads(data), len(data)))


def lay_out_save(data: bytes) -> list[Segment]:
    return strict(data, SavedMemory()) if data else []


IMAGES: list[tuple[Callable[[bytes], list[Segment]], bytes]] = [
    (lay_out_map, SMALL_MAP),
    (lay_out_disk, SMALL_DISK),
    (lay_out_save, SMALL_SAVE),
]


def tolerated(lay_out: Callable[[bytes], list[Segment]], data: bytes) -> bool:
    """Whether there is a layout; without one, the error must tell where."""
    try:
        found = lay_out(data)
    except ImageInvalid as error:
        if not str(error).startswith(f"at byte {error.offset}: "):
            raise
        return False
    assert all(segment.length > 0 for segment in found)
    assert all(before.end == after.offset for before, after in pairwise(found))
    return True


@pytest.mark.parametrize(("lay_out", "data"), IMAGES[:2], ids=["pagemap", "qcow2"])
def test_cut_off_anywhere(lay_out: Callable[[bytes], list[Segment]], data: bytes) -> None:
    assert tolerated(lay_out, data)
    sound = [end for end in range(len(data)) if tolerated(lay_out, data[:end])]
    assert lay_out is lay_out_disk or not sound
    assert all(end > len(data) - 512 for end in sound)  # a last cluster may be short


def test_a_save_cut_off_anywhere() -> None:
    devices = SMALL_SAVE.index(b"\4\0\0\0\3\5timer")
    fed = SavedMemory()
    last = 0
    for end in range(len(SMALL_SAVE)):  # what is known at each state is what a shorter file tells
        if end in INSIDE_PAGES and end % 101:
            continue
        fed.feed(SMALL_SAVE[last:end])
        last = end
        if end < devices + 19:
            with pytest.raises(ImageInvalid, match=f"at byte {end}: a saved memory that is cut off"):
                fed.finish()
        else:
            fed.finish()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(IMAGES), st.data())
def test_flipped_bytes(image: tuple[Callable[[bytes], list[Segment]], bytes], data: st.DataObject) -> None:
    lay_out, sound = image
    # Structure is where the bytes are that matter
    at = st.one_of(st.integers(0, len(sound) - 1), st.integers(0, min(len(sound), 1600) - 1))
    spoiled = bytearray(sound)
    for where, value in data.draw(st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=6)):
        spoiled[where] = value
    cut = data.draw(st.integers(len(spoiled) // 2, len(spoiled)))
    tolerated(lay_out, bytes(spoiled[:cut]))
    if lay_out is lay_out_save:
        check(bytes(spoiled[:cut]), SavedMemory, [3])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 40), st.integers(0, 7)), max_size=6))
def test_maps_of_anything(runs: list[tuple[int, int, int]]) -> None:
    tolerated(lay_out_map, pagemap(1, runs))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=8, max_size=8),
    st.lists(st.integers(0, 20), min_size=64, max_size=64),
    st.integers(0, 63),
)
def test_tables_of_anything(level_1: list[int], level_2: list[int], flags: int) -> None:
    """Tables that lead to each other, to themselves, to the header and out of the file."""
    disk = bytearray(SMALL_DISK)
    disk[36:40] = (8).to_bytes(4)
    disk[24:32] = (8 * 64 * 512).to_bytes(8)
    disk[512 : 512 + 64] = b"".join((number * 512).to_bytes(8) for number in level_1)
    disk[1024 : 1024 + 512] = b"".join((number * 512 | flags << 57).to_bytes(8) for number in level_2)
    tolerated(lay_out_disk, bytes(disk))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from((b"", b"QEVM\0\0\0\3", libvirt_save(b"QEVM\0\0\0\3", b"<domain/>"))))
def test_noise(noise: bytes, head: bytes) -> None:
    tolerated(lay_out_save, head + noise)
    tolerated(lay_out_disk, b"QFI\xfb\0\0\0\3" + noise)
    tolerated(lay_out_map, images.CRIU_MAGIC + noise)
