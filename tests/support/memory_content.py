"""Content in memory: the smallest thing that importers and checkouts work on."""

import threading
from collections.abc import Iterable, Iterator, Sequence

from chunkstore.codec import Group, open_group, pack_all
from chunkstore.digest import ChunkId


class MemoryContent:
    """Implements `chunkstore.content.Content`; refuses bytes whose digest is wrong."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key
        self._lock = threading.Lock()
        self.chunks: dict[ChunkId, bytes] = {}
        self.added_groups: list[Group] = []
        self.reads = 0
        self.commits = 0

    @property
    def key(self) -> bytes | None:
        return self._key

    def missing(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        return {name for name in ids if name not in self.chunks}

    def add(self, groups: Iterable[Group]) -> int:
        new_bytes = 0
        for group in groups:
            with self._lock:
                self.added_groups.append(group)
                for name, data in open_group(group, self._key):
                    if name not in self.chunks:
                        self.chunks[name] = bytes(data)
                        new_bytes += len(data)
        return new_bytes

    def groups(self, ids: Sequence[ChunkId]) -> Iterator[Group]:
        return pack_all(self.read(ids))

    def read(self, ids: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
        """In the order in which chunks were added, which is not the order asked for."""
        self.reads += 1
        wanted = set(ids)
        for name, data in list(self.chunks.items()):
            if name in wanted:
                yield name, memoryview(data)

    def commit(self) -> None:
        self.commits += 1
