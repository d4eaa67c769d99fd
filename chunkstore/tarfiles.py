"""A tar archive into content, without extracting it: the layer that the folder it was made from would give.

Members may come in any order and more than once; the last one of a name counts. Folders that are only implied
are made with mode 0755, owner 0 and time 0. A hard link is a further name of the member it refers to, and the
first name in order of path becomes the file, as in a folder. A leading `./` or `/` of a name is dropped; `..`
is refused, and so is a member inside something that is no folder.

An image whose layout lies in tables, or in another file, is cut by content when it comes, and once more from what was
stored when the whole archive is there.

What the format does not carry, the layer does not have: without PAX headers (`tar --format=posix`), times are
in whole seconds; extended attributes come from `SCHILY.xattr.*` records (`tar --xattrs --xattrs-include='*'`)
and ACLs from `SCHILY.acl.*` (`tar --acls`).
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO

from chunkstore.acltext import AclInvalid, acl_to_bytes
from chunkstore.attributes import is_kept
from chunkstore.content import Content
from chunkstore.entries import Entry, Kind, Xattrs
from chunkstore.holes import Window
from chunkstore.imagefiles import StoredImages, is_map_path, is_pages_path
from chunkstore.images import qcow2
from chunkstore.ingest import Imported, Ingest
from chunkstore.manifest_codec import MAX_MANIFEST_BYTES
from chunkstore.progress import Meter, Progress
from chunkstore.sniff import SourceKind, sniff
from chunkstore.storedfile import StoredFile
from chunkstore.tarfields import TarDamaged
from chunkstore.tarreader import Member, TarReader
from chunkstore.tree_errors import SourceUnsupported, TreeChanged, TreeUnreadable, printable
from chunkstore.treecheck import MAX_ENTRIES, MAX_PATH_BYTES
from chunkstore.treescan import looks

_KINDS = {
    b"0": Kind.REGULAR,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHARACTER,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
}
_HARDLINK = b"1"
_XATTR = b"SCHILY.xattr."
_ACLS = {b"SCHILY.acl.access": b"system.posix_acl_access", b"SCHILY.acl.default": b"system.posix_acl_default"}
_IMPLIED_MODE = 0o755
_ENTRY_BYTES = 64  # what an entry takes in a manifest beside its path


def import_tar(content: Content, path: Path, *, progress: Progress | None = None) -> Imported:
    """Take the tree in a tar archive into content; the archive may be compressed with gzip, bzip2 or xz.

    Args:
        content: as for `import_tree`.
        path: the archive.
        progress: called with bytes of the archive that are read and its size; may raise to cancel.

    Raises:
        SourceUnsupported: `path` is no tar archive, a broken one, or one with a member that has no place in a
        tree. TreeUnreadable: it may not be read. TreeChanged: it changed while it was read. ManifestInvalid:
        the tree exceeds a limit of manifests. StoreError: the content could not take it.
    """
    place = os.fsencode(path)
    found = sniff(path)
    if found is not SourceKind.TAR:
        raise SourceUnsupported(place, f"it is no tar archive but {found.described}")
    try:
        file = path.open("rb")
    except OSError as error:
        raise TreeUnreadable(place, error.strerror or str(error)) from None
    with file, Ingest(content) as ingest:
        before = os.fstat(file.fileno())
        builder = _Builder(ingest, _Position(file, Meter(progress, before.st_size)))
        try:
            builder.read(TarReader(file))
        except (TarDamaged, AclInvalid) as error:
            where = f"near {printable(builder.at)}: " if builder.at else ""
            raise SourceUnsupported(place, f"{where}{error}") from None
        if looks(os.fstat(file.fileno())) != looks(before):
            raise TreeChanged(place)
        builder.position.meter.finish()
        return ingest.finish(builder.entries())


class _Position:
    """Counts how far an archive has been read, in bytes on disk."""

    def __init__(self, file: IO[bytes], meter: Meter) -> None:
        self._file = file
        self.meter = meter

    def update(self) -> None:
        self.meter.advance(self._file.tell() - self.meter.done)

    def follow(self, windows: Iterator[Window]) -> Iterator[Window]:
        for window in windows:
            yield window
            self.update()


class _Builder:
    """Puts members together to a tree. Two paths with the same `Entry` object are hard links of one file."""

    def __init__(self, ingest: Ingest, position: _Position) -> None:
        self.at = b""
        self.position = position
        self._ingest = ingest
        self._tree: dict[bytes, Entry] = {}
        self._tabled: dict[int, Entry] = {}  # files whose layout is in tables; by identity
        self._bytes = 0
        self._put(Entry(b"", Kind.DIRECTORY, _IMPLIED_MODE))

    def read(self, reader: TarReader) -> None:
        """Take every member, content included."""
        for member in reader:
            self.at = member.name
            path = _normal(member.name)
            self._imply_parents(path)
            if member.type == _HARDLINK:
                first = self._tree.get(_normal(member.target))
                if first is None or first.kind is Kind.DIRECTORY:
                    raise TarDamaged(f"a hard link to {printable(member.target)}, which is no file before it")
                self._put(first, path)
            else:
                self._put(self._entry(path, member, reader))
            self.position.update()

    def entries(self) -> list[Entry]:
        """The tree in order of path."""
        first_names: dict[int, bytes] = {}
        ordered: list[Entry] = []
        maps = ((path, e.table) for path, e in self._tree.items() if e.kind is Kind.REGULAR and is_map_path(path))
        images = StoredImages(maps, self._ingest.read)
        for path in sorted(self._tree):
            entry = self._tree[path]
            first = first_names.setdefault(id(entry), path)
            if first != path:
                ordered.append(Entry(path, Kind.HARDLINK, target=first))
            else:
                table = self._cut_again(path, entry, images)
                same = entry.path == path and table == entry.table
                ordered.append(entry if same else replace(entry, path=path, table=table))
        return ordered

    def _cut_again(self, path: bytes, entry: Entry, images: StoredImages) -> bytes:
        """The extents of a file, cut by its layout if that shows only when the whole archive is known."""
        if entry.kind is not Kind.REGULAR or not (is_pages_path(path) or id(entry) in self._tabled):
            return entry.table
        self._ingest.settle()
        file = StoredFile(entry.table, self._ingest.read)
        layout = images.layout(path, file)
        return entry.table if layout is None else self._ingest.add_file(file.windows(), layout)

    def _entry(self, path: bytes, member: Member, reader: TarReader) -> Entry:
        kind = _KINDS[member.type]
        mode = 0o777 if kind is Kind.SYMLINK else stat.S_IMODE(member.mode)
        xattrs = _xattrs(member)
        table = target = b""
        tabled = False
        if kind is Kind.REGULAR:
            windows = self.position.follow(reader.windows(member))
            first = next(windows, b"")
            table = self._ingest.add_file(chain((first,), windows) if first else windows)
            tabled = isinstance(first, bytes) and first.startswith(qcow2.MAGIC)
        elif kind is Kind.SYMLINK:
            target = member.target
        entry = Entry(path, kind, mode, member.uid, member.gid, member.mtime_ns, xattrs, table, target, member.device)
        if tabled:
            self._tabled[id(entry)] = entry
        return entry

    def _put(self, entry: Entry, path: bytes | None = None) -> None:
        path = entry.path if path is None else path
        before = self._tree.get(path)
        if before is None:
            self._bytes += len(path) + _ENTRY_BYTES
            if len(self._tree) >= MAX_ENTRIES or self._bytes > MAX_MANIFEST_BYTES:
                raise TarDamaged("it has too many members")
        elif before.kind is Kind.DIRECTORY and entry.kind is not Kind.DIRECTORY:
            raise TarDamaged("a member in place of a folder")
        self._tree[path] = entry

    def _imply_parents(self, path: bytes) -> None:
        missing: list[bytes] = []
        while path:
            path = path.rpartition(b"/")[0]
            above = self._tree.get(path)
            if above is not None:
                if above.kind is not Kind.DIRECTORY:
                    raise TarDamaged(f"a member inside {printable(path)}, which is no folder")
                break
            missing.append(path)
        for parent in reversed(missing):
            self._put(Entry(parent, Kind.DIRECTORY, _IMPLIED_MODE))


def _normal(name: bytes) -> bytes:
    """A member's name as a path of a manifest."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    path = b"/".join(parts)
    if b".." in parts or 0 in path or len(path) > MAX_PATH_BYTES:
        raise TarDamaged("a name that leads outside, or is too long")
    return path


def _xattrs(member: Member) -> Xattrs:
    found: dict[bytes, bytes] = {}
    for key, value in member.pax.items():
        if key.startswith(_XATTR):
            name = key[len(_XATTR) :].replace(b"%3D", b"=").replace(b"%25", b"%")  # as GNU tar quotes
            if is_kept(name):
                found[name] = value
        elif key in _ACLS:
            found.setdefault(_ACLS[key], acl_to_bytes(value.decode("utf-8", "surrogateescape")))
    return tuple(sorted(found.items()))
