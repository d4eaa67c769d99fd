"""Pagemaps: what every version of CRIU wrote, where pages are cut, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chunkstore.images.criu import Pagemap, Run, choose, is_map_name, pages_number, segments
from chunkstore.images.errors import ImageInvalid
from chunkstore.images.layout import LEAST_BYTES, REGION_BYTES, Key, ReadAt, Segment
from chunkstore.images.recognise import open_layout
from tests.support.images import (
    CRIU_MAGIC,
    LAZY,
    PAGE,
    PARENT,
    PRESENT,
    criu_folder,
    message,
    old_pagemap,
    page,
    pagemap,
)

BASE = 0x7F00_0000_0000  # a multiple of 16 MiB


def reads(data: bytes) -> ReadAt:
    return lambda offset, length: data[offset : offset + length]


def made(runs: list[tuple[int, int, int]], pages: int | None = None) -> list[Segment]:
    if pages is None:
        pages = sum(count for _, count, flags in runs if flags & PRESENT)
    return list(segments(Pagemap(reads(pagemap(1, runs))), pages * PAGE))


def test_a_map_of_today() -> None:
    runs = [(0x400000, 3, PRESENT), (0x600000, 2, PARENT), (0x700000, 5, LAZY), (0x800000, 1, LAZY | PRESENT)]
    found = Pagemap(reads(pagemap(7, runs)))
    assert found.pages_number == 7
    expected = [Run(0x400000, 3, True), Run(0x600000, 2, False), Run(0x700000, 5, False), Run(0x800000, 1, True)]
    assert list(found.runs()) == expected


def test_a_map_of_old() -> None:
    found = Pagemap(reads(old_pagemap(1, [(0x400000, 3, False), (0x600000, 2, True)])))
    assert list(found.runs()) == [Run(0x400000, 3, True), Run(0x600000, 2, False)]


def test_fields_that_are_not_known_are_passed_over() -> None:
    fields = bytes((9 << 3 | 2, 3)) + b"abc" + bytes((10 << 3 | 1,)) + bytes(8) + bytes((11 << 3 | 5,)) + bytes(4)
    body = fields + message((1, 0x400000), (5, 2))[4:]
    data = CRIU_MAGIC + message((1, 1)) + len(body).to_bytes(4, "little") + body
    assert list(Pagemap(reads(data)).runs()) == [Run(0x400000, 2, True)]


def test_a_long_map_is_read_in_pieces() -> None:
    runs = [(BASE + 2 * PAGE * number, 1, PRESENT) for number in range(20_000)]
    data = pagemap(1, runs)
    asked: list[int] = []

    def read_at(offset: int, length: int) -> bytes:
        asked.append(length)
        return data[offset : offset + length]

    assert sum(1 for _ in Pagemap(read_at).runs()) == 20_000
    assert max(asked) <= 64 << 10


def test_seams_lie_at_round_addresses() -> None:
    found = made([(BASE + 3 * PAGE, 200, PRESENT)])
    assert [segment.key for segment in found] == [
        Key("vaddr", BASE + 3 * PAGE),
        *(Key("vaddr", BASE + number * REGION_BYTES) for number in (1, 2, 3)),
    ]
    assert [segment.length // PAGE for segment in found] == [61, 64, 64, 11]
    assert sum(segment.length for segment in found) == 200 * PAGE


def test_a_page_more_moves_one_segment() -> None:
    pages = [page(number) for number in range(300)]
    before = made([(BASE, 100, PRESENT), (BASE + 128 * PAGE, 172, PRESENT)])
    after = made([(BASE, 101, PRESENT), (BASE + 128 * PAGE, 172, PRESENT)])
    old, new = b"".join(pages[:272]), b"".join((*pages[:100], pages[299], *pages[100:272]))
    known = {old[s.offset : s.end] for s in before}
    assert sum(new[s.offset : s.end] not in known for s in after) == 1


def test_lonely_pages_share_a_segment() -> None:
    found = made([(BASE + number * REGION_BYTES, 1, PRESENT) for number in range(64)])
    assert [segment.length for segment in found] == [LEAST_BYTES] * 16
    far = made([(BASE, 1, PRESENT), (BASE + (16 << 20), 1, PRESENT)])
    assert [segment.length for segment in far] == [PAGE, PAGE]


def test_names() -> None:
    assert [pages_number(name) for name in (b"pages-1.img", b"pages-20.img", b"pages-01.img", b"pages-.img")] == [
        1,
        20,
        None,
        None,
    ]
    assert is_map_name(b"pagemap-31.img") and is_map_name(b"pagemap-shmem-5.img")
    assert not is_map_name(b"pagemap-31.img.bak") and not is_map_name(b"pages-1.img")


def test_two_maps_of_one_number_are_none() -> None:
    maps = [(b"a", 1), (b"b", 2), (b"c", 1)]
    assert choose((name, Pagemap(reads(pagemap(number, [])))) for name, number in maps) == {2: b"b"}


HEAD = CRIU_MAGIC + message((1, 1))


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", 0),
        (b"\0" * 20, 0),
        (CRIU_MAGIC, 8),
        (CRIU_MAGIC + b"\2", 8),
        (HEAD + b"\xff\xff\xff\xff", 14),
        (HEAD + b"\x05\0\0\0\x08", 14),
        (HEAD + b"\x01\0\0\0\x08", 14),
        (HEAD + b"\x02\0\0\0\x0b\x00", 14),
        (HEAD + b"\x0b\0\0\0\x08" + b"\xff" * 10, 14),
        (HEAD + b"\x02\0\0\0\x12\x7f", 14),
        (HEAD + message((1, 4096)), 14),
        (HEAD + message((5, 1)), 14),
        (HEAD + message((1, 4095), (5, 1)), 14),
        (HEAD + message((1, (1 << 64) - 4096), (5, 2)), 14),
        (HEAD + message((1, 4096), (5, (1 << 64) - 1)), 14),
        (HEAD + message((1, 4096), (5, 2)) + message((1, 8192), (5, 1)), 23),
        (HEAD + message((1, 8192), (5, 1)) + message((1, 4096), (5, 1)), 23),
    ],
    ids=lambda value: None if isinstance(value, int) else "" if not isinstance(value, str) else value,
)
def test_broken_maps(data: bytes, where: int) -> None:
    with pytest.raises(ImageInvalid, match=rf"^at byte {where}: ") as caught:
        list(Pagemap(reads(data)).runs())
    assert caught.value.offset == where


@pytest.mark.parametrize("pages", [0, 1, 3, 1 << 40])
def test_pages_that_do_not_fit_the_map(pages: int) -> None:
    with pytest.raises(ImageInvalid, match="pages are not as many"):
        made([(BASE, 2, PRESENT)], pages)


def test_a_huge_count_costs_nothing() -> None:
    with pytest.raises(ImageInvalid, match="pages are not as many"):
        made([(BASE, 1 << 33, PRESENT)], 5)


def test_a_folder(tmp_path: Path) -> None:
    criu_folder(tmp_path, [(BASE, 70, PRESENT)], b"".join(map(page, range(70))))
    criu_folder(tmp_path, [(0x400000, 2, PRESENT)], page(1) + page(2), number=2)
    (tmp_path / "pagemap-3.img").write_bytes(b"noise")
    assert [s.length for s in open_layout(tmp_path / "pages-1.img")] == [64 * PAGE, 6 * PAGE]
    assert [s.key for s in open_layout(tmp_path / "pages-2.img")] == [Key("vaddr", 0x400000)]
    (tmp_path / "pages-3.img").write_bytes(b"no one knows")
    assert list(open_layout(tmp_path / "pages-3.img")) == [Segment(0, 12, None)]
    (tmp_path / "pages-1.img").write_bytes(page(1))
    with pytest.raises(ImageInvalid):
        list(open_layout(tmp_path / "pages-1.img"))


def test_reading_fails(tmp_path: Path) -> None:
    def broken() -> Callable[[int, int], bytes]:
        def read_at(offset: int, length: int) -> bytes:
            raise OSError(5, "broken")

        return read_at

    with pytest.raises(OSError, match="broken"):
        Pagemap(broken())
