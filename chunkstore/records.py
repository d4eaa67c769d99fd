"""Records: what a pack file is made of, each one group and self-checking.

    header     24 bytes   magic, codec, chunks, stored bytes, raw bytes; their xxh3-64, seeded with the place
    table      36 bytes   a chunk: id, length
    payload               the group's payload, as received
    checksum    8 bytes   xxh3-64 of table and payload, seeded with the place

A *place* is where a record starts: pack number and offset in one integer, so that places sort in disk order. Because
the checksums are seeded with it, bytes that merely look like a record (a pack file stored inside a pack, for one) are
not taken for one when a damaged stretch is scanned for the next sound record.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NewType, cast

from xxhash import xxh3_64_intdigest

from chunkstore.codec import MAX_GROUP_BYTES, MAX_GROUP_CHUNKS, Codec, Group, check_table
from chunkstore.digest import ID_BYTES, Buffer, ChunkId
from chunkstore.errors import BadGroup, BadRecord

Place = NewType("Place", int)
"""Where a record starts: pack number << 32 | offset."""

MAGIC = b"P2PG"
_FIELDS = struct.Struct("<4sBxHII")
_SUM = struct.Struct("<Q")
_ENTRY = struct.Struct(f"<{ID_BYTES}sI")
TABLE_ROW_BYTES = _ENTRY.size
_HEADER_BYTES = _FIELDS.size + _SUM.size
MAX_RECORD_BYTES = _HEADER_BYTES + MAX_GROUP_CHUNKS * _ENTRY.size + MAX_GROUP_BYTES + _SUM.size


def at(pack: int, offset: int) -> Place:
    """The place of `offset` in pack number `pack`."""
    return Place(pack << 32 | offset)


def pack_of(place: Place) -> int:
    """The number of the pack that a place lies in."""
    return place >> 32


def offset_of(place: Place) -> int:
    """The offset of a place in its pack, in bytes."""
    return place & 0xFFFFFFFF


def record_bytes(group: Group) -> int:
    """Size on disk of the record that holds `group`."""
    return _HEADER_BYTES + _ENTRY.size * len(group.ids) + len(group.payload) + _SUM.size


def encode(group: Group, place: Place) -> list[bytes]:
    """The record of `group` at `place`, as buffers to write one after the other.

    Raises:
        BadGroup: the group breaks a limit.
    """
    raw_bytes = check_table(group.ids, group.lengths, len(group.payload))
    fields = _FIELDS.pack(MAGIC, group.codec, len(group.ids), len(group.payload), raw_bytes)
    table = encode_table(group.ids, group.lengths)
    header = fields + _SUM.pack(xxh3_64_intdigest(fields, seed=place))
    return [header, table, group.payload, _body_sum(table, group.payload, place)]


def decode(view: memoryview, place: Place) -> tuple[Group, int]:
    """The group of the record that starts at `view[0]`, and the record's size; checksums are verified, digests not.

    The group's payload is a part of `view`, not a copy: it keeps in memory what was read with it.

    Args:
        view: at least the record; what follows it is ignored.
        place: where the record lies.

    Raises:
        BadRecord: not a record, a damaged one, or cut short.
    """
    if len(view) < _HEADER_BYTES:
        raise BadRecord("cut short in its header")
    magic, codec, count, stored_bytes, raw_bytes = _FIELDS.unpack_from(view)
    if magic != MAGIC or _SUM.unpack_from(view, _FIELDS.size)[0] != xxh3_64_intdigest(view[: _FIELDS.size], seed=place):
        raise BadRecord("header damaged")
    payload_at = _HEADER_BYTES + _ENTRY.size * count
    sum_at = payload_at + stored_bytes
    if sum_at + _SUM.size > MAX_RECORD_BYTES or sum_at + _SUM.size > len(view):
        raise BadRecord("cut short")
    table, payload = view[_HEADER_BYTES:payload_at], view[payload_at:sum_at]
    if view[sum_at : sum_at + _SUM.size] != _body_sum(table, payload, place):
        raise BadRecord("checksum differs")
    ids, lengths = decode_table(table)
    try:
        if check_table(ids, lengths, stored_bytes) != raw_bytes:
            raise BadRecord("header and table differ")
        return Group(ids, lengths, Codec(codec), cast("bytes", payload)), sum_at + _SUM.size
    except (BadGroup, ValueError) as error:
        raise BadRecord(str(error)) from error


def encode_table(ids: Iterable[ChunkId], lengths: Iterable[int]) -> bytes:
    """Ids and lengths as 36 bytes a chunk."""
    return b"".join(map(_ENTRY.pack, ids, lengths))


def decode_table(table: Buffer) -> tuple[tuple[ChunkId, ...], tuple[int, ...]]:
    """Undo `encode_table`; `table` is a multiple of 36 bytes."""
    entries = list(_ENTRY.iter_unpack(table))
    return tuple(ChunkId(name) for name, _ in entries), tuple(length for _, length in entries)


def iterate_table(table: Buffer) -> Iterator[tuple[ChunkId, int]]:
    """What `decode_table` gives, pair by pair; for long tables."""
    for name, length in _ENTRY.iter_unpack(table):
        yield ChunkId(name), length


def _body_sum(table: Buffer, payload: Buffer, place: Place) -> bytes:
    # Chained, not joined: the payload is up to 1 MiB and need not be copied for its checksum.
    return _SUM.pack(xxh3_64_intdigest(payload, seed=xxh3_64_intdigest(table, seed=place)))
