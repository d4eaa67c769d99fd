"""When pre-copy stops: the rule by itself, and played against apps that change at a constant rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2player.proto.rounds import Forecast, Link, RoundConfig, RoundPolicy, Verdict, forecast, observe

MB = 1_000_000
FAST = Link(goodput_bytes_s=100 * MB, overhead_s=0.01, measured=True)
SLOW = Link(goodput_bytes_s=5 * MB, overhead_s=0.05, measured=True)


def policy(link: Link, max_freeze_s: float | None = None, dirty_bytes_s: float | None = None) -> RoundPolicy:
    return RoundPolicy(RoundConfig(max_freeze_s=max_freeze_s), link, dirty_bytes_s)


def test_a_small_image_is_not_precopied() -> None:
    assert policy(FAST).begin(1 * MB) is Verdict.SUSPEND
    assert policy(FAST, max_freeze_s=0.1).begin(1 * MB) is Verdict.SUSPEND


def test_a_large_image_is_precopied() -> None:
    assert policy(SLOW).begin(100 * MB) is Verdict.ROUND


def test_a_guess_about_the_link_does_not_keep_a_promise() -> None:
    guess = Link(goodput_bytes_s=100 * MB, overhead_s=0.01, measured=False)
    assert policy(guess, max_freeze_s=0.5).begin(1 * MB) is Verdict.ROUND
    assert policy(guess).begin(1 * MB) is Verdict.SUSPEND


def test_a_bound_below_the_overhead_is_refused() -> None:
    assert policy(SLOW, max_freeze_s=0.02).begin(1000) is Verdict.REFUSE


def test_an_unknown_dirty_rate_takes_a_second_round() -> None:
    rounds = policy(SLOW)
    rounds.imaged(50 * MB, taken_at=0.0)
    assert rounds.expected_delta(10.0) is None
    assert rounds.moved(50 * MB, 10.0, now=10.0) is Verdict.ROUND
    rounds.imaged(1 * MB, taken_at=10.0)
    assert rounds.dirty_bytes_s == 0.1 * MB
    assert rounds.moved(1 * MB, 0.25, now=10.3) is Verdict.SUSPEND


def test_a_known_dirty_rate_spares_it() -> None:
    rounds = policy(SLOW, dirty_bytes_s=1000.0)
    rounds.imaged(50 * MB, taken_at=0.0)
    assert rounds.moved(50 * MB, 10.0, now=10.0) is Verdict.SUSPEND


def test_deltas_that_do_not_shrink_end_it() -> None:
    for bound, verdict in ((None, Verdict.SUSPEND), (0.3, Verdict.REFUSE)):
        rounds = policy(SLOW, bound)
        rounds.imaged(50 * MB, taken_at=0.0)
        assert rounds.moved(50 * MB, 10.0, now=10.0) is Verdict.ROUND
        rounds.imaged(50 * MB, taken_at=10.0)
        assert rounds.moved(50 * MB, 10.0, now=20.0) is verdict


def test_rounds_are_limited() -> None:
    rounds = RoundPolicy(RoundConfig(max_rounds=3, target_s=0.001, shrink=10.0), SLOW)
    verdicts = []
    for number in range(3):
        rounds.imaged(50 * MB, taken_at=10.0 * number)
        verdicts.append(rounds.moved(50 * MB, 10.0, now=10.0 * number + 10))
    assert verdicts == [Verdict.ROUND, Verdict.ROUND, Verdict.SUSPEND]


def test_a_tree_that_cannot_be_imaged() -> None:
    assert policy(SLOW).stuck() is Verdict.SUSPEND
    assert policy(SLOW, 1.0).stuck() is Verdict.REFUSE


def test_observation_finds_the_goodput() -> None:
    link = Link()
    for _ in range(8):
        link = observe(link, 20 * MB, 20 / 3 + 0.05)
    assert link.measured
    assert link.goodput_bytes_s == pytest.approx(3 * MB, rel=0.05)


def test_observation_finds_the_overhead() -> None:
    link = SLOW
    for _ in range(12):
        link = observe(link, 10_000, 0.4)
    assert link.overhead_s == pytest.approx(0.4, rel=0.02)
    assert link.goodput_bytes_s == SLOW.goodput_bytes_s


def test_forecast_of_an_idle_app() -> None:
    seen = forecast(policy(SLOW), 100 * MB, image_s=0.5)
    assert seen.rounds == 2
    assert seen.moved_bytes == pytest.approx(100 * MB)
    assert seen.seconds == pytest.approx(0.5 + 20.05 + 0.5 + 0.05, rel=0.01)
    assert seen.final_s == pytest.approx(0.05, abs=0.01)


def test_forecast_of_a_busy_app() -> None:
    seen = forecast(policy(SLOW, dirty_bytes_s=1.0 * MB), 100 * MB)
    assert 2 <= seen.rounds <= 4
    assert seen.final_s < 0.3
    hopeless = forecast(policy(SLOW, max_freeze_s=0.3, dirty_bytes_s=6.0 * MB), 100 * MB)
    assert hopeless.refused
    unbound = forecast(policy(SLOW, dirty_bytes_s=6.0 * MB), 100 * MB)
    assert not unbound.refused
    assert unbound.final_s > 10


def test_forecast_with_a_basis_moves_less() -> None:
    assert forecast(policy(SLOW), 100 * MB, first_bytes=2 * MB).moved_bytes == pytest.approx(2 * MB)


@given(
    image=st.integers(0, 10**12),
    dirty=st.one_of(st.none(), st.floats(0, 1e9)),
    goodput=st.floats(1e3, 1e10),
    overhead=st.floats(0, 10),
    bound=st.one_of(st.none(), st.floats(1e-3, 100)),
    image_s=st.floats(0, 100),
)
def test_forecasts_end_and_keep_the_promise(
    image: int, dirty: float | None, goodput: float, overhead: float, bound: float | None, image_s: float
) -> None:
    link = Link(goodput, overhead, measured=True)
    seen: Forecast = forecast(policy(link, bound, dirty), image, image_s)
    assert 0 <= seen.rounds <= RoundConfig().max_rounds
    if bound is None:
        assert not seen.refused
    elif not seen.refused:
        assert seen.final_s <= bound
