"""Which file of an old layer a file of the new one probably came from.

Theory of operation
-------------------
Evidence is taken in this order:

1. the same path, unless nothing is common to both files and another old file shares a good part of the chunks
   (a log that was rotated),
2. the old file that shares most chunks: renamed or moved, and edited,
3. the same path when version numbers are taken out of it (`foo-1.2/x` and `foo-1.3/x`),
4. the same base name of a path that is gone, of several the one of the closest size,
5. the same base name without version numbers (`libfoo.so.1.2` and `libfoo.so.1.3`), again of a path that is gone,
6. any old file that shares a chunk.

A chunk counts for the first old file that it occurs in, so that ids repeated on purpose cost no time. A wrong guess
costs bytes, since digests decide on every result.
"""

import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from chunkstore.digest import ChunkId
from chunkstore.entries import EXTENT, Entry, Kind
from chunkstore.manifest import Manifest

_GOOD_SHARE: Final = 1 / 8
_VERSION = re.compile(rb"[0-9a-f]{8,}|[0-9]+(?:[.\-_~+][0-9]+)*")

_Pool = dict[bytes, list[tuple[int, int]]]


def without_versions(path: bytes) -> bytes:
    """A path with one mark in place of each version number or long hexadecimal word."""
    return _VERSION.sub(b"#", path)


class OldFiles:
    """The files of an old layer, and what tells them again.

    Attributes:
        files: the regular files with content, in the manifest's order; other methods name them by their index.
        positions: each chunk's position in `list(old.chunks())`.

    Args:
        old: the layer.
        kept: every path of the new layer.
    """

    def __init__(self, old: Manifest, kept: Callable[[], Iterable[bytes]]) -> None:
        self.files: list[Entry] = []
        self.positions: dict[ChunkId, int] = {}
        self._homes = array("I")
        self._by_path: dict[bytes, int] = {}
        self._kept = kept
        self._names: tuple[_Pool, _Pool, _Pool] | None = None
        positions = self.positions
        for entry in old.entries:
            if entry.table:
                for length, chunk in EXTENT.iter_unpack(entry.table):
                    if length > 0 and chunk not in positions:
                        positions[chunk] = len(positions)
                        self._homes.append(len(self.files))
                self._by_path[entry.path] = len(self.files)
                self.files.append(entry)
            elif entry.kind is Kind.HARDLINK and (first := self._by_path.get(entry.target)) is not None:
                self._by_path[entry.path] = first

    def relative(self, entry: Entry, common: Sequence[int]) -> int | None:
        """The old file that `entry` of the new layer most likely came from.

        Args:
            common: for each of the entry's chunks that the old layer has, its old position.
        """
        same = self._by_path.get(entry.path)
        if same is not None and not common:
            return same
        shared = Counter(map(self._homes.__getitem__, common))
        if same is not None and (same in shared or self._shares(same, common)):
            return same
        best, votes = self._most(shared, entry)
        if votes >= max(1, len(entry.table) // EXTENT.size * _GOOD_SHARE):
            return best
        if same is not None:
            return same
        named = self._named_alike(entry)
        return best if named is None else named

    def _shares(self, file: int, common: Sequence[int]) -> bool:
        wanted = set(common)
        return any(
            length > 0 and self.positions[ChunkId(chunk)] in wanted
            for length, chunk in EXTENT.iter_unpack(self.files[file].table)
        )

    def _most(self, shared: Counter[int], entry: Entry) -> tuple[int | None, int]:
        """The file with most votes, and how many; of several, one with the entry's name."""
        votes = max(shared.values(), default=0)
        best: int | None = None
        for file, count in shared.items():
            if count == votes:
                if self.files[file].name == entry.name:
                    return file, votes
                best = file if best is None else best
        return best, votes

    def _named_alike(self, entry: Entry) -> int | None:
        if self._names is None:
            self._names = self._index_names()
        for pool, key in zip(
            self._names, (without_versions(entry.path), entry.name, without_versions(entry.name)), strict=True
        ):
            if found := pool.get(key):
                return _closest(found, entry.size)
        return None

    def _index_names(self) -> tuple[_Pool, _Pool, _Pool]:
        """Files by path without versions; those whose path is gone by name, and by name without versions."""
        kept = frozenset(self._kept())
        paths: _Pool = {}
        names: _Pool = {}
        bare: _Pool = {}
        for file, entry in enumerate(self.files):
            sized = (entry.size, file)
            paths.setdefault(without_versions(entry.path), []).append(sized)
            if entry.path not in kept:
                names.setdefault(entry.name, []).append(sized)
                bare.setdefault(without_versions(entry.name), []).append(sized)
        for pool in (paths, names, bare):
            for found in pool.values():
                found.sort()
        return paths, names, bare


def _closest(found: list[tuple[int, int]], size: int) -> int:
    """Of files sorted by size, the one nearest in size."""
    at = bisect_left(found, (size, 0))
    return min(found[max(0, at - 1) : at + 1], key=lambda sized: abs(sized[0] - size))[1]
