"""Have the kernel write a file back: to be sure of its times, or to have less to wait for later.

A page that a process dirtied through a mapping stays writable for it until the kernel writes it back: what is stored
into it until then changes neither mtime nor ctime. Once it was written back the next store faults, and the fault sets
both. Whoever is to trust the times of a file that others have mapped must have it written back first, and read it then.
"""

import ctypes
import os

_WRITE = 2
_WAIT_BEFORE_WRITE_WAIT_AFTER = 7

_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = getattr(_libc, "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def write_back(fd: int) -> None:
    """Write back what is dirty of a regular file: its content, to the device's cache; no journal, no barrier.

    Raises:
        OSError: it could not be written.
    """
    if _sync_file_range is None:
        os.fdatasync(fd)
    elif _sync_file_range(fd, 0, 0, _WAIT_BEFORE_WRITE_WAIT_AFTER):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def begin_write_back(fd: int, offset: int, length: int) -> None:
    """Have a part of a regular file written back while we go on: what syncs it later waits for less. A hint."""
    if _sync_file_range is not None:
        _sync_file_range(fd, offset, length, _WRITE)
