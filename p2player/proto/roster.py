"""Which holders are dialled, and when one that failed is tried again.

Gossip hints at holders; the roster keeps `slots` of them in session: whole copies before partial ones, near and idle
ones first. A holder whose session ends is tried again after a growing pause, and given up after `ATTEMPTS` failures
in a row; one that delivered something in between starts afresh. One that is `banned` is never dialled again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from gossip.messages import NodeId
from p2player.proto.peerstats import UNKNOWN_RTT_S

MAX_SLOTS: Final = 8
ATTEMPTS: Final = 4
PAUSE_S: Final = 0.5
JITTER: Final = 0.25
BYTES_A_SLOT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class HolderHint:
    """What gossip says of one holder; it may be wrong in every respect.

    Attributes:
        rtt_s: round trip in seconds, None when unknown.
        load: runnable processes per core.
        complete: it holds all of the layer.
    """

    node: NodeId
    rtt_s: float | None = None
    load: float = 0.0
    complete: bool = True


@dataclass(slots=True)
class _Candidate:
    hint: HolderHint
    failures: int = 0
    not_before: float = 0.0
    busy: bool = False
    banned: bool = False

    def ready_at(self) -> float | None:
        """When it may be dialled; None: not at all, or it is in session."""
        return None if self.busy or self.banned or self.failures >= ATTEMPTS else self.not_before

    def distance(self) -> tuple[bool, float]:
        rtt_s = UNKNOWN_RTT_S if self.hint.rtt_s is None else self.hint.rtt_s
        return not self.hint.complete, rtt_s * (1 + self.hint.load)


def slots_for(total_bytes: int) -> int:
    """How many holders are worth a handshake: two, and one more for every MiB."""
    return min(MAX_SLOTS, 2 + total_bytes // BYTES_A_SLOT)


class Roster:
    """The holders of one transfer.

    Args:
        slots: how many may be dialled or in session at a time.
        rng: spreads out retries.
    """

    def __init__(self, slots: int, rng: Random) -> None:
        self._slots = slots
        self._rng = rng
        self._candidates: dict[NodeId, _Candidate] = {}

    @property
    def exhausted(self) -> bool:
        """Whether no holder is left to be dialled, now or later; those in session do not count."""
        return all(candidate.ready_at() is None for candidate in self._candidates.values())

    @property
    def known(self) -> bool:
        """Whether any holder was ever named."""
        return bool(self._candidates)

    def offer(self, hints: Iterable[HolderHint]) -> None:
        """Take what gossip says now; holders that it no longer names are not dialled again."""
        hinted = {hint.node: hint for hint in hints}
        for node, candidate in list(self._candidates.items()):
            if node not in hinted and not (candidate.busy or candidate.banned):
                del self._candidates[node]
        for node, hint in hinted.items():
            candidate = self._candidates.setdefault(node, _Candidate(hint))
            candidate.hint = hint

    @property
    def busy(self) -> int:
        """How many holders are being dialled or in session."""
        return sum(candidate.busy for candidate in self._candidates.values())

    def due(self, now: float, at_most: int = MAX_SLOTS) -> list[HolderHint]:
        """The holders to dial now; each counts as in session until `ended`."""
        free = min(self._slots - self.busy, at_most)
        ready = [
            candidate
            for candidate in self._candidates.values()
            if (at := candidate.ready_at()) is not None and at <= now
        ]
        chosen = sorted(ready, key=_Candidate.distance)[: max(0, free)]
        for candidate in chosen:
            candidate.busy = True
        return [candidate.hint for candidate in chosen]

    def ended(self, node: NodeId, now: float, *, useful: bool, ban: bool = False) -> None:
        """The session with `node` ended, or it could not be dialled.

        Args:
            useful: it delivered something.
            ban: it is not to be dialled again.
        """
        candidate = self._candidates[node]
        candidate.busy = False
        candidate.banned |= ban
        candidate.failures = 1 if useful else candidate.failures + 1
        pause_s = PAUSE_S * 2.0 ** (candidate.failures - 1)
        candidate.not_before = now + pause_s * self._rng.uniform(1, 1 + JITTER)

    def wake_at(self, now: float) -> float | None:
        """When somebody is to be dialled again; None: nobody is waiting, or no slot is free."""
        if self.busy >= self._slots:
            return None
        times = [at for candidate in self._candidates.values() if (at := candidate.ready_at()) is not None]
        return max(now, min(times)) if times else None
