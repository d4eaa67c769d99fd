"""Refuse trees that no folder on a disk can be.

A manifest may come from anyone, and what it says is later done with the rights of the node. So every entry is checked
before any is used: paths are relative, in order and unique; every parent is a folder, and never a symlink; hard links
lead to earlier files; sizes, counts and attributes have limits; there is no extended attribute that an importer would
have left out; and holes are where it would have found them. A folder comes before what is in it, so that only the
last component of a path is left to check.
"""

from bisect import bisect_left
from collections.abc import Iterable

from chunkstore.attributes import is_kept
from chunkstore.codec import MAX_CHUNK_BYTES
from chunkstore.digest import ID_BYTES
from chunkstore.entries import EXTENT, Entry, Kind
from chunkstore.holes import BLOCK_BYTES
from chunkstore.tree_errors import ManifestInvalid, printable

MAX_ENTRIES = 4_000_000
MAX_PATH_BYTES = 4095
MAX_NAME_BYTES = 255
MAX_TARGET_BYTES = 4095
MAX_XATTRS = 1024
MAX_XATTR_VALUE_BYTES = 64 << 10
MAX_XATTR_BYTES = 1 << 20

_NO_CHUNK = bytes(ID_BYTES)
_MAX_ID = 2**32 - 2  # the highest number is "no user" to the kernel
_MAX_INT64 = 2**63 - 1
_SYMLINK_MODE = 0o777


def check_entries(entries: Iterable[Entry]) -> int:
    """Refuse what no folder on a disk can be.

    Returns:
        Bytes of all regular files together.

    Raises:
        ManifestInvalid: the entries are not a possible tree, or exceed a limit.
    """
    check = TreeCheck()
    for entry in entries:
        check.take(entry)
    check.finish(check.count, check.size)
    return check.size


class TreeCheck:
    """Takes the entries of a tree in order, and refuses what no folder on a disk can be.

    Of what it took it keeps paths and kinds.

    Attributes:
        size: bytes of all regular files so far.
    """

    def __init__(self) -> None:
        self._paths: list[bytes] = []
        self._kinds = bytearray()
        self._folders: set[bytes] = set()
        self.size = 0

    @property
    def count(self) -> int:
        """Entries so far."""
        return len(self._paths)

    def take(self, entry: Entry) -> None:
        """Check the next entry against those before.

        Raises:
            ManifestInvalid: with the path and the reason.
        """
        if not self._paths:
            if entry.path or entry.kind is not Kind.DIRECTORY:
                raise ManifestInvalid("the first entry is not the top folder")
        else:
            self._check_path(entry.path)
        if len(self._paths) == MAX_ENTRIES:
            raise ManifestInvalid(f"more than {MAX_ENTRIES} entries")
        if entry.xattrs:
            _check_xattrs(entry)
        if entry.kind is Kind.REGULAR:
            self.size += _checked_size(entry)
        elif entry.kind is Kind.DIRECTORY:
            self._folders.add(entry.path)
        elif entry.kind is Kind.HARDLINK:
            self._check_link(entry)
        elif entry.kind is Kind.SYMLINK:
            if not 0 < len(entry.target) <= MAX_TARGET_BYTES or 0 in entry.target:
                raise ManifestInvalid(f"{printable(entry.path)}: impossible symlink text")
            if entry.mode != _SYMLINK_MODE:
                raise ManifestInvalid(f"{printable(entry.path)}: a symlink's mode is always 0777")
        _check_numbers(entry)
        self._paths.append(entry.path)
        self._kinds.append(entry.kind)

    def finish(self, count: int, size: int) -> None:
        """Compare with what the header announced.

        Raises:
            ManifestInvalid: it announced something else.
        """
        if self.count != count or not count:
            raise ManifestInvalid(f"{self.count} entries where the header says {count}")
        if self.size != size or size > _MAX_INT64:
            raise ManifestInvalid(f"files of {self.size} bytes, too many or not what the header says")

    def _check_path(self, path: bytes) -> None:
        if path <= self._paths[-1]:
            raise ManifestInvalid(f"{printable(path)}: out of order or twice")
        parent, _, name = path.rpartition(b"/")
        if parent not in self._folders or path.startswith(b"/"):
            raise ManifestInvalid(f"{printable(path)}: not in a folder")
        if name in (b"", b".", b"..") or len(name) > MAX_NAME_BYTES or len(path) > MAX_PATH_BYTES or 0 in name:
            raise ManifestInvalid(f"{printable(path)}: impossible name, or too long")

    def _check_link(self, entry: Entry) -> None:
        at = bisect_left(self._paths, entry.target)
        found = at < self.count and self._paths[at] == entry.target
        if not found or self._kinds[at] in (Kind.DIRECTORY, Kind.HARDLINK):
            raise ManifestInvalid(f"{printable(entry.path)}: a hard link to nothing that can have one")


def _check_numbers(entry: Entry) -> None:
    if not (
        0 <= entry.mode <= 0o7777
        and 0 <= entry.uid <= _MAX_ID
        and 0 <= entry.gid <= _MAX_ID
        and -_MAX_INT64 <= entry.mtime_ns <= _MAX_INT64
        and 0 <= entry.device[0] < 2**32
        and 0 <= entry.device[1] < 2**32
    ):
        raise ManifestInvalid(f"{printable(entry.path)}: a number out of range")


def _check_xattrs(entry: Entry) -> None:
    if len(entry.xattrs) > MAX_XATTRS:
        raise ManifestInvalid(f"{printable(entry.path)}: more than {MAX_XATTRS} extended attributes")
    previous = b""
    total = 0
    for name, value in entry.xattrs:
        if name <= previous or len(name) > MAX_NAME_BYTES or 0 in name or len(value) > MAX_XATTR_VALUE_BYTES:
            raise ManifestInvalid(f"{printable(entry.path)}: impossible extended attribute, or out of order")
        if not is_kept(name):
            raise ManifestInvalid(f"{printable(entry.path)}: extended attribute {printable(name)} belongs to a machine")
        previous = name
        total += len(name) + len(value)
    if total > MAX_XATTR_BYTES:
        raise ManifestInvalid(f"{printable(entry.path)}: extended attributes of {total} bytes")


def _checked_size(entry: Entry) -> int:
    """The size of a regular file whose extents are as only one importer would make them: maximal aligned holes."""
    if len(entry.table) % EXTENT.size:
        raise ManifestInvalid(f"{printable(entry.path)}: a torn table of extents")
    size = 0
    hole = False
    for length, chunk in EXTENT.iter_unpack(entry.table):
        if length < 0:
            if hole or size % BLOCK_BYTES or chunk != _NO_CHUNK:
                raise ManifestInvalid(f"{printable(entry.path)}: a hole that is not maximal or not aligned")
            size -= length
        elif 0 < length <= MAX_CHUNK_BYTES and not (hole and size % BLOCK_BYTES):
            size += length
        else:
            raise ManifestInvalid(f"{printable(entry.path)}: impossible extent")
        hole = length < 0
    if size > _MAX_INT64:
        raise ManifestInvalid(f"{printable(entry.path)}: too large")
    return size
