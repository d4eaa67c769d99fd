"""Gossip on a real network: drives `GossipState` with packets, timers and full exchanges, and keeps the ledgers alike.

    UDP socket ── Datagrams ── PacketReceived ──> GossipState ──> SendPacket ── Datagrams
    trio clock ─────────────── Tick ────────────>             ──> RequestExchange, TcpPing ── pool.call
    pool ───────────────────── ExchangeReceived >             ──> MemberChanged ── on_change, Rumours.greet

What a peer sends can cost no more than itself: undecodable packets are counted, failed calls forgotten, and at most
`MAX_EXCHANGES` run at a time.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import trio

from gossip.errors import GossipError
from gossip.events import (
    Ban,
    Event,
    ExchangeReceived,
    JoinSeeds,
    Leave,
    Output,
    PacketReceived,
    RequestExchange,
    SendPacket,
    TcpPing,
    TcpPingAnswered,
    Tick,
)
from gossip.messages import MemberState, NodeId
from gossip.replica import Changes
from gossip.sealing import Keyring, Opened, Opener, Sealer
from gossip.state import GossipState
from gossip.table import Change, MemberChanged, MemberForgotten
from p2player.errors import P2PlayerError
from p2player.net.datagrams import Address, Datagrams, DatagramSocket
from p2player.net.rumours import Caller, Handler, Incoming, Rumours, SharedLedger

EXCHANGE_S: Final = 10.0
MAX_EXCHANGES: Final = 8
FAREWELL_S: Final = 2.0
FAREWELL_CALLS: Final = 3


class GossipService:
    """One node's part in the mesh's gossip, while `run` runs.

    Args:
        socket: a UDP socket bound to the node's port; the caller closes it.
        state: made with `now=trio.current_time()`, in this trio run.
        sealer, opener: with the mesh's keyring, and the boot id that `state` has.
        pool: calls peers; it finds their addresses with `state.member`.
        ledger: this node's.
        on_member: called when a member came, changed or went.
        on_ledger: called when peers' records changed the ledger.
        rng: picks peers for the ledger.
        wall: the clock of the ledger's records.

    The callbacks run inside the loop that handles packets: they must neither block nor raise.
    """

    def __init__(
        self,
        socket: DatagramSocket,
        state: GossipState,
        sealer: Sealer,
        opener: Opener,
        pool: Caller,
        ledger: SharedLedger,
        *,
        on_member: Callable[[Change], None] | None = None,
        on_ledger: Callable[[Changes], None] | None = None,
        rng: random.Random | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.state = state
        self._pool = pool
        self._on_member = on_member
        self._datagrams = Datagrams(socket, sealer, opener, self._on_packet)
        self._rumours = Rumours(ledger, pool, self._live, on_change=on_ledger, rng=rng, wall=wall)
        self._nursery: trio.Nursery | None = None
        self._armed_for = float("-inf")
        self._rearm = trio.Event()
        self._exchanging: set[NodeId] = set()

    # For the node

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Being cancelled is no leave: for others this node merely stops answering."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._datagrams.run)
            nursery.start_soon(self._rumours.run)
            nursery.start_soon(self._keep_time)
            task_status.started()

    def handlers(self) -> dict[str, Handler]:
        """What peers may ask, by method."""
        return {
            "gossip.exchange": self._on_exchange,
            "gossip.ping": self._on_ping,
            **self._rumours.handlers(),
        }

    def join(self, seeds: Iterable[Address]) -> None:
        """Try these addresses until each has answered once; members of the last run are tried without being asked."""
        self._feed(JoinSeeds(tuple(seeds)))

    def announce(self) -> None:
        """The local ledger changed: spread it now."""
        self._rumours.announce()

    def ban(self, node: NodeId) -> None:
        """A node's certificate was revoked: drop it for good. Its keys go with `rotate`."""
        self._feed(Ban(node))

    def rotate(self, keyring: Keyring) -> None:
        """Seal and open packets with another keyring from now on."""
        self._datagrams.rotate(keyring)

    async def leave(self) -> None:
        """Tell the mesh that this node leaves for good; takes `FAREWELL_S` at most. Cancel `run` afterwards."""
        told = self.state.alive()[:FAREWELL_CALLS]
        packets = [output for output in self._advance(Leave()) if isinstance(output, SendPacket)]
        body = self.state.exchange_body(trio.current_time())
        with trio.move_on_after(FAREWELL_S):
            async with trio.open_nursery() as nursery:
                for packet in packets:
                    nursery.start_soon(self._datagrams.send, packet)
                for member in told:
                    nursery.start_soon(self._call, member.id, "gossip.exchange", body)

    def counters(self) -> Counter[str]:
        """Packets and bytes in and out, and everything that was dropped, by reason; since the start."""
        counters = self._datagrams.counted + self.state.dropped
        counters["failed_ledger_calls"] = self._rumours.failed_calls
        return counters

    # Events in

    def _on_packet(self, opened: Opened, source: Address) -> None:
        self._perform(self._advance(PacketReceived(opened.sender, opened.boot_id, source, opened.payload)))

    async def _on_exchange(self, incoming: Incoming) -> dict[str, Any]:
        self._perform(self._advance(ExchangeReceived(incoming.peer, incoming.body)))
        return self.state.exchange_body(trio.current_time())

    async def _on_ping(self, incoming: Incoming) -> dict[str, Any]:
        return {}

    async def _keep_time(self) -> None:
        while True:
            self._rearm = trio.Event()
            deadline = self.state.next_deadline()
            self._armed_for = float("inf") if deadline is None else deadline
            with trio.move_on_at(self._armed_for):
                await self._rearm.wait()
            if trio.current_time() >= self._armed_for:
                self._feed(Tick())

    def _feed(self, event: Event) -> None:
        self._perform(self._advance(event))

    def _advance(self, event: Event) -> list[Output]:
        """Raises Malformed for an event with a peer's bytes in it."""
        return self.state.handle(event, trio.current_time())

    # Outputs

    def _perform(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case SendPacket():
                    self._datagrams.post(output)
                case RequestExchange(node):
                    self._start(self._exchange, node)
                case TcpPing(node):
                    self._start(self._tcp_ping, node)
                case MemberChanged() | MemberForgotten():
                    self._report(output)
        deadline = self.state.next_deadline()
        if deadline is not None and deadline < self._armed_for:
            self._rearm.set()

    def _report(self, change: Change) -> None:
        if isinstance(change, MemberChanged) and change.new.state is MemberState.ALIVE:
            was_suspect = change.old is not None and change.old.state is MemberState.SUSPECT
            if not was_suspect:
                self._rumours.greet(change.new.id)
        if self._on_member is not None:
            self._on_member(change)

    def _start(self, what: Callable[[NodeId], Any], node: NodeId) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(what, node)

    async def _exchange(self, node: NodeId) -> None:
        if node in self._exchanging or len(self._exchanging) >= MAX_EXCHANGES:
            return
        self._exchanging.add(node)
        try:
            body = self.state.exchange_body(trio.current_time())
            reply = await self._call(node, "gossip.exchange", body)
            if reply is not None:
                self._feed(ExchangeReceived(node, reply))
        except GossipError as error:
            self.state.dropped[error.reason] += 1
        finally:
            self._exchanging.discard(node)

    async def _tcp_ping(self, node: NodeId) -> None:
        if await self._call(node, "gossip.ping", {}, self.state.config.probe_interval_s) is not None:
            self._feed(TcpPingAnswered(node))

    async def _call(
        self, node: NodeId, method: str, body: dict[str, Any], timeout_s: float = EXCHANGE_S
    ) -> dict[str, Any] | None:
        """Ask a peer; None when it did not answer."""
        try:
            return await self._pool.call(node, method, body, timeout_s=timeout_s)
        except P2PlayerError:
            return None

    def _live(self) -> list[NodeId]:
        return [member.id for member in self.state.alive()]
