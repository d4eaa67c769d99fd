"""Memory saved in the state folder: `memory.save`, and which of it may be continued.

The file is libvirt's (`virsh save`, uncompressed, so that its pages can be compared with older ones). The pre-copy
rounds leave one too, as the basis of a delta: the disk went on since, so that one must never be continued. Only what
`suspend` wrote has a mark in its description (`description.mark_final`), and it is deleted before the machine executes
again: whatever is killed when, memory is never joined with a disk of another time.

A file is written beside, as `memory.save.new`, and renamed. libvirt writes its magic last: a torn file shows.
"""

import os
import stat
from pathlib import Path
from typing import Any

from backends.base import Workspace
from backends.libvirt.connection import Connection, library
from backends.libvirt.description import is_final

NAME = "memory.save"

_MAGIC = b"LibvirtQemudSave"


def path_of(workspace: Workspace) -> Path:
    return workspace.state_dir / NAME


def new_path_of(workspace: Workspace) -> Path:
    """Where it is written first."""
    return workspace.state_dir / f"{NAME}.new"


def complete(path: Path) -> bool:
    """Whether libvirt finished that file."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def size_bytes(workspace: Workspace) -> int:
    """What memory takes in the state folder already, be it of a round."""
    try:
        return path_of(workspace).lstat().st_size
    except FileNotFoundError:
        return 0


def description(connection: Connection, path: Path) -> str | None:
    """The description of the machine whose memory that is; None unless it may be continued."""
    if not complete(path):
        return None

    def read(hypervisor: Any) -> str:
        flags = library().VIR_DOMAIN_SAVE_IMAGE_XML_SECURE
        return str(hypervisor.saveImageGetXMLDesc(str(path), flags))

    saved = connection.run(read)
    return saved if is_final(saved) else None


def accept(workspace: Workspace) -> None:
    """Give a finished file its name."""
    os.replace(new_path_of(workspace), path_of(workspace))


def discard(workspace: Workspace) -> None:
    """Delete what there is: the machine executes, or shall start afresh."""
    for path in (path_of(workspace), new_path_of(workspace)):
        path.unlink(missing_ok=True)
