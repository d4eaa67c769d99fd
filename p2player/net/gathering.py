"""Wake a reader less often: let the kernel gather what comes fast until there is enough to be worth it.

A packet wakes whoever waits for a socket, and waking costs as much as thousands of bytes. Where a reader can do nothing
before so many bytes have come, the low-water mark of the socket (SO_RCVLOWAT) says so. It is bounded by what comes in
`GATHER_S` at the present rate: so a slow peer is heard as before, and a reader never waits much longer than it must.
"""

import socket
from typing import Final, Protocol

GATHER_S: Final = 0.04
MAX_MARK_BYTES: Final = 64 << 10
STEP_BYTES: Final = 8 << 10
RATE_S: Final = 0.02
RECORD_BYTES: Final = 17 << 10
"""More than the largest TLS record: a part of one may have been taken already, and counts for nothing yet."""


class Watermarked(Protocol):
    """What is needed of a socket."""

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


class Gathering:
    """The low-water mark of one socket; None has none.

    Attributes:
        mark: how many bytes wake the reader.
    """

    def __init__(self, sock: Watermarked | None) -> None:
        self.mark = 1
        self._socket = sock
        self._rate = 0.0
        self._since = 0.0
        self._count = 0

    def took(self, count: int, now: float) -> None:
        """The reader got `count` bytes at `now`, seconds on a monotonic clock."""
        self._count += count
        if now - self._since >= RATE_S:
            self._rate = self._count / (now - self._since)
            self._since, self._count = now, 0

    def wait_for(self, lacking: int) -> None:
        """The reader waits now, and needs `lacking` bytes more before it can do anything."""
        enough = min(lacking - RECORD_BYTES, MAX_MARK_BYTES, int(GATHER_S * self._rate))
        mark = max(enough // STEP_BYTES * STEP_BYTES, 1)
        if self._socket is not None and mark != self.mark:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)
            self.mark = mark
