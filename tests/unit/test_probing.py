"""Probes: everyone in turn, others asked when one is silent, and what a failure says about whom."""

import random
from collections import Counter

import pytest

from gossip.config import LAN
from gossip.coordinates import ORIGIN
from gossip.health import LocalHealth
from gossip.messages import Ack, Nack, NodeId, PingReq
from gossip.probing import MAX_RELAYED, Answer, AskRelay, PingMember, Prober, Step, TryTcp, Unanswered
from gossip.roster import Roster
from tests.support.members import local_node

NODES = [local_node(f"n{number}").id for number in range(5)]
ASKER = ("192.0.2.1", 7420)


class Bench:
    """A prober, its surroundings, and a clock."""

    def __init__(self, nodes: list[NodeId]) -> None:
        self.live = Roster()
        self.health = LocalHealth(8)
        self.prober = Prober(LAN, self.health, self.live, random.Random(4), 0.0)
        self.now = 0.0
        for node in nodes:
            self.live.add(node)
            self.prober.add(node)

    def next(self) -> list[Step]:
        """Go to the next deadline and see what is done there."""
        assert self.prober.deadline >= self.now
        self.now = self.prober.deadline
        return self.prober.tick(self.now)

    def next_ping(self) -> PingMember:
        """Go on until a probe begins."""
        while True:
            for step in self.next():
                if isinstance(step, PingMember):
                    return step

    def answer(self, ping: PingMember) -> float | None:
        return self.prober.acked(ping.seq, ping.node, ORIGIN, self.now)[1]


def test_everyone_is_probed_once_in_each_pass() -> None:
    bench = Bench(NODES)
    for _ in range(4):
        probed = []
        for _ in NODES:
            ping = bench.next_ping()
            probed.append(ping.node)
            assert bench.answer(ping) == 0.0
        assert sorted(probed) == sorted(NODES)


def test_probes_keep_the_interval() -> None:
    bench = Bench(NODES[:1])
    assert bench.prober.deadline <= LAN.probe_interval_s
    times = []
    for _ in range(3):
        bench.answer(bench.next_ping())
        times.append(bench.now)
    assert times[1] - times[0] == times[2] - times[1] == pytest.approx(LAN.probe_interval_s)


def test_nobody_there_means_no_probe_but_a_newcomer_is_soon_probed() -> None:
    bench = Bench([])
    for _ in range(3):
        assert bench.next() == []
    bench.live.add(NODES[0])
    bench.prober.add(NODES[0])
    assert bench.next_ping().node == NODES[0]


def test_the_gone_are_not_probed() -> None:
    bench = Bench(NODES)
    bench.live.discard(NODES[2])
    probed: Counter[NodeId] = Counter()
    for _ in range(20):
        ping = bench.next_ping()
        bench.answer(ping)
        probed[ping.node] += 1
    assert NODES[2] not in probed and len(probed) == 4


def test_a_silent_member_is_probed_through_others_and_over_tcp_then_given_up() -> None:
    bench = Bench(NODES)
    ping = bench.next_ping()
    began = bench.now
    asked = bench.next()
    assert bench.now - began == pytest.approx(LAN.probe_timeout_s)
    relays = [step.node for step in asked if isinstance(step, AskRelay)]
    assert len(relays) == LAN.relays and ping.node not in relays
    assert {step.request for step in asked if isinstance(step, AskRelay)} == {PingReq(ping.seq, ping.node)}
    assert TryTcp(ping.node) in asked
    assert Unanswered(ping.node) in bench.next()
    assert bench.now - began == pytest.approx(LAN.probe_interval_s)


def test_the_last_of_two_has_nobody_to_ask() -> None:
    bench = Bench(NODES[:1])
    bench.next_ping()
    assert bench.next() == [TryTcp(NODES[0])]
    assert Unanswered(NODES[0]) in bench.next()
    assert bench.health.score == 1


@pytest.mark.parametrize("way", ["late ack", "relayed ack", "tcp"])
def test_any_answer_in_time_counts(way: str) -> None:
    bench = Bench(NODES)
    ping = bench.next_ping()
    bench.next()
    if way == "tcp":
        bench.prober.reached(ping.node)
    else:
        assert bench.answer(ping) == pytest.approx(LAN.probe_timeout_s)
    assert not any(isinstance(step, Unanswered) for step in bench.next())


