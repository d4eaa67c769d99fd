"""Bring a restore that has failed to its end.

LXD 5.0 learns of it half a minute late: LXC first runs the hook of a container that stops, which asks the daemon, which
makes it wait for the start to end. And CRIU itself never ends on an image that is cut off in its pages, but writes
its log for ever. While the restore goes on nothing of the application executes, so both are helped along: the waiting
hook is killed (the daemon does what it asked for all the same), or CRIU.
"""

import contextlib
import os
import signal
from pathlib import Path

from backends import procfs

_FAILED = b"Restoring FAILED"
_DONE = b"Restore finished successfully"
_ENDLESS = b"Advanced iov 0 bytes"
_TAIL_BYTES = 64 << 10
_ENDLESS_TIMES = 100


def end(log: Path, name: str) -> str | None:
    """Look whether the restore has failed; if so, end what waits for it.

    Args:
        log: CRIU's.
        name: of the container.

    Returns:
        Why it failed, where CRIU itself does not say so.
    """
    text = _tail(log)
    endless = text.count(_ENDLESS) > _ENDLESS_TIMES
    if endless:
        _kill(b"restore", name.encode(), program=b"criu")
    if endless or _FAILED in text:
        _kill(b"callhook", name.encode(), program=b"lxd")
    return "its images have fewer pages than they should" if endless else None


def give_up(log: Path, name: str) -> None:
    """End a restore that takes too long, unless CRIU has done its part: then the application executes."""
    if _DONE not in _tail(log):
        _kill(b"restore", name.encode(), program=b"criu")
    _kill(b"callhook", name.encode(), program=b"lxd")


def _tail(log: Path) -> bytes:
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES)
    except OSError:
        return b""


def _kill(word: bytes, name: bytes, *, program: bytes) -> None:
    """Kill processes of a program that have `word` among their arguments and `name` in one."""
    for found in procfs.everyone():
        with contextlib.suppress(OSError), open(f"/proc/{found.process.pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
            if (
                word in words
                and any(name in text.split(b"/") for text in words)
                and any(os.path.basename(text) == program for text in words[:8])
            ):
                procfs.send(found.process, signal.SIGKILL)
