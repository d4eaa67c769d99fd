"""A backup of a container that never was, to make one by importing it.

Containers are made by *importing a backup* of a few kilobytes that has no files in it, and not by a plain `create`:
only a backup can say that a container has a saved state, without which LXD would delete the images that came from
another node instead of restoring them. It is LXD's public way, and takes 30 ms. The flag does no harm to a container
that is started afresh: LXD then clears it. The import is made under a passing name and renamed: LXD 5.0 miscounts the
users of a volume at every stateful start, and then refuses to import one of that name until the daemon is restarted.
"""

import io
import json
import platform
import tarfile
from collections.abc import Mapping
from typing import Any

_STOPPED = 102


def backup(name: str, pool: str, config: Mapping[str, str], devices: Mapping[str, Mapping[str, str]]) -> bytes:
    """A backup of a stopped container with a saved state and no files; JSON is YAML."""
    container: dict[str, Any] = {
        "name": name,
        "type": "container",
        "architecture": platform.machine(),
        "description": "made by p2player",
        "status": "Stopped",
        "status_code": _STOPPED,
        "stateful": True,
        "ephemeral": False,
        "profiles": [],
        "config": config,
        "devices": devices,
        "expanded_config": config,
        "expanded_devices": devices,
    }
    document = {
        "container": container,
        "snapshots": [],
        "pool": {"name": pool, "driver": "dir", "config": {}},
        "volume": {"name": name, "type": "container", "content_type": "filesystem", "config": {}},
    }
    index = {
        "name": name,
        "backend": "dir",
        "pool": pool,
        "type": "container",
        "snapshots": [],
        "optimized": False,
        "optimized_header": False,
        "config": document,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        _add(archive, "backup/index.yaml", json.dumps(index).encode())
        _add(archive, "backup/container", None)
        _add(archive, "backup/container/backup.yaml", json.dumps(document).encode())
        _add(archive, "backup/container/rootfs", None)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes | None) -> None:
    """A file, or a folder."""
    entry = tarfile.TarInfo(name)
    if content is None:
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
    else:
        entry.size, entry.mode = len(content), 0o600
        archive.addfile(entry, io.BytesIO(content))
