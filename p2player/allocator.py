"""Have the C library give memory back to the system: a node runs for months, and imports a huge tree once.

What glibc does by itself costs a node that has just handled 200,000 files some 60 MB, none of them in use. It learns
from the first large buffer that is freed (an encoded manifest of 20 MB) to take later ones from the heap, where they
leave gaps, and not to trim the heap until twice as much is free at its end; and it keeps a heap for each thread, up to
eight for each core. With fixed limits and two heaps that is gone. The buffers that a transfer lives on, of 1 MiB and
less, are still taken from the heap: a pull costs the same processor time with and without this.
"""

import ctypes
from collections.abc import Callable
from typing import Final

MMAP_BYTES: Final = 4 << 20
"""Buffers of this size and more are mapped one by one, and unmapped when they are freed."""
TRIM_BYTES: Final = 8 << 20
"""A heap that has as much free at its end is cut."""
HEAPS: Final = 2

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

Mallopt = Callable[[int, int], int]
"""`mallopt(3)`: which limit, and its value; 0 if it was not taken."""


def find_mallopt() -> Mallopt | None:
    """The C library's, if it has one: others than glibc do not, or take nothing."""
    found: Mallopt | None = getattr(ctypes.CDLL(None), "mallopt", None)
    return found


def bound_heaps(mallopt: Mallopt | None) -> bool:
    """Set the limits for this process, best before it starts threads; whether all were taken."""
    if mallopt is None:
        return False
    limits = {_M_MMAP_THRESHOLD: MMAP_BYTES, _M_TRIM_THRESHOLD: TRIM_BYTES, _M_ARENA_MAX: HEAPS}
    taken = [mallopt(limit, value) for limit, value in limits.items()]
    return all(taken)


def trim_heaps() -> None:
    """Give back the free pages between what is in use, too; takes some ms, after which they must be asked for again."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
