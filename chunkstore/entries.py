"""The vocabulary of trees: what a manifest says of one path.

A layer can have hundreds of thousands of entries, so an entry keeps the extents of its file as packed bytes
(40 for each) and gives them out as objects on request.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from chunkstore.digest import ID_BYTES, ChunkId

Xattrs = tuple[tuple[bytes, bytes], ...]
"""Extended attributes as (name, value), sorted by name."""

EXTENT = struct.Struct(">q32s")
"""One extent, packed: its length in bytes, negative for a hole; the chunk's id, zeros for a hole."""

_NO_CHUNK = bytes(ID_BYTES)


class Kind(IntEnum):
    """What stands at a path."""

    REGULAR = 0
    DIRECTORY = 1
    SYMLINK = 2
    HARDLINK = 3
    """Another name of an earlier entry that is no directory."""
    CHARACTER = 4
    BLOCK = 5
    FIFO = 6
    SOCKET = 7


class Extent(NamedTuple):
    """A piece of a regular file: a whole chunk, or a hole (`chunk` is None). `length` is in bytes, at least 1."""

    length: int
    chunk: ChunkId | None


def pack_extents(extents: Iterable[Extent]) -> bytes:
    """Pack for `Entry.table`."""
    return b"".join(
        EXTENT.pack(-length, _NO_CHUNK) if chunk is None else EXTENT.pack(length, chunk) for length, chunk in extents
    )


def unpack_extents(table: bytes) -> Iterator[Extent]:
    """Undo `pack_extents`; `table` is a whole number of extents long."""
    for length, chunk in EXTENT.iter_unpack(table):
        yield Extent(-length, None) if length < 0 else Extent(length, ChunkId(chunk))


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a tree and all that is kept of it.

    A hard link has only `path` and `target`: the rest is said at the first name. A symlink's mode is always
    0o777.
    """

    path: bytes
    """Relative to the top folder, whose own path is empty; at most 4095 bytes, none of them NUL."""
    kind: Kind
    mode: int = 0
    """Permission bits with setuid, setgid and sticky: 0 to 0o7777."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    """Since the epoch; negative before it."""
    xattrs: Xattrs = ()
    table: bytes = b""
    """A regular file's extents, see `pack_extents`."""
    target: bytes = b""
    """A symlink's text, or the path of a hard link's first name."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""

    @property
    def extents(self) -> Iterator[Extent]:
        """A regular file's content in file order; nothing for an empty file and for other kinds."""
        return unpack_extents(self.table)

    @property
    def size(self) -> int:
        """Bytes of a regular file, holes included; 0 for other kinds."""
        return sum(abs(length) for length, _ in EXTENT.iter_unpack(self.table))

    @property
    def name(self) -> bytes:
        """The last component of the path."""
        return self.path.rpartition(b"/")[2]

    @property
    def parent(self) -> bytes:
        """The path of the folder that this entry is in (the top folder's own parent is itself)."""
        return self.path.rpartition(b"/")[0]
