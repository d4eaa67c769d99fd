"""Read chunks back: in disk order, neighbours by one read, and nothing that fails its checksum.

A chunk whose record turns out to be damaged is *suspect* from then on: it is not served, and counts as missing, so
that the next transfer fetches it again and replaces it.
"""

import threading
from collections import OrderedDict
from collections.abc import Container, Iterable, Iterator

from chunkstore.codec import MAX_GROUP_BYTES, MAX_GROUP_CHUNKS, Codec, Group, pack, split
from chunkstore.digest import ChunkId
from chunkstore.errors import BadGroup
from chunkstore.index import Index
from chunkstore.packs import Lost, PackFiles
from chunkstore.records import Place

_ATTEMPTS = 3  # a pack that gc rewrote between look-up and read is looked up again
_CACHED_GROUPS = 8


class Retrieval:
    """Reads of one store. Safe for many threads."""

    def __init__(self, index: Index, packs: PackFiles) -> None:
        self.suspects: set[ChunkId] = set()
        self._index = index
        self._packs = packs
        self._cache = OpenGroups()

    def groups(self, ids: Iterable[ChunkId]) -> Iterator[Group]:
        """See `Content.groups`."""
        return regroup(self._servings(set(ids)), self.suspects)

    def read(self, ids: Iterable[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
        """See `Content.read`."""
        wanted = set(ids)
        if self._cache:
            for place, (_, asked) in self._index.locate(wanted).items():
                chunks = self._cache.get(place)
                if chunks is not None:
                    here = asked & chunks.keys()
                    wanted -= here
                    yield from ((name, chunks[name]) for name in here)
        for place, group, asked in self._fetch(wanted):
            try:
                chunks = dict(split(group))
            except BadGroup:
                self.suspects |= asked
                continue
            if len(asked) == len(chunks):
                yield from chunks.items()
            else:
                # A raw one costs nothing to open, and would keep all that was read with it.
                if group.codec is not Codec.RAW:
                    self._cache.put(place, chunks)
                yield from ((name, data) for name, data in chunks.items() if name in asked)

    def forget(self) -> None:
        """Let go of groups that are kept open."""
        self._cache.clear()

    def _servings(self, wanted: set[ChunkId]) -> Iterator[tuple[Group, set[ChunkId], bool]]:
        for place, group, asked in self._fetch(wanted):
            whole = mostly(group, asked)
            if whole and len(asked) < len(group.ids):
                # A record may hold copies that are not read from it, perhaps because they were forgotten as damaged.
                _, own = self._index.locate(group.ids).get(place, (0, set()))
                whole = own.issuperset(group.ids)
            yield group, asked, whole

    def _fetch(self, wanted: set[ChunkId]) -> Iterator[tuple[Place, Group, set[ChunkId]]]:
        """Records that hold wanted chunks, and which of them are to be read from each."""
        for _ in range(_ATTEMPTS):
            located = self._index.locate(wanted)
            again: set[ChunkId] = set()
            for place, found in self._packs.fetch([(place, size) for place, (size, _) in located.items()]):
                asked = located[place][1]
                if found is Lost.GONE:
                    again |= asked
                elif found is Lost.DAMAGED:
                    self.suspects |= asked
                else:
                    here = asked.intersection(found.ids)
                    self.suspects |= asked - here
                    if here:
                        yield place, found, here
            if not again:
                return
            wanted = again


def mostly(group: Group, asked: Container[ChunkId]) -> bool:
    """Whether at least three quarters of a group's bytes are asked for."""
    asked_bytes = sum(length for name, length in zip(group.ids, group.lengths, strict=True) if name in asked)
    return 4 * asked_bytes >= 3 * group.raw_bytes


def regroup(servings: Iterable[tuple[Group, set[ChunkId], bool]], bad: set[ChunkId]) -> Iterator[Group]:
    """Make groups for a wire out of stored ones.

    Args:
        servings: groups whose checksums were verified, which chunks of each are asked for, and whether the group may
            pass whole. Of the others, what is asked for is packed anew with its neighbours.
        bad: gets the chunks of groups that do not decompress.
    """
    loose: list[tuple[ChunkId, bytes]] = []
    loose_bytes = 0
    for group, asked, whole in servings:
        if whole:
            yield group
            continue
        try:
            chunks = dict(split(group))
        except BadGroup:
            bad |= asked
            continue
        for name in (name for name in chunks if name in asked):
            data = bytes(chunks[name])  # a copy, or a few small chunks would keep many whole groups in memory
            if loose_bytes + len(data) > MAX_GROUP_BYTES or len(loose) == MAX_GROUP_CHUNKS:
                yield pack(loose)
                loose, loose_bytes = [], 0
            loose.append((name, data))
            loose_bytes += len(data)
    if loose:
        yield pack(loose)


class OpenGroups:
    """The groups that were last decompressed for a part of their chunks, by place, in case the other parts follow."""

    def __init__(self) -> None:
        self._groups: OrderedDict[int, dict[ChunkId, memoryview]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._groups)

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            self._groups.clear()

    def get(self, place: int) -> dict[ChunkId, memoryview] | None:
        with self._lock:
            chunks = self._groups.get(place)
            if chunks is not None:
                self._groups.move_to_end(place)
            return chunks

    def put(self, place: int, chunks: dict[ChunkId, memoryview]) -> None:
        with self._lock:
            self._groups[place] = chunks
            self._groups.move_to_end(place)
            if len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
