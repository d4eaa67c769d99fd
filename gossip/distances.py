"""How far everyone is: this node's own coordinate, what others say of theirs, and measured round trips.

A measured round trip is worth more than any prediction; the coordinates answer for pairs that were never measured, such
as two other nodes. A single slow packet should move neither, so each round trip first passes a moving median of three
(Ledlie, Gardner, Seltzer, NSDI 2007) and then an exponential average.
"""

import random
from collections import deque
from typing import Final

from gossip.coordinates import MAX_RTT_S, ORIGIN, Coordinate, moved
from gossip.messages import NodeId

_MEDIAN_OF: Final = 3
_SMOOTHING: Final = 0.25


class Distances:
    """What this node knows about round trips.

    Args:
        me: this node.
        rng: see `gossip.coordinates.moved`.
    """

    def __init__(self, me: NodeId, rng: random.Random) -> None:
        self.mine = ORIGIN
        self._me = me
        self._rng = rng
        self._others: dict[NodeId, Coordinate] = {}
        self._samples: dict[NodeId, deque[float]] = {}
        self._rtt_s: dict[NodeId, float] = {}

    def observe(self, node: NodeId, coordinate: Coordinate, rtt_s: float) -> None:
        """A direct probe of `node` took `rtt_s`; a value that no network can have is ignored."""
        if not 0.0 <= rtt_s <= MAX_RTT_S:
            return
        self.place(node, coordinate)
        samples = self._samples.setdefault(node, deque(maxlen=_MEDIAN_OF))
        samples.append(rtt_s)
        median_s = sorted(samples)[(len(samples) - 1) // 2]
        before_s = self._rtt_s.get(node)
        self._rtt_s[node] = median_s if before_s is None else before_s + _SMOOTHING * (median_s - before_s)
        self.mine = moved(self.mine, coordinate, median_s, self._rng)

    def place(self, node: NodeId, coordinate: Coordinate) -> None:
        """`node` says that it is there; one that has measured nothing yet says nothing."""
        if coordinate.known and node != self._me:
            self._others[node] = coordinate

    def coordinate(self, node: NodeId) -> Coordinate | None:
        """Where `node` last said it was; None if it never did."""
        if node == self._me:
            return self.mine if self.mine.known else None
        return self._others.get(node)

    def rtt_s(self, node: NodeId) -> float | None:
        """The smoothed measured round trip from here, in seconds; None before the first direct probe."""
        return self._rtt_s.get(node)

    def estimate_s(self, a: NodeId, b: NodeId) -> float | None:
        """The expected round trip between two nodes in seconds: measured where this node is one of them, predicted
        otherwise; None when nothing is known of one of them."""
        if a == b:
            return 0.0
        if self._me in (a, b):
            measured_s = self._rtt_s.get(b if a == self._me else a)
            if measured_s is not None:
                return measured_s
        at_a, at_b = self.coordinate(a), self.coordinate(b)
        if at_a is None or at_b is None:
            return None
        return at_a.distance_s(at_b)

    def forget(self, node: NodeId) -> None:
        """Drop everything about a node, because it is gone for good or is now somewhere else."""
        self._others.pop(node, None)
        self._samples.pop(node, None)
        self._rtt_s.pop(node, None)
