"""Virtual disks in qcow2: clusters of the guest's disk, each somewhere in the file.

Theory of operation
-------------------
The header leads to the level 1 table, that to level 2 tables, and these to clusters: guest address in, offset of the
file out. Files are cut in order of offset, so the map is turned round into one array, from each cluster of the file to
the guest's cluster in it: 4 bytes each, which is 64 MiB for the largest file that is taken (2^24 clusters: 1 TiB at the
usual 64 KiB). Neighbours in both are one segment up to the end of a region; compressed clusters, tables, snapshots and
what is not in use are plain.

Two copies of a disk that were written in another order have their clusters in another order, and still the same
segments. A table that is reached twice, or a cluster that two addresses share, is damage (or an attempt to keep a
reader busy): the work is bounded by the size of the file.

Not read: disks that are encrypted, keep their data in another file, or have subclusters (extended level 2 entries).

Source: QEMU, docs/interop/qcow2.txt.
"""

import struct
import sys
from array import array
from collections.abc import Iterator

from chunkstore.images.errors import ImageInvalid, ImageUnsupported
from chunkstore.images.layout import DISK_REGION_BYTES, Key, ReadAt, Segment, may_end

MAGIC = b"QFI\xfb"
SPACE = "disk"

_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_FEATURES = struct.Struct(">Q")
_DIRTY, _CORRUPT, _EXTERNAL, _COMPRESSION, _EXTENDED = (1 << bit for bit in range(5))
_KNOWN_FEATURES = _DIRTY | _CORRUPT | _COMPRESSION
_CLUSTER_BITS = range(9, 22)
_MAX_CLUSTERS = 1 << 24
_MAX_TABLE_BYTES = 32 << 20
_MAX_TABLES = 1 << 17

_MOST_OFFSET = (1 << 63) - 1  # of any file
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62


def segments(read_at: ReadAt, size: int) -> Iterator[Segment]:
    """The segments of a file of `size` bytes; for `layout.Prepared`. Tables are read before it returns.

    Raises:
        ImageUnsupported: see above.
        ImageInvalid: it is damaged or cut off.
        OSError: as `read_at`.
    """
    header = read_at(0, _HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise ImageInvalid(0, "not a qcow2 disk")
    _, version, _, _, bits, disk_bytes, encrypted, l1_entries, l1_at, _, _, _, _ = _HEADER.unpack(header)
    if version == 0:
        raise ImageInvalid(4, "qcow2 version 0, which never was")
    if version not in (2, 3):
        raise ImageUnsupported(4, f"qcow2 version {version}")
    if bits not in _CLUSTER_BITS:
        raise ImageInvalid(20, f"clusters of 2^{bits} bytes")
    if encrypted:
        raise ImageUnsupported(32, "the disk is encrypted")
    if version > 2:
        _check_features(read_at(_HEADER.size, _FEATURES.size))
    cluster = 1 << bits
    if -(-size // cluster) > _MAX_CLUSTERS:
        raise ImageUnsupported(20, f"more than {_MAX_CLUSTERS} clusters")
    if l1_entries * 8 > _MAX_TABLE_BYTES:
        raise ImageInvalid(36, f"a level 1 table of {l1_entries} entries")
    if disk_bytes > l1_entries * (cluster // 8) * cluster:
        raise ImageInvalid(36, "a level 1 table that is too short for the disk")
    return _cut(_turned(read_at, size, bits, l1_at, l1_entries), bits, size)


def _check_features(field: bytes) -> None:
    if len(field) < _FEATURES.size:
        raise ImageInvalid(_HEADER.size, "the header is cut off")
    features = _FEATURES.unpack(field)[0]
    if features & _EXTERNAL:
        raise ImageUnsupported(_HEADER.size, "the disk's data is in another file")
    if features & ~_KNOWN_FEATURES:
        raise ImageUnsupported(_HEADER.size, f"features that are not known: {features & ~_KNOWN_FEATURES:#x}")


def _table(read_at: ReadAt, at: int, entries: int) -> "array[int]":
    data = read_at(at, entries * 8) if at <= _MOST_OFFSET else b""
    if len(data) < entries * 8:
        raise ImageInvalid(at, "a table that is cut off")
    if data.count(0) == len(data):
        return array("Q")
    table = array("Q", data)
    if sys.byteorder == "little":
        table.byteswap()
    return table


def _turned(read_at: ReadAt, size: int, bits: int, l1_at: int, l1_entries: int) -> "array[int]":
    """For each cluster of the file, one more than the number of the guest's cluster in it; 0 for none."""
    cluster = 1 << bits
    entries = cluster // 8
    guests = array("I", bytes(4 * -(-size // cluster)))
    tables: set[int] = set()
    if l1_at % cluster:
        raise ImageInvalid(40, "a level 1 table that is not aligned")
    for number, entry in enumerate(_table(read_at, l1_at, l1_entries)):
        l2_at = entry & _OFFSET
        if not l2_at:
            continue
        if l2_at % cluster or l2_at in tables or len(tables) == _MAX_TABLES:
            raise ImageInvalid(l1_at + 8 * number, f"a level 2 table at {l2_at:#x}: not aligned, or once too often")
        tables.add(l2_at)
        table = _table(read_at, l2_at, entries)
        for slot, entry in enumerate(table):
            if not entry & _OFFSET or entry & _COMPRESSED:
                continue
            host, odd = divmod(entry & _OFFSET, cluster)
            guest = number * entries + slot
            if odd or host >= len(guests) or guests[host] or guest >= (1 << 32) - 1:
                raise ImageInvalid(l2_at + 8 * slot, f"a cluster at {entry & _OFFSET:#x}: not there, or once too often")
            guests[host] = guest + 1
    return guests


def _cut(guests: "array[int]", bits: int, size: int) -> Iterator[Segment]:
    cluster = 1 << bits
    start = last = 0
    key: Key | None = None
    for host, guest in enumerate(guests):
        offset = host << bits
        if not guest:
            if key is not None:
                yield Segment(start, offset - start, key)
                start, key = offset, None
            continue
        first = (guest - 1) << bits
        for address in range(first, first + cluster, DISK_REGION_BYTES):  # a large cluster is several regions
            goes_on = address == last + min(cluster, DISK_REGION_BYTES) and address % DISK_REGION_BYTES
            if key is None or (not goes_on and may_end(offset - start, last, address)):
                if offset > start:
                    yield Segment(start, offset - start, key)
                start, key = offset, Key(SPACE, address)
            last = address
            offset += DISK_REGION_BYTES
    if size > start:
        yield Segment(start, size - start, key)
