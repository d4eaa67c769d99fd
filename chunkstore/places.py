"""Whether a folder can be replaced by another one in a rename.

The kernel refuses that for mount points, and in sticky folders for what belongs to others. It does not refuse it for
the working folder of a process, which would then find itself in a folder that was deleted.
"""

import os
import stat
from pathlib import Path


def is_replaceable(place: bytes, parent: bytes) -> bool:
    """Whether a rename may put another folder in the place of this one without pulling it from under somebody.

    Args:
        place: an existing folder.
        parent: the folder it is in.

    Raises:
        OSError: one of them is gone.
    """
    status, above = os.stat(place), os.stat(parent)
    euid = os.geteuid()
    if above.st_mode & stat.S_ISVTX and euid not in (0, above.st_uid, status.st_uid):
        return False
    return not (os.path.ismount(place) or place in _mount_points() or _is_working_folder(status))


def _mount_points() -> set[bytes]:
    """Every mount point of this process, bind mounts included."""
    try:
        table = Path("/proc/self/mountinfo").read_bytes()
    except OSError:
        return set()
    # The kernel writes space, tab, newline and backslash as octal escapes.
    return {line.split(b" ")[4].decode("unicode_escape").encode("latin-1") for line in table.splitlines()}


def _is_working_folder(status: os.stat_result) -> bool:
    """Whether a process that this user may see has it as its working folder."""
    try:
        processes = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return False
    for process in processes:
        try:
            if os.path.samestat(os.stat(f"/proc/{process}/cwd"), status):
                return True
        except OSError:  # gone, or not ours
            continue
    return False
