"""Control groups that LXC leaves behind where its monitor, or CRIU under it, was killed."""

import contextlib
import os
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_KINDS = ("payload", "monitor")


def remove_empty(name: str, root: Path = _ROOT) -> None:
    """Remove the groups of a container that is gone; one in which anything runs stays as it is.

    Args:
        name: of the container.
        root: where the hierarchy of version 2 is mounted, or those of version 1 are, each below its own name.
    """
    for kind in _KINDS:
        inner = f"lxc.{kind}.{name}"
        for group in (root / inner, *root.glob(f"*/{inner}")):
            if group.is_dir() and not _used(group):
                for place, _, _ in os.walk(group, topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(place)


def _used(group: Path) -> bool:
    for place, _, _ in os.walk(group):
        try:
            if Path(place, "cgroup.procs").read_text():
                return True
        except FileNotFoundError:
            continue  # removed meanwhile
        except OSError:
            return True
    return False
