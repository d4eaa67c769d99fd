"""Plans from needs and experience, and experience from finished migrations."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2player.planning import (
    GUESSED_ENGINE_S,
    GUESSED_WIRE_RATIO,
    Experience,
    Lesson,
    Question,
    errors_of,
    learn,
    make_plan,
)
from p2player.proto.delta_choice import FIRST_RATIO
from p2player.proto.handoff.messages import Mode, Need
from p2player.proto.handoff.records import Prediction
from p2player.proto.rounds import Link

MB = 1_000_000
MEASURED = Experience(Link(5 * MB, 0.05, measured=True), wire_ratio=0.5, engine_s=0.2, health_s=1.0, dirty_bytes_s=0.0)


def question(**changes: object) -> Question:
    values: dict[str, object] = {
        "app": "game",
        "source": "north-1",
        "destination": "south-1",
        "mode": Mode.LIVE,
        "base": Need(100 * MB, 0),
        "app_layer": Need(50 * MB, 10 * MB),
        "instance_bytes": 20 * MB,
    }
    return Question(**{**values, **changes})  # type: ignore[arg-type]


def test_the_document_has_the_promised_form() -> None:
    plan = make_plan(question(), MEASURED, ["no room"])
    document = plan.document()
    assert document == {
        "app": "game",
        "from": "north-1",
        "to": "south-1",
        "mode": "live",
        "layers": {
            "base": {"total": 100 * MB, "transferred": 0},
            "app": {"total": 50 * MB, "transferred": 5 * MB},
            "instance": {"total": 20 * MB, "transferred": 10 * MB},
        },
        "total_s": pytest.approx(2.05 + 4.05 + 0.05 + 0.2 + 0.05 + 1.0, abs=0.2),
        "freeze_s": pytest.approx(0.25, abs=0.02),
        "refusals": ["no room"],
    }
    assert plan.prediction.transferred == 15 * MB


def test_cold_freezes_for_all_of_the_instance() -> None:
    plan = make_plan(question(mode=Mode.COLD), MEASURED)
    assert plan.freeze_s == pytest.approx(0.2 + 4.05)
    assert not plan.refusals


def test_a_stopped_app_is_not_frozen() -> None:
    plan = make_plan(question(mode=Mode.COLD, running=False, max_freeze_s=0.001), MEASURED)
    assert plan.freeze_s == 0.0
    assert not plan.refusals


def test_a_bound_that_cannot_be_met_is_refused() -> None:
    assert make_plan(question(mode=Mode.COLD, max_freeze_s=1.0), MEASURED).refusals
    assert make_plan(question(max_freeze_s=0.01), MEASURED).refusals
    busy = Experience(Link(5 * MB, 0.05, measured=True), dirty_bytes_s=6.0 * MB)
    assert make_plan(question(max_freeze_s=0.3), busy).refusals
    assert not make_plan(question(max_freeze_s=0.3), MEASURED).refusals
    assert not make_plan(question(), busy).refusals


def test_a_guess_of_the_link_refuses_nothing_that_rounds_may_settle() -> None:
    assert not make_plan(question(max_freeze_s=0.3), Experience()).refusals


def test_deltas_are_charged_what_they_cost_this_app() -> None:
    lessons = [
        Lesson("a", "process", "p", 5e6, 0.05, 0.5, dirty_bytes_s=6e6, delta_goodput_bytes_s=100e6, delta_ratio=0.01),
        Lesson("b", "process", "p", wire_ratio=0.5, delta_goodput_bytes_s=1e3, delta_ratio=0.9),
        Lesson("a", "process", "q", delta_goodput_bytes_s=1e3),
    ]
    learned = learn(lessons, app_id="a", backend="process", peer="p")
    assert (learned.delta_goodput_bytes_s, learned.delta_ratio) == (100e6, 0.01)
    light = make_plan(question(max_freeze_s=0.3), learned)
    assert not light.refusals
    plain = make_plan(question(max_freeze_s=0.3), replace(learned, delta_goodput_bytes_s=None, delta_ratio=0.5))
    assert light.freeze_s < plain.freeze_s
    assert light.instance_transferred < plain.instance_transferred


def test_a_basis_makes_the_way_back_small() -> None:
    back = make_plan(question(basis_bytes=20 * MB), MEASURED)
    assert back.instance_transferred == round(0.4 * MB * FIRST_RATIO)
    assert back.total_s < make_plan(question(), MEASURED).total_s


def test_experience_prefers_what_is_new_and_near() -> None:
    lessons = [
        Lesson("a", "process", "p", goodput_bytes_s=1e6, overhead_s=0.2, engine_s=1.0, health_s=1.5),
        Lesson("a", "process", "q", goodput_bytes_s=9e9, engine_s=3.0),
        Lesson("b", "runc", "p", goodput_bytes_s=3e6, wire_ratio=0.4, dirty_bytes_s=7.0),
    ]
    learned = learn(lessons, app_id="a", backend="process", peer="p")
    assert learned == Experience(Link(2e6, 0.2, measured=True), 0.4, 2.0, 1.5, None)
    assert learn(lessons, app_id="b", backend="lxd", peer="p").dirty_bytes_s == 7.0


def test_without_lessons_the_round_trip_counts() -> None:
    stranger = learn([], app_id="a", backend="process", peer="p", rtt_s=0.1)
    assert not stranger.link.measured
    assert stranger.link.overhead_s == pytest.approx(0.63)
    assert (stranger.engine_s, stranger.wire_ratio) == (GUESSED_ENGINE_S, GUESSED_WIRE_RATIO)


def test_lessons_survive_storage_and_damage() -> None:
    lesson = Lesson("a", "process", "p", 1.0, None, 0.5, 2.0, 1.0, None)
    assert Lesson.read(lesson.document()) == lesson
    damages: list[object] = [None, [], {}, {**lesson.document(), "engine_s": "x"}, {**lesson.document(), "peer": 4}]
    for damaged in damages:
        assert Lesson.read(damaged) is None


def test_the_error_of_a_prediction() -> None:
    told = errors_of(Prediction(2.0, 0.5, 100), total_s=3.0, freeze_s=0.25, transferred=90)
    assert told == {
        "total_s": 2.0,
        "freeze_s": 0.5,
        "transferred": 100,
        "total_error_s": 1.0,
        "freeze_error_s": -0.25,
        "transferred_error": -10,
    }


@given(
    instance=st.integers(0, 10**11),
    basis=st.integers(0, 10**11),
    missing=st.integers(0, 10**11),
    bound=st.one_of(st.none(), st.floats(0.001, 1000)),
    mode=st.sampled_from(Mode),
)
def test_plans_add_up(instance: int, basis: int, missing: int, bound: float | None, mode: Mode) -> None:
    asked = question(
        instance_bytes=instance, basis_bytes=basis, base=Need(missing, missing), max_freeze_s=bound, mode=mode
    )
    plan = make_plan(asked, MEASURED)
    assert plan.total_s >= plan.freeze_s >= MEASURED.engine_s
    assert plan.base_transferred == round(missing * 0.5)
    assert plan.instance_transferred >= 0
    if bound is not None and not plan.refusals:
        assert plan.freeze_s - MEASURED.engine_s <= bound + 1e-9


def test_pauses_of_pre_copy_count_as_freeze() -> None:
    slow = replace(MEASURED, link=Link(2 * MB, 0.05, measured=True), dirty_bytes_s=1e5)
    without, paused = make_plan(question(), slow), make_plan(question(), replace(slow, pause_s=0.5))
    rounds = round((paused.freeze_s - without.freeze_s) / 0.5)
    assert rounds >= 1
    assert paused.freeze_s - without.freeze_s == pytest.approx(0.5 * rounds, abs=0.05)
    assert paused.total_s > without.total_s
    cold = make_plan(question(mode=Mode.COLD), replace(slow, pause_s=0.5))
    assert cold.freeze_s == make_plan(question(mode=Mode.COLD), slow).freeze_s


def test_pauses_are_learned_of_the_backend() -> None:
    lessons = [Lesson("a", "runc", "p", pause_s=0.2), Lesson("b", "runc", "q", pause_s=0.4), Lesson("a", "lxd", "p")]
    assert learn(lessons, app_id="z", backend="runc", peer="z").pause_s == pytest.approx(0.3)
    assert learn(lessons, app_id="a", backend="lxd", peer="p").pause_s == 0.3, "a guess"
    assert learn(lessons, app_id="a", backend="process", peer="p").pause_s == 0.0
    assert Lesson.read({"app_id": "a", "backend": "b", "peer": "p"}) == Lesson("a", "b", "p")
