"""The images of one migration's instance layer, at either end. Everything here blocks: call it in worker threads.

Source: each image is an import of the app's state folder into the migration's vault. What did not change is neither
read again (a stat cache in memory) nor stored again. Destination: chunks arrive in a vault of its own with the same
key. The first image is checked out, each later one patches that tree (`patch`), and the last tree becomes the app's
instance folder by one rename.

Each image but the first is fetched as what it differs in from the one before, which both ends have: of its manifest
the difference comes along with the request (`Outline`), of its chunks as deltas. An old image of the same app, kept
from an earlier migration (see `basis`), serves as the one before the first: both ends seal it anew under the key of
the present migration (`kept`). Where an end has lost it, or says nothing of deltas, chunks come as they are; where
only the destination has one, it still spares the chunks that are in it.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backends.folders import remove_tree
from chunkstore.checkout import checkout
from chunkstore.chunker import MANIFEST, cut
from chunkstore.codec import decompress_against, pack_all
from chunkstore.digest import ChunkId, LayerId, chunk_id, layer_id
from chunkstore.errors import BadGroup, StoreError
from chunkstore.importer import import_tree
from chunkstore.manifest import Manifest
from chunkstore.vault import Vault
from p2player.errors import Refused
from p2player.kin import Basis, Kin
from p2player.migration.kept import VAULT, manifest_of, note_image, reseal
from p2player.migration.lineage import Ancestor, Lineage, PackedIds
from p2player.migration.patch import patch
from p2player.migration.seams import Progress
from p2player.proto.delta_wire import MAX_WHOLE_MANIFEST_BYTES
from p2player.proto.handoff.messages import MAX_FRESH, MAX_MANIFEST_CHUNKS, Chunk, Image
from p2player.sources import Source
from p2player.statedir import sync_folder

TREES = "trees"
SCRATCH = "scratch"

KIN_BYTES = 2 << 10
"""Of lacking chunks; for less, nobody looks for relatives."""


@dataclass(frozen=True, slots=True)
class Taken:
    """An image that was taken.

    Attributes:
        image: what the destination is told of it.
        fresh_bytes: uncompressed bytes in chunks that the image before did not have.
        as_delta: whether there is an image before that the destination probably has.
    """

    image: Image
    fresh_bytes: int
    as_delta: bool


class SourceImages:
    """Images that this node takes.

    Args:
        folder: of the migration; holds a vault.
        state: the app's instance folder.
    """

    def __init__(self, folder: Path, state: Path) -> None:
        self.vault = Vault.open(folder / VAULT)
        self._folder = folder
        self._state = state
        self._cache = _StatCache()
        self._lineage = Lineage(self.vault)

    @property
    def source(self) -> Source:
        """What the destination may read."""
        return self._lineage.source()

    def seed(self, old: Path, progress: Progress | None = None) -> None:
        """Take over the image that an earlier migration left in folder `old`, if the destination may have it too.

        What cannot be read there any more is simply not taken over.
        """
        found = reseal(old, self.vault, progress)
        if found is not None:
            self._lineage.add(found[0])

    def take(self, *, final: bool, progress: Progress | None = None) -> Taken:
        """Import the folder as it is now.

        Args:
            final: the app does not run any more: the folder must rest. Before, files may come, change and go.
            progress: called with bytes done and in total; may raise to cancel.

        Raises:
            StoreError: it cannot be read, does not rest, or the disk is full.
            Refused: it has too many files.
        """
        imported = import_tree(self.vault, self._state, progress=progress, stat_cache=self._cache, live=not final)
        if len(imported.manifest_chunks) > MAX_MANIFEST_CHUNKS:
            raise Refused("the instance layer has too many files to be moved")
        lengths = {name: len(data) for name, data in self.vault.read(imported.manifest_chunks)}
        before = self._lineage.newest
        had = frozenset(() if before is None else before.chunks)
        fresh = {name: length for name, length in imported.content.items() if name not in had}
        listing = PackedIds(imported.content)
        newest = Ancestor(imported.layer_id, listing, imported.manifest_chunks, imported.manifest_size)
        listed = before is None and len(fresh) <= MAX_FRESH
        image = Image(
            imported.layer_id,
            imported.size,
            tuple(Chunk(name, lengths[name]) for name in imported.manifest_chunks),
            tuple(Chunk(*pair) for pair in fresh.items()) if listed else (),
            self._lineage.outline(newest),
        )
        self._lineage.add(newest)
        if final:
            note_image(self._folder, image)
        return Taken(image, sum(fresh.values()), before is not None)

    def close(self) -> None:
        """Let go of the vault; it stays on the disk."""
        self.vault.close()


@dataclass(frozen=True, slots=True)
class Lacking:
    """What of an image is not here.

    Attributes:
        total_bytes: of the whole image and its manifest.
        wants: the missing chunks, with their lengths.
        kin: how they are related to an image that is here; None where none is, or nothing is gained by it.
    """

    total_bytes: int
    wants: Mapping[ChunkId, int]
    kin: Kin | None


class DestinationImages:
    """Images that arrive at this node; an earlier vault in `folder` is destroyed.

    Args:
        folder: of the migration.
        key: of the source's vault.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        Vault.destroy(folder / VAULT)
        self.vault = Vault.create(folder / VAULT, key)
        self._folder = folder
        self._trees = 0
        self._placed: tuple[Path, Manifest] | None = None
        self._basis: tuple[LayerId, Manifest] | None = None
        self._basis_shared = False

    def seed(self, old: Path, progress: Progress | None = None) -> None:
        """Take over the image that an earlier migration left in folder `old`.

        What cannot be read there any more is simply not taken over.
        """
        found = reseal(old, self.vault, progress)
        if found is not None:
            self._basis = found[0].layer, found[1]

    def unfold(self, image: Image) -> bool:
        """Make the image's manifest out of its outline and the image before; False when that cannot be done.

        Raises:
            StoreError: the manifest could not be stored.
        """
        if self._basis is None:
            return False
        basis, old = self._basis
        if image.layer == basis:
            return True
        if image.outline is None or image.outline.basis != basis:
            return False
        try:
            encoded = decompress_against(image.outline.frame, old.encode(), MAX_WHOLE_MANIFEST_BYTES)
        except BadGroup:
            return False
        if layer_id(encoded, self.vault.key) != image.layer:
            return False
        self.vault.add(pack_all((chunk_id(piece, self.vault.key), piece) for piece in cut(encoded, MANIFEST)))
        self._basis_shared = True
        return not self.vault.missing(ChunkId(chunk.id) for chunk in image.manifest)

    def first_wants(self, image: Image) -> dict[ChunkId, int]:
        """What is asked for at once: the manifest, and what the source says is new.

        Not that of the first image where an old one is here: signatures may bring it for less. In a later one, it
        comes from a source that knows no deltas.
        """
        fresh = image.fresh if self._basis is None or self._basis_shared else ()
        return {ChunkId(chunk.id): chunk.length for chunk in (*image.manifest, *fresh)}

    def lacking(self, image: Image) -> Lacking:
        """What of an image is not here, once its manifest is.

        Raises:
            ManifestInvalid: the chunks are not the manifest that the image names.
            ChunkMissing: one of them is not here.
        """
        manifest = manifest_of(self.vault, image)
        chunks = manifest.chunks()
        missing = self.vault.missing(chunks)
        wants = {name: length for name, length in chunks.items() if name in missing}
        total_bytes = sum(chunks.values()) + sum(chunk.length for chunk in image.manifest)
        return Lacking(total_bytes, wants, self._kin(LayerId(image.layer), manifest, wants))

    def _kin(self, layer: LayerId, manifest: Manifest, wants: Mapping[ChunkId, int]) -> Kin | None:
        if self._basis is None or sum(wants.values()) < KIN_BYTES:
            return None
        shared = self._basis_shared
        kin = Kin(layer, manifest, wants, Basis(*self._basis, also_at=lambda _: shared), goodput={})
        return kin if kin.covered_bytes else None

    def place(self, image: Image, final: Path | None, progress: Progress | None = None) -> None:
        """Write the image to a folder, durably: to `final`, an empty one, or to one that the next image changes.

        Raises:
            StoreError: a chunk is missing, or it cannot be written.
        """
        manifest = manifest_of(self.vault, image)
        self._basis, self._basis_shared = (LayerId(image.layer), manifest), True
        if final is None and _mostly_one_file(manifest):
            return
        if not self._patch(manifest):
            self._check_out(manifest, progress)
        if final is not None:
            assert self._placed is not None
            os.rename(self._placed[0], final)
            self._placed = None
            sync_folder(final.parent)
            self.vault.commit()
            note_image(self._folder, image)

    def _patch(self, manifest: Manifest) -> bool:
        """Make the image before into this one in its place, if there is one and that is cheaper."""
        if self._placed is None:
            return False
        tree, old = self._placed
        try:
            done = patch(self.vault, old, manifest, tree, self._folder / SCRATCH)
        except (StoreError, OSError):
            return False  # what is left of it is still good for a checkout to share data with
        if done:
            self._placed = tree, manifest
        return done

    def _check_out(self, manifest: Manifest, progress: Progress | None) -> None:
        older = None if self._placed is None else self._placed[0]
        self._trees += 1
        tree = self._folder / TREES / str(self._trees)
        checkout(self.vault, manifest, tree, progress=progress, reuse=older)
        self._placed = tree, manifest
        if older is not None:
            remove_tree(older)

    def close(self) -> None:
        """Let go of the vault; it stays on the disk."""
        self.vault.close()


def _mostly_one_file(manifest: Manifest) -> bool:
    """Whether one file makes up most of a tree, as an image of memory does.

    It will be another one in the next image, however few of its pages change: to have written it spares nothing then.
    """
    return 2 * max((entry.size for entry in manifest.entries), default=0) > manifest.size


class _StatCache:
    """What files were made of when an earlier round read them; lives as long as the migration."""

    def __init__(self) -> None:
        self._payloads: dict[tuple[int, int], bytes] = {}

    def cached(self, dev: int, ino: int) -> bytes | None:
        return self._payloads.get((dev, ino))

    def remember(self, dev: int, ino: int, payload: bytes) -> None:
        self._payloads[dev, ino] = payload


def size_of_tree(folder: Path) -> int:
    """Bytes of the regular files in a folder, as far as they can be seen while others write to it."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(place, name))
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                total += status.st_size
    return total
