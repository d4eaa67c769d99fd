"""Raw disk images: a file that is a disk, byte for byte.

Address and offset are the same, so segments are the regions of the file. What remains is to tell a disk from other
files, and that must rest on its content alone. One mark is not enough where it is short: a boot sector must have a
sound partition table (Linux kernels have its two magic bytes and code in place of the table), and an ext superblock
plausible numbers.

Sources: UEFI Specification 2.10, 5.2.1 and 5.3.2; Linux Documentation/filesystems/ext4/super.rst;
xfs_algorithms.pdf, "Superblocks"; btrfs.readthedocs.io "On-disk format"; ECMA-119.
"""

import struct
from itertools import pairwise

from chunkstore.holes import Window
from chunkstore.images.layout import DISK_REGION_BYTES, Key, Segment

SPACE = "disk"
HEAD_BYTES = 0x10048
"""Of a file's begin are looked at; the last mark is that of btrfs."""

_FIXED_MARKS = ((512, b"EFI PART"), (4096, b"EFI PART"), (0, b"XFSB"), (0x10040, b"_BHRfS_M"), (0x8001, b"CD001"))
_EXT_AT = 1024
_EXT = struct.Struct("<13I4H")
_EXT_MAGIC = 0xEF53
_PARTITION = struct.Struct("<B3sB3sII")
_PARTITIONS_AT = 446


def is_disk(head: bytes) -> bool:
    """Whether a file that begins with these `HEAD_BYTES` (or more) is a disk or a file system."""
    return has_fixed_mark(head) or _has_partitions(head) or _is_ext(head)


def has_fixed_mark(head: bytes) -> bool:
    """Whether it has one of the marks that are long enough to speak for themselves: all but boot sectors and ext."""
    return any(head.startswith(mark, at) for at, mark in _FIXED_MARKS)


class RawDisk:
    """The layout of a raw disk: one segment a region, no other reason to cut."""

    def feed(self, window: Window) -> None:
        """Nothing is learned from content."""

    def finish(self) -> None:
        """Nothing is learned from content."""

    def segment_at(self, offset: int) -> Segment:
        """See `Layout`."""
        start = offset // DISK_REGION_BYTES * DISK_REGION_BYTES
        return Segment(start, DISK_REGION_BYTES, Key(SPACE, start))


def _has_partitions(head: bytes) -> bool:
    """A boot sector whose table has partitions with sane flags, none of which overlap."""
    if not head.startswith(b"\x55\xaa", 510):
        return False
    spans: list[tuple[int, int]] = []
    for status, _, kind, _, start, count in _PARTITION.iter_unpack(head[_PARTITIONS_AT:510]):
        if status not in (0, 0x80):
            return False
        if kind:
            if not start or not count:
                return False
            spans.append((start, start + count))
        elif start or count:
            return False
    spans.sort()
    return bool(spans) and all(end <= start for (_, end), (start, _) in pairwise(spans))


def _is_ext(head: bytes) -> bool:
    fields = _EXT.unpack_from(head, _EXT_AT)
    inodes, blocks, log_size, per_group, magic, state = (fields[at] for at in (0, 1, 6, 8, 15, 16))
    if magic != _EXT_MAGIC or not inodes or not blocks or log_size > 6 or state > 7:
        return False
    return bool(0 < per_group <= 8 * (1024 << log_size))
