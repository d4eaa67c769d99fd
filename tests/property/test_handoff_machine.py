"""The hand-off under every kill, and under random ones: in the end exactly one copy runs, with the newest state.

The exhaustive part takes its kill points from the table of steps. For each scenario, and each record that either end
writes in it, either node is killed just before or just after that record is durable, alone and together with each
fault of each message. The judge of `handoffnet` fails a run in which two copies run at once, a copy starts with old
state, or the two ends do not come to agree.
"""

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2player.proto.handoff import events, messages, records, table
from p2player.proto.handoff.table import End, KillPoint
from tests.support.handoffnet import A, Fault, Kill, Scenario, World, Wrong, play, varied, verdict


def cancel(world: World) -> None:
    world.nodes[A].feed(world.MIGRATION, events.Cancel("cancelled by the test"))


ALWAYS = range(1000)

SCENARIOS: dict[str, Scenario] = {
    "it moves": Scenario(),
    "it moves cold": Scenario(mode=messages.Mode.COLD),
    "never executed there": Scenario(breaks={events.Restore: (ALWAYS, False)}),
    "restored once only": Scenario(breaks={events.Restore: (range(1, 1000), False)}),
    "executed there and lost": Scenario(breaks={events.Restore: (ALWAYS, True)}),
    "not suspended": Scenario(breaks={events.Suspend: (ALWAYS, True)}),
    "not pulled": Scenario(breaks={events.PullImage: (ALWAYS, True)}),
    "not pulled at last": Scenario(breaks={events.PullImage: (range(2, 1000), True)}),
    "refused by preflight": Scenario(refusals=("no room",)),
    "refused by the plan": Scenario(plan_refusals=("too slow",)),
    "bound not met": Scenario(max_freeze_s=0.1),
    "bound broken": Scenario(max_freeze_s=1.0, image_bytes=1000, faults=(Fault(messages.Ready, "delay"),)),
    "cancelled early": Scenario(at=((0.3, cancel),)),
    "cancelled in pre-copy": Scenario(at=((1.1, cancel),)),
    "cancelled while suspending": Scenario(at=((1.55, cancel),)),
    "cancelled in the final transfer": Scenario(at=((1.95, cancel),)),
    "the grant cannot be written": Scenario(unwritable=(records.Granted,)),
    "the grant is written and not known to be": Scenario(half_written=(records.Granted,)),
    "no ending can be written": Scenario(
        unwritable=(records.Committed, records.Settled, records.Closed, records.Restored, records.Ready)
    ),
    "endings are written and not known to be": Scenario(
        half_written=(records.Committed, records.Settled, records.Closed, records.Restored, records.Ready)
    ),
    "refusals are written and not known to be": Scenario(
        breaks={events.Restore: (ALWAYS, False)},
        half_written=(records.Accepted, records.Refused, records.Returned, records.Settled, records.Closed),
    ),
    "aborts are written and not known to be": Scenario(
        half_written=(records.Suspending, records.Aborted, records.Refused, records.Offered), at=((1.1, cancel),)
    ),
    "no abort can be written": Scenario(
        unwritable=(records.Suspending, records.Aborted, records.Refused), at=((1.1, cancel),)
    ),
}

MOVING = (
    "it moves",
    "it moves cold",
    "restored once only",
    "executed there and lost",
    "no ending can be written",
    "endings are written and not known to be",
)
WITH_FAULTS = ("it moves", "never executed there")
FAULTS = ("lose", "repeat", "repeat late", "delay")


def judge(world: World, moved: bool | None = None) -> None:
    """A copy that was executed at B and lost waits there, stopped, for its operator; every other one runs."""
    may_be_lost = events.Restore in world.scenario.breaks and not world.nodes[A].engine.owned
    verdict(world, moved=moved, running=None if may_be_lost else True)


def kills_of(base: World) -> Iterator[Kill]:
    for end, record in dict.fromkeys(base.seen):
        for victim in End:
            yield Kill(KillPoint(end, record, "before"), victim)
            yield Kill(KillPoint(end, record, "after"), victim)


