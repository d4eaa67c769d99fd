"""What a machine's description says of this node: from the folders of its layers and of its instance."""

import stat
from pathlib import Path

from backends.base import AppLayout
from backends.libvirt import console, disks
from backends.libvirt.domain import Place
from backends.libvirt.facts import Host


def place_of(layout: AppLayout, host: Host) -> Place:
    """Also makes the instance's disk, if it has none yet.

    Raises:
        BackendError: the chain of its disk cannot be had.
    """
    kernel, initrd = boot_files(layout)
    return Place(
        images=disks.chain_of(layout),
        kernel=kernel,
        initrd=initrd,
        console=console.path_of(layout.run_dir),
        emulator=host.emulator,
        as_root=host.as_root,
    )


def boot_files(layout: AppLayout) -> tuple[Path | None, Path | None]:
    """Kernel and initrd for direct boot; those of the app layer go first."""
    kernel = _regular(layout.app / "vmlinuz") or _regular(layout.base / "vmlinuz")
    initrd = _regular(layout.app / "initrd") or _regular(layout.base / "initrd")
    return kernel, initrd if kernel is not None else None


def _regular(path: Path) -> Path | None:
    """`path` if that is a file; a symbolic link of a layer could name any file of the host."""
    try:
        return path if stat.S_ISREG(path.lstat().st_mode) else None
    except FileNotFoundError:
        return None
