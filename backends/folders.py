"""Delete folders that an application wrote."""

import os
import shutil
from pathlib import Path


def remove_tree(folder: Path) -> None:
    """Delete a folder, also where the application took away its own permissions. Absent is fine.

    What is there instead of a folder, as a link that an application or a peer made, goes too; not where it leads.
    """
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink()
        return
    try:
        shutil.rmtree(folder)
    except PermissionError:
        _open_up(folder)
        shutil.rmtree(folder)


def _open_up(folder: Path) -> None:
    """Give the owner all rights on every folder below; symbolic links are not followed."""
    os.chmod(folder, 0o700)
    for place, names, _ in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
