"""Turns: how many requests of one peer are worked on at a time. The others of that peer wait, in order."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from gossip.messages import NodeId


@dataclass(slots=True)
class _Turn:
    """The place of one peer in the queue: how many of its requests are here, and who may work."""

    limiter: trio.Semaphore
    requests: int = 0


class Turns:
    """The queues of all peers.

    Args:
        at_a_time: how many requests of one peer are worked on.
    """

    def __init__(self, at_a_time: int) -> None:
        self._at_a_time = at_a_time
        self._turns: dict[NodeId, _Turn] = {}

    @property
    def requests(self) -> int:
        """Requests of all peers that are worked on or wait."""
        return sum(turn.requests for turn in self._turns.values())

    @asynccontextmanager
    async def take(self, peer: NodeId) -> AsyncIterator[None]:
        """Wait until one more of this peer's requests may be worked on, and work on it in the block."""
        turn = self._turns.setdefault(peer, _Turn(trio.Semaphore(self._at_a_time)))
        turn.requests += 1
        try:
            async with turn.limiter:
                yield
        finally:
            turn.requests -= 1
            if not turn.requests:
                del self._turns[peer]
