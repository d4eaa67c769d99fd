"""How a machine ended that libvirt knows no more.

A machine that was never defined vanishes from libvirt with its process, and so does the reason. It is in the log that
libvirtd keeps of each machine, whose lines of interest are

    2026-01-02 03:04:05.678+0000: shutting down, reason=shutdown

with `shutdown` (the guest switched itself off), `destroyed`, `crashed` (QEMU ended by itself), `saved`, `failed`. The
log's folder is the daemon's, which may have mounts of its own: it is looked up through the process at the other end of
the socket.
"""

import contextlib
import os
import re
import socket
import struct
import urllib.parse
from datetime import datetime
from pathlib import Path

_SOCKET = "/run/libvirt/libvirt-sock"
_FOLDER = "var/log/libvirt/qemu"
_TAIL_BYTES = 64 << 10
_SLACK_S = 1.0
_LINE = re.compile(rb"^(\S+ \S+): shutting down, reason=(\w+)", re.MULTILINE)
_WHEN = "%Y-%m-%d %H:%M:%S.%f%z"


def reason(uri: str | None, name: str, started_wall_s: float) -> str | None:
    """libvirt's word for the end of the machine that started then; None when it cannot be read."""
    for folder in folders(uri):
        with contextlib.suppress(OSError):
            found = _last(folder / f"{name}.log", started_wall_s)
            if found is not None:
                return found
    return None


def _last(path: Path, started_wall_s: float) -> str | None:
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
        lines = _LINE.findall(file.read())
    if not lines:
        return None
    when, word = lines[-1]
    try:
        ended_wall_s = datetime.strptime(when.decode(), _WHEN).timestamp()
    except ValueError:
        return None
    return word.decode() if ended_wall_s >= started_wall_s - _SLACK_S else None


def folders(uri: str | None) -> list[Path]:
    """Where that libvirtd may keep the logs of machines."""
    parts = urllib.parse.urlsplit(uri or "qemu:///system")
    if parts.path == "/session":
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return [Path(cache) / "libvirt" / "qemu" / "log"]
    asked = urllib.parse.parse_qs(parts.query).get("socket", [_SOCKET])[0]
    folders = [Path("/") / _FOLDER]
    pid = _server_of(asked)
    if pid is not None:
        folders.insert(0, Path(f"/proc/{pid}/root") / _FOLDER)
    return folders


def _server_of(path: str) -> int | None:
    """The process that listens at a socket."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(path)
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return None
    pid = int(struct.unpack("3i", credentials)[0])
    return pid or None
