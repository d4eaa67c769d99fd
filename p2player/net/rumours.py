"""How the ledger travels: news at once to a few peers, and the rest by comparing notes.

    announce ──50 ms──> push the news to FANOUT random peers; each one for whom it was news does the same
    every few seconds ─> compare ledgers with one random peer, digest first (`gossip.replica`)

Rumours reach everyone within a few hops but may miss someone; comparing misses nobody but takes its time (Demers et al.
1987, "Epidemic algorithms for replicated database maintenance"). What is new is told apart by a summary of what was
told before, so a rumour carries only fresh records.
"""

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from gossip.errors import GossipError
from gossip.messages import NodeId
from gossip.replica import Changes
from p2player.errors import P2PlayerError

FANOUT: Final = 8
GATHER_S: Final = 0.05
COMPARE_S: Final = 5.0
CALL_S: Final = 10.0
MAX_ROUNDS: Final = 32
"""Of one comparison; each moves up to half a megabyte."""
GREETERS: Final = 3
"""How many members, more or less, compare ledgers at once with one that just came."""
MAX_CALLS: Final = 32


class Incoming(Protocol):
    """What is needed of a peer's request."""

    @property
    def peer(self) -> NodeId: ...
    @property
    def body(self) -> dict[str, Any]: ...


Handler = Callable[[Incoming], Awaitable[dict[str, Any]]]


class Caller(Protocol):
    """What is needed of the pool of sessions."""

    async def call(
        self, node: NodeId, method: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0
    ) -> dict[str, Any]:
        """Ask a peer.

        Raises:
            P2PlayerError: it cannot be reached, or answered with an error.
        """
        ...


class SharedLedger(Protocol):
    """What is needed of the ledger; see `gossip.replica.Replica`."""

    def summary(self) -> dict[str, Any]: ...
    def delta(self, summary: object) -> dict[str, Any]: ...
    def merge(self, delta: object, *, now: float) -> Changes: ...
    def offer(self) -> dict[str, Any]: ...
    def answer(self, body: object, *, now: float) -> tuple[dict[str, Any], Changes]: ...
    def follow(self, reply: object, *, now: float) -> tuple[dict[str, Any] | None, Changes]: ...


class Rumours:
    """Keeps this node's ledger and everyone else's alike.

    Args:
        ledger: this node's.
        pool: calls peers.
        peers: those that are alive now.
        on_change: called with what a peer's records changed here.
        rng: picks peers.
        wall: the time in the ledger's records.
    """

    def __init__(
        self,
        ledger: SharedLedger,
        pool: Caller,
        peers: Callable[[], Sequence[NodeId]],
        *,
        on_change: Callable[[Changes], None] | None = None,
        rng: random.Random | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._pool = pool
        self._peers = peers
        self._on_change = on_change
        self._rng = rng or random.Random()
        self._wall = wall
        self._told = ledger.summary()
        self._news = trio.Event()
        self._tellers: set[NodeId] = set()
        self._calls = trio.CapacityLimiter(MAX_CALLS)
        self._comparing: set[NodeId] = set()
        self._nursery: trio.Nursery | None = None
        self.failed_calls = 0

    def announce(self) -> None:
        """The ledger changed here: tell others soon. Many calls in a row cost one round of pushes."""
        self._news.set()

    def greet(self, node: NodeId) -> None:
        """A member came, or came back: some of us compare ledgers with it at once."""
        if self._nursery is not None and self._rng.random() * len(self._peers()) < GREETERS:
            self._nursery.start_soon(self._compare, node)

    def handlers(self) -> dict[str, Handler]:
        """What peers may ask."""
        return {"ledger.exchange": self._on_exchange, "ledger.push": self._on_push}

    async def run(self) -> None:
        """Push and compare until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._push_news)
            nursery.start_soon(self._compare_regularly)

    # Rumours

    async def _push_news(self) -> None:
        assert self._nursery is not None
        while True:
            await self._news.wait()
            await trio.sleep(GATHER_S)
            self._news = trio.Event()
            tellers, self._tellers = self._tellers, set()
            delta = self._ledger.delta(self._told)
            self._told = self._ledger.summary()
            if any(isinstance(rows, list) and rows for rows in delta.values()):
                others = [node for node in self._peers() if node not in tellers]
                for node in self._rng.sample(others, min(FANOUT, len(others))):
                    self._nursery.start_soon(self._call, node, "ledger.push", {"delta": delta})

    async def _on_push(self, incoming: Incoming) -> dict[str, Any]:
        changes = self._ledger.merge(incoming.body.get("delta"), now=self._wall())
        if changes:
            self._tellers.add(incoming.peer)
            self.announce()
            self._report(changes)
        return {}

    # Comparing

    async def _compare_regularly(self) -> None:
        while True:
            await trio.sleep(COMPARE_S * self._rng.uniform(0.5, 1.5))
            peers = self._peers()
            if peers:
                await self._compare(self._rng.choice(peers))

    async def _compare(self, node: NodeId) -> None:
        """Run one exchange with a peer, see `gossip.replica`; failures end it, the next one may do better."""
        if node in self._comparing:
            return
        self._comparing.add(node)
        try:
            body: dict[str, Any] | None = self._ledger.offer()
            for _ in range(MAX_ROUNDS):
                reply = await self._call(node, "ledger.exchange", body)
                if reply is None:
                    return
                body, changes = self._ledger.follow(reply, now=self._wall())
                self._learnt(changes)
                if body is None:
                    return
        except GossipError:
            self.failed_calls += 1
        finally:
            self._comparing.discard(node)

    async def _on_exchange(self, incoming: Incoming) -> dict[str, Any]:
        reply, changes = self._ledger.answer(incoming.body, now=self._wall())
        self._learnt(changes)
        return reply

    def _learnt(self, changes: Changes) -> None:
        """What comparing brought is mostly old, and no rumour; unless our own news still waits to be told."""
        if changes:
            if not self._news.is_set():
                self._told = self._ledger.summary()
            self._report(changes)

    def _report(self, changes: Changes) -> None:
        if self._on_change is not None:
            self._on_change(changes)

    async def _call(self, node: NodeId, method: str, body: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Ask a peer; None when it did not answer."""
        async with self._calls:
            try:
                return await self._pool.call(node, method, body, timeout_s=CALL_S)
            except P2PlayerError:
                self.failed_calls += 1
                return None
