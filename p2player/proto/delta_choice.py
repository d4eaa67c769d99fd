"""Whether chunks that have a relative are fetched as a delta or as they are: what takes fewer seconds.

Theory of operation
-------------------
Both ways are a pipe with two stages, the link and the processors, and cost about what the two cost together:

    plain(bytes) = bytes * PLAIN_RATIO / rate
    delta(bytes) = bytes * ratio / rate + bytes / DELTA_BYTES_S

`ratio` starts as a guess and follows what the deltas of this transfer really weighed. `rate` is the goodput of plain
chunks from that peer as it was last measured, or a guess by its distance; what deltas bring a second says little of a
link. It is never taken for more than FAIR_RATE: links between edge sites are shared with the services that run there,
so bytes have a price even where one transfer could have the whole link.

The ratio also tells the swarm how much of the wire a chunk will need, see `cost`.
"""

from typing import Final

PLAIN_RATIO: Final = 0.45
FIRST_RATIO: Final = 0.12
DELTA_BYTES_S: Final = 100e6
FAIR_RATE: Final = 30e6
NEAR_RTT_S: Final = 0.002
FAR_RATE: Final = 5e6
_GUESS_BYTES: Final = 4 << 20
_LEAST_COST: Final = 64


class DeltaChoice:
    """The choice of one transfer; learns from every delta that came."""

    def __init__(self) -> None:
        self._raw = 0.0
        self._wire = 0.0

    @property
    def ratio(self) -> float:
        """Wire bytes that a byte of content costs as a delta, as far as is known."""
        return (_GUESS_BYTES * FIRST_RATIO + self._wire) / (_GUESS_BYTES + self._raw)

    def observe(self, raw_bytes: int, wire_bytes: int) -> None:
        """A delta brought so much content with so many bytes."""
        self._raw += raw_bytes
        self._wire += wire_bytes

    def pays(self, rate: float | None, rtt_s: float | None) -> bool:
        """Whether a delta is the faster way over a link.

        Args:
            rate: measured goodput in bytes a second, None while unknown.
            rtt_s: round trip, None while unknown.
        """
        if rate is None:
            rate = FAIR_RATE if rtt_s is not None and rtt_s < NEAR_RTT_S else FAR_RATE
        rate = min(rate, FAIR_RATE)
        return self.ratio / rate + 1 / DELTA_BYTES_S < PLAIN_RATIO / rate


def cost(length: int) -> int:
    """Wire bytes that a chunk of `length` bytes with a relative is expected to need."""
    return max(int(length * FIRST_RATIO), _LEAST_COST)
