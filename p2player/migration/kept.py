"""An image that a migration left in its folder: the note that names it, and how it is taken over into another vault.

A later migration of the same app *reseals* it at both ends, under its own key. The chunks then have the very names
that this migration uses, and the image itself is one that both ends know: the way back moves only what changed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from chunkstore.chunker import MANIFEST, cut
from chunkstore.codec import pack_all
from chunkstore.digest import Buffer, ChunkId, LayerId, chunk_id, layer_id
from chunkstore.entries import Entry, Extent, pack_extents, unpack_extents
from chunkstore.errors import ChunkMissing, StoreDamaged
from chunkstore.manifest import Manifest, load
from chunkstore.tree_errors import ManifestInvalid
from chunkstore.vault import Vault
from p2player.migration.lineage import Ancestor
from p2player.migration.seams import Progress
from p2player.proto.handoff import fields, messages
from p2player.proto.handoff.fields import Malformed
from p2player.proto.handoff.messages import Image

VAULT = "vault"
IMAGE = "image"

_WINDOW_CHUNKS = 256


def note_image(folder: Path, image: Image) -> None:
    """Remember which image is the final one. Not synced: losing it costs a basis and nothing else."""
    raw = fields.encode(messages.Round(1, 1, replace(image, fresh=(), outline=None), final=True))
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


def manifest_of(vault: Vault, image: Image) -> Manifest:
    """Read an image's manifest; errors as of `chunkstore.manifest.load`."""
    return load(vault, [ChunkId(chunk.id) for chunk in image.manifest], LayerId(image.layer))


def reseal(old: Path, vault: Vault, progress: Progress | None = None) -> tuple[Ancestor, Manifest] | None:
    """Take the image that an earlier migration left in folder `old` over into a vault.

    Args:
        progress: called with bytes done and in total; may raise to cancel.

    Returns:
        The image by its new names; the same at every node that does this with the same image and key. None where it
        is not whole any more: what could be read of it is in the vault.

    Raises:
        StoreError: the vault could not take it.
    """
    try:
        image = read_image(old)
        with Vault.open(old / VAULT) as source:
            manifest = manifest_of(source, image)
            names = _copy(source, vault, list(manifest.chunks()), image.size, progress)
        return _rename(manifest, names, vault)
    except (ChunkMissing, StoreDamaged, ManifestInvalid, Malformed, FileNotFoundError):
        return None


def _copy(
    source: Vault, target: Vault, ids: Sequence[ChunkId], size: int, progress: Progress | None
) -> dict[ChunkId, ChunkId]:
    names: dict[ChunkId, ChunkId] = {}

    def renamed(window: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, Buffer]]:
        for old, data in source.read(window):
            names[old] = chunk_id(data, target.key)
            yield names[old], data

    for start in range(0, len(ids), _WINDOW_CHUNKS):
        target.add(pack_all(renamed(ids[start : start + _WINDOW_CHUNKS])))
        if progress is not None:
            progress(size * start // len(ids), size)
    return names


def _rename(manifest: Manifest, names: dict[ChunkId, ChunkId], vault: Vault) -> tuple[Ancestor, Manifest] | None:
    """The manifest with other names for its chunks, stored too."""
    if len(names) < len(manifest.chunks()):
        return None
    renamed = Manifest(tuple(_renamed(entry, names) for entry in manifest.entries))
    encoded = renamed.encode()
    pieces = [(chunk_id(piece, vault.key), piece) for piece in cut(encoded, MANIFEST)]
    vault.add(pack_all(pieces))
    layer = layer_id(encoded, vault.key)
    return Ancestor.of(layer, renamed, [name for name, _ in pieces], len(encoded)), renamed


def _renamed(entry: Entry, names: dict[ChunkId, ChunkId]) -> Entry:
    if not entry.table:
        return entry
    extents = (Extent(length, names[chunk] if chunk else None) for length, chunk in unpack_extents(entry.table))
    return replace(entry, table=pack_extents(extents))
