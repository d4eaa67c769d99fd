"""The size of memory that is to be saved."""

import mmap
import os
from pathlib import Path

from backends.memory import anonymous_bytes, size_of


def test_what_a_process_has_in_no_file_counts() -> None:
    before = anonymous_bytes([os.getpid()])
    # Fresh from the kernel: the allocator might give what this process holds already.
    held = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(b"x" * (32 << 20))
    after = anonymous_bytes([os.getpid()])
    assert before > 0
    assert after - before > 24 << 20
    assert anonymous_bytes([os.getpid(), os.getpid()]) > after
    held.close()


def test_processes_that_are_gone_count_nothing() -> None:
    assert anonymous_bytes([2**22 + 1]) == 0
    assert anonymous_bytes([]) == 0


def test_sizes(tmp_path: Path) -> None:
    (tmp_path / "images/deep").mkdir(parents=True)
    (tmp_path / "images/a").write_bytes(b"x" * 10)
    (tmp_path / "images/deep/b").write_bytes(b"x" * 5)
    (tmp_path / "images/link").symlink_to("nowhere")
    assert size_of(tmp_path / "images/a") == 10
    assert size_of(tmp_path / "images") == 15 + len("nowhere")
    assert size_of(tmp_path / "absent") == 0
