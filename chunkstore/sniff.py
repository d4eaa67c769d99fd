"""What a path given to an import is, by looking at it and not at its name."""

import os
from enum import StrEnum
from pathlib import Path

from chunkstore.images.raw import HEAD_BYTES, has_fixed_mark
from chunkstore.tarfields import TarDamaged, check_sum
from chunkstore.tree_errors import TreeUnreadable

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")
_SHORT_MARKS = ((510, b"\x55\xaa"), (1080, b"\x53\xef"))
"""A boot sector; the superblock of ext2 to ext4. Who gives a file by itself means it: here, two bytes are enough."""


class SourceKind(StrEnum):
    """Kinds of sources. `TAR` stands for a compressed file too: what is in it shows when it is read."""

    FOLDER = "folder"
    OCI = "oci"
    TAR = "tar"
    QCOW2 = "qcow2"
    RAW = "raw"
    OTHER = "other"

    @property
    def described(self) -> str:
        """The kind in words for an error message."""
        return _WORDS[self]


_WORDS = {
    SourceKind.FOLDER: "a folder",
    SourceKind.OCI: "an OCI image layout",
    SourceKind.TAR: "a tar archive or a compressed file",
    SourceKind.QCOW2: "a qcow2 disk image",
    SourceKind.RAW: "a raw disk image",
    SourceKind.OTHER: "a file of no kind that is known",
}


def sniff(path: Path) -> SourceKind:
    """Tell what `path` is; symlinks are followed.

    Raises:
        TreeUnreadable: there is nothing, or it may not be read.
    """
    try:
        if path.is_dir():
            return SourceKind.OCI if (path / "oci-layout").is_file() else SourceKind.FOLDER
        if path.exists() and not path.is_file():
            return SourceKind.OTHER
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise TreeUnreadable(os.fsencode(path), error.strerror or str(error)) from None
    return _by_content(head)


def _by_content(head: bytes) -> SourceKind:
    if head.startswith(b"QFI\xfb"):
        return SourceKind.QCOW2
    if head.startswith(_COMPRESSED) or _is_tar_header(head[:512]):
        return SourceKind.TAR
    if has_fixed_mark(head) or any(head.startswith(mark, at) for at, mark in _SHORT_MARKS):
        return SourceKind.RAW
    return SourceKind.OTHER


def _is_tar_header(block: bytes) -> bool:
    """Whether a block carries its own checksum; the magic alone is missing in the oldest format."""
    if len(block) < 512:
        return False
    try:
        check_sum(block)
    except TarDamaged:
        return False
    return True
