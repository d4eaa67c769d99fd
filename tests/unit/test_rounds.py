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


def test_a_round_is_worth_its_pause() -> None:
    for pause_s, verdict in ((0.0, Verdict.ROUND), (0.1, Verdict.ROUND), (0.3, Verdict.SUSPEND)):
        assert RoundPolicy(RoundConfig(pause_s=pause_s), SLOW).begin(2 * MB) is verdict
        assert RoundPolicy(RoundConfig(max_freeze_s=0.3, pause_s=pause_s), SLOW).begin(2 * MB) is Verdict.ROUND


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


# -- chunks that weigh much less as deltas than they are long


def test_rounds_end_when_the_delta_fits_however_long_its_chunks_are() -> None:
    """64 MB in which every chunk has a change: all are fresh each time, and cost 0.3 s where the image cost 13."""
    for bound in (None, 0.5):
        rounds = policy(SLOW, bound)
        assert rounds.begin(64 * MB) is Verdict.ROUND
        rounds.imaged(64 * MB, taken_at=0.0)
        assert rounds.moved(64 * MB, 12.85, now=13.0) is Verdict.ROUND
        rounds.imaged(64 * MB, taken_at=13.0, as_delta=True)
        assert rounds.moved(64 * MB, 0.35, now=13.4) is Verdict.SUSPEND
        assert rounds.final_s(13.4) < 0.1
        assert rounds.link.goodput_bytes_s == pytest.approx(5 * MB, rel=0.01), "nothing was learned of plain content"


def test_a_few_pages_in_every_chunk_cost_what_their_time_does() -> None:
    """Rewritten at 40 % of the link: all 90 MB are touched at once, and each round is shorter than the last."""
    rounds = policy(SLOW)
    rounds.begin(100 * MB)
    image_s, taken_at, now = 0.7, 0.0, 20.0
    rounds.imaged(100 * MB, taken_at)
    verdict = rounds.moved(100 * MB, 20.0, now)
    lasted = []
    while verdict is Verdict.ROUND:
        before, taken_at = taken_at, now
        now += image_s
        rounds.imaged(90 * MB, taken_at, as_delta=True)
        seconds = 0.05 + 0.4 * (taken_at - before)
        now += seconds
        lasted.append(seconds)
        verdict = rounds.moved(100 * MB, seconds, now)
    assert verdict is Verdict.SUSPEND
    assert rounds.final_s(now) == pytest.approx(0.05 + 0.4 * (now - taken_at))
    assert lasted == sorted(lasted, reverse=True)
    assert lasted[-1] < 1.5 and len(lasted) <= 5


def test_an_image_that_lay_there_does_not_count_against_the_next() -> None:
    """It was taken 2 s before it could be sent; the next one will not be."""
    for image_s, verdict in ((None, Verdict.SUSPEND), (0.5, Verdict.ROUND)):
        rounds = policy(SLOW)
        rounds.begin(100 * MB)
        rounds.imaged(100 * MB, taken_at=0.0)
        rounds.moved(100 * MB, 20.0, now=20.0)
        rounds.imaged(50 * MB, taken_at=18.0, as_delta=True)
        rounds.imaged(50 * MB, taken_at=24.0, as_delta=True)
        assert rounds.moved(50 * MB, 2.4, now=28.4, image_s=image_s) is verdict


def test_what_changed_as_a_whole_may_have_done_so_many_times() -> None:
    rounds = policy(SLOW, max_freeze_s=1.0)
    rounds.begin(10 * MB)
    rounds.imaged(10 * MB, taken_at=0.0)
    rounds.moved(10 * MB, 2.0, now=2.0)
    rounds.imaged(10 * MB, taken_at=2.0, as_delta=True)
    rounds.moved(10 * MB, 1.8, now=3.8)
    rounds.imaged(10 * MB, taken_at=40.0, as_delta=True)
    rounds.moved(10 * MB, 1.8, now=42.0)
    assert rounds.final_s(42.0) > 1.0, "the 38 s since the image before do not tell that 2 s are enough for all of it"


def test_a_delta_that_does_not_fit_is_not_promised() -> None:
    rounds = policy(SLOW, max_freeze_s=0.5)
    rounds.begin(64 * MB)
    rounds.imaged(64 * MB, taken_at=0.0)
    assert rounds.moved(64 * MB, 12.85, now=13.0) is Verdict.ROUND
    rounds.imaged(64 * MB, taken_at=13.0, as_delta=True)
    assert rounds.moved(64 * MB, 9.0, now=22.0) is Verdict.ROUND
    rounds.imaged(64 * MB, taken_at=22.0, as_delta=True)
    assert rounds.moved(64 * MB, 9.0, now=31.0) is Verdict.REFUSE


