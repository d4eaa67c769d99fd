"""What can go wrong with a machine's content. One base class; what it is about is in the attributes.

StoreError
├── BadGroup         a group's table or payload contradicts itself (hostile or damaged input)
├── CorruptChunk     bytes do not have the digest that names them
├── ChunkMissing     a chunk that must be here is not
├── LayerUnknown     no record of that layer
├── DiskFull         storing this would eat into the reserve
├── FormatMismatch   written by another version of the program
├── StoreBusy        another process has it open
├── StoreClosed      used after close() or wipe()
└── StoreDamaged     the index or a vault cannot be read as what it should be
"""

from pathlib import Path

from chunkstore.digest import ChunkId, LayerId


class StoreError(Exception):
    """Base of every error that this package raises on purpose."""


class BadGroup(StoreError):
    """A group whose table, codec or payload contradict each other, or exceed a limit."""


class BadRecord(StoreError):
    """No sound record here: torn, damaged, or never one."""


class CorruptChunk(StoreError):
    """The bytes given for `chunk_id` have another digest."""

    def __init__(self, chunk_id: ChunkId) -> None:
        super().__init__(f"chunk {chunk_id.hex()[:16]} does not match its digest")
        self.chunk_id = chunk_id


class ChunkMissing(StoreError):
    """`chunk_id` is needed here and is not stored."""

    def __init__(self, chunk_id: ChunkId) -> None:
        super().__init__(f"chunk {chunk_id.hex()[:16]} is not stored here")
        self.chunk_id = chunk_id


class LayerUnknown(StoreError):
    """There is no record of `layer_id`."""

    def __init__(self, layer_id: LayerId) -> None:
        super().__init__(f"layer {layer_id.hex()[:16]} is not known here")
        self.layer_id = layer_id


class DiskFull(StoreError):
    """Writing `needed_bytes` would leave less than the reserve free at `path`; nothing was written."""

    def __init__(self, path: Path, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(f"no room at {path}: {needed_bytes} bytes needed, {free_bytes} may be used")
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class FormatMismatch(StoreError):
    """`path` holds format `found`, and this program reads and writes `expected`."""

    def __init__(self, path: Path, found: object, expected: object) -> None:
        super().__init__(f"{path} has format {found}, this program knows {expected}")
        self.path = path
        self.found = found
        self.expected = expected


class StoreBusy(StoreError):
    """Another process (or another object of this one) has the store at `path` open."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is in use")
        self.path = path


class StoreClosed(StoreError):
    """Used after `close()` or `wipe()`."""


class StoreDamaged(StoreError):
    """The file at `path` cannot be read as what it should be."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason
