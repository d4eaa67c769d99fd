"""When a delta is the faster way."""

import pytest

from p2player.proto.delta_choice import FAR_RATE, DeltaChoice, cost

MIB = 1 << 20


@pytest.mark.parametrize("rate", [100e3, 2.5e6, FAR_RATE, 125e6, None])
@pytest.mark.parametrize("rtt_s", [None, 0.0001, 0.02])
def test_a_delta_is_tried_first(rate: float | None, rtt_s: float | None) -> None:
    assert DeltaChoice().pays(rate, rtt_s)


def test_deltas_as_large_as_chunks_are_given_up_on_fast_links_first() -> None:
    choice = DeltaChoice()
    choice.observe(64 * MIB, 24 * MIB)
    assert not choice.pays(125e6, None)
    assert not choice.pays(None, 0.0001)
    assert choice.pays(2.5e6, None)
    choice.observe(640 * MIB, 400 * MIB)
    assert not choice.pays(2.5e6, None)


def test_good_deltas_keep_paying() -> None:
    choice = DeltaChoice()
    for _ in range(100):
        choice.observe(4 * MIB, 40_000)
    assert choice.ratio < 0.02
    assert choice.pays(1e9, 0.0001)


def test_a_failed_guess_needs_some_evidence() -> None:
    choice = DeltaChoice()
    choice.observe(64 << 10, 64 << 10)
    assert choice.pays(5e6, None)


def test_costs_are_never_nothing() -> None:
    assert cost(1) > 0
    assert 0 < cost(1 << 20) < 1 << 20
