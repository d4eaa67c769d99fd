"""Names of content: BLAKE3-256 over uncompressed bytes.

A chunk is named by its bytes alone, so equal bytes have one name on every machine, and whoever receives
them can check them without trusting the sender. Content that must not be recognisable to others (a
migration's instance layer) is named with a *keyed* hash: without the key nobody can tell whether two stores
hold the same bytes, or find a chunk by guessing its content.
"""

from typing import NewType, TypeAlias

from blake3 import blake3

ChunkId = NewType("ChunkId", bytes)
"""Name of a chunk: 32 raw bytes."""

LayerId = NewType("LayerId", bytes)
"""Name of a layer: 32 raw bytes, the digest of its manifest's canonical encoding."""

Buffer: TypeAlias = bytes | bytearray | memoryview

ID_BYTES = 32
KEY_BYTES = 32


def chunk_id(data: Buffer, key: bytes | None = None) -> ChunkId:
    """The name of these bytes; with `key` (32 bytes), their name under that key.

    Releases the GIL while it hashes.
    """
    return ChunkId(_digest(data, key))


def layer_id(data: Buffer, key: bytes | None = None) -> LayerId:
    """The name of the layer whose manifest encodes to `data`; keyed like `chunk_id`."""
    return LayerId(_digest(data, key))


def _digest(data: Buffer, key: bytes | None) -> bytes:
    return blake3(data).digest() if key is None else blake3(data, key=key).digest()
