"""Damage of memory images that CRIU would stumble over too late."""

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from backends import criuimages

MAGIC = struct.pack("<II", 0x54564319, 0x56084025)
PRESENT, LAZY = 4, 2


def varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


def message(**fields: int) -> bytes:
    body = b"".join(varint(int(key[1:]) << 3) + varint(value) for key, value in fields.items())
    return struct.pack("<I", len(body)) + body


def images(folder: Path, number: int, runs: Sequence[tuple[int, int]], pages: int) -> None:
    """A pagemap with runs of (pages, flags), and a file of so many pages."""
    data, address = MAGIC + message(f1=number), 0x400000
    for count, flags in runs:
        data += message(f1=address, f2=0, f4=flags, f5=count)
        address += count * 4096
    (folder / f"pagemap-{number}.img").write_bytes(data)
    (folder / f"pages-{number}.img").write_bytes(bytes(pages * 4096))


def test_whole_images_are_fine(tmp_path: Path) -> None:
    images(tmp_path, 1, [(3, PRESENT), (7, LAZY), (2, PRESENT)], 5)
    images(tmp_path, 2, [], 0)
    (tmp_path / "inventory.img").write_bytes(b"x")
    assert criuimages.damage(tmp_path) is None


def test_missing_pages_are_told(tmp_path: Path) -> None:
    images(tmp_path, 1, [(3, PRESENT)], 3)
    images(tmp_path, 2, [(3, PRESENT)], 2)
    assert criuimages.damage(tmp_path) == "pages-2.img is truncated: it has 8192 of 12288 bytes"
    (tmp_path / "pages-2.img").unlink()
    assert criuimages.damage(tmp_path) == "pages-2.img: No such file or directory"


@pytest.mark.parametrize("length", [0, 5, 9, 20])
def test_a_pagemap_that_makes_no_sense_is_for_criu_to_judge(tmp_path: Path, length: int) -> None:
    images(tmp_path, 1, [(3, PRESENT)], 0)
    path = tmp_path / "pagemap-1.img"
    path.write_bytes(path.read_bytes()[:length])
    assert criuimages.damage(tmp_path) is None


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert criuimages.damage(tmp_path / "images") == "images: No such file or directory"
