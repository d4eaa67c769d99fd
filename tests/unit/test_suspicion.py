"""Lifeguard's formulas: how long a suspect has, and how patient an unhealthy node is."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.health import LocalHealth
from gossip.suspicion import Suspicion, min_timeout_s, timeout_s
from tests.support.members import local_node

A, B, C, D = (local_node(name).id for name in "abcd")


@pytest.mark.parametrize(
    ("confirmed", "expected_s"),
    # memberlist's test table for k = 3, 2 s to 30 s.
    [(0, 30.0), (1, 16.0), (2, 7.810), (3, 2.0), (4, 2.0)],
)
def test_the_timeout_falls_with_the_logarithm_of_the_confirmations(confirmed: int, expected_s: float) -> None:
    assert timeout_s(confirmed, 3, 2.0, 30.0) == pytest.approx(expected_s, abs=0.001)


def test_without_anyone_to_confirm_the_minimum_holds() -> None:
    assert timeout_s(0, 0, 2.0, 30.0) == 2.0
    assert timeout_s(0, -1, 2.0, 30.0) == 2.0


@given(st.integers(0, 20), st.integers(1, 10), st.floats(0.1, 10), st.floats(1, 10))
def test_the_timeout_is_bounded_and_never_grows(confirmed: int, wanted: int, min_s: float, factor: float) -> None:
    max_s = min_s * factor
    assert min_s <= timeout_s(confirmed, wanted, min_s, max_s) <= max_s * (1 + 1e-9)
    assert timeout_s(confirmed + 1, wanted, min_s, max_s) <= timeout_s(confirmed, wanted, min_s, max_s)


def test_the_minimum_grows_with_the_mesh() -> None:
    assert min_timeout_s(4, 1, 1.0) == min_timeout_s(4, 10, 1.0) == 4.0
    assert min_timeout_s(4, 100, 1.0) == 8.0
    assert min_timeout_s(4, 1000, 0.5) == pytest.approx(4 * math.log10(1000) / 2)


def test_each_accuser_counts_once_and_only_so_many() -> None:
    suspicion = Suspicion(A, 2, 2.0, 10.0, now=100.0)
    assert suspicion.deadline == 110.0
    assert not suspicion.confirm(A)
    assert suspicion.confirm(B)
    assert suspicion.deadline == pytest.approx(100 + timeout_s(1, 2, 2.0, 10.0))
    assert not suspicion.confirm(B)
    assert suspicion.confirm(C)
    assert suspicion.deadline == 102.0
    assert not suspicion.confirm(D)
    assert suspicion.confirmed == 2


def test_a_node_that_was_away_gives_the_suspect_that_time_back() -> None:
    suspicion = Suspicion(A, 1, 2.0, 10.0, now=0.0)
    suspicion.postpone(3.0)
    assert suspicion.deadline == 13.0
    suspicion.confirm(B)
    assert suspicion.deadline == 5.0


def test_health_saturates_and_scales() -> None:
    health = LocalHealth(worst=3)
    health.adjust(-1)
    assert health.score == 0
    assert health.scaled_s(0.5) == 0.5
    health.adjust(2)
    assert health.scaled_s(0.5) == 1.5
    health.adjust(9)
    assert health.score == 3
    health.adjust(-1)
    assert health.score == 2
