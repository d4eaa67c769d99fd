"""A layer's manifest: the ordered description of a tree, and the chunks that its content is made of.

Its encoding (`manifest_codec`) is canonical, so the digest of it names the layer: the same tree has the same
LayerId on every machine and filesystem. A manifest is stored and moved as chunks itself, cut finer than
content.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from chunkstore.content import Content
from chunkstore.digest import Buffer, ChunkId, LayerId, layer_id
from chunkstore.entries import EXTENT, Entry, Extent, Kind, pack_extents, unpack_extents
from chunkstore.errors import ChunkMissing
from chunkstore.manifest_codec import MAX_MANIFEST_BYTES, TreeEncoder, decode_rows
from chunkstore.tree_errors import ManifestInvalid, printable
from chunkstore.treecheck import check_entries

__all__ = [
    "Entry",
    "Extent",
    "Kind",
    "Manifest",
    "Outline",
    "load",
    "load_encoded",
    "outline",
    "pack_extents",
    "unpack_extents",
]

_SLICE: Final = 256
"""Chunks of a manifest that are read at a time: their groups come into memory whole."""


@dataclass(frozen=True, slots=True)
class Outline:
    """What a tree is made of; a fraction of its `Manifest` where files are many.

    Attributes:
        size: bytes of all regular files, holes included, hard links once.
        chunks: as `Manifest.chunks`.
    """

    size: int
    chunks: dict[ChunkId, int]


def outline(data: Buffer) -> Outline:
    """Read an encoding as strictly as `Manifest.decode`, and raise as it does; the entries are not kept."""
    size = 0
    chunks: dict[ChunkId, int] = {}
    for entry in decode_rows(data):
        if entry.table:
            size += entry.size
            count_chunks(chunks, entry)
    return Outline(size, chunks)


def count_chunks(found: dict[ChunkId, int], entry: Entry) -> None:
    """Add the chunks of a file that are not in `found`, each with its length in bytes.

    Raises:
        ManifestInvalid: one chunk is said to have two lengths.
    """
    for length, chunk in EXTENT.iter_unpack(entry.table):
        if length > 0 and found.setdefault(chunk, length) != length:
            raise ManifestInvalid(f"{printable(entry.path)}: a chunk with two lengths")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A tree: its entries in bytewise order of path, the top folder (path b"") first."""

    entries: tuple[Entry, ...]

    @staticmethod
    def decode(data: Buffer) -> "Manifest":
        """Read an encoding, strictly: there is one for each tree.

        Raises:
            ManifestInvalid: anything else than that, or a limit of `manifest_codec` is exceeded.
        """
        return Manifest(tuple(decode_rows(data)))

    def encode(self) -> bytes:
        """The canonical encoding.

        Raises:
            ManifestInvalid: the entries are not a possible tree, or exceed a limit.
        """
        encoder = TreeEncoder()
        for entry in self.entries:
            encoder.take(entry)
        return bytes(encoder.finish()[0])

    def check(self) -> int:
        """Refuse entries that no folder on a disk can be; what `decode` returns has passed this.

        Returns:
            The size, as `size`.

        Raises:
            ManifestInvalid: with the path and the reason.
        """
        return check_entries(self.entries)

    @property
    def size(self) -> int:
        """Bytes of all regular files, holes included, hard links once; computed anew at each call."""
        return sum(entry.size for entry in self.entries if entry.table)

    def chunks(self) -> dict[ChunkId, int]:
        """The distinct chunks of all files in order of first use, each with its length in bytes.

        Raises:
            ManifestInvalid: one chunk is said to have two lengths.
        """
        found: dict[ChunkId, int] = {}
        for entry in self.entries:
            count_chunks(found, entry)
        return found

    def find(self, path: bytes) -> Entry | None:
        """The entry at exactly this path."""
        at = bisect_left(self.entries, path, key=attrgetter("path"))
        if at < len(self.entries) and self.entries[at].path == path:
            return self.entries[at]
        return None

    def resolve(self, entry: Entry) -> Entry:
        """The entry that says what this one is: itself, or the first name of a hard link."""
        return (self.find(entry.target) or entry) if entry.kind is Kind.HARDLINK else entry


def load(content: Content, manifest_chunks: Sequence[ChunkId], layer: LayerId) -> Manifest:
    """Read a layer's manifest from its chunks, verify and decode it; arguments and errors as of `load_encoded`."""
    return Manifest.decode(load_encoded(content, manifest_chunks, layer))


def load_encoded(content: Content, manifest_chunks: Sequence[ChunkId], layer: LayerId) -> bytearray:
    """Read the encoding of a layer's manifest from its chunks and verify it.

    Args:
        content: where the chunks are.
        manifest_chunks: the encoding's chunks in order.
        layer: the digest that the encoding must have.

    Raises:
        ChunkMissing: a chunk is not there.
        ManifestInvalid: the chunks are not this layer's manifest, or it is too large.
    """
    encoded = bytearray()
    for start in range(0, len(manifest_chunks), _SLICE):
        some = manifest_chunks[start : start + _SLICE]
        pieces: dict[ChunkId, Buffer] = dict(content.read(list(dict.fromkeys(some))))
        for chunk_id in some:
            if chunk_id not in pieces:
                raise ChunkMissing(chunk_id)
            if len(encoded) + len(pieces[chunk_id]) > MAX_MANIFEST_BYTES:
                raise ManifestInvalid(f"layer {layer.hex()[:16]}: the manifest is too large")
            encoded += pieces[chunk_id]
    if layer_id(encoded, content.key) != layer:
        raise ManifestInvalid(f"layer {layer.hex()[:16]}: the manifest has another digest")
    return encoded
