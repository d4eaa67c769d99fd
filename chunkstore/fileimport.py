"""A single file into content: a virtual disk as a layer whose tree has nothing but that file.

The tree is a folder with one file named `disk`, both with fixed mode, owner 0 and time 0: the same disk gives the same
layer on every machine, wherever its file lay and whatever it was called.
"""

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from chunkstore.attributes import read_xattrs
from chunkstore.content import Content
from chunkstore.entries import Entry, Kind
from chunkstore.filememory import Memory
from chunkstore.holes import ShortRead, file_windows
from chunkstore.images import qcow2
from chunkstore.images.errors import ImageInvalid, ImageUnsupported
from chunkstore.images.layout import Layout
from chunkstore.images.recognise import by_tables, reader
from chunkstore.ingest import Imported, Ingest
from chunkstore.progress import Meter, Progress
from chunkstore.sniff import SourceKind, sniff
from chunkstore.statcache import Remembered, StatCache
from chunkstore.tree_errors import SourceUnsupported, TreeChanged, TreeUnreadable
from chunkstore.treescan import looks

FILE_NAME = b"disk"
_FOLDER_MODE = 0o755
_FILE_MODE = 0o644
_READS = 3


def import_file(
    content: Content,
    path: Path,
    *,
    progress: Progress | None = None,
    stat_cache: StatCache | None = None,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Imported:
    """Take a disk image (qcow2 or raw) into content as a tree with one file, `disk`.

    Args:
        content, progress, stat_cache, clock_ns: as for `import_tree`.
        path: the file; a symlink to one is followed.

    Raises:
        SourceUnsupported: it is no disk image, or a damaged one.
        TreeUnreadable: it cannot be read. TreeChanged: it kept changing. StoreError: the content could not take it.
    """
    place = os.fsencode(path)
    found = sniff(path)
    if found not in (SourceKind.QCOW2, SourceKind.RAW):
        raise SourceUnsupported(place, f"it is no disk image but {found.described}")
    memory = Memory(content.key, stat_cache, clock_ns)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with Ingest(content) as ingest:
                table = _table(ingest, fd, found, memory, progress)
                if table is None:
                    raise TreeChanged(place)
                folder = Entry(b"", Kind.DIRECTORY, _FOLDER_MODE)
                return ingest.finish((folder, Entry(FILE_NAME, Kind.REGULAR, _FILE_MODE, table=table)))
        finally:
            os.close(fd)
    except ImageInvalid as error:
        raise SourceUnsupported(place, f"{found.described} that is damaged: {error}") from None
    except OSError as error:
        raise TreeUnreadable(place, error.strerror or str(error)) from None


def _table(ingest: Ingest, fd: int, kind: SourceKind, memory: Memory, progress: Progress | None) -> bytes | None:
    """The extents of an open file, from memory or read; None if it does not hold still."""
    for _ in range(_READS):
        before = os.fstat(fd)
        meter = Meter(progress, before.st_size)
        layout = _layout(fd, before.st_size, kind)
        known = memory.propose(before)
        if known is not None and not known.cut_by and not ingest.missing(known.chunk_ids):
            meter.finish()
            return known.table
        read_at_ns = memory.clock_ns()
        windows = meter.count(file_windows(fd, before.st_size, before.st_blocks * 512))
        try:
            file = Remembered(ingest.add_file(windows, layout), read_xattrs(fd))
        except ShortRead:
            continue
        if stat.S_ISREG(before.st_mode) and looks(os.fstat(fd)) == looks(before):
            memory.keep(before, file, read_at_ns)
            meter.finish()
            return file.table
    return None


def _layout(fd: int, size: int, kind: SourceKind) -> Layout | None:
    """As in a tree, but for damage, which is told."""
    try:
        layout = by_tables(reader(fd), size)
        if layout is None and kind is SourceKind.QCOW2:
            qcow2.segments(reader(fd), size)  # too small for a layout to pay
    except ImageUnsupported:
        return None
    return layout