def test_no_more_is_expected_than_the_whole_image() -> None:
    rounds = policy(SLOW)
    rounds.begin(10 * MB)
    rounds.imaged(10 * MB, taken_at=0.0)
    rounds.imaged(10 * MB, taken_at=0.5, as_delta=True)
    assert rounds.expected_delta(100.0) == 10 * MB


def test_an_image_that_changed_as_a_whole_may_change_faster_still() -> None:
    rounds = policy(SLOW, dirty_bytes_s=5.0 * MB)
    rounds.begin(10 * MB)
    rounds.imaged(10 * MB, taken_at=0.0)
    rounds.imaged(10 * MB, taken_at=10.0, as_delta=True)
    assert rounds.dirty_bytes_s == 5.0 * MB
    rounds.imaged(2 * MB, taken_at=11.0, as_delta=True)
    assert rounds.dirty_bytes_s == 2.0 * MB


def test_small_deltas_tell_the_overhead_only() -> None:
    rounds = policy(SLOW)
    rounds.imaged(50 * MB, taken_at=0.0)
    rounds.moved(50 * MB, 10.0, now=10.0)
    rounds.imaged(100_000, taken_at=10.0, as_delta=True)
    rounds.moved(100_000, 0.3, now=10.3)
    assert not rounds.delta_link.measured
    assert rounds.delta_link.goodput_bytes_s == rounds.link.goodput_bytes_s
    assert rounds.delta_link.overhead_s == rounds.link.overhead_s > SLOW.overhead_s


def test_what_earlier_migrations_saw_of_deltas_spares_a_round() -> None:
    config = RoundConfig(max_freeze_s=0.5)
    for goodput, verdict in ((None, Verdict.ROUND), (200.0 * MB, Verdict.SUSPEND)):
        rounds = RoundPolicy(config, SLOW, 4.0 * MB, goodput)
        rounds.begin(64 * MB)
        rounds.imaged(64 * MB, taken_at=0.0)
        assert rounds.moved(64 * MB, 12.85, now=13.0) is verdict


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
    assert seen.delta_bytes == pytest.approx(seen.moved_bytes - 100 * MB)
    hopeless = forecast(policy(SLOW, max_freeze_s=0.3, dirty_bytes_s=6.0 * MB), 100 * MB)
    assert hopeless.refused
    unbound = forecast(policy(SLOW, dirty_bytes_s=6.0 * MB), 100 * MB)
    assert not unbound.refused
    assert unbound.final_s > 10


def test_forecast_with_a_basis_moves_less() -> None:
    seen = forecast(policy(SLOW), 100 * MB, first_bytes=2 * MB)
    assert seen.moved_bytes == seen.delta_bytes == pytest.approx(2 * MB)


def test_forecast_of_light_deltas() -> None:
    rounds = RoundPolicy(RoundConfig(max_freeze_s=0.3), SLOW, dirty_bytes_s=6.0 * MB, delta_goodput_bytes_s=200.0 * MB)
    seen = forecast(rounds, 100 * MB)
    assert not seen.refused
    assert seen.final_s <= 0.3


@given(
    image=st.integers(0, 10**12),
    dirty=st.one_of(st.none(), st.floats(0, 1e9)),
    goodput=st.floats(1e3, 1e10),
    overhead=st.floats(0, 10),
    bound=st.one_of(st.none(), st.floats(1e-3, 100)),
    image_s=st.floats(0, 100),
    deltas=st.one_of(st.none(), st.floats(1e3, 1e10)),
    basis=st.booleans(),
)
def test_forecasts_end_and_keep_the_promise(
    image: int,
    dirty: float | None,
    goodput: float,
    overhead: float,
    bound: float | None,
    image_s: float,
    deltas: float | None,
    basis: bool,
) -> None:
    link = Link(goodput, overhead, measured=True)
    rounds = RoundPolicy(RoundConfig(max_freeze_s=bound), link, dirty, deltas)
    seen: Forecast = forecast(rounds, image, image_s, image // 50 if basis else None)
    assert 0 <= seen.rounds <= RoundConfig().max_rounds
    if bound is None:
        assert not seen.refused
    elif not seen.refused:
        assert seen.final_s <= bound
