"""Token buckets keep their rate for any sizes and times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2player.proto.rate import MIN_BURST_BYTES, Chain, TokenBucket

SPENDINGS = st.lists(st.tuples(st.floats(0, 5), st.integers(0, 1 << 20)), min_size=1, max_size=40)


def test_a_burst_passes_at_once_and_what_follows_waits() -> None:
    bucket = TokenBucket(rate=1000, burst=500)
    assert bucket.spend(500, now=10) == 0
    assert bucket.spend(1000, now=10) == pytest.approx(1)
    assert bucket.spend(1000, now=10) == pytest.approx(2)


def test_tokens_return_with_time_but_never_beyond_the_burst() -> None:
    bucket = TokenBucket(rate=1000, burst=500)
    bucket.spend(500, now=0)
    assert bucket.spend(100, now=0.1) == 0
    assert bucket.spend(500, now=100) == 0
    assert bucket.spend(100, now=100) == pytest.approx(0.1)


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    bucket = TokenBucket(rate=1000, burst=500)
    bucket.spend(500, now=10)
    assert bucket.spend(100, now=9) == pytest.approx(0.1)
    assert bucket.spend(100, now=10) == pytest.approx(0.2)


def test_the_default_burst_is_a_tenth_of_a_second_or_64_kib() -> None:
    assert TokenBucket(rate=100e6).burst == pytest.approx(10e6)
    assert TokenBucket(rate=1000).burst == MIN_BURST_BYTES


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (float("nan"), 1), (1, 0), (1, -5)])
def test_nonsense_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        TokenBucket(rate, burst)


def test_a_chain_waits_for_its_slowest_and_charges_all() -> None:
    fast, slow = TokenBucket(1000, 1), TokenBucket(100, 1)
    chain = Chain([fast, slow])
    assert chain.spend(101, now=0) == pytest.approx(1)
    assert fast.spend(0, now=0) == pytest.approx(0.1)
    assert Chain().spend(1 << 30, now=0) == 0


@given(SPENDINGS)
def test_over_any_stretch_no_more_than_burst_and_rate_pass(spendings: list[tuple[float, int]]) -> None:
    bucket = TokenBucket(rate=50_000, burst=70_000)
    now, passed = 0.0, 0
    for pause, count in spendings:
        now += pause
        now += bucket.spend(count, now)
        passed += count
        assert passed <= 70_000 + 50_000 * now + 1
