"""Gossip services on a network in memory, under a clock that jumps; and once over real sockets."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gossip.config import LOCAL
from gossip.errors import Malformed
from gossip.ledger import Ledger
from gossip.messages import MemberState, NodeId
from gossip.records import LocalNode
from gossip.replica import Changes
from gossip.sealing import Keyring, Opener, Sealer
from gossip.simnet import pretend_verify
from gossip.state import GossipState
from gossip.table import Change
from p2player.errors import Unreachable
from p2player.net.datagrams import DatagramSocket
from p2player.net.gossip import GossipService
from p2player.net.rumours import Caller
from tests.support.gossipnet import Asked, MemoryPool, MemorySocket, Wire
from tests.support.members import local_node

ALIVE, SUSPECT, DEAD, LEFT = MemberState
KEYS = Keyring((b"m" * 32,))
NEW_KEYS = Keyring((b"n" * 32,))


class Node:
    """A service and what it is made of."""

    def __init__(
        self,
        local: LocalNode,
        socket: DatagramSocket,
        pool: Caller,
        *,
        restored: dict[str, Any] | None = None,
        keys: Keyring = KEYS,
    ) -> None:
        self.members: list[Change] = []
        self.changes: list[Changes] = []
        self.ledger = Ledger(local.public_key, local.sign, pretend_verify)
        self.state = GossipState(
            local,
            verify=pretend_verify,
            rng=random.Random(local.name),
            now=trio.current_time(),
            config=LOCAL,
            restored=restored,
        )
        self.service = GossipService(
            socket,
            self.state,
            Sealer(keys, local.id, local.boot_id),
            Opener(keys),
            pool,
            self.ledger,
            on_member=self.members.append,
            on_ledger=self.changes.append,
            rng=random.Random(local.name),
            wall=lambda: 1000.0 + trio.current_time(),
        )
        self.scope = trio.CancelScope()

    @property
    def id(self) -> NodeId:
        return self.state.id

    def sees(self, *others: "Node", as_: MemberState = ALIVE) -> bool:
        return all(self.state.state_of(other.id) is as_ for other in others if other is not self)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scope:
            await self.service.run(task_status)


class Mesh:
    """Nodes on one wire."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.wire = Wire()
        self.nodes: list[Node] = []
        self._nursery = nursery

    async def start(
        self,
        name: str,
        *,
        boot: int = 1,
        advertise: str = "",
        restored: dict[str, Any] | None = None,
        keys: Keyring = KEYS,
    ) -> Node:
        host = f"10.1.1.{len(self.nodes) + 1}"
        local = local_node(name, boot=boot, host=advertise or host)
        socket = MemorySocket(self.wire, (host, local.port))
        node = Node(local, socket, MemoryPool(self.wire, local.id), restored=restored, keys=keys)
        self.wire.handlers[node.id] = node.service.handlers()
        self.wire.down.discard(node.id)
        if self.nodes and restored is None:
            node.service.join([self.address(self.nodes[0])])
        self.nodes.append(node)
        await self._nursery.start(node.run)
        return node

    async def start_many(self, count: int) -> list[Node]:
        return [await self.start(f"n{number}") for number in range(count)]

    def kill(self, node: Node) -> None:
        node.scope.cancel()
        self.wire.down.add(node.id)
        del self.wire.sockets[self.address(node)]

    def address(self, node: Node) -> tuple[str, int]:
        return node.state.me.host, node.state.me.port


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with trio.open_nursery() as nursery:
        yield Mesh(nursery)
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], limit_s: float, every_s: float = 0.02) -> float:
    """Wait until something holds; returns how long that took."""
    began = trio.current_time()
    while not condition():
        assert trio.current_time() < began + limit_s, f"not within {limit_s} s"
        await trio.sleep(every_s)
    return trio.current_time() - began


def bind(node: Node, name: str, layer: bytes = b"l" * 32) -> None:
    node.ledger.bind(name, layer, kind="base", size=1, chunks=1, now=1000.0 + trio.current_time())
    node.service.announce()


# Membership


async def test_four_nodes_see_each_other_within_a_second(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(4)
    assert await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0) < 1.0
    await until(lambda: all(m.rtt_s is not None for node in nodes for m in node.state.members()), 5.0)
    assert nodes[0].state.members()[0].rtt_s == pytest.approx(0.002, rel=0.2)
    assert {change.new.name for change in nodes[0].members} == {"n1", "n2", "n3"}  # type: ignore[union-attr]


async def test_a_killed_node_is_noticed_and_comes_back(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(4)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)
    snapshot = nodes[3].state.snapshot(trio.current_time())
    mesh.kill(nodes[3])
    others = nodes[:3]
    await until(lambda: all(node.sees(nodes[3], as_=DEAD) for node in others), 4.0)
    again = await mesh.start("n3", boot=2, restored=snapshot)
    everyone = [*others, again]
    await until(lambda: all(node.sees(*everyone) for node in everyone), 1.0)


async def test_cancelling_is_no_leave_but_leaving_is(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(5)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)
    await nodes[3].service.leave()
    mesh.kill(nodes[3])
    mesh.kill(nodes[4])
    await until(lambda: all(node.sees(nodes[3], as_=LEFT) for node in nodes[:3]), 1.0)
    await until(lambda: all(node.sees(nodes[4], as_=DEAD) for node in nodes[:3]), 4.0)
    assert all(node.sees(nodes[3], as_=LEFT) for node in nodes[:3])


async def test_a_leave_is_heard_even_where_udp_is_not(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(4)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)
    mesh.wire.filtered.add(mesh.address(nodes[3]))
    await nodes[3].service.leave()
    mesh.kill(nodes[3])
    await until(lambda: all(node.sees(nodes[3], as_=LEFT) for node in nodes[:3]), 1.0)


async def test_leaving_a_dead_mesh_takes_no_more_than_its_time(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(2)
    await until(lambda: nodes[0].sees(nodes[1]), 1.0)
    mesh.wire.delay_s = 1000.0
    began = trio.current_time()
    await nodes[0].service.leave()
    assert trio.current_time() - began == pytest.approx(2.0)


async def test_a_node_whose_udp_is_filtered_stays_alive_over_tcp(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(4)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)
    mesh.wire.filtered.add(mesh.address(nodes[2]))
    await trio.sleep(20)
    assert all(node.sees(*nodes) for node in nodes)
    assert mesh.wire.calls["gossip.ping"] > 0


async def test_packets_of_strangers_and_garbage_cost_nothing_but_a_count(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(2)
    await until(lambda: nodes[0].sees(nodes[1]), 1.0)
    socket = mesh.wire.sockets[mesh.address(nodes[0])]
    for garbage in (b"", b"\x01", b"hello", b"\x01" * 1200, b"\x01" * 2048):
        socket.inject(garbage, ("192.0.2.66", 9))
    stranger = await mesh.start("stranger", keys=NEW_KEYS)
    inside = Sealer(KEYS, local_node("n1").id, b"otherway")
    socket.inject(inside.seal(b"\x01\x00"), ("192.0.2.66", 9))
    await trio.sleep(5)
    counters = nodes[0].service.counters()
    assert counters["malformed"] >= 4
    assert counters["unsealable"] >= 2
    assert counters["packets_in"] > 10 and counters["bytes_out"] > 1000
    assert nodes[0].sees(nodes[1])
    assert stranger.state.members() == [] and nodes[0].state.member(stranger.id) is None


async def test_the_keyring_rotates_under_way(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(3)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)
    for ring in (Keyring(KEYS.keys + NEW_KEYS.keys), Keyring(NEW_KEYS.keys + KEYS.keys), NEW_KEYS):
        for node in nodes:
            node.service.rotate(ring)
            await trio.sleep(0.5)
    await trio.sleep(5)
    assert all(node.sees(*nodes) for node in nodes)
    assert not any(change for node in nodes for change in node.members if change.new.state is DEAD)  # type: ignore[union-attr]


async def test_a_banned_node_is_gone(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(3)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)
    for node in nodes[:2]:
        node.service.ban(nodes[2].id)
    await trio.sleep(5)
    assert all(node.state.member(nodes[2].id) is None for node in nodes[:2])
    assert nodes[0].sees(nodes[1])


async def test_a_malformed_exchange_is_the_callers_error(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(1)
    handlers = nodes[0].service.handlers()
    for method in ("gossip.exchange", "ledger.exchange", "ledger.push"):
        with pytest.raises(Malformed):
            await handlers[method](Asked(local_node("x").id, {"delta": 7, "summary": 7}))
    assert await handlers["gossip.ping"](Asked(local_node("x").id, {})) == {}


async def test_peers_that_answer_nonsense_or_never_do_no_harm(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(3)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)

    async def nonsense(incoming: Any) -> dict[str, Any]:
        return {"delta": [1], "summary": b"x", "members": 3}

    async def never(incoming: Any) -> dict[str, Any]:
        await trio.sleep(8)
        raise Unreachable("gave up")

    real = mesh.wire.handlers[nodes[1].id]
    mesh.wire.handlers[nodes[1].id] = {**real, "gossip.exchange": nonsense, "ledger.exchange": nonsense}
    mesh.wire.handlers[nodes[2].id] = {
        **mesh.wire.handlers[nodes[2].id],
        "gossip.exchange": never,
        "ledger.exchange": never,
    }
    await trio.sleep(60)
    assert nodes[0].sees(*nodes)
    assert nodes[0].service.counters()["failed_ledger_calls"] > 0


# Names


class SlowNames(trio.abc.HostnameResolver):
    """Knows one name, and takes its time."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def getaddrinfo(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> Any:
        self.asked.append(host.decode())
        await trio.sleep(0.5)
        if host != b"n0.example":
            raise OSError("no such name")
        return [(trio.socket.AF_INET, trio.socket.SOCK_DGRAM, 17, "", ("10.1.1.1", port))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_addresses_may_be_names(autojump_clock: MockClock, mesh: Mesh) -> None:
    names = SlowNames()
    trio.socket.set_custom_hostname_resolver(names)
    first = await mesh.start("n0", advertise="n0.example")
    second = await mesh.start("n1", restored={"format": 1, "members": []})
    second.service.join([("n0.example", 7420), ("missing.example", 7420)])
    await until(lambda: second.sees(first), 3.0)
    await trio.sleep(100)
    assert second.sees(first)
    assert second.service.counters()["unresolved"] > 0  # a seed is tried until it answers
    assert 2 <= names.asked.count("n0.example") <= 6  # an answer is remembered for a minute


# The ledger


async def test_a_change_reaches_twenty_nodes_in_well_under_a_second(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(20)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 2.0)
    await trio.sleep(10)
    bind(nodes[7], "busybox")
    assert await until(lambda: all("busybox" in node.ledger.names() for node in nodes), 1.0) < 0.5
    await trio.sleep(1)
    assert all(node.changes for node in nodes if node is not nodes[7])
    # Each node tells it once, to at most eight others: a rumour that ends.
    assert mesh.wire.calls["ledger.push"] <= 20 * 8


async def test_many_changes_in_a_row_cost_one_round_of_rumours(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(3)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)
    await trio.sleep(5)
    for number in range(50):
        bind(nodes[0], f"layer-{number}")
    await until(lambda: all(len(node.ledger.names()) == 50 for node in nodes), 1.0)
    await trio.sleep(1)
    assert mesh.wire.calls["ledger.push"] <= 4
    mesh.wire.call_bytes.clear()
    bind(nodes[0], "one-more")
    await until(lambda: all("one-more" in node.ledger.names() for node in nodes), 1.0)
    assert mesh.wire.call_bytes["ledger.push"] < 1000  # what was told once is not told again


async def test_a_newcomer_gets_the_whole_ledger_at_once(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(3)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)
    for number in range(200):
        bind(nodes[0], f"layer-{number}")
    await until(lambda: all(len(node.ledger.names()) == 200 for node in nodes), 10.0)
    await trio.sleep(1)
    late = await mesh.start("late")
    assert await until(lambda: len(late.ledger.names()) == 200, 2.0) < 1.0
    pushes = mesh.wire.calls["ledger.push"]
    await trio.sleep(20)
    assert mesh.wire.calls["ledger.push"] == pushes  # what it learnt is no rumour
    mesh.wire.call_bytes.clear()
    bind(late, "its-own")
    await until(lambda: "its-own" in nodes[0].ledger.names(), 1.0)
    assert mesh.wire.call_bytes["ledger.push"] < 1000  # one record, not all that it knows


async def test_comparing_finds_what_rumours_missed(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(3)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)
    await trio.sleep(5)
    nodes[0].ledger.bind("silent", b"l" * 32, kind="app", size=1, chunks=1, now=2000.0)  # never announced
    await until(lambda: all("silent" in node.ledger.names() for node in nodes), 40.0)


async def test_islands_that_meet_again_share_their_ledgers(autojump_clock: MockClock, mesh: Mesh) -> None:
    nodes = await mesh.start_many(4)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 1.0)
    mesh.wire.down.add(nodes[3].id)
    mesh.wire.filtered.add(mesh.address(nodes[3]))
    await until(lambda: all(node.sees(nodes[3], as_=DEAD) for node in nodes[:3]), 5.0)
    bind(nodes[0], "ours")
    bind(nodes[3], "theirs")
    await trio.sleep(5)
    mesh.wire.down.clear()
    mesh.wire.filtered.clear()
    await until(lambda: all({"ours", "theirs"} <= set(node.ledger.names()) for node in nodes), 15.0)
    await until(lambda: all(node.sees(*nodes) for node in nodes), 5.0)


# Real sockets


@asynccontextmanager
async def real_node(wire: Wire, name: str) -> AsyncIterator[Node]:
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as socket:
        await socket.bind(("127.0.0.1", 0))
        local = local_node(name, host="127.0.0.1", port=socket.getsockname()[1])
        node = Node(local, socket, MemoryPool(wire, local.id))
        wire.handlers[node.id] = node.service.handlers()
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            yield node
            nursery.cancel_scope.cancel()


async def test_over_real_sockets_on_loopback() -> None:
    wire = Wire(delay_s=0.0)
    async with real_node(wire, "a") as a, real_node(wire, "b") as b, real_node(wire, "c") as c:
        nodes = [a, b, c]
        for node in (b, c):
            node.service.join([("127.0.0.1", a.state.me.port)])
        await until(lambda: all(node.sees(*nodes) for node in nodes), 5.0)
        await until(lambda: all(m.rtt_s is not None for node in nodes for m in node.state.members()), 5.0)
        assert all(0 < (m.rtt_s or 0) < 0.5 for node in nodes for m in node.state.members())
        bind(a, "busybox")
        await until(lambda: "busybox" in c.ledger.names(), 5.0)
        # An ICMP error for a port where nobody listens must not stop the loop.
        b.service.join([("127.0.0.1", 1)])
        await c.service.leave()
        await until(lambda: a.sees(c, as_=LEFT) and b.sees(c, as_=LEFT), 5.0)
