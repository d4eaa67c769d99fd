"""What a peer may read of this node, and how the layers in it are made up.

Deltas name chunks by their positions among those of a layer, so whoever serves them must know these lists. Every node
of the mesh may read the shared store; what is one migration's is exposed to one peer, see `serving`.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, overload

from chunkstore.content import Content
from chunkstore.digest import ID_BYTES, ChunkId, LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.store import ChunkStore

MAX_KNOWN_CHUNKS: Final = 1_000_000
LEAST_KNOWN: Final = 2
"""Lists that are kept however long they are: a layer's and its basis', or each request would read both anew."""


class PackedIds(Sequence[ChunkId]):
    """Ids in as little memory as they need: 32 bytes each, where objects would take three times that."""

    def __init__(self, ids: Iterable[ChunkId]) -> None:
        self._joined = b"".join(ids)

    def __len__(self) -> int:
        return len(self._joined) // ID_BYTES

    @overload
    def __getitem__(self, at: int) -> ChunkId: ...
    @overload
    def __getitem__(self, at: slice) -> "PackedIds": ...
    def __getitem__(self, at: int | slice) -> "ChunkId | PackedIds":
        if isinstance(at, slice):
            return PackedIds(self[number] for number in range(*at.indices(len(self))))
        start = range(0, len(self._joined), ID_BYTES)[at]
        return ChunkId(self._joined[start : start + ID_BYTES])


class JoinedIds:
    """Several lists of ids one after the other."""

    def __init__(self, lists: Iterable[Sequence[ChunkId]]) -> None:
        self._lists: list[Sequence[ChunkId]] = []
        self._ends: list[int] = []
        for ids in lists:
            self.add(ids)

    def add(self, ids: Sequence[ChunkId]) -> None:
        """One more list, behind the others."""
        self._lists.append(ids)
        self._ends.append(len(self) + len(ids))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, at: int) -> ChunkId:
        number = bisect_right(self._ends, at)
        return self._lists[number][at - (self._ends[number - 1] if number else 0)]


def _no_layer(layer: LayerId) -> NoReturn:
    raise LayerUnknown(layer)


@dataclass(frozen=True, slots=True)
class Source:
    """What one peer may have, and how the layers in it are made up, where deltas may be taken of them.

    Attributes:
        content: the chunks.
        chunks_of: the distinct chunks of a layer, in the order of its manifest. Raises LayerUnknown.
        manifest_of: the ids of the chunks of its manifest, and the size of that in bytes. Raises LayerUnknown.
        layers: shared layers that the peer has, and of which the content may repeat something.
    """

    content: Content
    chunks_of: Callable[[LayerId], Sequence[ChunkId]] = _no_layer
    manifest_of: Callable[[LayerId], tuple[Sequence[ChunkId], int]] = _no_layer
    layers: Sequence[LayerId] = ()


class SharedLayers:
    """The layers of the shared store, as `Source` wants them. Safe for many threads.

    Chunk lists of those that were last asked for are kept, and read one at a time: that of a large layer takes a while.
    """

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._lists: OrderedDict[LayerId, PackedIds] = OrderedDict()
        self._lock = threading.Lock()
        self._reading = threading.Lock()

    def chunks_of(self, layer: LayerId) -> PackedIds:
        """See `Source`."""
        known = self._known(layer)
        if known is not None:
            return known
        with self._reading:
            known = self._known(layer)
            if known is None:
                known = PackedIds(self._store.layer_chunks(layer))
                with self._lock:
                    self._lists[layer] = known
                    while len(self._lists) > LEAST_KNOWN and sum(map(len, self._lists.values())) > MAX_KNOWN_CHUNKS:
                        self._lists.popitem(last=False)
        return known

    def _known(self, layer: LayerId) -> PackedIds | None:
        with self._lock:
            known = self._lists.get(layer)
            if known is not None:
                self._lists.move_to_end(layer)
            return known

    def manifest_of(self, layer: LayerId) -> tuple[Sequence[ChunkId], int]:
        """See `Source`."""
        record = self._store.layer(layer)
        if record is None:
            raise LayerUnknown(layer)
        return record.manifest_chunks, record.manifest_size
