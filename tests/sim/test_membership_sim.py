"""Whole meshes under a seed: they form, notice deaths, heal, and never bury the living."""

import pytest

from gossip.config import LAN, LOCAL, WAN, GossipConfig
from gossip.messages import MemberState
from gossip.sim import Simulation
from gossip.simnet import Network, Skew
from gossip.wire import MAX_PAYLOAD_BYTES

ALIVE, SUSPECT, DEAD, LEFT = MemberState
SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("nodes", "limit_s"), [(4, 0.5), (20, 1.0)])
def test_a_mesh_forms_at_once(nodes: int, limit_s: float, seed: int) -> None:
    with Simulation(seed, config=LOCAL) as sim:
        sim.start_mesh(nodes)
        assert sim.run_until(sim.converged, limit_s) is not None
        sim.run(10.0)
        assert sim.converged()
        assert sim.deaths() == []
        assert sim.largest_packet <= MAX_PAYLOAD_BYTES


def test_a_hundred_nodes_that_start_together_on_a_lossy_network_find_each_other() -> None:
    with Simulation(3, config=LAN, network=Network(loss=0.05)) as sim:
        sim.start_mesh(100)
        assert sim.run_until(sim.converged, 15.0) is not None
        assert sim.deaths() == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("config", "nodes", "limit_s"), [(LOCAL, 4, 3.0), (LOCAL, 20, 5.0), (LAN, 20, 11.0), (WAN, 10, 40.0)]
)
def test_everyone_notices_a_crash(config: GossipConfig, nodes: int, limit_s: float, seed: int) -> None:
    with Simulation(seed, config=config) as sim:
        names = sim.start_mesh(nodes)
        assert sim.run_until(sim.converged, 10.0) is not None
        sim.run(5.0 + seed * 0.37)
        victim = names[1 + seed % (nodes - 1)]
        sim.crash(victim)
        assert sim.run_until(lambda: sim.agreed(victim, DEAD), limit_s) is not None
        assert {death.subject for death in sim.deaths()} == {victim}


def test_a_hundred_nodes_notice_several_crashes() -> None:
    with Simulation(1, config=LAN, network=Network(loss=0.02)) as sim:
        names = sim.start_settled(100)
        sim.run(3.0)
        victims = names[10:15]
        for victim in victims:
            sim.crash(victim)
        assert sim.run_until(lambda: all(sim.agreed(victim, DEAD) for victim in victims), 15.0) is not None
        assert {death.subject for death in sim.deaths()} == set(victims)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("config", "lasts_s"), [(LOCAL, 20.0), (LAN, 50.0)])
def test_ten_per_cent_loss_kills_nobody(config: GossipConfig, lasts_s: float, seed: int) -> None:
    with Simulation(seed, config=config, network=Network(loss=0.1, jitter_s=0.02)) as sim:
        sim.start_mesh(20)
        sim.run(lasts_s)
        assert sim.converged()
        assert sim.deaths() == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_partition_heals(seed: int) -> None:
    with Simulation(seed, config=LOCAL) as sim:
        names = sim.start_mesh(20)
        sim.run(5.0)
        ours, theirs = names[:8], names[8:]
        sim.partition(ours, theirs)
        sim.run(25.0)
        assert all(sim.state_of(a, b) is DEAD and sim.state_of(b, a) is DEAD for a in ours for b in theirs)
        assert all(sim.state_of(a, b) is ALIVE for a in ours for b in ours if a != b)
        sim.heal()
        assert sim.run_until(sim.converged, 15.0) is not None
        deaths = len(sim.deaths())
        sim.run(10.0)
        assert len(sim.deaths()) == deaths  # no aftershocks


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leave_is_seen_as_a_leave(seed: int) -> None:
    with Simulation(seed, config=LOCAL, network=Network(loss=0.1)) as sim:
        names = sim.start_mesh(20)
        sim.run(5.0)
        sim.leave(names[7])
        assert sim.run_until(lambda: sim.agreed(names[7], LEFT), 5.0) is not None
        sim.run(10.0)
        assert sim.agreed(names[7], LEFT)
        assert sim.deaths() == []


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("state_lost", [False, True])
@pytest.mark.parametrize("down_s", [0.3, 20.0])
def test_a_restarted_node_returns(seed: int, moved: bool, state_lost: bool, down_s: float) -> None:
    with Simulation(seed, config=LOCAL) as sim:
        names = sim.start_mesh(10)
        sim.run(4.0)
        node = sim.nodes[names[4]]
        sim.crash(node.name)
        sim.run(down_s)
        if moved:
            sim.move(node.name, "10.9.9.9")
        if state_lost:
            node.kept = None
        sim.start(node.name, seeds=[names[0]] if state_lost else [])

        def everyone_knows_where() -> bool:
            states = [other.state for other in sim.nodes.values() if other.state is not None]
            members = [state.member(node.id) for state in states]
            return sim.converged() and {member.host for member in members if member} == {node.host}

        assert sim.run_until(everyone_knows_where, 5.0) is not None
        sim.run(10.0)
        assert everyone_knows_where()


