"""A fair start: what is kept for holders that are new or still shake hands.

Theory of operation
-------------------
Over a fast link one peer could deliver everything before the next has joined, and carry the whole load although it
was only first. So for `RESERVE_S` after it is expected, and again after it joined, each holder has a *part* kept for
it: half of an equal share. The others leave that much alone.

Fairness must not cost time. Nothing is kept

- in small transfers, or for a holder that is much farther than the one that waits;
- for a holder that shakes hands for much longer than the first one did;
- for a holder whose rate is known, or beyond what it could deliver, growing as it does at the start, until everything
  would be done. One that has delivered nothing yet is taken to be as fast as the best until it has kept us waiting for
  `PATIENCE_S`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gossip.messages import NodeId
from p2player.proto.peerstats import MIN_WINDOW_BYTES, PeerStats

RESERVE_S: Final = 0.25
FROM_BYTES: Final = 8 << 20
PATIENCE_S: Final = 0.02
GROWTH: Final = 8.0
NEAR_FACTOR: Final = 2.0
NEAR_S: Final = 0.02
DIAL_FACTOR: Final = 3.0
DIAL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class _Claim:
    """`since`, something is kept for a holder `until`; `rtt_s` is 0 when unknown."""

    since: float
    until: float
    rtt_s: float


class FairStart:
    """What is kept for whom, in one transfer of `total_bytes`."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._expected: dict[NodeId, _Claim] = {}
        self._joined: dict[NodeId, _Claim] = {}

    @property
    def expecting(self) -> int:
        """How many holders are being dialled."""
        return len(self._expected)

    def expect(self, peer: NodeId, rtt_s: float | None, now: float) -> None:
        """`peer` is being dialled."""
        self._expected[peer] = _Claim(now, now + RESERVE_S, rtt_s or 0.0)

    def join(self, peer: NodeId, rtt_s: float | None, now: float) -> None:
        """`peer` may be asked; who needs much longer to come so far is waited for no more."""
        claim = self._expected.pop(peer, None)
        self._joined[peer] = _Claim(now, now + RESERVE_S, rtt_s or 0.0)
        if claim is not None:
            soon = now + DIAL_FACTOR * (now - claim.since) + DIAL_S
            for other, theirs in self._expected.items():
                self._expected[other] = replace(theirs, until=min(theirs.until, soon))

    def leave(self, peer: NodeId) -> None:
        """`peer` is gone, or did not come."""
        self._expected.pop(peer, None)
        self._joined.pop(peer, None)

    def times(self, now: float) -> list[float]:
        """When something that is kept becomes free."""
        claims = (*self._expected.values(), *self._joined.values())
        return [claim.until for claim in claims if claim.until > now]

    def kept_for(self, peer: NodeId, peers: Mapping[NodeId, PeerStats], end_s: float, now: float) -> int:
        """Bytes that are kept for `peer`, which has joined.

        Args:
            peers: all that have joined.
            end_s: seconds until everything is expected to be here.
        """
        stats = peers[peer]
        if now >= self._joined[peer].until or stats.settled:
            return 0
        rate = stats.rate_at(now)
        if not stats.measured:
            best = max(other.rate_at(now) for other in peers.values())
            latency_s = self._joined[peer].rtt_s or min(other.latency_s for other in peers.values())
            overdue_s = stats.quiet_s(now) - latency_s - PATIENCE_S
            rate = best if overdue_s <= 0 else min(best, MIN_WINDOW_BYTES / overdue_s)
        return max(0, min(self._part() - stats.asked_bytes, int(GROWTH * rate * end_s) - stats.in_flight))

    def kept_from(
        self, peer: NodeId, sharers: Sequence[NodeId], peers: Mapping[NodeId, PeerStats], end_s: float, now: float
    ) -> int:
        """Bytes that `peer` must leave to `sharers`, who hold the same, and to those that are expected."""
        near_s = NEAR_FACTOR * peers[peer].latency_s + NEAR_S
        expected = sum(now < claim.until and claim.rtt_s <= near_s for claim in self._expected.values())
        joined = (other for other in sharers if other != peer and self._joined[other].rtt_s <= near_s)
        return expected * self._part() + sum(self.kept_for(other, peers, end_s, now) for other in joined)

    def _part(self) -> int:
        if self._total_bytes < FROM_BYTES:
            return 0
        return self._total_bytes // (2 * (len(self._joined) + len(self._expected)))
