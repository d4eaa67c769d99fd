"""A container's volume: an overlay of its layers, mounted where the daemon expects the volume to be.

LXD keeps more in a volume than the root file system: `rootfs/` is beside `state/`, in which CRIU's images are. So the
overlay has whole layers below, each with its `rootfs/`, and covers the volume as a whole; the instance's upper folder
then receives both what the application writes and its saved memory. (An overlay on `rootfs/` itself would be detached
by LXD at every start.)

The mount is made in the mount namespace of the daemon. From there it spreads into the container at its start; it need
not be visible here, for `seen` leads to it through /proc. While it is there nothing is written past it, since a mounted
overlay may overlook that.
"""

import os
import shutil
from pathlib import Path

from backends import overlay
from backends.base import AppLayout, Workspace
from backends.errors import BackendError
from backends.folders import remove_tree
from backends.lxd.daemon import Process

STATE = "state"
_LEFTOVERS = ("backup.yaml", f"{STATE}/dump.log", f"{STATE}/restore.log")


def upper_of(workspace: Workspace) -> Path:
    """The upper folder: the whole of the instance layer."""
    return workspace.state_dir / "upper"


def root_of(workspace: Workspace) -> Path:
    """What the application wrote: its side of the root file system, for reading."""
    return upper_of(workspace) / "rootfs"


def images_of(workspace: Workspace) -> Path:
    """CRIU's images."""
    return upper_of(workspace) / STATE


class Volume:
    """The volume of one container.

    Args:
        process: the daemon.
        pool: name of the storage pool.
        name: of the container.
    """

    def __init__(self, process: Process, pool: str, name: str) -> None:
        self.process = process
        self.path = process.folder / "storage-pools" / pool / "containers" / name
        self.seen = process.outside(self.path)

    def mount(self, layout: AppLayout) -> None:
        """Put the overlay there; it may be there already.

        Raises:
            BackendError: the kernel refused, or the daemon sees no such folders.
        """
        work = layout.run_dir / "work"
        for folder in (layout.state_dir, layout.run_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        pid = self.process.pid
        overlay.mount([layout.app, layout.base], upper_of(layout), work, self.path, mount_ns_pid=pid)

    def unmount(self) -> None:
        """Take it away. Idempotent."""
        overlay.unmount(self.path, mount_ns_pid=self.process.pid)

    def mounted(self) -> bool:
        return overlay.is_mounted(self.path, mount_ns_pid=self.process.pid)

    def forget_memory(self, workspace: Workspace, *names: str) -> None:
        """Delete saved memory, and what an interrupted dump left."""
        top = self.seen if self.mounted() else upper_of(workspace)
        for name in names or (STATE, f"{STATE}.new", f"{STATE}.old"):
            remove_tree(top / name)

    def tidy(self, workspace: Workspace) -> None:
        """Move logs out of the instance layer, and delete LXD's own description of the container."""
        top = self.seen if self.mounted() else upper_of(workspace)
        for name in _LEFTOVERS:
            found = top / name
            if found.is_file() and not found.is_symlink():
                if found.suffix == ".log":
                    shutil.copyfile(found, workspace.run_dir / found.name)
                found.unlink()


def check_layers(layout: AppLayout) -> None:
    """Make sure that both layers are of LXD's form.

    Raises:
        BackendError: one has no `rootfs/`, or a symbolic link in its place: LXD would take where that leads on the host
            for the root of the container.
    """
    for what, layer in (("base", layout.base), ("app", layout.app)):
        if not _is_folder(layer / "rootfs"):
            raise BackendError(f"the {what} layer has no folder rootfs, in which LXD looks for the file system")


def check_instance(workspace: Workspace) -> None:
    """Make sure that the instance layer leads nowhere else on this host; a peer may have made it.

    Raises:
        BackendError: something else is in the place of a folder.
    """
    for folder in (upper_of(workspace), root_of(workspace)):
        if os.path.lexists(folder) and not _is_folder(folder):
            raise BackendError(f"{folder} is not a folder")


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path) and not os.path.islink(path)
