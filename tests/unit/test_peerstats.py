"""What is believed of a peer follows what it does."""

import pytest

from p2player.proto.peerstats import (
    FIRST_WINDOW_BYTES,
    MAX_ASK_BYTES,
    MAX_WINDOW_BYTES,
    MIN_WINDOW_BYTES,
    Mark,
    PeerStats,
)

KIB = 1 << 10


def pipe(stats: PeerStats, rate: float, latency_s: float, rounds: int, start: float = 0.0) -> float:
    """Fill the window `rounds` times over a path of that rate and latency; returns the time at the end."""
    now = free = start
    for _ in range(rounds):
        marks: list[tuple[int, Mark]] = []
        while not marks or stats.in_flight + stats.ask_bytes <= stats.window:
            size = stats.ask_bytes
            marks.append((size, stats.asked(size, now)))
        for size, mark in marks:
            free = max(free, now + latency_s) + size / rate
            stats.received(size, mark, free)
            stats.completed(mark, free)
        now = free
    return now


def test_the_window_grows_to_the_product_of_bandwidth_and_delay_and_stays() -> None:
    stats = PeerStats(0.1, 0.0)
    assert stats.window == FIRST_WINDOW_BYTES
    now = pipe(stats, rate=12.5e6, latency_s=0.1, rounds=12)
    grown = stats.window
    assert 12.5e6 * 0.1 < grown < 12.5e6 * 0.1 * 4
    pipe(stats, rate=12.5e6, latency_s=0.1, rounds=12, start=now)
    assert stats.window == pytest.approx(grown, rel=0.2)


def test_a_fast_path_is_bounded_and_a_slow_one_keeps_little() -> None:
    fast, slow = PeerStats(0.0005, 0.0), PeerStats(0.02, 0.0)
    pipe(fast, rate=2e9, latency_s=0.0005, rounds=20)
    pipe(slow, rate=20e3, latency_s=0.02, rounds=5)
    assert fast.window == MAX_WINDOW_BYTES
    assert fast.ask_bytes == MAX_ASK_BYTES
    assert slow.window < 3 * MIN_WINDOW_BYTES
    assert slow.ask_bytes == MIN_WINDOW_BYTES


def test_a_rate_that_falls_is_followed_slowly() -> None:
    stats = PeerStats(0.01, 0.0)
    now = pipe(stats, rate=10e6, latency_s=0.01, rounds=10)
    before = stats.rate_at(now)
    now = pipe(stats, rate=2e6, latency_s=0.01, rounds=1, start=now)
    assert 2e6 < stats.rate_at(now) < before
    now = pipe(stats, rate=2e6, latency_s=0.01, rounds=20, start=now)
    assert stats.rate_at(now) == pytest.approx(2e6, rel=0.2)


def test_asking_little_of_a_fast_peer_does_not_make_it_slow() -> None:
    stats = PeerStats(0.05, 0.0)
    now = pipe(stats, rate=50e6, latency_s=0.05, rounds=15)
    rate = stats.rate_at(now)
    for _ in range(20):
        mark = stats.asked(64 * KIB, now)
        now += 0.05 + 64 * KIB / 50e6
        stats.received(64 * KIB, mark, now)
        stats.completed(mark, now)
    assert stats.rate_at(now) == rate


def test_a_quiet_peer_is_believed_less_and_less_until_it_speaks() -> None:
    stats = PeerStats(0.01, 0.0)
    now = pipe(stats, rate=10e6, latency_s=0.01, rounds=10)
    rate = stats.rate_at(now)
    stats.asked(256 * KIB, now)
    believed = [stats.rate_at(now + quiet) for quiet in (0.01, 1.0, 10.0)]
    assert believed[0] == rate
    assert rate > 10 * believed[1] > 50 * believed[2]
    assert stats.quiet_s(now + 10) == pytest.approx(10)
    stats.heard(now + 10)
    assert stats.rate_at(now + 10.01) == rate


def test_near_and_idle_peers_are_expected_first() -> None:
    def finish(rtt_s: float | None, load: float) -> float:
        return PeerStats(rtt_s, load).finish_s(64 * KIB, 0.0)

    assert finish(0.001, 0) < finish(0.02, 0) < finish(None, 0) < finish(0.2, 0)
    assert finish(0.001, 0) < finish(0.001, 2.0)


def test_what_will_not_come_is_not_in_flight() -> None:
    stats = PeerStats(None, 0.0)
    mark = stats.asked(100, 0.0)
    stats.received(40, mark, 1.0)
    stats.forgo(60)
    assert stats.in_flight == 0
    assert stats.quiet_s(100.0) == 0
    assert (stats.delivered, stats.asked_bytes) == (40, 100)
