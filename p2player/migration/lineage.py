"""The last images of one migration at its source: what is known of them, so that the next one can be a delta.

Deltas name chunks by their positions among those of an image, so whoever serves them must know these lists; of the
content itself nothing is kept here. Lists are packed, 32 bytes a chunk, since an image may be larger than memory.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from chunkstore.codec import compress_against
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import ChunkMissing, LayerUnknown
from chunkstore.manifest import Manifest, load_encoded
from chunkstore.tree_errors import ManifestInvalid
from chunkstore.vault import Vault
from p2player.proto.delta_wire import MAX_WHOLE_MANIFEST_BYTES
from p2player.proto.handoff.messages import MAX_OUTLINE_BYTES, Outline
from p2player.sources import PackedIds, Source

__all__ = ["KEPT_IMAGES", "Ancestor", "Lineage", "PackedIds"]

KEPT_IMAGES: Final = 3
"""One that is taken ahead, the one that is being fetched, and the one before, which the destination has."""
_LEVEL: Final = 3


@dataclass(frozen=True, slots=True)
class Ancestor:
    """One image.

    Attributes:
        layer: keyed digest of its manifest.
        chunks: distinct ones of its content, in the order of the manifest.
        manifest_chunks, manifest_size: of the manifest itself.
    """

    layer: LayerId
    chunks: Sequence[ChunkId]
    manifest_chunks: tuple[ChunkId, ...]
    manifest_size: int

    @classmethod
    def of(cls, layer: LayerId, manifest: Manifest, manifest_chunks: Sequence[ChunkId], manifest_size: int) -> Self:
        """What is kept of an image that is in a vault."""
        return cls(layer, PackedIds(manifest.chunks()), tuple(manifest_chunks), manifest_size)


class Lineage:
    """The images that deltas may be taken of, or against. Safe for many threads.

    Args:
        vault: has all their chunks.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._kept: OrderedDict[LayerId, Ancestor] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, image: Ancestor) -> None:
        """This is the newest one now."""
        with self._lock:
            self._kept[image.layer] = image
            self._kept.move_to_end(image.layer)
            while len(self._kept) > KEPT_IMAGES:
                self._kept.popitem(last=False)

    @property
    def newest(self) -> Ancestor | None:
        """The image that was added last."""
        with self._lock:
            return next(reversed(self._kept.values()), None)

    def source(self) -> Source:
        """For the peer that fetches them."""
        return Source(self._vault, lambda layer: self._find(layer).chunks, self._manifest_of)

    def outline(self, image: Ancestor) -> Outline | None:
        """The manifest of an image against that of the newest one here; None where it is not to be had, or large."""
        basis = self.newest
        if basis is None or max(basis.manifest_size, image.manifest_size) > MAX_WHOLE_MANIFEST_BYTES:
            return None
        try:
            old, new = (load_encoded(self._vault, each.manifest_chunks, each.layer) for each in (basis, image))
        except (ChunkMissing, ManifestInvalid):
            return None
        frame = compress_against(new, old, _LEVEL)
        return Outline(basis.layer, frame) if len(frame) <= MAX_OUTLINE_BYTES else None

    def _find(self, layer: LayerId) -> Ancestor:
        with self._lock:
            found = self._kept.get(layer)
        if found is None:
            raise LayerUnknown(layer)
        return found

    def _manifest_of(self, layer: LayerId) -> tuple[Sequence[ChunkId], int]:
        image = self._find(layer)
        return image.manifest_chunks, image.manifest_size
