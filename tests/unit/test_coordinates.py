"""Vivaldi: coordinates come to predict round trips, and no liar moves them far."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.coordinates import COORDINATE_BYTES, DIMENSIONS, MAX_ERROR, MAX_RTT_S, MAX_STEP_S, ORIGIN, Coordinate, moved
from gossip.distances import Distances
from gossip.errors import Malformed
from gossip.messages import NodeId
from tests.support.members import local_node


def settle(rtts_s: dict[tuple[int, int], float], nodes: int, rounds: int, seed: int) -> list[Coordinate]:
    """Let nodes measure each other in random order; returns where they end."""
    rng = random.Random(seed)
    at = [ORIGIN] * nodes
    pairs = [*rtts_s]
    for _ in range(rounds):
        rng.shuffle(pairs)
        for a, b in pairs:
            at[a] = moved(at[a], at[b], rtts_s[a, b], rng)
    return at


def errors_of(at: list[Coordinate], rtts_s: dict[tuple[int, int], float]) -> list[float]:
    """Relative errors of all predictions, sorted."""
    return sorted(abs(at[a].distance_s(at[b]) - rtt_s) / rtt_s for (a, b), rtt_s in rtts_s.items())


def test_coordinates_come_to_predict_a_flat_network() -> None:
    rng = random.Random(7)
    places = [(rng.random() * 0.1, rng.random() * 0.1) for _ in range(25)]
    rtts_s = {(a, b): math.dist(places[a], places[b]) + 0.004 for a in range(25) for b in range(25) if a != b}
    errors = errors_of(settle(rtts_s, 25, rounds=60, seed=1), rtts_s)
    assert errors[len(errors) // 2] < 0.03
    assert errors[len(errors) * 9 // 10] < 0.15


def test_heights_stand_for_slow_access_links() -> None:
    # Twenty sites, each behind a link of 10 ms: all are equally far from each other, which no points in space are.
    rtts_s = {(a, b): 0.020 for a in range(20) for b in range(20) if a != b}
    at = settle(rtts_s, 20, rounds=60, seed=2)
    errors = errors_of(at, rtts_s)
    assert errors[len(errors) * 9 // 10] < 0.1
    flat = [Coordinate(coordinate.point, 0.0, coordinate.error) for coordinate in at]
    without = errors_of(flat, rtts_s)
    assert without[len(without) // 2] > 0.3


def test_errors_fall_as_predictions_get_better() -> None:
    rtts_s = {(a, b): 0.02 for a in range(3) for b in range(3) if a != b}
    assert all(coordinate.error < 0.1 for coordinate in settle(rtts_s, 3, rounds=100, seed=3))
    assert not ORIGIN.known
    assert moved(ORIGIN, ORIGIN, 0.02, random.Random(0)).known


finite = st.floats(-MAX_RTT_S, MAX_RTT_S)
anywhere = st.builds(
    Coordinate,
    st.tuples(*[finite] * DIMENSIONS),
    st.floats(0, MAX_RTT_S),
    st.floats(0, MAX_ERROR),
)


@given(anywhere, anywhere, st.floats(0, MAX_RTT_S))
def test_no_observation_moves_a_node_far_or_off_the_map(mine: Coordinate, other: Coordinate, rtt_s: float) -> None:
    after = moved(mine, other, rtt_s, random.Random(0))
    assert Coordinate.decode(after.encode())  # within bounds, finite
    gravity_s = math.hypot(*mine.point) ** 2 / 150.0**2 + 1e-9
    assert math.dist(mine.point, after.point) <= MAX_STEP_S + gravity_s
    assert abs(after.height_s - mine.height_s) <= MAX_STEP_S + 1e-4


@pytest.mark.parametrize("rtt_s", [-0.001, float("nan"), float("inf"), 10.1])
def test_an_absurd_round_trip_changes_nothing(rtt_s: float) -> None:
    assert moved(ORIGIN, ORIGIN, rtt_s, random.Random(0)) is ORIGIN
    distances = Distances(local_node("a").id, random.Random(0))
    distances.observe(local_node("b").id, Coordinate((0.1,) * DIMENSIONS, 0.01, 0.2), rtt_s)
    assert distances.rtt_s(local_node("b").id) is None
    assert distances.mine is ORIGIN


def test_a_single_slow_packet_does_not_move_the_round_trip() -> None:
    b = local_node("b").id
    distances = Distances(local_node("a").id, random.Random(0))
    for _ in range(20):
        distances.observe(b, ORIGIN, 0.010)
    distances.observe(b, ORIGIN, 2.0)
    assert distances.rtt_s(b) == pytest.approx(0.010)
    for _ in range(30):
        distances.observe(b, ORIGIN, 0.030)
    assert distances.rtt_s(b) == pytest.approx(0.030, rel=0.01)


def test_estimates_prefer_what_was_measured() -> None:
    me, b, c, stranger = (local_node(name).id for name in ("me", "b", "c", "stranger"))
    distances = Distances(me, random.Random(0))
    assert distances.estimate_s(me, me) == 0.0
    assert distances.estimate_s(me, b) is None
    at_b = Coordinate((0.010, 0.0, 0.0, 0.0), 0.001, 0.2)
    at_c = Coordinate((0.040, 0.0, 0.0, 0.0), 0.002, 0.2)
    distances.observe(b, at_b, 0.025)
    distances.place(c, at_c)
    assert distances.estimate_s(me, b) == distances.estimate_s(b, me) == 0.025
    assert distances.estimate_s(b, c) == pytest.approx(0.033)
    assert distances.estimate_s(me, c) == pytest.approx(distances.mine.distance_s(at_c))
    assert distances.estimate_s(b, stranger) is None
    distances.forget(b)
    assert distances.rtt_s(b) is None and distances.estimate_s(b, c) is None


def test_someone_who_measured_nothing_has_no_place() -> None:
    me, b = local_node("me").id, local_node("b").id
    distances = Distances(me, random.Random(0))
    distances.place(b, ORIGIN)
    distances.place(me, Coordinate((1.0,) * DIMENSIONS, 0.1, 0.1))
    assert distances.coordinate(b) is None
    assert distances.coordinate(me) is None
    assert distances.coordinate(NodeId("0" * 32)) is None


@given(st.binary(max_size=64))
def test_only_the_right_length_decodes(data: bytes) -> None:
    if len(data) != COORDINATE_BYTES:
        with pytest.raises(Malformed):
            Coordinate.decode(data)
