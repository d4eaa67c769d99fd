"""What can go wrong between a folder and a manifest. Each error carries the path that it is about.

StoreError
├── ManifestInvalid     bytes that are not the canonical encoding of a possible tree
├── TreeUnreadable      a file of the source cannot be read
├── TreeChanged         the source kept changing while it was read
├── SourceUnsupported   a source of a kind that is not imported, or a broken archive
├── CheckoutRefused     the destination is not fit to take a tree; nothing was changed there
├── CheckoutFailed      the operating system refused to make or finish a file
└── ChunkMissing
    └── ContentMissing  a chunk of a file is not stored here
"""

from collections.abc import Iterator
from contextlib import contextmanager

from chunkstore.digest import ChunkId
from chunkstore.errors import ChunkMissing, StoreError


def printable(path: bytes) -> str:
    """A path as text on one line: controls and bytes that are no UTF-8 are escaped; the top folder is a dot."""
    text = path.decode("utf-8", "backslashreplace") or "."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ManifestInvalid(StoreError):
    """Bytes from a peer or a disk that are not the canonical encoding of a possible tree, or a tree that has none."""


class TreeUnreadable(StoreError):
    """The file at `path` (absolute, or inside the archive) cannot be read for `reason`."""

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"cannot read {printable(path)}: {reason}")
        self.path = path
        self.reason = reason


class TreeChanged(StoreError):
    """The file or folder at `path` changed again each time it was read."""

    def __init__(self, path: bytes) -> None:
        super().__init__(f"{printable(path)} kept changing while it was read; stop what writes to it and try again")
        self.path = path


class SourceUnsupported(StoreError):
    """The source at `path` is not something that can be imported."""

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"cannot import {printable(path)}: {reason}")
        self.path = path
        self.reason = reason


class CheckoutRefused(StoreError):
    """The destination `path` cannot take a tree; it is as it was."""

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"cannot check out to {printable(path)}: {reason}")
        self.path = path
        self.reason = reason


class CheckoutFailed(StoreError):
    """Making `path` (relative to the tree) failed for `reason`; what is finished stays in the staging folder."""

    def __init__(self, path: bytes, reason: str) -> None:
        super().__init__(f"cannot write {printable(path)}: {reason}")
        self.path = path
        self.reason = reason


class ContentMissing(ChunkMissing):
    """Chunk `chunk_id` of the file at `path` is not stored here."""

    def __init__(self, chunk_id: ChunkId, path: bytes) -> None:
        super().__init__(chunk_id)
        self.path = path

    def __str__(self) -> str:
        return f"chunk {self.chunk_id.hex()[:16]} of {printable(self.path)} is not stored here"


@contextmanager
def writing(path: bytes) -> Iterator[None]:
    """Turn a system error into `CheckoutFailed` for `path`."""
    try:
        yield
    except OSError as error:
        raise CheckoutFailed(path, error.strerror or str(error)) from None
