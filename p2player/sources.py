"""What a peer may read of this node, and how the layers in it are made up.

Deltas name chunks by their positions among those of a layer, so whoever serves them must know these lists. Every node
of the mesh may read the shared store; what is one migration's is exposed to one peer, see `serving`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from chunkstore.content import Content
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.store import ChunkStore

MAX_KNOWN_CHUNKS: Final = 500_000

Positions = Sequence[ChunkId]


def _no_layer(layer: LayerId) -> NoReturn:
    raise LayerUnknown(layer)


@dataclass(frozen=True, slots=True)
class Source:
    """What one peer may have, and how the layers in it are made up, where deltas may be taken of them.

    Attributes:
        content: the chunks.
        chunks_of: the distinct chunks of a layer, in the order of its manifest. Raises LayerUnknown.
        manifest_of: the ids of the chunks of its manifest, and the size of that in bytes. Raises LayerUnknown.
    """

    content: Content
    chunks_of: Callable[[LayerId], Positions] = _no_layer
    manifest_of: Callable[[LayerId], tuple[Sequence[ChunkId], int]] = _no_layer


class SharedLayers:
    """The layers of the shared store, as `Source` wants them. Safe for many threads, two of which may look up the same.

    Chunk lists of those that were last asked for are kept.
    """

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._lists: OrderedDict[LayerId, Positions] = OrderedDict()
        self._lock = threading.Lock()

    def chunks_of(self, layer: LayerId) -> Positions:
        """See `Source`."""
        with self._lock:
            known = self._lists.get(layer)
        if known is not None:
            return known
        found = tuple(self._store.layer_chunks(layer))
        with self._lock:
            self._lists[layer] = found
            while len(self._lists) > 1 and sum(map(len, self._lists.values())) > MAX_KNOWN_CHUNKS:
                self._lists.popitem(last=False)
        return found

    def manifest_of(self, layer: LayerId) -> tuple[Sequence[ChunkId], int]:
        """See `Source`."""
        record = self._store.layer(layer)
        if record is None:
            raise LayerUnknown(layer)
        return record.manifest_chunks, record.manifest_size
