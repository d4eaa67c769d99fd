"""Unpack the archives that LXD makes of images and instances: squashfs, or tar of any compression.

The distribution's own tools do it, since they know extended attributes, devices and sparse files.
"""

import shutil
import subprocess
from pathlib import Path

from backends.errors import BackendError

_SQUASHFS = b"hsqs"
_TIMEOUT_S = 1800.0


def archive(file: Path, into: Path, *, below: str | None = None, strip: int = 0) -> None:
    """Unpack a file into a folder, with owners, modes, attributes and devices; needs root.

    Args:
        below: of a tar, only what is in this folder of it.
        strip: of a tar, how many leading folders of each name to leave out.

    Raises:
        BackendError: a tool is missing, or the archive is damaged.
    """
    with open(file, "rb") as opened:
        head = opened.read(len(_SQUASHFS))
    if head == _SQUASHFS:
        command = ["unsquashfs", "-quiet", "-no-progress", "-force", "-dest", str(into), str(file)]
    else:
        command = ["tar", "--extract", "--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"]
        command += [f"--strip-components={strip}", f"--file={file}", f"--directory={into}", *([below] if below else [])]
    if shutil.which(command[0]) is None:
        raise BackendError(f"needs {command[0]}: apt install squashfs-tools tar")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise BackendError(f"cannot unpack what LXD exported: {lines[-1]}")