@pytest.mark.parametrize("name", SCENARIOS)
def test_without_kills(name: str) -> None:
    world = play(SCENARIOS[name])
    judge(world, moved=name in MOVING)
    assert world.nodes[A].finished == [world.MIGRATION]


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_kill(name: str) -> None:
    scenario = SCENARIOS[name]
    for kill in kills_of(play(scenario)):
        for down_s, host, eager in ((0.5, False, False), (100.0, False, False), (0.5, True, False), (0.5, False, True)):
            killed = Kill(kill.at, kill.victim, down_s, host)
            judge(play(varied(scenario, kills=(killed,), eager=eager)))


@pytest.mark.parametrize("name", WITH_FAULTS)
def test_every_kill_with_every_fault(name: str) -> None:
    scenario = SCENARIOS[name]
    base = play(scenario)
    for kill in kills_of(base):
        for kind in base.counts:
            for what in FAULTS:
                faulty = varied(scenario, kills=(kill,), faults=(Fault(kind, what),))  # type: ignore[arg-type]
                judge(play(faulty))


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_fault_of_every_message(name: str) -> None:
    scenario = SCENARIOS[name]
    for kind, count in play(scenario).counts.items():
        for nth in range(count):
            for what in FAULTS:
                fault = Fault(kind, what, nth)  # type: ignore[arg-type]
                judge(play(varied(scenario, faults=(*scenario.faults, fault))))


def test_the_scenarios_reach_every_kill_point() -> None:
    """But for those of an unexpected grant and of force, which `test_handoff` plays."""
    reached = {pair for scenario in SCENARIOS.values() for pair in play(scenario).seen}
    known = {(point.end, point.record) for point in table.kill_points()}
    assert reached <= known
    assert known - reached == {
        (End.DESTINATION, records.Asked),
        (End.SOURCE, records.Forced),
        (End.DESTINATION, records.Superseded),
    }


def chaos(seed: int, rate: float, kills: int, spread_s: float) -> Callable[[Scenario], Scenario]:
    """Losses, delays up to `spread_s` (so messages overtake each other) and kills at random moments."""

    def apply(scenario: Scenario) -> Scenario:
        rng = random.Random(seed)
        calm_after = 150
        sent = 0

        def lossy() -> bool:
            nonlocal sent
            sent += 1
            return sent < calm_after and rng.random() < rate

        def latency() -> float:
            return rng.uniform(0.001, spread_s if sent < calm_after else 0.02)

        def killer(number: int) -> Callable[[World], None]:
            def kill(world: World) -> None:
                rng_ = random.Random(seed * 31 + number)
                node = rng_.choice(list(world.nodes.values()))
                node.kill(rng_.choice((0.2, 3.0, 40.0)), host=rng_.random() < 0.3)

            return kill

        moments = tuple((rng.uniform(0.0, 8.0), killer(number)) for number in range(kills))
        eager = rng.random() < 0.5
        slow: dict[type[events.Action], float] = {events.PullImage: rng.choice((0.1, 2.0, 30.0))}
        return varied(scenario, lossy=lossy, latency=latency, at=(*scenario.at, *moments), eager=eager, slow=slow)

    return apply


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(SCENARIOS)),
    seed=st.integers(0, 1 << 32),
    rate=st.sampled_from((0.0, 0.1, 0.4)),
    kills=st.integers(0, 5),
    spread_s=st.sampled_from((0.02, 0.5, 5.0)),
)
def test_chaos(name: str, seed: int, rate: float, kills: int, spread_s: float) -> None:
    judge(play(chaos(seed, rate, kills, spread_s)(SCENARIOS[name])))


def test_the_judge_sees_a_second_copy() -> None:
    """The judge itself: a node that starts the app on its own is caught."""

    def cheat(world: World) -> None:
        world.nodes[A].engine.present = True
        world.nodes[A].start_copy()

    with pytest.raises(Wrong, match="second copy"):
        play(Scenario(at=((2.4, cheat),)))
