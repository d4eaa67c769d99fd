"""How a patch makes the target, step by step, and how the steps are written down.

An op makes the next `length` bytes of the target: it copies them from the relative, adds differences to the relative's
bytes, or takes them from the literals. Written down, an op is a varint of `length << 2 | kind`, and, where it reads the
relative, a zigzag varint of how far its offset lies from where the *diagonal* of the last one leads: content that was
changed in place goes on where it would without the change, which takes one byte.

Nothing says where ops end: they do when the target is complete.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from chunkstore.delta.errors import BadPatch
from chunkstore.digest import Buffer

_MAX_VARINT_BYTES: Final = 5


class Kind(IntEnum):
    """Where an op's bytes come from."""

    COPY = 0
    CHANGE = 1
    LITERAL = 2


@dataclass(frozen=True, slots=True)
class Op:
    """The next `length` bytes of the target; `offset` says where in the relative to read, 0 for a literal."""

    kind: Kind
    length: int
    offset: int = 0


def put_varint(number: int, into: bytearray) -> None:
    """Append `number` in little-endian groups of seven bits; the top bit says that another follows."""
    while number > 0x7F:
        into.append(number & 0x7F | 0x80)
        number >>= 7
    into.append(number)


def take_varint(data: Buffer, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends.

    Raises:
        BadPatch: it does not end within `data` and five bytes.
    """
    number = shift = 0
    for index in range(at, min(len(data), at + _MAX_VARINT_BYTES)):
        byte = data[index]
        number |= (byte & 0x7F) << shift
        if byte <= 0x7F:
            return number, index + 1
        shift += 7
    raise BadPatch("a number that does not end")


def encode_ops(ops: Iterable[Op]) -> bytes:
    """Write ops down."""
    out = bytearray()
    at = diagonal = 0
    for op in ops:
        put_varint(op.length << 2 | op.kind, out)
        if op.kind is not Kind.LITERAL:
            step = op.offset - at - diagonal
            put_varint(step << 1 if step >= 0 else (-step << 1) - 1, out)
            diagonal += step
        at += op.length
    return bytes(out)


def decode_ops(data: Buffer, target_bytes: int, relative_bytes: int, most: int) -> tuple[list[Op], int]:
    """Read ops that make exactly `target_bytes` and stay within the relative.

    Args:
        most: bytes that they may take.

    Returns:
        The ops, and where in `data` they end.

    Raises:
        BadPatch: `data` does not begin with such ops.
    """
    ops: list[Op] = []
    cursor = at = diagonal = 0
    data = data[:most]
    while at < target_bytes:
        head, cursor = take_varint(data, cursor)
        kind, length = head & 3, head >> 2
        if kind > Kind.LITERAL or not 0 < length <= target_bytes - at:
            raise BadPatch(f"op of kind {kind} for {length} bytes where {target_bytes - at} are left")
        offset = 0
        if kind != Kind.LITERAL:
            step, cursor = take_varint(data, cursor)
            diagonal += -((step + 1) >> 1) if step & 1 else step >> 1
            offset = at + diagonal
            if not 0 <= offset <= relative_bytes - length:
                raise BadPatch(f"{length} bytes at {offset} of a relative of {relative_bytes}")
        ops.append(Op(Kind(kind), length, offset))
        at += length
    return ops, cursor
