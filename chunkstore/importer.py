"""A folder into content: every file read once, or not at all if nothing changed.

Theory of operation
-------------------
A *scan* lists the tree by folder descriptors and notes how each folder looked. Then every path is taken in
bytewise order, which is the order of the manifest and of the chunks on disk: attributes are read, and regular
files are cut into chunks and handed to `ingest`. Nothing is followed on the way: no symlink, no path that was
swapped for one. Mount points are descended into like folders.

Every file is taken in one state: it must have the same size and times after it was read as before, otherwise
it is read again, three times at most. And no name comes or goes meanwhile: at the end every folder must look as
it did in the scan, otherwise the whole pass is repeated, three times at most; what has not changed is not read
again if there is a stat cache. A tree that never rests is an error that names the path.

A *live* import takes a tree that is not expected to rest, for an image that a later one corrects: a file that changes
while it is read is taken as it was read, what vanishes or turns into something else is left out, and names that come
are not looked for. Nothing is then said to be unchanged that a program may still change unseen, through a mapping: a
file is written back before it is read, so that its times tell (`writeback`). An image of memory, which the next round
replaces, is spared that; as a program's own file may look like one and be mapped, it is not remembered either.

How an image of memory or of a disk is cut may depend on other files of its folder; `imagefiles` sees to that.

Files are taken in windows of some hundred, so that one question to the content covers all chunks that the
stat cache proposes.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chunkstore.attributes import handle, read_xattrs
from chunkstore.beneath import Beneath
from chunkstore.content import Content
from chunkstore.digest import ChunkId
from chunkstore.entries import Entry, Kind, Xattrs
from chunkstore.filememory import Memory
from chunkstore.holes import ShortRead, Window, file_windows
from chunkstore.imagefiles import TreeImages, is_pages_path
from chunkstore.images import qemu
from chunkstore.ingest import Imported, Ingest
from chunkstore.progress import Meter, Progress
from chunkstore.sniff import SourceKind, sniff
from chunkstore.statcache import Remembered, StatCache
from chunkstore.tree_errors import SourceUnsupported, TreeChanged, TreeUnreadable
from chunkstore.treescan import Moved, Scan, Source, check_folders, looks, scan_tree
from chunkstore.writeback import write_back

_PASSES = 3
_READS = 3
_WINDOW_FILES = 512
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

_MEMORY = (qemu.LIBVIRT_MAGIC, qemu.STREAM_MAGIC)
_HEAD_BYTES = max(map(len, _MEMORY))

_KINDS = {
    stat.S_IFREG: Kind.REGULAR,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}


def import_tree(
    content: Content,
    path: Path,
    *,
    progress: Progress | None = None,
    stat_cache: StatCache | None = None,
    live: bool = False,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Imported:
    """Take a folder and everything in it into content; what is there already is not stored again.

    Args:
        content: where the chunks go. It is used from one other thread meanwhile, and committed at the end.
        path: the folder; a symlink to one is followed, nothing below it is. progress: called with bytes done
        and bytes in total; may raise to cancel, which leaves chunks that nothing refers to. stat_cache: what
        was read before. live: take what can be had of a tree that is in use; see the module. clock_ns: wall clock,
        to judge which timestamps are too young to trust.

    Raises:
        SourceUnsupported: `path` is no folder, or holds a path that is too long.
        TreeUnreadable: something in it cannot be read.
        TreeChanged: it kept changing; a live one only where files that belong together did.
        ManifestInvalid: it exceeds a limit of manifests.
        StoreError: the content could not take it.
    """
    place = os.fsencode(path)
    found = sniff(path)
    if found not in (SourceKind.FOLDER, SourceKind.OCI):
        raise SourceUnsupported(place, f"it is no folder but {found.described}")
    for last in (False,) * (_PASSES - 1) + (True,):
        with _open_root(place) as root, Ingest(content) as ingest:
            source = Source(place, root)
            try:
                memory = Memory(content.key, stat_cache, clock_ns)
                return (_LivePass if live else _Pass)(source, ingest, memory).run(progress)
            except Moved as moved:
                if last:
                    raise TreeChanged(source.absolute(moved.path)) from None
    raise AssertionError("the last pass returns or raises")


def _open_root(place: bytes) -> Beneath:
    try:
        return Beneath(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise TreeUnreadable(place, error.strerror or str(error)) from None


class _Pass:
    """One pass over a tree that should hold still."""

    _restless = False
    """Whether a file that changed while it was read is taken all the same."""

    def __init__(self, source: Source, ingest: Ingest, memory: Memory) -> None:
        self._source = source
        self._root = source.root
        self._ingest = ingest
        self._memory = memory
        self._images = TreeImages(source, self._open)
        self._meter = Meter(None, 0)
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._shared: dict[int, int] = {}  # one object for each mode and owner instead of one for each entry

    def run(self, progress: Progress | None) -> Imported:
        """Scan, read everything, check that nothing moved, store the manifest."""
        scan = self._scan()
        self._meter = Meter(progress, scan.total_bytes)
        return self._ingest.finish(self._entries(scan))

    def _entries(self, scan: Scan) -> Iterator[Entry]:
        """All entries, as they are read; after the last one it is checked that nothing moved."""
        for start in range(0, len(scan.paths), _WINDOW_FILES):
            yield from self._window(scan.paths[start : start + _WINDOW_FILES])
        self._finish(scan)
        self._meter.finish()

    def _scan(self) -> Scan:
        return scan_tree(self._source)

    def _finish(self, scan: Scan) -> None:
        """After the last entry.

        Raises:
            Moved: the tree is not what was scanned any more.
        """
        check_folders(self._source, scan)

    def _window(self, paths: list[bytes]) -> Iterator[Entry]:
        """The entries of these paths. The chunks that the stat cache proposes for them are looked up together."""
        seen: list[tuple[bytes, os.stat_result, Remembered | None]] = []
        proposed: set[ChunkId] = set()
        for path in paths:
            status = self._look(path)
            if status is None:
                continue
            known = self._memory.propose(status)
            if known is not None:
                proposed |= known.chunk_ids
            seen.append((path, status, known))
        missing = self._ingest.missing(proposed) if proposed else set()
        for path, status, known in seen:
            stale = known is not None and missing and not known.chunk_ids.isdisjoint(missing)
            entry = self._take(path, status, None if stale else known)
            if entry is not None:
                yield entry

    def _look(self, path: bytes) -> os.stat_result | None:
        """The attributes of what is at `path`; None where it is to be left out."""
        with self._source.blame(path):
            folder, name = self._root.locate(path)
            return os.stat(name, dir_fd=folder, follow_symlinks=False)

    def _take(self, path: bytes, status: os.stat_result, known: Remembered | None) -> Entry | None:
        """The entry at `path`; None where it is to be left out."""
        return self._entry(path, status, known)

    def _entry(self, path: bytes, status: os.stat_result, known: Remembered | None) -> Entry:
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        if kind is Kind.DIRECTORY:
            with self._source.blame(path):
                return self._described(path, kind, status, read_xattrs(self._root.folder(path)))
        if status.st_nlink > 1:
            first = self._first_names.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                self._images.note(path, status, None)
                return Entry(path, Kind.HARDLINK, target=first)
        if kind is not Kind.REGULAR:
            return self._special(path, kind, status)
        if known is None or known.cut_by != self._images.token(path):
            status, known = self._read(path)
        else:
            self._meter.advance(status.st_size)
        self._images.note(path, status, known.table)
        return self._described(path, kind, status, known.xattrs, known.table)

    def _special(self, path: bytes, kind: Kind, status: os.stat_result) -> Entry:
        with self._source.blame(path):
            folder, name = self._root.locate(path)
            with handle(name, folder) as file:
                xattrs = read_xattrs(file)
            target = os.readlink(name, dir_fd=folder) if kind is Kind.SYMLINK else b""
        return self._described(path, kind, status, xattrs, target=target)

    def _read(self, path: bytes) -> tuple[os.stat_result, Remembered]:
        """Read a regular file until it holds still."""
        for _ in range(_READS):
            done = self._meter.done
            with self._source.blame(path):
                fd = self._open(path)
            try:
                before = os.fstat(fd)
                if not stat.S_ISREG(before.st_mode):
                    raise Moved(path)
                times_tell = self._prepare(path, fd)
                read_at_ns = self._memory.clock_ns()
                windows = self._meter.count(self._windows(path, fd, before))
                try:
                    with self._images.layout(path, fd, before) as layout:
                        table = self._ingest.add_file(windows, layout)
                    token = self._images.token(path)
                    with self._source.blame(path):
                        file = Remembered(table, read_xattrs(fd), token or b"")
                    rested = looks(os.fstat(fd)) == looks(before)
                    if times_tell and rested and token is not None:
                        self._memory.keep(before, file, read_at_ns)
                    if rested or self._restless:
                        return before, file
                except ShortRead:
                    pass
            finally:
                os.close(fd)
            self._meter.done = done
        raise self._never_read(path)

    def _prepare(self, path: bytes, fd: int) -> bool:
        """Before a file is read. Returns whether all that is stored in it from now on will show in its times."""
        return True

    def _never_read(self, path: bytes) -> Exception:
        """What to raise for a file that was never the same after it was read as before."""
        return TreeChanged(self._source.absolute(path))

    def _windows(self, path: bytes, fd: int, status: os.stat_result) -> Iterator[Window]:
        with self._source.blame(path):
            yield from file_windows(fd, status.st_size, status.st_blocks * 512)

    def _open(self, path: bytes) -> int:
        """Open a regular file for reading, without touching its atime where that is allowed."""
        folder, name = self._root.locate(path)
        try:
            return os.open(name, _OPEN | os.O_NOATIME, dir_fd=folder)
        except OSError as error:
            if error.errno != errno.EPERM:  # not ours
                raise
            return os.open(name, _OPEN, dir_fd=folder)

    def _described(
        self,
        path: bytes,
        kind: Kind,
        status: os.stat_result,
        xattrs: Xattrs,
        table: bytes = b"",
        *,
        target: bytes = b"",
    ) -> Entry:
        device = (0, 0)
        if kind in (Kind.CHARACTER, Kind.BLOCK):
            device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        mode = 0o777 if kind is Kind.SYMLINK else stat.S_IMODE(status.st_mode)
        mode, uid, gid = (self._shared.setdefault(number, number) for number in (mode, status.st_uid, status.st_gid))
        return Entry(path, kind, mode, uid, gid, status.st_mtime_ns, xattrs, table, target, device)


class _LivePass(_Pass):
    """One pass over a tree that is in use."""

    _restless = True

    def __init__(self, source: Source, ingest: Ingest, memory: Memory) -> None:
        super().__init__(source, ingest, memory)
        self._folders: set[bytes] = set()

    def _scan(self) -> Scan:
        return scan_tree(self._source, live=True)

    def _finish(self, scan: Scan) -> None:
        """Whether names came or went is not asked."""

    def _look(self, path: bytes) -> os.stat_result | None:
        try:
            return super()._look(path)
        except Moved:
            if not path:
                raise
            return None

    def _take(self, path: bytes, status: os.stat_result, known: Remembered | None) -> Entry | None:
        if path and path.rpartition(b"/")[0] not in self._folders:
            return None  # its folder was left out, or is none any more
        try:
            entry = self._entry(path, status, known)
        except Moved as moved:
            if not path or moved.path != path:
                raise
            file = status.st_dev, status.st_ino
            if self._first_names.get(file) == path:  # nothing may be a further name of what is left out
                del self._first_names[file]
            return None
        if entry.kind is Kind.DIRECTORY:
            self._folders.add(path)
        return entry

    def _prepare(self, path: bytes, fd: int) -> bool:
        with self._source.blame(path):
            if is_pages_path(path) or os.pread(fd, _HEAD_BYTES, 0).startswith(_MEMORY):
                return False
            write_back(fd)
        return True

    def _never_read(self, path: bytes) -> Exception:
        return Moved(path)
