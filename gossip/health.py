"""How well this node itself is: Lifeguard's local health multiplier.

A node that misses acks, nacks or its own timers is probably slow or cut off itself. The worse its score, the more time
it gives others before it accuses them: probe interval and timeout are both multiplied by `score + 1`.

Source: Lifeguard (see `gossip.suspicion`), section IV-A (LHA-Probe).
"""


class LocalHealth:
    """A saturating counter, 0 (well) to `worst`."""

    __slots__ = ("_worst", "score")

    def __init__(self, worst: int) -> None:
        self._worst = worst
        self.score = 0

    def adjust(self, by: int) -> None:
        """Add to the score: positive for a sign of trouble here, negative for a probe that went well."""
        self.score = max(0, min(self._worst, self.score + by))

    def scaled_s(self, duration_s: float) -> float:
        """`duration_s`, longer the worse this node is."""
        return duration_s * (self.score + 1)
