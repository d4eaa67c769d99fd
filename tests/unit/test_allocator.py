"""The C library's heaps: which limits are set, and what happens where there are none."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2player.allocator import HEAPS, MMAP_BYTES, TRIM_BYTES, bound_heaps, find_mallopt, trim_heaps

KEEPS = """
import sys
from p2player.allocator import bound_heaps, find_mallopt

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

assert bound_heaps(find_mallopt())
bytearray(20 << 20)  # from here on, glibc would take the likes of it from the heap
small = [bytearray(100_000) for _ in range(100)]
before = resident()
held = []
for _ in range(4):
    large = bytearray(b"x" * (6 << 20))
    held.append(bytearray(100_000))  # would keep the end of the heap where it is
    del large
print(resident() - before)
"""


def test_each_limit_is_set_once() -> None:
    said: list[tuple[int, int]] = []

    def mallopt(limit: int, value: int) -> int:
        said.append((limit, value))
        return 1

    assert bound_heaps(mallopt)
    assert sorted(said) == [(-8, HEAPS), (-3, MMAP_BYTES), (-1, TRIM_BYTES)]


def test_a_limit_that_is_not_taken_is_told_and_the_others_are_set() -> None:
    said: list[int] = []

    def mallopt(limit: int, value: int) -> int:
        said.append(limit)
        return int(limit != -3)

    assert not bound_heaps(mallopt)
    assert len(said) == 3


def test_another_c_library_is_left_alone() -> None:
    assert not bound_heaps(None)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="needs glibc")
def test_large_buffers_go_back_to_the_system() -> None:
    assert find_mallopt() is not None
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", KEEPS], check=True, capture_output=True, text=True, env=environment, timeout=30
    )
    assert int(done.stdout) < 4 << 20


def test_trimming_may_come_at_any_time() -> None:
    held = [bytearray(100_000) for _ in range(20)]
    del held[::2]
    trim_heaps()
    assert all(len(one) == 100_000 for one in held)
