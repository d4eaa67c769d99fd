"""Where a node is, in seconds of round trip: Vivaldi coordinates with heights.

Theory of operation
-------------------
Every node keeps a point in a small Euclidean space plus a *height*, the time that its access link adds to every path.
The distance of two nodes is the distance of their points plus both heights, and predicts their round trip. After each
measured round trip a node moves itself along the line to the other one, as if the two were joined by a spring whose
length at rest is the measurement. Each node also carries an *error*, its own opinion of how wrong its point is
(relative, 1.0 = knows nothing); who is less sure moves further.

Source: Dabek, Cox, Kaashoek, Morris, "Vivaldi: A Decentralized Network Coordinate System", SIGCOMM 2004, sections 3
(algorithm, constants) and 5.4 (heights). The pull towards the origin that keeps the cloud from drifting is from
Ledlie, Gardner, Seltzer, "Network Coordinates in the Wild", NSDI 2007.

What the other end says of itself is not trusted: coordinates are bounded when they are decoded, an absurd round trip is
ignored, and no single observation moves a node further than `MAX_STEP_S`.
"""

import math
import random
import struct
from dataclasses import dataclass
from typing import Final

from gossip.errors import Malformed

DIMENSIONS: Final = 4
MAX_RTT_S: Final = 10.0
MAX_STEP_S: Final = 0.1
MIN_HEIGHT_S: Final = 10e-6
FIRST_HEIGHT_S: Final = 2.0**-10  # from near zero it would hardly grow, as it grows by a share of itself
MAX_ERROR: Final = 1.5
MIN_ERROR: Final = 0.01

_CC: Final = 0.25  # how far one observation moves the point
_CE: Final = 0.25  # how far one observation moves the error
_GRAVITY_S: Final = 150.0
_TINY_S: Final = 1e-6

_WIRE: Final = struct.Struct(f">{DIMENSIONS}fff")
COORDINATE_BYTES: Final = _WIRE.size


@dataclass(frozen=True, slots=True)
class Coordinate:
    """A point, its height (both in seconds) and its relative error."""

    point: tuple[float, ...]
    height_s: float
    error: float

    @property
    def known(self) -> bool:
        """False for a node that has measured nothing yet: its point means nothing."""
        return self.error < MAX_ERROR

    def distance_s(self, other: "Coordinate") -> float:
        """The predicted round trip between the two, in seconds."""
        return math.dist(self.point, other.point) + self.height_s + other.height_s

    def encode(self) -> bytes:
        """`COORDINATE_BYTES` bytes: big-endian 32-bit floats, the point, height, error."""
        return _WIRE.pack(*self.point, self.height_s, self.error)

    @classmethod
    def decode(cls, data: bytes) -> "Coordinate":
        """The inverse of `encode`.

        Raises:
            Malformed: wrong length, not finite, or further away than any network on earth.
        """
        if len(data) != COORDINATE_BYTES:
            raise Malformed("a coordinate has the wrong length")
        *point, height_s, error = _WIRE.unpack(data)
        # A comparison with NaN is false, so these also refuse what is not a number.
        if not all(abs(x) <= MAX_RTT_S for x in point) or not 0.0 <= height_s <= MAX_RTT_S:
            raise Malformed("a coordinate is out of range")
        if not 0.0 <= error <= MAX_ERROR:
            raise Malformed("a coordinate's error is out of range")
        return cls(tuple(point), height_s, error)


ORIGIN: Final = Coordinate((0.0,) * DIMENSIONS, FIRST_HEIGHT_S, MAX_ERROR)


def moved(mine: Coordinate, other: Coordinate, rtt_s: float, rng: random.Random) -> Coordinate:
    """Where a node at `mine` stands after it measured `rtt_s` to a node at `other`.

    Args:
        mine: the node's coordinate so far.
        other: what the other end says of itself.
        rtt_s: the measured round trip; one that is negative, not finite or above `MAX_RTT_S` changes nothing.
        rng: gives a direction when both stand on the same point.
    """
    if not 0.0 <= rtt_s <= MAX_RTT_S:
        return mine
    rtt_s = max(rtt_s, _TINY_S)
    predicted_s = mine.distance_s(other)
    other_error = max(other.error, MIN_ERROR)
    weight = mine.error / (mine.error + other_error)
    wrongness = abs(predicted_s - rtt_s) / rtt_s
    error = _CE * weight * wrongness + mine.error * (1.0 - _CE * weight)
    step_s = _CC * weight * (rtt_s - predicted_s)
    step_s = max(-MAX_STEP_S, min(MAX_STEP_S, step_s))

    gap_s = math.dist(mine.point, other.point)
    if gap_s > _TINY_S:
        direction = [(a - b) / gap_s for a, b in zip(mine.point, other.point, strict=True)]
    else:
        direction = _random_direction(rng)
    # Section 5.4: the height takes its share of the force, and is never negative.
    share = gap_s / predicted_s if gap_s > _TINY_S else 1.0
    point = [x + step_s * share * d for x, d in zip(mine.point, direction, strict=True)]
    height_s = mine.height_s
    if gap_s > _TINY_S:
        height_s += step_s * (mine.height_s + other.height_s) / predicted_s

    from_origin_s = math.hypot(*point)
    if from_origin_s > _TINY_S:
        pull = min(1.0, (from_origin_s / _GRAVITY_S) ** 2 / from_origin_s)
        point = [x * (1.0 - pull) for x in point]
    return Coordinate(
        tuple(max(-MAX_RTT_S, min(MAX_RTT_S, x)) for x in point),
        max(MIN_HEIGHT_S, min(MAX_RTT_S, height_s)),
        max(MIN_ERROR, min(MAX_ERROR, error)),
    )


def _random_direction(rng: random.Random) -> list[float]:
    raw = [rng.uniform(-1.0, 1.0) for _ in range(DIMENSIONS)]
    length = math.hypot(*raw) or 1.0
    return [x / length for x in raw]
