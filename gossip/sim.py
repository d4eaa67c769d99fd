"""A whole mesh in one process, on a clock that jumps: hundreds of `GossipState`s over a network that fails on demand.

Theory of operation
-------------------
One heap holds everything that will happen: packets that arrive, timers, exchanges, and what the test scheduled. The
simulation takes the earliest, hands it to the one node that it concerns, and schedules what that node puts out. There
is no other clock and no other randomness than those of the simulation, so a seed replays exactly: `digest` is the same
whenever the same things happened in the same order. Leaving a `with Simulation(...)` block by an exception adds the
seed to it.

The network delays each packet by what the places of the two nodes demand plus jitter, and loses some. Exchanges and
TCP pings take two round trips and are not lost, but fail where nothing gets through. Clocks of nodes may be off, and
run fast or slow. Keys are pretended, and packets are not sealed but name their sender: see `gossip.simnet`.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from math import inf
from types import TracebackType
from typing import Final, Self

from blake3 import blake3

from gossip.config import LAN, GossipConfig
from gossip.events import (
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
from gossip.probing import Address
from gossip.simnet import Network, Sighting, SimNode, Skew, pretend_verify
from gossip.state import GossipState
from gossip.table import MemberChanged

_ROUNDING_S: Final = 1e-6  # between a node's clock and ours, and back


class Simulation:
    """Nodes, the network between them, and what is to happen.

    Args:
        seed: of everything random in it.
        config: of all nodes.
        network: see `Network`.

    Attributes:
        now: seconds since the beginning.
        sightings: every change of mind, in order.
        steps: how many events were handled.
        packets: how many packets were sent; `packet_bytes` in all, `largest_packet` the longest one.
    """

    def __init__(self, seed: int, *, config: GossipConfig = LAN, network: Network | None = None) -> None:
        self.seed = seed
        self.config = config
        self.network = network or Network()
        self.now = 0.0
        self.nodes: dict[str, SimNode] = {}
        self.sightings: list[Sighting] = []
        self.steps = 0
        self.packets = 0
        self.packet_bytes = 0
        self.largest_packet = 0
        self._rng = random.Random(seed)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._by_address: dict[Address, SimNode] = {}
        self._by_id: dict[NodeId, SimNode] = {}
        self._hash = blake3()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"replay with Simulation(seed={self.seed}); it happened at {self.now:.3f} s")

    # What tests arrange

    def add(self, name: str, *, skew: Skew | None = None) -> SimNode:
        """A new node, not started yet, at a random place of the unit square."""
        number = len(self.nodes)
        public_key = blake3(f"{self.seed}/{name}".encode()).digest()
        place = (self._rng.random(), self._rng.random())
        node = SimNode(name, number, public_key, place, f"10.0.{number >> 8}.{number & 255}", skew or Skew())
        self.nodes[name] = self._by_id[node.id] = self._by_address[node.address] = node
        return node

    def start(self, name: str, seeds: Iterable[str] = (), *, config: GossipConfig | None = None) -> None:
        """Start a node, or start it again with what it kept; `seeds` are names of nodes whose addresses it knows."""
        node = self.nodes[name]
        assert node.state is None, f"{name} is up"
        node.boots += 1
        node.state = GossipState(
            node.local(),
            verify=pretend_verify,
            rng=random.Random(self._rng.getrandbits(64)),
            now=node.clock(self.now),
            config=config or self.config,
            restored=node.kept,
        )
        node.stalled_until = self.now
        addresses = tuple(self.nodes[seed].address for seed in seeds)
        self._feed(node, JoinSeeds(addresses) if addresses else Tick())

    def start_mesh(self, count: int) -> list[str]:
        """Add and start `count` nodes; each knows the first one, which is how a mesh comes into being."""
        names = [self.add(f"n{number}").name for number in range(len(self.nodes), len(self.nodes) + count)]
        for name in names:
            self.start(name, seeds=() if name == names[0] else names[:1])
        return names

    def start_settled(self, count: int) -> list[str]:
        """Add and start `count` nodes that all know each other already: skips the mass join."""
        names = [self.add(f"n{number}").name for number in range(len(self.nodes), len(self.nodes) + count)]
        for name in names:
            self.start(name)
        everyone = [self._state(name) for name in names]
        rows = [state.exchange_body(0.0)["members"][0] for state in everyone]
        for name, state in zip(names, everyone, strict=True):
            self._feed(self.nodes[name], ExchangeReceived(state.id, {"format": 1, "members": rows}))
        return names

    def crash(self, name: str) -> None:
        """Stop a node without a word; what it knows is kept for `start`."""
        node = self.nodes[name]
        node.kept = self._state(name).snapshot(node.clock(self.now))
        node.state = None
        node.timer_at = None

    def leave(self, name: str) -> None:
        """Let a node leave for good, and stop it."""
        self._feed(self.nodes[name], Leave())
        self.nodes[name].state = None

    def move(self, name: str, host: str) -> None:
        """Give a node that is down another address."""
        node = self.nodes[name]
        assert node.state is None, f"{name} is up"
        del self._by_address[node.address]
        node.host = host
        self._by_address[node.address] = node

    def stall(self, name: str, seconds: float) -> None:
        """Let a node stand still, as an overloaded machine does: what comes in waits."""
        self.nodes[name].stalled_until = self.now + seconds

    def partition(self, *islands: Iterable[str]) -> None:
        """Cut the network: nodes reach only their own island; who is named nowhere is on a further one together."""
        for node in self.nodes.values():
            node.island = 0
        for number, island in enumerate(islands, start=1):
            for name in island:
                self.nodes[name].island = number

    def heal(self) -> None:
        """Join all islands again."""
        self.partition()

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do something at a later time."""
        heapq.heappush(self._heap, (time_s, next(self._order), action))

    # Running

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.run_until(lambda: False, seconds, every_s=seconds)

    def run_until(self, condition: Callable[[], bool], limit_s: float, *, every_s: float = 0.1) -> float | None:
        """Let time pass until `condition` holds, at most `limit_s`; it is looked at once in each `every_s`.

        Returns:
            How long it took in simulated seconds; None when it never held.
        """
        began, look_at = self.now, self.now
        while True:
            if condition():
                return self.now - began
            if self.now >= began + limit_s:
                return None
            look_at = min(look_at + every_s, began + limit_s)
            while self._heap and self._heap[0][0] <= look_at:
                self.now, _, action = heapq.heappop(self._heap)
                self.steps += 1
                action()
            self.now = look_at

    # Looking

    def state_of(self, observer: str, subject: str) -> MemberState | None:
        """What one node believes of another; None when it does not know it."""
        return self._state(observer).state_of(self.nodes[subject].id)

    def agreed(self, subject: str, state: MemberState | None) -> bool:
        """Whether every other node that is up believes that of `subject`."""
        return all(
            self.state_of(node.name, subject) is state
            for node in self.nodes.values()
            if node.state is not None and node.name != subject
        )

    def converged(self) -> bool:
        """Whether all nodes that are up see each other alive."""
        up = {node.id: node.state for node in self.nodes.values() if node.state is not None}
        return all(
            state.state_of(other) is MemberState.ALIVE for node, state in up.items() for other in up if other != node
        )

    def deaths(self, subject: str | None = None) -> list[Sighting]:
        """Who declared whom dead."""
        return [
            sighting
            for sighting in self.sightings
            if sighting.state is MemberState.DEAD and subject in (None, sighting.subject)
        ]

    def round_trip_s(self, a: str, b: str) -> float:
        """What a ping between two nodes takes on average."""
        return 2 * self.network.path_s(self.nodes[a], self.nodes[b]) + self.network.jitter_s

    def digest(self) -> str:
        """The same for two runs in which the same things happened in the same order."""
        return self._hash.hexdigest(16)

    # The network

    def _perform(self, node: SimNode, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case SendPacket(addr, payload):
                    self._send(node, addr, payload)
                case RequestExchange(peer):
                    self._exchange(node, self._by_id[peer])
                case TcpPing(peer):
                    self._tcp_ping(node, self._by_id[peer])
                case MemberChanged(_, new):
                    self.sightings.append(Sighting(self.now, node.name, new.name, new.state))
                case _:
                    pass

    def _send(self, source: SimNode, addr: Address, payload: bytes) -> None:
        self.packets += 1
        self.packet_bytes += len(payload)
        self.largest_packet = max(self.largest_packet, len(payload))
        target = self._by_address.get(addr)
        if target is None or self.network.loses(source, target, self._rng):
            return
        assert source.state is not None
        packet = PacketReceived(source.state.id, source.boot_id, source.address, payload)
        self.at(self.now + self._delay_s(source, target), lambda: self._feed(target, packet))

    def _exchange(self, source: SimNode, target: SimNode) -> None:
        """A session is dialled, then each side sends its half; the answer is lost if something fails meanwhile."""

        def ask() -> None:
            if source.state is None or target.state is None or not self.network.connects(source, target):
                return
            body = source.state.exchange_body(source.clock(self.now))
            self._feed(target, ExchangeReceived(source.id, body))
            answer = target.state.exchange_body(target.clock(self.now))
            delay_s = self._delay_s(target, source)
            self.at(self.now + delay_s, lambda: self._feed(source, ExchangeReceived(target.id, answer)))

        self.at(self.now + 3 * self._delay_s(source, target), ask)

    def _tcp_ping(self, source: SimNode, target: SimNode) -> None:
        def answer() -> None:
            if target.state is not None and target.stalled_until <= self.now and self.network.connects(source, target):
                self._feed(source, TcpPingAnswered(target.id))

        self.at(self.now + 4 * self._delay_s(source, target), answer)

    def _delay_s(self, a: SimNode, b: SimNode) -> float:
        return self.network.delay_s(a, b, self._rng)

    # Nodes

    def _feed(self, node: SimNode, event: Event, *, not_before: float = -inf) -> None:
        if node.state is None:
            return
        if node.stalled_until > self.now:
            self.at(node.stalled_until, lambda: self._feed(node, event))
            return
        self._hash.update(f"{self.now:.9f} {node.number} {type(event).__name__}".encode())
        if isinstance(event, PacketReceived):
            self._hash.update(event.payload)
        self._perform(node, node.state.handle(event, max(node.clock(self.now), not_before)))
        self._arm(node)

    def _arm(self, node: SimNode) -> None:
        """See to it that a tick comes at the node's next deadline; later timers find out that they are not needed."""
        assert node.state is not None
        deadline = node.state.next_deadline()
        if deadline is None:
            return
        at = max(self.now, node.when(deadline))
        if node.timer_at is not None and node.timer_at <= at:
            return
        node.timer_at = at
        self.at(at, lambda: self._on_timer(node, at))

    def _on_timer(self, node: SimNode, at: float) -> None:
        if node.state is None or node.timer_at != at:
            return
        if node.stalled_until > self.now:
            # Among what waits for it: a process that wakes up reads its clock and its socket in no certain order.
            node.timer_at = node.stalled_until
            self.at(node.stalled_until, lambda: self._on_timer(node, node.stalled_until))
            return
        node.timer_at = None
        deadline = node.state.next_deadline()
        if deadline is not None and deadline <= node.clock(self.now) + _ROUNDING_S:
            self._feed(node, Tick(), not_before=deadline)
        else:
            self._arm(node)

    def _state(self, name: str) -> GossipState:
        state = self.nodes[name].state
        assert state is not None, f"{name} is down"
        return state
