"""Tell what image a file is, by its content alone: the same file has the same layout on every machine.

Streams and raw disks show in the first bytes, and are recognised while a file is read. A qcow2 disk has tables
anywhere in it, and a file of pages says nothing by itself: their layouts need a file that can be read by offset, and
for the latter the pagemaps of its folder.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

from chunkstore.holes import Window, file_windows
from chunkstore.images import criu, qcow2, qemu, raw
from chunkstore.images.errors import ImageInvalid
from chunkstore.images.layout import Layout, Prepared, ReadAt, Segment

LEAST_IMAGE_BYTES = raw.HEAD_BYTES
"""Smaller files are never taken for a stream or a disk; it would not pay."""


def by_head(windows: Iterable[Window]) -> tuple[Iterator[Window], Layout | None]:
    """Look at the begin of a file.

    Returns:
        The same windows, and the layout of a stream or a raw disk.
    """
    source = iter(windows)
    seen: list[Window] = []
    total = 0
    for window in source:
        seen.append(window)
        total += window if isinstance(window, int) else len(window)
        if total >= LEAST_IMAGE_BYTES:
            return chain(seen, source), _layout_of(_joined(seen))
    return iter(seen), None


def by_tables(read_at: ReadAt, size: int) -> Layout | None:
    """The layout of a qcow2 disk of `size` bytes; None if the file is none.

    Raises:
        ImageInvalid: it is one, and damaged or of a sort that is not read.
        OSError: as `read_at`.
    """
    if size < LEAST_IMAGE_BYTES or read_at(0, len(qcow2.MAGIC)) != qcow2.MAGIC:
        return None
    return Prepared(qcow2.segments(read_at, size))


def by_pagemap(pagemap: criu.Pagemap, pages_bytes: int) -> Layout:
    """The layout of the pages file that belongs to `pagemap`.

    Raises:
        ImageInvalid: the two do not fit.
        OSError: as reading the pagemap.
    """
    return Prepared(criu.segments(pagemap, pages_bytes))


def open_layout(path: Path) -> Iterator[Segment]:
    """The segments of an image on disk, strictly; a file that is no image is one plain segment.

    Raises:
        ImageInvalid: at any time, where the image is damaged.
        OSError: it cannot be read.
    """
    with ExitStack() as stack:
        fd = stack.enter_context(path.open("rb")).fileno()
        status = os.fstat(fd)
        layout = _by_folder(path, status.st_size, stack) or by_tables(reader(fd), status.st_size)
        windows: Iterator[Window] = file_windows(fd, status.st_size, status.st_blocks * 512)
        if layout is None:
            windows, layout = by_head(windows)
        if layout is None:
            layout = Prepared(iter(()))
        yield from _merged(_walk(windows, layout, status.st_size))


def reader(fd: int) -> ReadAt:
    """Read an open file by offset."""
    return lambda offset, length: os.pread(fd, length, offset)


def _by_folder(path: Path, size: int, stack: ExitStack) -> Layout | None:
    """The layout of a pages file through the pagemaps beside it, one of which stays open on `stack`."""
    number = criu.pages_number(os.fsencode(path.name))
    if number is None:
        return None
    maps: list[tuple[bytes, criu.Pagemap]] = []
    for sibling in sorted(path.parent.iterdir()):
        if criu.is_map_name(os.fsencode(sibling.name)) and sibling.is_file():
            with sibling.open("rb") as file:
                try:
                    maps.append((os.fsencode(sibling), criu.Pagemap(reader(file.fileno()))))
                except ImageInvalid:
                    continue
    chosen = criu.choose(maps).get(number)
    if chosen is None:
        return None
    fd = os.open(chosen, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return by_pagemap(criu.Pagemap(reader(fd)), size)


def _layout_of(head: bytes) -> Layout | None:
    if qemu.is_stream(head):
        return qemu.SavedMemory()
    return raw.RawDisk() if raw.is_disk(head) else None


def _joined(windows: list[Window]) -> bytes:
    """As many bytes as recognising takes."""
    head = bytearray()
    for window in windows:
        left = LEAST_IMAGE_BYTES - len(head)
        head += bytes(min(window, left)) if isinstance(window, int) else window[:left]
    return bytes(head)


def _walk(windows: Iterator[Window], layout: Layout, size: int) -> Iterator[Segment]:
    at = 0
    for window in chain(windows, (None,)):
        if window is None:
            layout.finish()
        else:
            layout.feed(window)
        while at < size and (segment := layout.segment_at(at)) is not None:
            yield segment._replace(length=min(segment.end, size) - segment.offset)
            at = segment.end


def _merged(segments: Iterator[Segment]) -> Iterator[Segment]:
    """Neighbouring plain segments as one."""
    plain: Segment | None = None
    for segment in segments:
        if segment.key is None:
            plain = segment if plain is None else plain._replace(length=segment.end - plain.offset)
            continue
        if plain is not None:
            yield plain
            plain = None
        yield segment
    if plain is not None:
        yield plain
