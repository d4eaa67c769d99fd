"""Arithmetic on every byte of two equally long byte strings at once.

Python's integers are the vector unit: all bytes are added or subtracted in one long number, after the top bit of each
was taken out so that nothing carries over into its neighbour (Warren, "Hacker's Delight", section 2-18). Both are
modulo 256, and undo each other.
"""

from collections.abc import Callable
from typing import Final

from chunkstore.digest import Buffer

_STEP_BYTES: Final = 64 << 10
"""So much at a time stays in the processor's cache, and intermediate results remain small."""


def subtract(new: Buffer, old: Buffer) -> bytes:
    """Byte by byte, what must be added to `old` to get `new`."""
    return _stepwise(_difference, new, old)


def add(old: Buffer, difference: Buffer) -> bytes:
    """Byte by byte, the sum."""
    return _stepwise(_sum, old, difference)


def count_equal(left: bytes, right: bytes) -> int:
    """At how many positions the two have the same byte."""
    both = int.from_bytes(left, "little") ^ int.from_bytes(right, "little")
    return both.to_bytes(len(left), "little").count(0)


def _difference(x: int, y: int, high: int, low: int) -> int:
    return ((x | high) - (y & low)) ^ ((x ^ y) & high ^ high)


def _sum(x: int, y: int, high: int, low: int) -> int:
    return ((x & low) + (y & low)) ^ ((x ^ y) & high)


def _stepwise(combine: Callable[[int, int, int, int], int], left: Buffer, right: Buffer) -> bytes:
    if len(left) != len(right):
        raise ValueError(f"{len(left)} bytes and {len(right)}")
    parts: list[bytes] = []
    high = low = width = 0
    for at in range(0, len(left), _STEP_BYTES):
        some = left[at : at + _STEP_BYTES]
        if len(some) != width:
            width = len(some)
            high = int.from_bytes(b"\x80" * width, "little")
            low = int.from_bytes(b"\x7f" * width, "little")
        x, y = int.from_bytes(some, "little"), int.from_bytes(right[at : at + width], "little")
        parts.append(combine(x, y, high, low).to_bytes(width, "little"))
    return b"".join(parts)
