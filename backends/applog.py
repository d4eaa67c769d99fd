"""The log of an application: at most two files of a fixed size, `log` and the older `log.1`.

Several processes may write it at once (the shim, hooks of the node): each appends whole blocks, and follows when
another one rotated. A full disk costs output and never the application. Standard library only, as the shim needs it.
"""

import contextlib
import os

LIMIT_BYTES = 4 << 20
BLOCK_BYTES = 64 << 10


class AppLog:
    """Appends to the log at `path`; neither file grows beyond `limit_bytes` by more than a block."""

    def __init__(self, path: str, limit_bytes: int = LIMIT_BYTES) -> None:
        self._path = path
        self._limit = limit_bytes
        self._fd = -1

    def write(self, data: bytes) -> None:
        """Append; output that cannot be stored is dropped."""
        for start in range(0, len(data), BLOCK_BYTES):
            # No room, no permission, folder gone: the application must not suffer for its log.
            with contextlib.suppress(OSError):
                self._append(data[start : start + BLOCK_BYTES])

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, block: bytes) -> None:
        self._follow()
        if os.fstat(self._fd).st_size + len(block) > self._limit:
            os.replace(self._path, self._path + ".1")
            self._follow()
        os.write(self._fd, block)

    def _follow(self) -> None:
        """Have the file open that the path names now."""
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._fd), os.stat(self._path)):
                    return
            self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)


def mark(path: str) -> tuple[int, int]:
    """Where the log ends now, for `since`."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_size


def since(path: str, place: tuple[int, int], max_bytes: int) -> bytes:
    """The last `max_bytes` of what was written after `mark`."""
    inode, size = place
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        found = os.fstat(file.fileno())
        if inode and found.st_ino != inode:  # rotated meanwhile
            return tail(path, max_bytes)
        file.seek(max(size, found.st_size - max_bytes))
        return file.read(max_bytes)
    return b""


def tail(path: str, max_bytes: int) -> bytes:
    """The last `max_bytes` of the log, over both files."""
    data = b""
    for name in (path, path + ".1"):
        want = max_bytes - len(data)
        if want <= 0:
            break
        with contextlib.suppress(FileNotFoundError), open(name, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - want))
            data = file.read(want) + data
    return data


def remove(path: str) -> None:
    """Delete the log."""
    for name in (path, path + ".1"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
