"""Token buckets: how long must these bytes wait so that a rate is kept?

Theory of operation
-------------------
A bucket holds up to `burst` tokens, one a byte, and gains `rate` a second. Spending is always allowed and may leave a
debt; what comes back is the time until the debt is paid. So one large frame needs no splitting, callers are served in
the order in which they spend, and the long-run rate is exact whatever the sizes are: over any interval of t seconds at
most `burst + rate * t` bytes pass, plus the one spending that went into debt.

A node has one bucket for each direction, a transfer may have its own: `Chain` spends in all and waits for the slowest.
The clock is the caller's, so that nothing here sleeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

MIN_BURST_BYTES = 64 << 10
BURST_S = 0.1


class Rate(Protocol):
    """Something that bytes are spent on."""

    def spend(self, count: int, now: float) -> float:
        """Take `count` bytes at time `now`; returns the seconds to wait before passing them on."""


@dataclass(slots=True)
class TokenBucket:
    """One cap.

    Args:
        rate: bytes a second, above zero.
        burst: bytes that may pass at once after a pause; None gives a tenth of a second's worth, at least 64 KiB.

    Raises:
        ValueError: rate or burst is not above zero.
    """

    rate: float
    burst: float | None = None
    _tokens: float = field(init=False)
    _at: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"a rate is above zero, not {self.rate}")
        if self.burst is None:
            self.burst = max(self.rate * BURST_S, MIN_BURST_BYTES)
        if not self.burst > 0:
            raise ValueError(f"a burst is above zero, not {self.burst}")
        self._tokens = self.burst

    def spend(self, count: int, now: float) -> float:
        """Take `count` bytes; a clock that went backwards counts as standing still."""
        assert self.burst is not None
        if self._at is not None and now > self._at:
            self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now if self._at is None else max(self._at, now)
        self._tokens -= count
        return max(0.0, -self._tokens / self.rate)


@dataclass(frozen=True, slots=True)
class Chain:
    """Several caps at once, outermost first; an empty chain lets everything pass."""

    rates: Sequence[Rate] = ()

    def spend(self, count: int, now: float) -> float:
        """Take `count` bytes from each; the wait of the slowest."""
        return max((rate.spend(count, now) for rate in self.rates), default=0.0)
