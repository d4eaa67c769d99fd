"""Tell that a folder is still the layer that was made of it, by `stat`s alone.

Theory of operation
-------------------
A *survey* is the digest of everything that `stat` says of every path of a tree. The change time of an inode moves
with its content, owner, mode and extended attributes, and a folder's with its names; so equal surveys mean an equal
tree, as far as a filesystem tells at all.

A survey is taken before a tree is imported, and kept with the layer that the import made. If the tree changes after
the survey, before, during or after the import, some change time grows, and no later survey equals the kept one. Times
move in steps, though: a tree with any time within two seconds of its survey is not remembered (see `statcache`).

It is kept in the stat cache, under device and inode of the top folder. What is recalled counts only while the layer is
held and all of it is here.
"""

import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import msgpack
from blake3 import blake3

from chunkstore.beneath import Beneath
from chunkstore.digest import ID_BYTES, LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.statcache import RACY_NS, StatCache, scope
from chunkstore.store import ChunkStore, LayerRecord

_FACTS = attrgetter(
    "st_dev",
    "st_ino",
    "st_mode",
    "st_nlink",
    "st_uid",
    "st_gid",
    "st_rdev",
    "st_size",
    "st_mtime_ns",
    "st_ctime_ns",
)


@dataclass(frozen=True, slots=True)
class Survey:
    """How a tree looks.

    Attributes:
        dev, ino: of the top folder.
        digest: of all that `stat` says.
        settled: whether every time in it is old enough to be trusted.
    """

    dev: int
    ino: int
    digest: bytes
    settled: bool


def survey(path: Path, clock_ns: Callable[[], int] = time.time_ns) -> Survey | None:
    """Look at a tree; None where it cannot be walked, or is no folder.

    Args:
        path: the folder; a symlink to one is followed, nothing below it is.
        clock_ns: wall clock.
    """
    taken_ns = clock_ns()
    with suppress(OSError), Beneath(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        top = os.fstat(root.root)
        look = _Look(top)
        while look.ahead:
            look.take(root, look.ahead.pop())
        return Survey(top.st_dev, top.st_ino, look.hasher.digest(), look.newest_ns <= taken_ns - RACY_NS)
    return None


class _Look:
    """One walk over a tree: the digest and the newest time so far, and folders that are left."""

    def __init__(self, top: os.stat_result) -> None:
        self.ahead = [b""]
        self.hasher = blake3(repr(_FACTS(top)).encode())
        self.newest_ns = max(top.st_mtime_ns, top.st_ctime_ns)
        self._packer = msgpack.Packer(unicode_errors="surrogateescape")

    def take(self, root: Beneath, folder: bytes) -> None:
        """Take what is in a folder, in an order that is always the same."""
        rows: list[bytes] = []
        with os.scandir(root.folder(folder)) as items:
            for item in items:
                status = item.stat(follow_symlinks=False)
                rows.append(self._packer.pack((item.name, _FACTS(status))))
                self.newest_ns = max(self.newest_ns, status.st_mtime_ns, status.st_ctime_ns)
                if stat.S_ISDIR(status.st_mode):
                    self.ahead.append(os.path.join(folder, os.fsencode(item.name)))
        rows.sort()
        self.hasher.update(len(rows).to_bytes(8, "big") + b"".join(rows))


def remember(cache: StatCache, seen: Survey | None, layer: LayerId, key: bytes | None = None) -> None:
    """Keep that a tree is a layer, if its times can be trusted.

    Args:
        cache: where to.
        seen: how the tree looked *before* it was read.
        layer: what was made of it.
        key: of the content that it was read into.
    """
    if seen is not None and seen.settled:
        cache.remember(seen.dev, seen.ino, msgpack.packb((scope(key), seen.digest, layer), use_bin_type=True))


def recall(cache: StatCache, seen: Survey | None, key: bytes | None = None) -> LayerId | None:
    """The layer that a tree was when it last looked as it does now, if that is known."""
    payload = None if seen is None else cache.cached(seen.dev, seen.ino)
    if seen is None or payload is None:
        return None
    try:
        kept, digest, layer = msgpack.unpackb(payload, use_list=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    if (kept, digest) != (scope(key), seen.digest) or type(layer) is not bytes or len(layer) != ID_BYTES:
        return None
    return LayerId(layer)


def recall_held(store: ChunkStore, seen: Survey | None) -> LayerRecord | None:
    """The record of the layer that a tree is, where that is held and whole; marks it as used."""
    layer = recall(store, seen, store.key)
    record = None if layer is None else store.layer(layer)
    if layer is None or record is None or not record.held or store.missing(record.manifest_chunks):
        return None
    with suppress(LayerUnknown):  # gc took it meanwhile
        have, total = store.holding(layer)
        if have == total:
            store.touch(layer)
            return record
    return None