def test_a_mesh_that_lost_power_comes_back_by_itself() -> None:
    with Simulation(5, config=LOCAL) as sim:
        names = sim.start_mesh(12)
        sim.run(5.0)
        for name in names:
            sim.crash(name)
        sim.run(3.0)
        for name in names:
            sim.start(name)
            sim.run(0.5)
        assert sim.run_until(sim.converged, 5.0) is not None


def test_a_seed_that_comes_up_last_is_found() -> None:
    with Simulation(6, config=LOCAL) as sim:
        for name in ("seed", "a", "b"):
            sim.add(name)
        sim.start("a", seeds=["seed"])
        sim.start("b", seeds=["seed"])
        sim.run(10.0)
        sim.start("seed")
        assert sim.run_until(sim.converged, 5.0) is not None


def test_clocks_may_disagree() -> None:
    with Simulation(7, config=LOCAL) as sim:
        for number in range(10):
            sim.add(f"n{number}", skew=Skew(offset_s=number * 1e6, rate=0.95 + 0.01 * number))
            sim.start(f"n{number}", seeds=["n0"] if number else [])
        assert sim.run_until(sim.converged, 2.0) is not None
        sim.run(60.0)
        assert sim.deaths() == []
        sim.crash("n3")
        assert sim.run_until(lambda: sim.agreed("n3", DEAD), 5.0) is not None


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_that_stalls_buries_nobody_and_is_back_at_once(seed: int) -> None:
    with Simulation(seed, config=LOCAL) as sim:
        names = sim.start_mesh(10)
        sim.run(5.0)
        sim.stall(names[2], 10.0)
        sim.run(10.0)
        assert sim.run_until(sim.converged, 5.0) is not None
        sim.run(5.0)
        assert {death.subject for death in sim.deaths()} <= {names[2]}
        assert names[2] not in {death.observer for death in sim.deaths()}


def test_short_stalls_of_everyone_kill_nobody() -> None:
    with Simulation(8, config=LOCAL) as sim:
        names = sim.start_mesh(20)
        sim.run(3.0)
        for second in range(20):
            for offset, name in enumerate(names):
                sim.at(3.0 + second + offset * 0.05, lambda name=name: sim.stall(name, 0.6))  # type: ignore[misc]
        sim.run(20.0)
        assert sim.deaths() == []


def test_a_node_without_udp_stays_alive_over_tcp() -> None:
    with Simulation(9, config=LOCAL) as sim:
        names = sim.start_mesh(6)
        sim.run(3.0)
        sim.nodes[names[2]].is_filtered = True
        sim.run(30.0)
        assert sim.converged()
        assert sim.deaths() == []


def test_round_trips_are_measured_and_predicted() -> None:
    network = Network(latency_s=0.001, distance_s=0.03, jitter_s=0.0005)
    with Simulation(10, config=LOCAL, network=network) as sim:
        names = sim.start_mesh(15)
        sim.run(120.0)
        off = []
        for observer in names[:3]:
            state = sim.nodes[observer].state
            assert state is not None
            for a in names:
                for b in names:
                    if a < b:
                        real_s = sim.round_trip_s(a, b)
                        guess_s = state.estimate_s(sim.nodes[a].id, sim.nodes[b].id)
                        assert guess_s is not None
                        off.append(abs(guess_s - real_s) / real_s)
            for member in state.members():
                assert member.rtt_s == pytest.approx(sim.round_trip_s(observer, member.name), rel=0.25)
        off.sort()
        assert off[len(off) // 2] < 0.08
        assert off[len(off) * 9 // 10] < 0.25


def story(seed: int) -> str:
    with Simulation(seed, config=LOCAL, network=Network(loss=0.1)) as sim:
        names = sim.start_mesh(8)
        sim.run(3.0)
        sim.crash(names[1])
        sim.run(5.0)
        sim.start(names[1])
        sim.run(3.0)
        return sim.digest()


def test_a_seed_replays_exactly() -> None:
    assert story(11) == story(11)
    assert story(11) != story(12)


def test_a_failure_names_its_seed() -> None:
    def fail() -> None:
        with Simulation(42) as sim:
            sim.start_mesh(2)
            sim.run(1.5)
            raise AssertionError("made to fail")

    with pytest.raises(AssertionError) as caught:
        fail()
    assert caught.value.__notes__ == ["replay with Simulation(seed=42); it happened at 1.500 s"]
