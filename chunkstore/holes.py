"""Find the holes of a file: aligned 4 KiB blocks of zeros, whatever the filesystem says.

Theory of operation
-------------------
Two filesystems disagree on what of a file is sparse, so a hole is defined by content alone: every block of
4096 bytes, aligned to the start of the file, that holds only zeros is a hole, and so is a shorter last block
of zeros. Neighbouring ones form one maximal hole.

A file arrives as a sequence of *windows*: bytes that were read, or an int for that many zeros that need no
reading. Every window but the last is a whole number of blocks, so a block never straddles two windows.
`SEEK_DATA`/`SEEK_HOLE` and the sparse map of a tar member only save reads: what they call data is searched
for zeros all the same.

The search looks at the first byte of every block (one strided slice) and compares whole blocks only where
that byte is zero.
"""

import errno
import os
from collections.abc import Callable, Iterable, Iterator

BLOCK_BYTES = 4096
WINDOW_BYTES = 2 << 20

_ZEROS = bytes(BLOCK_BYTES)

Window = bytes | int
"""Bytes of a file, or the count of zeros that stand in their place."""


class ShortRead(Exception):
    """A file ended before the size that was announced: it was changed while it was read."""


def split_holes(windows: Iterable[Window]) -> Iterator[memoryview | int]:
    """Separate data from maximal holes.

    Args:
        windows: the whole file in order; all but the last are a multiple of `BLOCK_BYTES` long.

    Yields:
        Pieces in file order: a view of data, or the length of one maximal hole in bytes. Data pieces that
        follow each other without a hole between them are one run.
    """
    hole = 0
    for window in windows:
        if isinstance(window, int):
            hole += window
            continue
        runs = _zero_runs(window)
        view = memoryview(window)
        zeros = sum(end - start for start, end in runs)
        lonely = zeros * 2 > len(window)  # few bytes of data must not keep a whole window in memory
        at = 0
        for start, end in runs:
            if start > at:
                if hole:
                    yield hole
                    hole = 0
                yield memoryview(bytes(view[at:start])) if lonely else view[at:start]
            hole += end - start
            at = end
        if at < len(window):
            if hole:
                yield hole
                hole = 0
            yield memoryview(bytes(view[at:])) if lonely else view[at:]
    if hole:
        yield hole


def _zero_runs(window: bytes) -> list[tuple[int, int]]:
    """The maximal runs of zero blocks in a window, as (start, end) offsets."""
    heads = window[::BLOCK_BYTES]
    block = heads.find(0)
    runs: list[tuple[int, int]] = []
    while block >= 0:
        start = end = block * BLOCK_BYTES
        while window.startswith(_ZEROS, end):
            end += BLOCK_BYTES
        rest = len(window) - end
        if 0 < rest < BLOCK_BYTES and window.endswith(_ZEROS[:rest]):
            end = len(window)
        if end > start:
            runs.append((start, end))
        block = heads.find(0, max(end // BLOCK_BYTES, block) + 1)
    return runs


def mapped_windows(
    size: int, regions: Iterable[tuple[int, int]], read_at: Callable[[int, int], bytes]
) -> Iterator[Window]:
    """Read a sparse file through a map of where its data is.

    Args:
        size: bytes of the file. regions: (start, end) offsets of everything that may be other than zero; in
        order, not overlapping. read_at: `read_at(offset, length)` gives exactly that many bytes, zeros
        included; called in ascending order.

    Raises:
        ShortRead: `read_at` gave less than asked.
    """
    at = 0
    for start, end in regions:
        start = max(at, start // BLOCK_BYTES * BLOCK_BYTES)
        end = min(size, -(-end // BLOCK_BYTES) * BLOCK_BYTES)
        if start > at:
            yield start - at
            at = start
        while at < end:
            window = read_at(at, min(WINDOW_BYTES, end - at))
            if len(window) != min(WINDOW_BYTES, end - at):
                raise ShortRead
            yield window
            at += len(window)
    if at < size:
        yield size - at


def file_windows(fd: int, size: int, allocated: int) -> Iterator[Window]:
    """Read an open regular file of `size` bytes, of which the filesystem has `allocated` bytes on disk.

    Raises:
        ShortRead: the file is shorter than `size`.
        OSError: a read failed.
    """
    regions = _data_regions(fd, size) if allocated < size else ((0, size),)
    return mapped_windows(size, regions, lambda offset, length: _read_exactly(fd, offset, length))


def _read_exactly(fd: int, offset: int, length: int) -> bytes:
    data = os.pread(fd, length, offset)
    while 0 < len(data) < length:  # a signal or the filesystem cut the read short
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _data_regions(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """What the filesystem knows of a file's data; all of it where it does not tell."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                yield at, size
                return
            raise
        yield start, min(end, size)
        at = end
