"""News that rides on packets: the piggyback queue.

Each piece of news is sent a limited number of times, `retransmit_limit`, which grows with the logarithm of the mesh:
enough for the infection to reach everyone with high probability (SWIM, section 4.1). News that was sent least goes
first, the newest first among equals. Newer news about a node replaces the older, except that accusations of different
accusers travel side by side, because each is a confirmation of its own (Lifeguard, section IV-B).
"""

import math
from typing import Final

from gossip.messages import NodeId

_MISSES: Final = 8
"""How many messages that do not fit are stepped over in one tier before the search moves on."""
_SMALLEST_BYTES: Final = 43
"""A claim, the shortest news there is."""

_Key = tuple[NodeId, NodeId | None]


def retransmit_limit(multiplier: float, members: int) -> int:
    """How often one piece of news is sent by each node that has it: multiplier * ceil(log10(members + 1))."""
    return math.ceil(multiplier * math.ceil(math.log10(members + 1)))


class BroadcastQueue:
    """News waiting for a free place in some packet."""

    def __init__(self) -> None:
        # One tier for each number of times that its news was sent so far. Dictionaries keep the order of arrival.
        self._tiers: list[dict[_Key, bytes]] = []
        self._tier_of: dict[_Key, int] = {}
        self._about: dict[NodeId, set[_Key]] = {}

    def __len__(self) -> int:
        return len(self._tier_of)

    def put(self, about: NodeId, message: bytes, *, accuser: NodeId | None = None) -> None:
        """Queue an encoded message about a node.

        Args:
            about: the node; everything queued about it is replaced unless `accuser` is given.
            message: as it goes into a packet, see `gossip.wire.encode`.
            accuser: for an accusation: replaces only what the same accuser said.
        """
        key = (about, accuser)
        if accuser is None:
            self.drop(about)
        else:
            self._remove(key)
        self._insert(key, message, 0)

    def drop(self, about: NodeId) -> None:
        """Forget whatever is queued about a node."""
        for key in self._about.pop(about, ()):
            del self._tiers[self._tier_of.pop(key)][key]

    def take(self, budget_bytes: int, limit: int) -> list[bytes]:
        """Messages for one packet, at most `budget_bytes` in all; each counts as sent once more.

        Args:
            budget_bytes: free room in the packet.
            limit: after how many times a piece of news is dropped, see `retransmit_limit`.
        """
        taken: list[tuple[_Key, int, bytes]] = []
        for tier, news in enumerate(self._tiers):
            misses = 0
            for key in reversed(news):
                if budget_bytes < _SMALLEST_BYTES or misses > _MISSES:
                    break
                message = news[key]
                if len(message) <= budget_bytes:
                    budget_bytes -= len(message)
                    taken.append((key, tier, message))
                else:
                    misses += 1
        for key, tier, message in taken:
            self._remove(key)
            if tier + 1 < limit:
                self._insert(key, message, tier + 1)
        return [message for _, _, message in taken]

    def _insert(self, key: _Key, message: bytes, tier: int) -> None:
        while len(self._tiers) <= tier:
            self._tiers.append({})
        self._tiers[tier][key] = message
        self._tier_of[key] = tier
        self._about.setdefault(key[0], set()).add(key)

    def _remove(self, key: _Key) -> None:
        tier = self._tier_of.pop(key, None)
        if tier is None:
            return
        del self._tiers[tier][key]
        keys = self._about[key[0]]
        keys.discard(key)
        if not keys:
            del self._about[key[0]]
