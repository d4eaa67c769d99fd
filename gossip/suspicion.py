"""How long a suspected node has to defend itself: Lifeguard's dynamic timeout.

A suspicion starts at its maximum timeout. Each *independent* accuser that confirms it shortens it, the first ones most,
down to the minimum once `confirmations` of them agree. So a node that is slow itself, and therefore hears few
confirmations, accuses late, while a mesh that agrees decides quickly.

Source: Dadgar, Phillips, Currey, "Lifeguard: Local Health Awareness for More Accurate Failure Detection", DSN-W 2018,
section IV-B (LHA-Suspicion).
"""

import math

from gossip.messages import NodeId


def min_timeout_s(multiplier: float, members: int, probe_interval_s: float) -> float:
    """The timeout once everyone agrees; grows with the logarithm of the mesh, as the spread of a refutation does."""
    return multiplier * max(1.0, math.log10(max(1, members))) * probe_interval_s


def timeout_s(confirmed: int, confirmations: int, min_s: float, max_s: float) -> float:
    """The timeout after `confirmed` independent accusers beyond the first.

        max(min, max - (max - min) * log(confirmed + 1) / log(confirmations + 1))

    Args:
        confirmed: how many accusers confirmed so far.
        confirmations: how many bring the timeout to the minimum; below one, nobody is there to confirm.
        min_s: the shortest timeout, in seconds.
        max_s: the timeout of an accuser that stays alone.
    """
    if confirmations < 1:
        return min_s
    share = math.log(confirmed + 1) / math.log(confirmations + 1)
    return max(min_s, max_s - (max_s - min_s) * share)


class Suspicion:
    """One running suspicion of one node."""

    __slots__ = ("_accusers", "_confirmations", "_max_s", "_min_s", "deadline", "started")

    def __init__(self, accuser: NodeId, confirmations: int, min_s: float, max_s: float, now: float) -> None:
        self.started = now
        self._accusers = {accuser}
        self._confirmations = confirmations
        self._min_s = min_s
        self._max_s = max_s
        self.deadline = now + timeout_s(0, confirmations, min_s, max_s)

    @property
    def confirmed(self) -> int:
        """How many independent accusers joined the first."""
        return len(self._accusers) - 1

    def confirm(self, accuser: NodeId) -> bool:
        """Count another accuser; returns whether that was news worth passing on."""
        if accuser in self._accusers or self.confirmed >= self._confirmations:
            return False
        self._accusers.add(accuser)
        self.deadline = self.started + timeout_s(self.confirmed, self._confirmations, self._min_s, self._max_s)
        return True

    def postpone(self, by_s: float) -> None:
        """Give the suspect more time, because this node was not listening for that long."""
        self.started += by_s
        self.deadline += by_s
