"""What the first bytes of a disk image say: raw, or qcow2 of some size.

A qcow2 header may name other files of the host that QEMU would open: a backing file, whose name is overruled (see
`disks`), and a data file, which is not: such images are refused, and so are symbolic links, for layers and instances
come from other machines. Format: docs/interop/qcow2.txt of QEMU.
"""

import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from backends.errors import BackendError

Format = Literal["qcow2", "raw"]

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQI")  # magic, version, backing offset and size, cluster bits, size, encryption
_FEATURES = struct.Struct(">Q")
_FEATURES_AT = 72
_DIRTY, _CORRUPT, _DATA_FILE = 1, 2, 4
_MAX_NAME = 1023


class ImageUnfit(BackendError):
    """An image that no virtual machine is started from."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image file: its format, the size of the disk that it holds, and the backing file that its header names."""

    path: Path
    format: Format
    size_bytes: int
    backing: str | None = None


def inspect(path: Path) -> Image:
    """Read the header of an image.

    Raises:
        ImageUnfit: it is no file, is damaged, encrypted, or keeps its data in another file.
    """
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise ImageUnfit(f"{path} is not a file")
        with path.open("rb") as file:
            head = file.read(_FEATURES_AT + _FEATURES.size)
            if not head.startswith(_MAGIC):
                return Image(path, "raw", found.st_size)
            if len(head) < _HEADER.size:
                raise ImageUnfit(f"{path} is cut short")
            _, version, name_at, name_bytes, _, size, encryption = _HEADER.unpack_from(head)
            if version not in (2, 3):
                raise ImageUnfit(f"{path} is qcow2 of version {version}, which is not known here")
            if encryption:
                raise ImageUnfit(f"{path} is encrypted")
            if version == 3:
                if len(head) < _FEATURES_AT + _FEATURES.size:
                    raise ImageUnfit(f"{path} is cut short")
                (features,) = _FEATURES.unpack_from(head, _FEATURES_AT)
                if features & _DATA_FILE:
                    raise ImageUnfit(f"{path} keeps its data in another file")
                if features & _CORRUPT:
                    raise ImageUnfit(f"{path} is marked as damaged")
            backing = None
            if name_at:
                if name_bytes > _MAX_NAME:
                    raise ImageUnfit(f"{path} names a backing file of {name_bytes} bytes")
                file.seek(name_at)
                backing = file.read(name_bytes).decode(errors="surrogateescape")
    except OSError as error:
        raise ImageUnfit(f"cannot read {path}: {error.strerror}") from error
    return Image(path, "qcow2", size, backing)
