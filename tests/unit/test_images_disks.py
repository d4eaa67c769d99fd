"""Virtual disks: clusters of qcow2 by the guest's address, raw disks by their marks, and what is refused."""

import struct
from pathlib import Path

import pytest

from chunkstore.holes import Window
from chunkstore.images.errors import ImageInvalid, ImageUnsupported
from chunkstore.images.layout import DISK_REGION_BYTES, Key, ReadAt, Segment
from chunkstore.images.qcow2 import segments
from chunkstore.images.raw import HEAD_BYTES, RawDisk, is_disk
from chunkstore.images.recognise import LEAST_IMAGE_BYTES, by_head, by_tables, open_layout
from tests.support.images import boot_sector, ext_superblock, qcow2, raw_disk

CLUSTER = 1 << 16


def reads(data: bytes) -> ReadAt:
    return lambda offset, length: data[offset : offset + length]


def laid_out(data: bytes) -> list[Segment]:
    return list(segments(reads(data), len(data)))


def keyed(data: bytes, cluster: int = CLUSTER) -> list[tuple[int, int]]:
    """Address and length of each segment in clusters."""
    return [(s.key.address // cluster, s.length // cluster) for s in laid_out(data) if s.key is not None]


@pytest.mark.parametrize("version", [2, 3])
def test_clusters_in_order(version: int) -> None:
    data = qcow2(range(10), bits=14, version=version)
    found = laid_out(data)
    assert found[0] == Segment(0, 3 << 14, None)
    assert [s.key for s in found[1:]] == [Key("disk", at * DISK_REGION_BYTES) for at in range(3)]
    assert found[-1].end == len(data)
    assert keyed(data, 1 << 14) == [(0, 4), (4, 4), (8, 2)]


def test_clusters_in_disorder_and_not_in_use() -> None:
    disk = qcow2([9, 10, 2, 3, None, 4, 6, 7, 8], bits=14)
    assert keyed(disk, 1 << 14) == [(9, 2), (2, 2), (4, 1), (6, 2), (8, 1)]


def test_the_same_disk_written_in_another_order() -> None:
    one, other = qcow2([0, 1, 2, 3, 40, 41, 20]), qcow2([40, 41, 20, 0, 1, 2, 3])
    contents = [{data[s.offset : s.end] for s in laid_out(data) if s.key is not None} for data in (one, other)]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("bits", [9, 12, 18, 19, 20, 21])
def test_sizes_of_clusters(bits: int) -> None:
    count = 40 if bits < 18 else 2
    data = qcow2(range(count), bits=bits)
    found = [s for s in laid_out(data) if s.key is not None]
    assert sum(s.length for s in found) == count << bits
    assert all(s.length <= DISK_REGION_BYTES for s in found)
    assert [s.key.address for s in found if s.key] == list(range(0, count << bits, DISK_REGION_BYTES))


def test_a_last_cluster_that_is_short() -> None:
    data = qcow2(range(2))[:-1000]
    assert laid_out(data)[-1].end == len(data)


def put(data: bytes, at: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(">" + form, changed, at, value)
    return bytes(changed)


def test_compressed_and_zero_clusters_are_plain() -> None:
    data = put(put(qcow2(range(4)), 2 * CLUSTER + 8, "Q", 1 << 62 | 12345), 2 * CLUSTER + 16, "Q", 1)
    assert keyed(data) == [(0, 1), (3, 1)]


def test_a_disk_with_nothing_in_it() -> None:
    data = put(qcow2([0]), CLUSTER, "Q", 0)
    assert laid_out(data) == [Segment(0, len(data), None)]
    assert keyed(put(qcow2([0]), 2 * CLUSTER, "Q", 0)) == []


L1, L2 = CLUSTER, 2 * CLUSTER


@pytest.mark.parametrize(
    ("data", "where", "reason"),
    [
        (b"", 0, "not a qcow2"),
        (b"QFI\xfb" + bytes(50), 0, "not a qcow2"),
        (put(qcow2([0]), 20, "I", 8), 20, r"clusters of 2\^8"),
        (put(qcow2([0]), 20, "I", 22), 20, r"clusters of 2\^22"),
        (qcow2([0])[:75], 72, "the header is cut off"),
        (put(qcow2([0]), 36, "I", 0xFFFFFFFF), 36, "level 1 table of"),
        (put(qcow2([0]), 36, "I", 0), 36, "too short for the disk"),
        (put(qcow2([0]), 24, "Q", 1 << 60), 36, "too short for the disk"),
        (put(qcow2([0]), 40, "Q", 1 << 40), 1 << 40, "a table that is cut off"),
        (put(qcow2([0]), 40, "Q", 100), 40, "not aligned"),
        (put(qcow2([0]), L1, "Q", 1 << 40), 1 << 40, "a table that is cut off"),
        (put(qcow2([0]), L1, "Q", 512), L1, "a level 2 table at 0x200: not aligned"),
        (put(qcow2([0, 8192]), L1 + 8, "Q", L2), L1 + 8, "once too often"),
        (put(qcow2([0, 1]), L2, "Q", 4 * CLUSTER), L2 + 8, "once too often"),
        (put(qcow2([0]), L2, "Q", 1 << 40), L2, "not there"),
        (put(qcow2([0]), L2, "Q", 4 * CLUSTER - 512), L2, "not there"),
        (qcow2([0, 1])[: 2 * CLUSTER + 100], L2, "a table that is cut off"),
    ],
    ids=lambda value: None if isinstance(value, int) else "" if not isinstance(value, str) else value,
)
def test_broken_disks(data: bytes, where: int, reason: str) -> None:
    with pytest.raises(ImageInvalid, match=f"^at byte {where}: .*{reason}"):
        laid_out(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (put(qcow2([0]), 4, "I", 4), "version 4"),
        (qcow2([0], encrypted=2), "encrypted"),
        (qcow2([0], features=4), "another file"),
        (qcow2([0], features=16), "features that are not known: 0x10"),
    ],
    ids=lambda value: None if isinstance(value, int) else "" if not isinstance(value, str) else value,
)
def test_disks_that_are_not_read(data: bytes, reason: str) -> None:
    with pytest.raises(ImageUnsupported, match=reason):
        laid_out(data)


def test_a_file_of_too_many_clusters() -> None:
    with pytest.raises(ImageUnsupported, match="more than 16777216 clusters"):
        segments(reads(qcow2([0], bits=9)), 1 << 40)


def test_tables_are_read_once_each() -> None:
    asked: list[int] = []
    data = qcow2([0, 8192, 3 * 8192])

    def read_at(offset: int, length: int) -> bytes:
        asked.append(offset)
        return data[offset : offset + length]

    assert by_tables(read_at, len(data)) is not None
    assert len(asked) == len(set(asked)) + 1  # the magic, and the header with it


MARKED = {
    "gpt": ((0, boot_sector((0, 0xEE, 1, 100))), (512, b"EFI PART")),
    "gpt of 4 KiB": ((4096, b"EFI PART"),),
    "mbr": ((0, boot_sector((0x80, 0x83, 2048, 4096), (0, 0, 0, 0), (0, 0x82, 6144, 100))),),
    "ext4": ((1024, ext_superblock()),),
    "xfs": ((0, b"XFSB"),),
    "btrfs": ((0x10040, b"_BHRfS_M"),),
    "iso9660": ((0x8001, b"CD001"),),
}


@pytest.mark.parametrize("marks", MARKED.values(), ids=MARKED)
def test_disks_are_known_by_their_marks(marks: tuple[tuple[int, bytes], ...], tmp_path: Path) -> None:
    disk = raw_disk(600_000, marks)
    assert is_disk(disk)
    (tmp_path / "disk").write_bytes(disk)
    assert list(open_layout(tmp_path / "disk")) == [
        Segment(at, min(DISK_REGION_BYTES, 600_000 - at), Key("disk", at))
        for at in range(0, 600_000, DISK_REGION_BYTES)
    ]


@pytest.mark.parametrize(
    "marks",
    [
        (),
        ((510, b"\x55\xaa"),),  # a boot sector without partitions
        ((0, boot_sector((0x33, 0x83, 2048, 4096))),),  # code of a kernel in place of the table
        ((0, boot_sector((0, 0x83, 0, 4096))),),
        ((0, boot_sector((0, 0, 5, 4096))),),
        ((0, boot_sector((0, 0x83, 2048, 4096), (0, 0x83, 4096, 4096))),),
        ((1080, b"\x53\xef"),),
        ((1024, ext_superblock()[:24] + b"\x55" * 4 + ext_superblock()[28:]),),
    ],
    ids=lambda value: None if isinstance(value, int) else "" if not isinstance(value, str) else value,
)
def test_other_files_are_no_disks(marks: tuple[tuple[int, bytes], ...]) -> None:
    assert not is_disk(raw_disk(100_000, marks))


def test_the_head_may_come_in_any_windows() -> None:
    disk = raw_disk(200_000, MARKED["btrfs"])
    ways: list[list[Window]] = [[disk], [disk[:4096], disk[4096:]], [4096 * 16, disk[65536:]]]
    for windows in ways:
        same, layout = by_head(windows)
        assert list(same) == windows
        assert isinstance(layout, RawDisk)
    assert by_head([disk[: LEAST_IMAGE_BYTES - 1]])[1] is None
    assert by_head([1 << 50])[1] is None
    assert HEAD_BYTES == LEAST_IMAGE_BYTES
