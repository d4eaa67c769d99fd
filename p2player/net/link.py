"""What the kernel knows of the link that a connection sends on: round trip and rate, from Linux's TCP_INFO.

Theory of operation
-------------------
Two figures tell the rate of a link, and each is wrong at times, but only downwards once a few hundred KiB went out:

    delivery rate   what was acknowledged in the last round trip; low while the window still grows, and while the
                    receiver takes less than the link would bring
    average         bytes acknowledged, over the time in which something was in flight and it was neither the
                    receiver's window nor our own buffer that held it up; low because it remembers the slow start

So the larger of the two counts. While a connection is in slow start and its round trip is no longer than it was, no
queue has built up anywhere: the link has room, and the next round trip brings twice as much. At the very beginning a
token bucket lets a burst pass at the speed of the wire: nothing is said before `LEAST_BYTES` were acknowledged.
"""

import socket
import struct
import sys
from dataclasses import dataclass
from typing import Final, Protocol

LEAST_BYTES: Final = 96 << 10
SWELL: Final = 1.25
SWELL_S: Final = 0.001

_INFO: Final = struct.Struct("=8B24I4Q6I4Q")  # struct tcp_info of linux/tcp.h, since 4.10; later fields are not needed
_TICK_S: Final = 0.01  # the clock behind the average is no finer than this on some kernels
_NO_THRESHOLD: Final = 0x7FFFFFFF
_MICRO: Final = 1e-6


@dataclass(frozen=True, slots=True)
class LinkEstimate:
    """The way to a peer, as far as it is known by now.

    Attributes:
        rtt_s: the shortest round trip seen.
        bytes_per_s: how much the link takes, TCP's payload; a slow link is not called fast, nor is a fast one called
            slow because its user has little to send or the receiver is slow.
    """

    rtt_s: float | None = None
    bytes_per_s: float | None = None


UNKNOWN: Final = LinkEstimate()


class Socket(Protocol):
    """What is needed of a socket, trio's or the standard library's."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Flow:
    """What the kernel counts of one connection; times in seconds, rates in bytes a second.

    `idle_s` is the part of `busy_s` in which the receiver's window or our own buffer held it up. A threshold of None is
    one that was never set: slow start goes on until something is lost or delayed.
    """

    rtt_s: float
    min_rtt_s: float
    delivery_rate: float
    acked_bytes: int
    busy_s: float
    idle_s: float
    window: int
    threshold: int | None

    @staticmethod
    def decode(data: bytes) -> "Flow | None":
        """Read a `struct tcp_info`; None where the kernel gives less of it than is needed."""
        if len(data) < _INFO.size:
            return None
        fields = _INFO.unpack_from(data)
        early, middle, late, last = fields[8:32], fields[32:36], fields[36:42], fields[42:46]
        return Flow(
            rtt_s=early[15] * _MICRO,
            min_rtt_s=late[3] * _MICRO,
            delivery_rate=float(last[0]),
            acked_bytes=middle[2],
            busy_s=last[1] * _MICRO,
            idle_s=(last[2] + last[3]) * _MICRO,
            window=early[18],
            threshold=None if early[17] >= _NO_THRESHOLD else early[17],
        )

    def estimate(self) -> LinkEstimate:
        """What that says of the link."""
        rtt_s = self.min_rtt_s if 0 < self.min_rtt_s < _NO_THRESHOLD * _MICRO else None
        if self.acked_bytes < LEAST_BYTES:
            return LinkEstimate(rtt_s, None)
        average = self.acked_bytes / max(self.busy_s - self.idle_s, _TICK_S)
        growing = self.threshold is None or self.window < self.threshold
        delivery = self.delivery_rate
        if growing and rtt_s is not None and self.rtt_s <= SWELL * rtt_s + SWELL_S:
            delivery *= 2
        return LinkEstimate(rtt_s, max(delivery, average))


def estimate(sock: Socket) -> LinkEstimate:
    """The link that a connected TCP socket sends on; `UNKNOWN` where the system does not tell. One system call."""
    if not sys.platform.startswith("linux"):
        return UNKNOWN
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:  # no TCP socket, or one that is closed
        return UNKNOWN
    flow = Flow.decode(data)
    return UNKNOWN if flow is None else flow.estimate()
