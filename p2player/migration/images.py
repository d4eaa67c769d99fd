"""The images of one migration's instance layer, at either end. Everything here blocks: call it in worker threads.

Source: each image is an import of the app's state folder into the migration's vault. What did not change is neither
read again (a stat cache in memory) nor stored again. Destination: chunks arrive in a vault of its own with the same
key. The first image is checked out, each later one patches that tree (`patch`), and the last tree becomes the app's
instance folder by one rename.

An old image of the same app, kept from an earlier migration (see `basis`), is read out of its vault and sealed anew
under the key of the present one. The names of its chunks are then the very names that the source asks about: the way
back moves only what changed, and neither end need know what the other has kept.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from backends.folders import remove_tree
from chunkstore.checkout import checkout
from chunkstore.codec import pack_all
from chunkstore.digest import Buffer, ChunkId, LayerId, chunk_id
from chunkstore.errors import ChunkMissing, StoreDamaged, StoreError
from chunkstore.importer import import_tree
from chunkstore.manifest import Manifest, load
from chunkstore.tree_errors import ManifestInvalid
from chunkstore.vault import Vault
from p2player.errors import Refused
from p2player.migration.patch import patch
from p2player.migration.seams import Progress
from p2player.proto.handoff import fields, messages
from p2player.proto.handoff.fields import Malformed
from p2player.proto.handoff.messages import MAX_FRESH, MAX_MANIFEST_CHUNKS, Chunk, Image
from p2player.statedir import sync_folder

VAULT = "vault"
IMAGE = "image"
TREES = "trees"
SCRATCH = "scratch"

SEED_CHUNKS = 256


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
        self._before: dict[ChunkId, int] = {}

    def take(self, *, final: bool, progress: Progress | None = None) -> tuple[Image, int]:
        """Import the folder as it is now.

        Args:
            progress: called with bytes done and in total; may raise to cancel.

        Returns:
            The image, and how many bytes of it the image before did not have.

        Raises:
            StoreError: it cannot be read, does not rest, or the disk is full.
            Refused: it has too many files.
        """
        imported = import_tree(self.vault, self._state, progress=progress, stat_cache=self._cache)
        if len(imported.manifest_chunks) > MAX_MANIFEST_CHUNKS:
            raise Refused("the instance layer has too many files to be moved")
        lengths = {name: len(data) for name, data in self.vault.read(imported.manifest_chunks)}
        chunks = imported.manifest.chunks()
        fresh = {name: length for name, length in chunks.items() if name not in self._before}
        self._before = chunks
        image = Image(
            imported.layer_id,
            imported.size,
            tuple(Chunk(name, lengths[name]) for name in imported.manifest_chunks),
            tuple(Chunk(*pair) for pair in fresh.items()) if len(fresh) <= MAX_FRESH else (),
        )
        if final:
            note_image(self._folder, image)
        return image, sum(fresh.values())

    def close(self) -> None:
        """Let go of the vault; it stays on the disk."""
        self.vault.close()


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

    def seed(self, old: Path, progress: Progress | None = None) -> None:
        """Take over the image that an earlier migration left in folder `old`.

        What cannot be read there any more is simply not taken over.
        """
        try:
            image = read_image(old)
            with Vault.open(old / VAULT) as vault:
                names = list(_manifest(vault, image).chunks())
                for start in range(0, len(names), SEED_CHUNKS):
                    self.vault.add(pack_all(self._renamed(vault, names[start : start + SEED_CHUNKS])))
                    if progress is not None:
                        progress(image.size * start // len(names), image.size)
        except (ChunkMissing, StoreDamaged, ManifestInvalid, Malformed, FileNotFoundError):
            return

    def _renamed(self, vault: Vault, names: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, Buffer]]:
        for _, data in vault.read(names):
            yield chunk_id(data, self.vault.key), data

    def first_wants(self, image: Image) -> dict[ChunkId, int]:
        """What is asked for at once: the manifest, and what the source says is new."""
        return {ChunkId(chunk.id): chunk.length for chunk in (*image.manifest, *image.fresh)}

    def all_wants(self, image: Image) -> dict[ChunkId, int]:
        """Everything that the image is made of, once its manifest is here.

        Raises:
            ManifestInvalid: the chunks are not the manifest that the image names.
            ChunkMissing: one of them is not here.
        """
        manifest = {ChunkId(chunk.id): chunk.length for chunk in image.manifest}
        return manifest | _manifest(self.vault, image).chunks()

    def place(self, image: Image, final: Path | None, progress: Progress | None = None) -> None:
        """Write the image to a folder, durably: to `final`, an empty one, or to one that the next image changes.

        Raises:
            StoreError: a chunk is missing, or it cannot be written.
        """
        manifest = _manifest(self.vault, image)
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


class _StatCache:
    """What files were made of when an earlier round read them; lives as long as the migration."""

    def __init__(self) -> None:
        self._payloads: dict[tuple[int, int], bytes] = {}

    def cached(self, dev: int, ino: int) -> bytes | None:
        return self._payloads.get((dev, ino))

    def remember(self, dev: int, ino: int, payload: bytes) -> None:
        self._payloads[dev, ino] = payload


def _manifest(vault: Vault, image: Image) -> Manifest:
    return load(vault, [ChunkId(chunk.id) for chunk in image.manifest], LayerId(image.layer))


def note_image(folder: Path, image: Image) -> None:
    """Remember which image is the final one. Not synced: losing it costs a basis and nothing else."""
    raw = fields.encode(messages.Round(1, 1, replace(image, fresh=()), final=True))
    (folder / IMAGE).write_bytes(raw)


def read_image(folder: Path) -> Image:
    """The final image of an earlier migration.

    Raises:
        Malformed: the note is damaged.
        FileNotFoundError: there is none.
    """
    with (folder / IMAGE).open("rb") as file:
        data = file.read(fields.MAX_BYTES + 1)
    return fields.decode(data, {"Round": messages.Round}).image


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
