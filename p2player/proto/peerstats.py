"""What one peer delivers: its goodput, its latency, and how much to have in flight with it.

Theory of operation
-------------------
As in BBR (Cardwell et al. 2016), a peer's path is described by a *delivery rate* and a *latency*, and their product
says how much to keep in flight. Each ask remembers what the peer had delivered when it was sent; when the ask is
complete, the bytes delivered since over the time since are one sample of the rate. A sample is a lower bound, since
asking less than the path carries shows less than it carries. So the estimate follows higher samples fast and lower ones
slowly, and ignores a low one of an ask that found the pipe nearly empty. The latency is the shortest time from an ask
to the first delivery for it, the peer's disk included; it starts as the round trip that gossip measured.

    window = rate * (2 * latency + QUEUE_S)

A window that was too small gave a rate of window / latency, so the next one is more than twice as large: the start is
exponential and ends by itself when the rate does not rise any more. QUEUE_S keeps the peer busy while we verify.

As long as the end is far off, it matters little when single chunks come: then QUEUE_S may grow to MAX_QUEUE_S, and asks
to the size of stored groups, since each costs both ends some work.

A peer that is *alone* has nobody to whom its work could go instead. It is asked for whole stored groups, several at a
time, even if they take a slow link a second: neighbours that are sent together compress better.

A peer that has gone quiet is believed less and less: `rate_at` falls once the next delivery is overdue.
"""

from dataclasses import dataclass
from typing import Final

MIN_WINDOW_BYTES: Final = 64 << 10
FIRST_WINDOW_BYTES: Final = 256 << 10
MAX_WINDOW_BYTES: Final = 16 << 20
MAX_ASK_BYTES: Final = 4 << 20
ASKS_A_WINDOW: Final = 4
QUEUE_S: Final = 0.05
MAX_QUEUE_S: Final = 0.5
GROUP_BYTES: Final = 768 << 10
ALONE_QUEUE_S: Final = 1.0
ALONE_ASKS_A_WINDOW: Final = 2
ALONE_WINDOW_BYTES: Final = 4 << 20
ALONE_SHARE: Final = 2
UNKNOWN_RTT_S: Final = 0.05
MIN_LATENCY_S: Final = 1e-4
RISE: Final = 0.75
FALL: Final = 0.25
STEEP: Final = 1.25


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a peer stood when an ask was sent; see `PeerStats.asked`."""

    at: float
    delivered: int
    full: bool


class PeerStats:
    """The measurements of one peer in one transfer.

    Args:
        rtt_s: round trip in seconds as gossip knows it; None when unknown.
        load: 0 idle ... 1 busy; a busy peer is thought slower until it is measured.
        first_window: bytes to have in flight until it is measured.

    Attributes:
        rtt_s: as it was told, or a guess.
        latency_s: see above.
        measured: whether a rate has been seen.
        delivered, in_flight, asked_bytes: bytes that came, are out, and were ever asked.
        queue_s: how long what is in flight may take beyond the round trips.
        alone_window: while nobody else is in session or expected, have so many bytes in flight at least; else 0.
    """

    def __init__(self, rtt_s: float | None, load: float, first_window: int = FIRST_WINDOW_BYTES) -> None:
        self.rtt_s = UNKNOWN_RTT_S if rtt_s is None else max(rtt_s, MIN_LATENCY_S)
        self.latency_s = self.rtt_s
        self.measured = False
        self.delivered = 0
        self.in_flight = 0
        self.asked_bytes = 0
        self.alone_window = 0
        self.queue_s = QUEUE_S
        self._answered = False
        self._first_window = first_window
        self._flat = 0
        self._grain = MIN_WINDOW_BYTES
        self._rate = first_window / (self.latency_s + QUEUE_S) / (1 + max(0.0, load))
        self._quiet_since = 0.0

    @property
    def window(self) -> int:
        """Bytes to have in flight."""
        least = max(MIN_WINDOW_BYTES, self.alone_window)
        if not self.measured:
            return max(self._first_window, least)
        window = self._rate * (2 * self.latency_s + (ALONE_QUEUE_S if self.alone_window else self.queue_s))
        return int(min(max(window, least), MAX_WINDOW_BYTES))

    @property
    def rate(self) -> float:
        """Bytes a second, as measured or else guessed."""
        return self._rate

    @property
    def settled(self) -> bool:
        """Whether the rate has stopped rising: a window's worth of asks did not raise it by much."""
        return self._flat >= ASKS_A_WINDOW

    @property
    def ask_bytes(self) -> int:
        """How much to ask for at once: a fraction of the window, so that asks overlap."""
        window = self.window
        whole = window // ALONE_ASKS_A_WINDOW
        if not self.alone_window:
            whole = max(window // ASKS_A_WINDOW, min(whole, GROUP_BYTES) if self.queue_s > QUEUE_S else 0)
        return min(max(whole, MIN_WINDOW_BYTES), MAX_ASK_BYTES)

    def asked(self, size: int, now: float) -> Mark:
        """`size` bytes are asked of the peer now."""
        if not self.in_flight:
            self._quiet_since = now
        mark = Mark(now, self.delivered, full=2 * (self.in_flight + size) >= self.window)
        self.in_flight += size
        self.asked_bytes += size
        return mark

    def heard(self, now: float) -> None:
        """Something came from the peer, if only a part of a chunk."""
        self._quiet_since = max(self._quiet_since, now)

    def received(self, size: int, mark: Mark, now: float) -> None:
        """Some `size` bytes of what was asked at `mark` came in at once."""
        self.heard(now)
        self._flat = 0
        self._grain = max(size, MIN_WINDOW_BYTES)
        self.delivered += size
        self.in_flight -= size
        waited = max(now - mark.at, MIN_LATENCY_S)
        self.latency_s = min(self.latency_s, waited) if self._answered else waited
        self._answered = True

    def forgo(self, size: int) -> None:
        """Some `size` bytes that were asked will not come."""
        self.in_flight -= size

    def completed(self, mark: Mark, now: float) -> None:
        """All of the ask at `mark` came in: take a sample of the rate."""
        sample = (self.delivered - mark.delivered) / max(now - mark.at, 1e-6)
        self._flat = 0 if not self.measured or sample > STEEP * self._rate else self._flat + 1
        if not self.measured:
            self._rate, self.measured = sample, True
        elif sample >= self._rate:
            self._rate += RISE * (sample - self._rate)
        elif mark.full:
            self._rate += FALL * (sample - self._rate)

    def rate_at(self, now: float) -> float:
        """Bytes a second to be expected from now on: no more than what would have brought the next delivery by now."""
        overdue_s = self.quiet_s(now) - self.latency_s
        due_bytes = min(self._grain, self.in_flight)
        return self._rate if overdue_s <= 0 else min(self._rate, due_bytes / overdue_s)

    def due_s(self, size: int) -> float:
        """Seconds that `size` bytes take when nothing else is in flight."""
        return self.latency_s + size / self._rate

    def quiet_s(self, now: float) -> float:
        """Seconds for which an asked peer has said nothing; 0 when nothing is asked of it."""
        return max(0.0, now - self._quiet_since) if self.in_flight else 0.0

    def finish_s(self, size: int, now: float) -> float:
        """Seconds until `size` bytes more, asked now behind all that is in flight, would be here."""
        return self.latency_s + (self.in_flight + size) / self.rate_at(now)
