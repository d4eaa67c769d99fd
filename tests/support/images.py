"""Small images of every sort that is cut by its layout, byte for byte as their programs write them."""

import random
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = 4096
ZERO_PAGE = bytes(PAGE)
CRIU_MAGIC = struct.pack("<II", 0x54564319, 0x56084025)
PRESENT, LAZY, PARENT = 4, 2, 1


def page(seed: int) -> bytes:
    """Bytes that no zero page has."""
    return random.Random(seed).randbytes(PAGE)


# CRIU


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def message(*fields: tuple[int, int]) -> bytes:
    """A protobuf message of numbers, with its length before it."""
    body = b"".join(varint(number << 3) + varint(value) for number, value in fields)
    return struct.pack("<I", len(body)) + body


def pagemap(number: int, runs: Iterable[tuple[int, int, int]]) -> bytes:
    """A pagemap as CRIU 4.2 writes it; runs are (address, pages, flags)."""
    entries = (message((1, vaddr), (2, 0), (4, flags), (5, pages)) for vaddr, pages, flags in runs)
    return CRIU_MAGIC + message((1, number)) + b"".join(entries)


def old_pagemap(number: int, runs: Iterable[tuple[int, int, bool]]) -> bytes:
    """A pagemap as CRIU 2 wrote it; runs are (address, pages, in the parent)."""
    entries = (message((1, vaddr), (2, pages), (3, int(parent))) for vaddr, pages, parent in runs)
    return CRIU_MAGIC + message((1, number)) + b"".join(entries)


def criu_folder(place: Path, runs: Sequence[tuple[int, int, int]], pages: bytes, number: int = 1) -> None:
    """An image folder with one process."""
    place.mkdir(parents=True, exist_ok=True)
    (place / f"pagemap-{100 + number}.img").write_bytes(pagemap(number, runs))
    (place / f"pages-{number}.img").write_bytes(pages)


# QEMU

ZERO, MEM_SIZE, FULL, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20


def text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def word(value: int) -> bytes:
    return struct.pack(">Q", value)


def record(address: int, data: bytes, block: bytes | None = None) -> bytes:
    """One page; zero pages are short. With a block it names it."""
    flags = (ZERO if data == ZERO_PAGE else FULL) | (CONTINUE if block is None else 0)
    return word(address | flags) + (b"" if block is None else text(block)) + (b"\0" if data == ZERO_PAGE else data)


def footer(section: int = 2) -> bytes:
    return b"\x7e" + struct.pack(">I", section)


def stream(
    blocks: Sequence[tuple[bytes, int]],
    sections: Sequence[Sequence[tuple[bytes, int, bytes]]],
    devices: bytes = b"\4\0\0\0\3\5timer" + bytes(8) + b"state of devices " * 50,
    machine: bytes = b"pc-i440fx-7.2",
) -> bytes:
    """A migration stream: blocks of memory (name, bytes), and in sections pages of them (block, address, data)."""
    made = [b"QEVM\0\0\0\3\7", struct.pack(">I", len(machine)), machine]
    made += [b"\1", struct.pack(">I", 2), text(b"ram"), struct.pack(">II", 0, 4)]
    made.append(word(sum(size for _, size in blocks) | MEM_SIZE))
    made += [text(name) + word(size) for name, size in blocks]
    made += [word(EOS), footer()]
    last: bytes | None = None
    for number, pages in enumerate(sections):
        made += [b"\3" if number == len(sections) - 1 else b"\2", struct.pack(">I", 2)]
        for block, address, data in pages:
            made.append(record(address, data, None if block == last else block))
            last = block
        made += [word(EOS), footer()]
    return b"".join(made) + devices


def libvirt_save(
    qevm: bytes, xml: bytes = b"<domain/>\n" + bytes(5000), compressed: int = 0, order: str = "<"
) -> bytes:
    """What `virsh save` writes."""
    return struct.pack(order + "16s5I56x", b"LibvirtQemudSave", 2, len(xml), 1, compressed, 0) + xml + qevm


# qcow2


def qcow2(
    clusters: Sequence[int | None],
    *,
    bits: int = 16,
    version: int = 3,
    encrypted: int = 0,
    features: int = 0,
    disk_bytes: int | None = None,
    content: int = 0,
) -> bytes:
    """A disk whose clusters of data are those of the guest's numbers, in this order; None is one not in use.

    Cluster 0 is the header, 1 the level 1 table, then come the level 2 tables, then the data.
    """
    cluster = 1 << bits
    entries = cluster // 8
    used = [number for number in clusters if number is not None]
    tables = (max(used, default=0) // entries) + 1
    first = 2 + tables
    l2 = [[0] * entries for _ in range(tables)]
    body: list[bytes] = []
    for host, number in enumerate(clusters, start=first):
        if number is not None:
            l2[number // entries][number % entries] = host * cluster | 1 << 63
        seed = -host if number is None else number + content
        body.append(random.Random(seed).randbytes(cluster))
    l1 = [(2 + table) * cluster | 1 << 63 for table in range(tables)]
    if disk_bytes is None:
        disk_bytes = tables * entries * cluster
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", version, 0, 0, bits, disk_bytes, encrypted, tables, cluster, 0, 0, 0, 0
    )
    header += struct.pack(">QQQII", features, 0, 0, 4, 104) if version == 3 else b""
    parts = [header.ljust(cluster, b"\0"), struct.pack(f">{tables}Q", *l1).ljust(cluster, b"\0")]
    parts += [struct.pack(f">{entries}Q", *table) for table in l2]
    return b"".join(parts + body)


# Raw disks


def ext_superblock() -> bytes:
    """What `mkfs.ext4` writes 1024 bytes into a disk, its first fields."""
    numbers = (65536, 262144, 0, 1000, 1000, 0, 2, 2, 32768, 32768, 8192, 0, 0)
    return struct.pack("<13I4H", *numbers, 0, 65535, 0xEF53, 1)


def boot_sector(*partitions: tuple[int, int, int, int]) -> bytes:
    """A sector with code and a table; partitions are (status, type, first sector, sectors)."""
    table = b"".join(struct.pack("<B3sB3sII", s, b"", kind, b"", first, count) for s, kind, first, count in partitions)
    return (b"\xfa\x33\xc0".ljust(446, b"\x90") + table).ljust(510, b"\0") + b"\x55\xaa"


def raw_disk(size: int, marks: Iterable[tuple[int, bytes]], seed: int = 7) -> bytes:
    """Noise with marks in it."""
    disk = bytearray(random.Random(seed).randbytes(size))
    disk[:1024] = bytes(1024)
    for at, mark in marks:
        disk[at : at + len(mark)] = mark
    return bytes(disk)
