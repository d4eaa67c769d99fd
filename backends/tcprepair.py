"""Taking TCP connections out of the kernel's repair mode, which a CRIU that was killed in a dump leaves them in.

While CRIU reads the state of a connection, that is in repair mode: it sends nothing, and its owner who reads from it is
refused. See tcp(7), `TCP_REPAIR`.
"""

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterable

_PIDFD_GETFD = 438  # the number on every architecture; Python has no name for it
_TCP_REPAIR = 19
_OFF = 0

_libc = ctypes.CDLL(None, use_errno=True)


def end_repair(pids: Iterable[int]) -> None:
    """Let the connections of these processes go on. What is gone meanwhile, or no connection, is passed over."""
    for pid in pids:
        with contextlib.suppress(OSError):
            handle = os.pidfd_open(pid)
            try:
                for name in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        _end_repair(handle, f"/proc/{pid}/fd/{name}", int(name))
            finally:
                os.close(handle)


def _end_repair(handle: int, path: str, number: int) -> None:
    if not os.readlink(path).startswith("socket:"):
        return
    if not os.getxattr(path, "system.sockprotoname").startswith(b"TCP"):
        return
    fd = int(_libc.syscall(_PIDFD_GETFD, handle, number, 0))
    if fd < 0:
        return
    with socket.socket(fileno=fd) as shared:  # closing it does nothing to the owner's
        if shared.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR):
            shared.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _OFF)