def test_acks_that_fit_no_probe_are_ignored() -> None:
    bench = Bench(NODES)
    ping = bench.next_ping()
    other = next(node for node in NODES if node != ping.node)
    assert bench.prober.acked(ping.seq ^ 1, ping.node, ORIGIN, bench.now) == ([], None)
    assert bench.prober.acked(ping.seq, other, ORIGIN, bench.now) == ([], None)
    bench.prober.reached(other)
    bench.next()
    assert Unanswered(ping.node) in bench.next()
    assert bench.prober.acked(ping.seq, ping.node, ORIGIN, bench.now) == ([], None)


@pytest.mark.parametrize(("nacks", "score"), [(0, 3), (1, 2), (3, 0)])
def test_missing_nacks_tell_of_trouble_here(nacks: int, score: int) -> None:
    bench = Bench(NODES)
    ping = bench.next_ping()
    relays = [step.node for step in bench.next() if isinstance(step, AskRelay)]
    for relay in relays[:nacks] * 2:
        bench.prober.nacked(ping.seq, relay)
    bench.prober.nacked(ping.seq, ping.node)  # not one that was asked
    bench.prober.nacked(ping.seq ^ 1, relays[-1])
    bench.next()
    assert bench.health.score == score


def test_an_unhealthy_node_takes_its_time_and_recovers_with_each_answer() -> None:
    bench = Bench(NODES)
    bench.health.adjust(2)
    first = bench.next_ping()
    assert bench.prober.deadline - bench.now == pytest.approx(3 * LAN.probe_timeout_s)
    assert bench.answer(first) is not None
    assert bench.prober.deadline - bench.now == pytest.approx(3 * LAN.probe_interval_s)
    assert bench.health.score == 1


def test_a_probe_during_which_we_slept_says_nothing() -> None:
    bench = Bench(NODES)
    bench.next_ping()
    bench.prober.skip_judgement()
    assert not any(isinstance(step, Unanswered | TryTcp) for step in bench.next())
    assert bench.health.score == 0


# For others


def test_a_relay_passes_the_ack_on_under_the_askers_number() -> None:
    bench = Bench(NODES)
    (ping,) = bench.prober.relay(PingReq(77, NODES[1]), ASKER, 0.0)
    assert isinstance(ping, PingMember) and ping.node == NODES[1]
    steps, elapsed_s = bench.prober.acked(ping.seq, NODES[1], ORIGIN, 0.01)
    assert steps == [Answer(ASKER, Ack(77, NODES[1], ORIGIN))] and elapsed_s is None
    assert bench.prober.acked(ping.seq, NODES[1], ORIGIN, 0.02) == ([], None)


def test_a_relay_says_no_before_the_asker_gives_up() -> None:
    bench = Bench([])
    bench.live.add(NODES[1])
    bench.prober.relay(PingReq(77, NODES[1]), ASKER, 0.0)
    bench.prober.relay(PingReq(78, NODES[1]), ASKER, 0.1)
    said: list[tuple[float, Step]] = []
    while len(said) < 2:
        said += [(bench.now, step) for step in bench.next() if isinstance(step, Answer)]
    assert [step for _, step in said] == [Answer(ASKER, Nack(77)), Answer(ASKER, Nack(78))]
    assert all(at - asked < LAN.probe_timeout_s for (at, _), asked in zip(said, (0.0, 0.1), strict=True))


def test_a_relay_does_not_know_strangers() -> None:
    assert Bench([]).prober.relay(PingReq(77, NODES[1]), ASKER, 0.0) == [Answer(ASKER, Nack(77))]


def test_the_number_of_relayed_probes_is_bounded() -> None:
    bench = Bench(NODES)
    for seq in range(MAX_RELAYED):
        assert isinstance(bench.prober.relay(PingReq(seq, NODES[1]), ASKER, 0.0)[0], PingMember)
    assert bench.prober.relay(PingReq(9999, NODES[1]), ASKER, 0.0) == [Answer(ASKER, Nack(9999))]


def test_members_that_come_and_go_do_not_fill_the_list() -> None:
    bench = Bench(NODES[:2])
    for _ in range(1000):
        bench.prober.add(NODES[1])
    assert len(bench.prober._targets) <= 8
