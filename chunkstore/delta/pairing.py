"""Which file of an old layer a file of the new one probably came from.

Theory of operation
-------------------
Evidence is taken in this order:

1. the same path, unless nothing is common to both files and another old file shares a good part of the chunks
   (a log that was rotated), or one is several times as large as the other, and an old file whose path differs in
   numbers only is nearer in size (`pages-1.img` and `pages-2.img` of two processes that changed places),
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
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

from chunkstore.digest import ChunkId
from chunkstore.entries import EXTENT, Entry, Kind
from chunkstore.manifest import Manifest

_GOOD_SHARE: Final = 1 / 8
_SEARCHED: Final = 64
_FAR: Final = 4
_FAR_BYTES: Final = 64 << 10
_VERSION = re.compile(rb"[0-9a-f]{8,}|[0-9]+(?:[.\-_~+][0-9]+)*")


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
        self._sizes = array("Q")
        self._by_path: dict[bytes, int] = {}
        self._kept = kept
        self._names: list[_Names] = []
        positions = self.positions
        for entry in old.entries:
            if entry.table:
                for length, chunk in EXTENT.iter_unpack(entry.table):
                    if length > 0 and chunk not in positions:
                        positions[chunk] = len(positions)
                        self._homes.append(len(self.files))
                self._by_path[entry.path] = len(self.files)
                self.files.append(entry)
                self._sizes.append(entry.size)
            elif entry.kind is Kind.HARDLINK and (first := self._by_path.get(entry.target)) is not None:
                self._by_path[entry.path] = first

    def relative(self, entry: Entry, size: int, common: Sequence[int]) -> int | None:
        """The old file that `entry` of the new layer most likely came from.

        Args:
            size: the entry's, in bytes.
            common: for each of the entry's chunks that the old layer has, its old position.
        """
        same = self._by_path.get(entry.path)
        if same is not None and self._is_far(same, size):
            same = self._named_alike(entry, size)
        if not common:
            return self._named_alike(entry, size) if same is None else same
        shared = Counter(map(self._homes.__getitem__, common))
        if same is not None and (same in shared or self._shares(same, common)):
            return same
        best, votes = self._most(shared, entry)
        if votes >= max(1, len(entry.table) // EXTENT.size * _GOOD_SHARE):
            return best
        if same is not None:
            return same
        named = self._named_alike(entry, size)
        return best if named is None else named

    def _is_far(self, file: int, size: int) -> bool:
        """Whether a file has another size, so that it may be another one by chance."""
        old = self._sizes[file]
        return max(old, size) > _FAR * min(old, size) + _FAR_BYTES

    def _shares(self, file: int, common: Sequence[int]) -> bool:
        """Whether any of these chunks is in a file; of a large one only the beginning is searched."""
        wanted = set(common)
        searched = islice(EXTENT.iter_unpack(self.files[file].table), _SEARCHED + 4 * len(common))
        return any(length > 0 and self.positions[ChunkId(chunk)] in wanted for length, chunk in searched)

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

    def _named_alike(self, entry: Entry, size: int) -> int | None:
        for rank, (key, only_gone) in enumerate(_KEYS):
            if rank == len(self._names):
                self._names.append(self._index(key, only_gone))
            found = self._names[rank].closest(key(entry), size)
            if found is not None:
                return found
        return None

    def _index(self, key: Callable[[Entry], bytes], only_gone: bool) -> "_Names":
        kept = frozenset(self._kept()) if only_gone else frozenset()
        return _Names(
            (key(entry), self._sizes[file], file) for file, entry in enumerate(self.files) if entry.path not in kept
        )


_KEYS: Final[tuple[tuple[Callable[[Entry], bytes], bool], ...]] = (
    (lambda entry: without_versions(entry.path), False),
    (lambda entry: entry.name, True),
    (lambda entry: without_versions(entry.name), True),
)
"""What names are compared by, one after the other, and whether only with those of paths that are gone."""


class _Names:
    """Files by a name and the closest size; of the names their hashes are kept, 20 bytes a file.

    Args:
        rows: (name, size in bytes, file).
    """

    def __init__(self, rows: Iterable[tuple[bytes, int, int]]) -> None:
        ordered = sorted((hash(name), size, file) for name, size, file in rows)
        self._hashes = array("q", (row[0] for row in ordered))
        self._sizes = array("Q", (row[1] for row in ordered))
        self._files = array("I", (row[2] for row in ordered))

    def closest(self, name: bytes, size: int) -> int | None:
        """The file of that name which is nearest in size; of two, the smaller one."""
        key = hash(name)
        lo = bisect_left(self._hashes, key)
        if lo == len(self._hashes) or self._hashes[lo] != key:
            return None
        hi = bisect_right(self._hashes, key, lo)
        if hi - lo == 1:
            return self._files[lo]
        at = bisect_left(self._sizes, size, lo, hi)
        near = range(max(lo, at - 1), min(hi, at + 1))
        return self._files[min(near, key=lambda index: abs(self._sizes[index] - size))]
