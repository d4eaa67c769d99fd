"""Remember what a file was made of, so that an import does not read again what did not change.

A file is taken as unchanged when device, inode, size, mtime and ctime are. Timestamps move in steps, so a
file that was written twice within one step looks unchanged after the second time ("racy" in git's words). A
file whose times lie within two seconds of the moment it was read is therefore not remembered at all; the next
import reads it once more.
"""

import os
from dataclasses import dataclass
from typing import Protocol

import msgpack

from chunkstore.digest import ChunkId, chunk_id
from chunkstore.entries import EXTENT, Xattrs, unpack_extents

RACY_NS = 2_000_000_000
"""A time that lies no longer back than this does not tell one write from the next."""

_VERSION = 3
"""Of the payloads, and of how files are cut: raise it when either changes, and everything is read once more."""


def scope(key: bytes | None) -> bytes:
    """What memories hold for: ids depend on the content's key, and which attributes are visible on who asks."""
    return chunk_id(b"stat cache %d %d" % (_VERSION, os.geteuid()), key)


class StatCache(Protocol):
    """Where the memory is kept. Losing any of it costs a read and nothing else."""

    def cached(self, dev: int, ino: int) -> bytes | None:
        """What was last remembered for this inode, if anything."""

    def remember(self, dev: int, ino: int, payload: bytes) -> None:
        """Keep `payload` for this inode in place of an older one."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a regular file held when it was read: its extents (see `entries`) and extended attributes.

    `cut_by` names what else than the file decided where it was cut; empty where nothing did.
    """

    table: bytes
    xattrs: Xattrs
    cut_by: bytes = b""

    @property
    def chunk_ids(self) -> set[ChunkId]:
        """The chunks that must still be there for this to be of use."""
        return {chunk for _, chunk in unpack_extents(self.table) if chunk is not None}


class Recall:
    """Encodes and judges payloads for imports under one key of content."""

    def __init__(self, key: bytes | None) -> None:
        self._scope = scope(key)

    def payload(self, status: os.stat_result, file: Remembered, read_at_ns: int) -> bytes | None:
        """What to remember of a file, or None where its times are too young to be trusted.

        Args:
            status: of the file, the same before and after it was read.
            file: what was read.
            read_at_ns: wall clock just before the read.
        """
        if max(status.st_mtime_ns, status.st_ctime_ns) > read_at_ns - RACY_NS:
            return None
        stamp = (self._scope, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        payload: bytes = msgpack.packb((*stamp, file.cut_by, file.xattrs, file.table), use_bin_type=True)
        return payload

    def match(self, status: os.stat_result, payload: bytes) -> Remembered | None:
        """What the file still holds, or None if it changed or the payload is not one of ours."""
        try:
            scope, size, mtime_ns, ctime_ns, cut_by, xattrs, table = msgpack.unpackb(payload, use_list=False)
        except (ValueError, TypeError, msgpack.UnpackException):
            return None
        if (scope, size, mtime_ns, ctime_ns) != (
            self._scope,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        ):
            return None
        if (
            type(table) is not bytes
            or len(table) % EXTENT.size
            or type(xattrs) is not tuple
            or type(cut_by) is not bytes
        ):
            return None
        return Remembered(table, xattrs, cut_by)
