"""The hand-off, case by case: what the exhaustive test of `tests/property` does not look at."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkstore.chunker import MANIFEST
from p2player.proto.delta_wire import MAX_WHOLE_MANIFEST_BYTES
from p2player.proto.handoff import events, fields, memory, messages, records, table
from p2player.proto.handoff.destination import DestinationMachine
from p2player.proto.handoff.events import Act, Journal, Send, Timer
from p2player.proto.handoff.machine import HandoffConfig, JournalUnlawful
from p2player.proto.handoff.memory import Epitaph, Fate
from p2player.proto.handoff.messages import Pulled
from p2player.proto.handoff.source import SourceMachine
from p2player.proto.handoff.source_end import add_image
from p2player.proto.handoff.table import End, KillPoint, Phase
from p2player.proto.rounds import Link, RoundConfig, RoundPolicy
from tests.support.handoffnet import APP, EPOCH, A, B, Kill, Scenario, World, Wrong, play, varied, verdict

CONFIG = HandoffConfig()
IMAGE = messages.Image(b"i" * 32, 1000, (messages.Chunk(b"m" * 32, 100),), (messages.Chunk(b"f" * 32, 64),))


def offer() -> messages.Offer:
    return World(Scenario()).offer()


def source_machine(max_freeze_s: float | None = None) -> SourceMachine:
    policy = RoundPolicy(RoundConfig(max_freeze_s=max_freeze_s), Link(measured=True))
    return SourceMachine(replace(offer(), instance_bytes=1000), b"k" * 32, CONFIG, policy)


def sent(outputs: list[events.Output]) -> list[messages.Message]:
    return [output.message for output in outputs if isinstance(output, Send)]


def journalled(outputs: list[events.Output]) -> records.Record:
    (found,) = [output.record for output in outputs if isinstance(output, Journal)]
    return found


def act(outputs: list[events.Output]) -> Act:
    (found,) = [output for output in outputs if isinstance(output, Act)]
    return found


# -- the operator's force, and what is unknown


def force(world: World) -> None:
    world.forced = True  # from here on a second copy is the documented exception
    world.nodes[A].feed(world.MIGRATION, events.Force())


FORCED = KillPoint(End.DESTINATION, records.Accepted, "after")


@pytest.mark.parametrize("record", [records.Ready, records.Accepted, records.Restored])
def test_force_takes_epoch_plus_two_and_the_other_copy_stops(record: type[records.Record]) -> None:
    kill = Kill(KillPoint(End.DESTINATION, record, "after"), End.DESTINATION, down_s=60.0)
    world = play(Scenario(kills=(kill,), at=((20.0, force),)))
    if record is records.Ready:
        # It never heard a grant, and the source none of it being ready: that was called off long before.
        verdict(world, moved=False)
        return
    assert world.nodes[A].engine.epoch == EPOCH + 2
    verdict(world, moved=False)
    assert world.nodes[B].closed[world.MIGRATION].fate is not Fate.FORCED
    assert world.nodes[A].closed[world.MIGRATION] == Epitaph(End.SOURCE, Fate.FORCED, EPOCH + 2)


@pytest.mark.parametrize("victim", End)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("record", [records.Forced, records.Superseded, records.Settled, records.Closed])
def test_force_survives_kills(record: type[records.Record], when: str, victim: End) -> None:
    end = End.DESTINATION if record is records.Superseded else End.SOURCE
    first = Kill(FORCED, End.DESTINATION, down_s=60.0)
    second = Kill(KillPoint(end, record, when), victim)  # type: ignore[arg-type]
    world = play(Scenario(kills=(first, second), at=((20.0, force),)))
    never_written = (record, when, victim) == (records.Forced, "before", End.SOURCE)
    verdict(world, moved=never_written)
    assert not world.kills


def test_force_before_the_grant_does_nothing() -> None:
    world = play(Scenario(at=((1.0, force),)))
    verdict(world, moved=True)


def lose_journal(world: World) -> None:
    world.nodes[B].journals.clear()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("victim", End)
def test_a_grant_to_a_destination_that_lost_its_journal_is_refused_for_good(victim: End, when: str) -> None:
    lost = Kill(KillPoint(End.SOURCE, records.Granted, "after"), End.DESTINATION, down_s=10.0)
    again = Kill(KillPoint(End.DESTINATION, records.Asked, when), victim)  # type: ignore[arg-type]
    world = play(Scenario(kills=(lost, again), at=((8.0, lose_journal),)))
    verdict(world, moved=False)
    assert (End.DESTINATION, records.Asked) in world.seen
    assert world.nodes[A].engine.epoch == EPOCH + 2


def test_a_destination_that_lost_its_journal_but_has_the_app_says_so() -> None:
    lost = Kill(KillPoint(End.DESTINATION, records.Restored, "after"), End.DESTINATION, down_s=10.0)
    world = play(Scenario(kills=(lost,), at=((8.0, lose_journal),)))
    verdict(world, moved=True)


def test_the_judge_sees_force_without_the_exception() -> None:
    def unannounced(world: World) -> None:
        world.nodes[A].feed(world.MIGRATION, events.Force())

    lost = Kill(KillPoint(End.DESTINATION, records.Accepted, "after"), End.DESTINATION, down_s=60.0)
    with pytest.raises(Wrong):
        verdict(play(Scenario(kills=(lost,), at=((20.0, unannounced),))))


# -- the table


def test_the_table_is_lawful() -> None:
    points = list(table.kill_points())
    assert len(points) == len(set(points)) == 2 * len({(p.end, p.record) for p in points})
    assert {point.record for point in points} == set(records.KINDS.values())
    for step in table.STEPS:
        assert step.means
        senders = messages.FROM_SOURCE if step.end is End.SOURCE else messages.FROM_DESTINATION
        assert step.then is None or step.then.__name__ in senders
    assert str(points[0]) == "source:Begun:before"


def test_every_phase_has_a_step() -> None:
    assert {step.phase for step in table.STEPS} == set(Phase) - {Phase.DONE, Phase.CANCELLED}


def test_a_journal_out_of_order_is_refused() -> None:
    begun = records.Begun(1.0, offer())
    policy = RoundPolicy(RoundConfig(), Link())
    journals: list[list[records.Record]] = [
        [],
        [records.Closed(1.0)],
        [begun, records.Committed(2.0, 8, records.Tally(1.0))],
    ]
    for entries in journals:
        with pytest.raises(JournalUnlawful):
            SourceMachine.replay(entries, CONFIG, policy)
        with pytest.raises(JournalUnlawful):
            DestinationMachine.replay(entries, CONFIG)


# -- the source


def test_the_offer_is_repeated_until_the_destination_is_given_up() -> None:
    machine = source_machine()
    assert sent(machine.begin(0.0)) == [machine.offer]
    offers, now = 0, 0.0
    while machine.outcome is None and now < 60.0:
        now += 1.0
        outputs = machine.handle(events.Fired(Timer.RETRY), now)
        offers += sent(outputs).count(machine.offer)
        if any(isinstance(output, Act) for output in outputs):
            machine.handle(events.Done(act(outputs).token), now)
    assert offers == 14
    assert machine.outcome is not None and machine.outcome.code == "unreachable"
    assert machine.phase is Phase.FAILED


def test_signs_of_life_keep_a_request_open() -> None:
    machine = source_machine()
    machine.begin(0.0)
    for now in range(1, 100):
        machine.handle(events.Received(messages.Progress(1, 5, 10)), now)
        assert not sent(machine.handle(events.Fired(Timer.RETRY), now))
    assert machine.progress == (5, 10)
    assert machine.outcome is None


def run_to_grant(machine: SourceMachine, now: float = 0.0) -> float:
    """Drive a source until its grant is out; returns the time of its suspend request."""
    machine.begin(now)
    need = messages.Need(10, 5)
    outputs = machine.handle(events.Received(messages.Welcome(1, need, need)), now)
    plan = events.Planned(records.Prediction(2.0, 0.5, 100))
    machine.handle(events.Done(act(outputs).token, plan), now)
    outputs = machine.handle(events.Received(messages.Synced(2, Pulled(10, 5, 7), Pulled(20, 20, 3))), now + 1)
    assert isinstance(journalled(outputs), records.Suspending)
    outputs = machine.handle(events.Done(act(outputs).token), now + 2)
    machine.handle(events.Done(act(outputs).token, events.Imaged(IMAGE, 1000)), now + 3)
    outputs = machine.handle(events.Received(messages.Ready(3, Pulled(1000, 400, 650, {A: 600}, 0.5))), now + 4)
    assert isinstance(journalled(outputs), records.Granted)
    return now + 1


def test_images_are_weighed_by_how_they_came() -> None:
    policy = RoundPolicy(RoundConfig(), Link(1e6, 0.01, measured=True))
    machine = SourceMachine(replace(offer(), instance_bytes=500_000_000), b"k" * 32, CONFIG, policy)
    machine.begin(0.0)
    need = messages.Need()
    outputs = machine.handle(events.Received(messages.Welcome(1, need, need)), 0.0)
    machine.handle(events.Done(act(outputs).token, events.Planned(records.Prediction(2.0, 0.5, 100))), 0.0)
    outputs = machine.handle(events.Received(messages.Synced(2, Pulled(), Pulled())), 1.0)
    for step, as_delta, wire, now in ((3, False, 5_000_000, 10.0), (4, True, 30_000, 10.2)):
        machine.handle(events.Done(act(outputs).token, events.Imaged(IMAGE, 5_000_000, 0.0, as_delta)), now - 0.1)
        outputs = machine.handle(events.Received(messages.Rounded(step, Pulled(5_000_000, 0, wire, {}, 0.1))), now)
    assert machine.plain.ratio(1) == 1.0
    assert machine.deltas.ratio(1) == 0.006
    assert machine.deltas.ratio(1 << 30) is None
    assert isinstance(journalled(outputs), records.Suspending), "by what the delta cost"


def to_first_round(dirty_bytes_s: float | None = None) -> SourceMachine:
    """A source whose first image, 100 s on the link, was asked for at 2.0 after an imaging of one second."""
    policy = RoundPolicy(RoundConfig(), Link(1e6, 0.01, measured=True), dirty_bytes_s, 1e6)
    machine = SourceMachine(replace(offer(), instance_bytes=100_000_000), b"k" * 32, CONFIG, policy)
    machine.begin(0.0)
    outputs = machine.handle(events.Received(messages.Welcome(1, messages.Need(), messages.Need())), 0.0)
    machine.handle(events.Done(act(outputs).token, events.Planned(records.Prediction(2.0, 0.5, 100))), 0.0)
    outputs = machine.handle(events.Received(messages.Synced(2, Pulled(), Pulled())), 1.0)
    machine.handle(events.Done(act(outputs).token, events.Imaged(IMAGE, 100_000_000)), 2.0)
    return machine


def test_what_would_move_in_time_as_a_whole_needs_no_further_round() -> None:
    policy = RoundPolicy(RoundConfig(), Link(1e6))
    machine = SourceMachine(replace(offer(), instance_bytes=2_000_000), b"k" * 32, CONFIG, policy)
    machine.begin(0.0)
    outputs = machine.handle(events.Received(messages.Welcome(1, messages.Need(), messages.Need())), 0.0)
    machine.handle(events.Done(act(outputs).token, events.Planned(records.Prediction(2.0, 0.5, 100))), 0.0)
    outputs = machine.handle(events.Received(messages.Synced(2, Pulled(), Pulled())), 1.0)
    machine.handle(events.Done(act(outputs).token, events.Imaged(IMAGE, 2_000_000)), 1.1)
    outputs = machine.handle(events.Received(messages.Rounded(3, Pulled(2_000_000, 0, 2_000_000, {}, 0.1))), 1.2)
    assert isinstance(journalled(outputs), records.Suspending)


@pytest.mark.parametrize(("source", "measured"), [(A, True), (B, False)])
def test_a_shared_layer_from_the_source_measures_the_link(source: str, measured: bool) -> None:
    policy = RoundPolicy(RoundConfig(), Link(1e6))
    machine = SourceMachine(replace(offer(), instance_bytes=2_000_000), b"k" * 32, CONFIG, policy)
    machine.begin(0.0)
    outputs = machine.handle(events.Received(messages.Welcome(1, messages.Need(), messages.Need())), 0.0)
    machine.handle(events.Done(act(outputs).token, events.Planned(records.Prediction(2.0, 0.5, 100))), 0.0)
    app = Pulled(20_000_000, 0, 9_000_000, {source: 20_000_000}, 1.0)
    machine.handle(events.Received(messages.Synced(2, Pulled(), app)), 1.0)
    assert machine.policy.link.measured is measured


def progress(machine: SourceMachine, done: int, now: float) -> list[events.Output]:
    return machine.handle(events.Received(messages.Progress(3, done, 100, working=True)), now)


FIRST_ROUND = Pulled(100_000_000, 0, 100_000_000, {}, 100.0)


def test_the_next_image_is_taken_before_the_last_one_is_through() -> None:
    machine = to_first_round()
    assert not any(isinstance(output, Act) for output in progress(machine, 90, 92.0)), "too early"
    ahead = act(progress(machine, 99, 101.0))
    assert ahead.action == events.TakeImage(2, final=False)
    assert not any(isinstance(output, Act) for output in progress(machine, 99, 101.5)), "only once"
    machine.handle(events.Done(ahead.token, events.Imaged(IMAGE, 5000, 0.2, True)), 101.8)
    outputs = machine.handle(events.Received(messages.Rounded(3, FIRST_ROUND)), 102.0)
    (request,) = sent(outputs)
    assert isinstance(request, messages.Round)
    assert (request.number, request.final) == (2, False)
    assert machine.policy.dirty_bytes_s == pytest.approx(5000 / 100.0), "since the first image, not since its arrival"
    assert machine.pauses == (2, 0.2)


def test_an_image_that_is_still_being_taken_is_waited_for() -> None:
    machine = to_first_round()
    ahead = act(progress(machine, 99, 101.0))
    outputs = machine.handle(events.Received(messages.Rounded(3, FIRST_ROUND)), 101.2)
    assert sent(outputs) == []
    (request,) = sent(machine.handle(events.Done(ahead.token, events.Imaged(IMAGE, 5000, 0.2, True)), 102.0))
    assert isinstance(request, messages.Round)


def test_nothing_is_taken_ahead_of_a_suspension_and_a_failure_ahead_is_none() -> None:
    calm = to_first_round(dirty_bytes_s=10.0)
    assert not any(isinstance(output, Act) for output in progress(calm, 99, 101.0))
    machine = to_first_round()
    ahead = act(progress(machine, 99, 101.0))
    machine.handle(events.Broke(ahead.token, "failed", "no room", False), 101.1)
    assert not any(isinstance(output, Act) for output in progress(machine, 99, 101.15)), "not again in this round"
    outputs = machine.handle(events.Received(messages.Rounded(3, FIRST_ROUND)), 101.2)
    assert act(outputs).action == events.TakeImage(2, final=False), "and is tried again"


def test_what_is_taken_ahead_is_stopped_when_it_is_called_off() -> None:
    machine = to_first_round()
    ahead = act(progress(machine, 99, 101.0))
    outputs = machine.handle(events.Cancel("cancelled"), 101.1)
    assert events.StopAct(ahead.token) in outputs


def test_the_pause_for_an_image_that_was_not_sent_any_more_counts() -> None:
    machine = to_first_round()
    ahead = act(progress(machine, 99, 101.0))
    before = machine.tally.freeze_s
    machine.handle(events.Done(ahead.token, events.Imaged(IMAGE, 5000, 0.2, True)), 101.1)
    machine.handle(events.Cancel("cancelled"), 101.2)
    assert machine.tally.freeze_s == pytest.approx(before + 0.2)
    assert machine.pauses == (2, 0.2)


def test_freeze_counts_from_the_request_to_the_start_over_there() -> None:
    machine = source_machine()
    suspended_at = run_to_grant(machine)
    outputs = machine.handle(events.Received(messages.Restored(EPOCH + 1, since_start_s=1.5)), suspended_at + 6.0)
    assert isinstance(outputs[-1], events.SetTimer)
    assert machine.tally.freeze_s == machine.tally.longest_freeze_s == 4.5
    assert machine.tally.base == Pulled(10, 5, 7)
    assert machine.tally.instance == Pulled(1000, 400, 650, {A: 600}, 0.5)
    assert machine.phase is Phase.COMMIT
    assert machine.outcome is None


def test_a_restart_keeps_the_freeze_and_the_bytes() -> None:
    machine = source_machine()
    entries: list[records.Record] = []
    suspended_at = run_to_grant_recording(machine, entries)
    again = SourceMachine.replay(records.load([records.dump(record) for record in entries]), CONFIG, machine.policy)
    outputs = again.restart(50.0)
    assert again.in_doubt
    assert not sent(outputs)  # first it makes sure that nothing runs
    outputs = again.handle(events.Done(act(outputs).token), 51.0)
    assert [type(message) for message in sent(outputs)] == [messages.Grant]
    again.handle(events.Received(messages.Restored(EPOCH + 1)), 60.0)
    assert again.tally.freeze_s == 60.0 - suspended_at
    assert again.tally.base.transferred == 7


def run_to_grant_recording(machine: SourceMachine, entries: list[records.Record]) -> float:
    handle = machine.handle

    def recording(event: events.Event, now: float) -> list[events.Output]:
        outputs = handle(event, now)
        entries.extend(output.record for output in outputs if isinstance(output, Journal))
        return outputs

    machine.handle = recording  # type: ignore[method-assign]
    entries.append(records.Begun(0.0, machine.offer))
    return run_to_grant(machine)


def test_nothing_of_another_epoch_commits() -> None:
    machine = source_machine()
    run_to_grant(machine)
    assert not machine.handle(events.Received(messages.Restored(EPOCH + 2)), 9.0)
    assert machine.in_doubt


def test_a_rejected_message_ends_it_before_the_grant_only() -> None:
    machine = source_machine()
    machine.begin(0.0)
    outputs = machine.handle(events.Rejected("usage", "what?"), 1.0)
    assert isinstance(journalled(outputs), records.Aborted)
    machine = source_machine()
    run_to_grant(machine)
    assert not machine.handle(events.Rejected("usage", "what?"), 9.0)
    assert machine.in_doubt and not machine.forsaken
    for now in (10.0, 12.0, 16.0):
        machine.handle(events.Fired(Timer.RETRY), now)
    assert machine.forsaken


def test_ask_repeats_the_grant_at_once() -> None:
    machine = source_machine()
    run_to_grant(machine)
    grant = messages.Grant(APP, EPOCH + 1, A, B)
    assert sent(machine.handle(events.Ask(), 9.0)) == [grant]
    assert not machine.cancellable
    assert not machine.handle(events.Cancel("too late"), 9.0)


def test_the_bound_ends_the_final_transfer() -> None:
    machine = source_machine(max_freeze_s=2.0)
    machine.begin(0.0)
    need = messages.Need()
    outputs = machine.handle(events.Received(messages.Welcome(1, need, need)), 0.0)
    machine.handle(events.Done(act(outputs).token, events.Planned(records.Prediction(1, 1, 1))), 0.0)
    outputs = machine.handle(events.Received(messages.Synced(2, Pulled(), Pulled())), 1.0)
    outputs = machine.handle(events.Done(act(outputs).token), 2.0)
    outputs = machine.handle(events.Done(act(outputs).token, events.Imaged(IMAGE, 1000)), 3.0)
    assert events.SetTimer(Timer.FREEZE, 5.0) in outputs
    outputs = machine.handle(events.Fired(Timer.FREEZE), 5.0)
    assert act(outputs).action == events.Resume(EPOCH)
    machine.handle(events.Done(act(outputs).token, events.Resumed(0.5)), 6.0)
    assert machine.outcome is not None
    assert (machine.outcome.phase, machine.outcome.code) == (Phase.FAILED, "refused")
    assert machine.tally.freeze_s == 4.5


def test_an_app_that_cannot_be_resumed_is_told() -> None:
    scenario = Scenario(
        breaks={events.Suspend: (range(9), True), events.Resume: (range(9), True)},
    )
    world = World(scenario)
    world.begin()
    machine = world.source
    assert machine is not None
    world.run()
    assert world.attempts[events.Resume] == CONFIG.resume_tries
    assert machine.outcome is not None and "could not be resumed" in machine.outcome.reason


def test_a_tree_that_never_rests_is_suspended_instead() -> None:
    unreadable = varied(Scenario(), breaks={events.TakeImage: (range(1), False)})
    world = play(unreadable)
    verdict(world, moved=True)
    with_bound = varied(unreadable, max_freeze_s=30.0)
    verdict(play(with_bound), moved=False)


def test_images_are_summed() -> None:
    first = add_image(Pulled(), Pulled(1000, 0, 1100, {A: 1000}, 2.0))
    assert first == Pulled(1000, 0, 1100, {A: 1000}, 2.0)
    basis = add_image(add_image(Pulled(), Pulled(1000, 900, 120, {A: 100}, 1.0)), Pulled(1010, 990, 30, {A: 20}, 0.1))
    assert basis == Pulled(1010, 890, 150, {A: 120}, 1.1)


# -- the destination


def destination_machine() -> tuple[DestinationMachine, list[events.Output]]:
    machine = DestinationMachine.offered(offer(), CONFIG)
    return machine, machine.begin(0.0)


def to_waiting() -> DestinationMachine:
    machine, outputs = destination_machine()
    outputs = machine.handle(events.Done(act(outputs).token, events.Checked((), messages.Need(9, 3))), 0.0)
    assert sent(outputs) == [messages.Welcome(1, messages.Need(9, 3), messages.Need())]
    return machine


def to_ready() -> DestinationMachine:
    machine = to_waiting()
    outputs = machine.handle(events.Received(messages.Round(2, 1, IMAGE, final=True)), 1.0)
    outputs = machine.handle(events.Done(act(outputs).token, Pulled(1000, 0, 1100)), 2.0)
    assert sent(outputs) == [messages.Ready(2, Pulled(1000, 0, 1100))]
    return machine


GRANT = messages.Grant(APP, EPOCH + 1, A, B)


def test_an_answer_is_repeated_for_a_repeated_request_only() -> None:
    machine = to_waiting()
    again = machine.handle(events.Received(offer()), 1.0)
    assert [type(message) for message in sent(again)] == [messages.Welcome]
    outputs = machine.handle(events.Received(messages.Sync(2, b"k" * 32)), 1.0)
    assert isinstance(act(outputs).action, events.PullLayers)
    machine.handle(events.Advanced(10, 20), 1.5)
    during = machine.handle(events.Received(messages.Sync(2, b"k" * 32)), 2.0)
    assert sent(during) == [messages.Progress(2, 10, 20)]
    assert not machine.handle(events.Received(offer()), 2.0)  # an old one
    assert sent(machine.handle(events.Fired(Timer.HEARTBEAT), 3.0)) == [messages.Progress(2, 10, 20)]


def test_refusals_of_preflight_leave_no_trace() -> None:
    machine, outputs = destination_machine()
    outputs = machine.handle(events.Done(act(outputs).token, events.Checked(("no room", "name taken"))), 0.0)
    assert sent(outputs) == [messages.Failed("refused", "no room; name taken")]
    assert not any(isinstance(output, Journal) for output in outputs)
    assert events.Forget() in outputs


@pytest.mark.parametrize(
    "grant",
    [
        replace(GRANT, epoch=EPOCH + 2),
        replace(GRANT, app_id="e" * 32),
        replace(GRANT, source=B),
        replace(GRANT, destination=A),
    ],
)
def test_a_grant_for_somebody_else_is_ignored(grant: messages.Grant) -> None:
    machine = to_ready()
    assert not machine.handle(events.Received(grant), 3.0)


def test_a_grant_is_accepted_once() -> None:
    machine = to_ready()
    outputs = machine.handle(events.Received(GRANT), 3.0)
    journalled = next(n for n, output in enumerate(outputs) if isinstance(output, Journal))
    acted = next(n for n, output in enumerate(outputs) if isinstance(output, Act))
    assert journalled < acted
    again = machine.handle(events.Received(GRANT), 3.1)
    assert sent(again) == [messages.Progress(2, 0, 0, accepted=True)]
    done = machine.handle(events.Done(act(outputs).token, events.Resumed(1.0)), 4.0)
    assert sent(done) == [messages.Restored(EPOCH + 1, 1.0, app_id=APP)]
    assert sent(machine.handle(events.Received(GRANT), 6.0)) == [messages.Restored(EPOCH + 1, 3.0, app_id=APP)]


def test_what_was_accepted_cannot_be_called_off() -> None:
    machine = to_ready()
    outputs = machine.handle(events.Received(GRANT), 3.0)
    abort = events.Received(messages.Abort("failed", "a defect"))
    assert not machine.handle(abort, 3.5)
    machine.handle(events.Done(act(outputs).token, events.Resumed()), 4.0)
    assert not machine.handle(abort, 5.0)
    assert machine.owns


def test_the_hook_comes_before_the_acknowledgement() -> None:
    machine = to_ready()
    outputs = machine.handle(events.Received(GRANT), 3.0)
    hook = act(machine.handle(events.Done(act(outputs).token, events.Resumed()), 4.0))
    assert hook.action == events.RunHook()
    assert not sent(machine.handle(events.Received(messages.Commit('{"id": 1}')), 5.0))
    outputs = machine.handle(events.Broke(hook.token, "failed", "no route"), 6.0)
    assert sent(outputs) == [messages.Closed("after_restore: no route")]
    assert machine.phase is Phase.DONE
    assert machine.row == '{"id": 1}'


def test_a_grant_before_ready_is_refused_for_good() -> None:
    machine = to_waiting()
    outputs = machine.handle(events.Received(GRANT), 3.0)
    assert isinstance(journalled(outputs), records.Refused)
    assert [type(message) for message in sent(outputs)] == [messages.Failed]
    assert [type(m) for m in sent(machine.handle(events.Received(GRANT), 4.0))] == [messages.Failed]


def test_a_waiting_destination_gives_a_silent_source_up() -> None:
    machine = to_waiting()
    now = 0.0
    while now < CONFIG.patience_s:
        now += CONFIG.idle_s
        outputs = machine.handle(events.Fired(Timer.PATIENCE), now)
        if now == 50.0:
            machine.handle(events.Received(messages.Alive()), now)
    assert [type(message) for message in sent(outputs)] == [messages.Progress]
    outputs = machine.handle(events.Fired(Timer.PATIENCE), 171.0)
    assert isinstance(journalled(outputs), records.Refused)


# -- closed and unknown


@pytest.mark.parametrize(
    ("epitaph", "message", "answer"),
    [
        (Epitaph(End.SOURCE, Fate.MOVED, 8), messages.Restored(8), messages.Commit),
        (Epitaph(End.SOURCE, Fate.KEPT, 0), messages.Ready(3, Pulled()), messages.Abort),
        (Epitaph(End.SOURCE, Fate.FORCED, 9), messages.Restored(8), messages.Supersede),
        (Epitaph(End.SOURCE, Fate.MOVED, 8), messages.Closed(), None),
        (Epitaph(End.DESTINATION, Fate.MOVED, 8), GRANT, messages.Restored),
        (Epitaph(End.DESTINATION, Fate.MOVED, 8), messages.Commit(), messages.Closed),
        (Epitaph(End.DESTINATION, Fate.KEPT, 8), GRANT, messages.Failed),
        (Epitaph(End.DESTINATION, Fate.KEPT, 8), offer(), messages.Failed),
        (Epitaph(End.DESTINATION, Fate.MOVED, 8), offer(), messages.Failed),
        (Epitaph(End.DESTINATION, Fate.KEPT, 8), messages.Alive(), None),
    ],
)
def test_what_is_over_is_remembered(
    epitaph: Epitaph, message: messages.Message, answer: type[messages.Message] | None
) -> None:
    given_answer = memory.answer(epitaph, message)
    assert (None if given_answer is None else type(given_answer)) is answer


@pytest.mark.parametrize(
    ("message", "owned_epoch", "answer"),
    [
        (messages.Restored(8), 0, messages.Commit()),
        (messages.Restored(8), 9, messages.Supersede(9)),
        (messages.Commit(), 0, messages.Closed()),
        (messages.Closed(), 0, None),
        (messages.Round(2, 1, IMAGE), 0, messages.Failed("failed", "the destination knows nothing of this migration")),
        (messages.Ready(2, Pulled()), 0, messages.Abort("failed", "the source knows nothing of this migration")),
    ],
)
def test_what_is_unknown_is_answered(
    message: messages.Message, owned_epoch: int, answer: messages.Message | None
) -> None:
    assert memory.answer_unknown(message, owned_epoch) == answer


# -- the wire

SAMPLES: list[messages.Message] = [
    offer(),
    messages.Welcome(1, messages.Need(5, 4), messages.Need(), 3),
    messages.Sync(2, b"k" * 32),
    messages.Synced(2, Pulled(), Pulled(1, 2, 3, {A: 4}, 0.5)),
    messages.Round(3, 1, IMAGE, final=True),
    messages.Round(5, 2, replace(IMAGE, fresh=(), outline=messages.Outline(b"i" * 32, b"frame"))),
    messages.Rounded(3, Pulled()),
    messages.Ready(3, Pulled()),
    messages.Progress(0, 1, 2, working=False, accepted=True),
    messages.Alive(),
    GRANT,
    messages.Restored(8, None, healthy=False, error="gone", app_id=A),
    messages.Failed("refused", "no"),
    messages.Commit("{}"),
    messages.Abort("failed", "no", "{}"),
    messages.Supersede(9),
    messages.Closed("warning"),
]


def test_every_message_survives_the_wire() -> None:
    assert {type(message) for message in SAMPLES} == {
        *messages.FROM_SOURCE.values(),
        *messages.FROM_DESTINATION.values(),
    }
    for message in SAMPLES:
        assert messages.decode(messages.encode(message)) == message


def test_the_largest_image_fits_a_message() -> None:
    chunk = messages.Chunk(b"f" * 32, messages.MAX_CHUNK_BYTES)
    image = messages.Image(b"i" * 32, 1 << 40, (chunk,) * messages.MAX_MANIFEST_CHUNKS, (chunk,) * messages.MAX_FRESH)
    outline = messages.Outline(b"o" * 32, b"f" * messages.MAX_OUTLINE_BYTES)
    outlined = (chunk,) * (MAX_WHOLE_MANIFEST_BYTES // MANIFEST.minimum + 1)
    for each in (image, replace(image, manifest=outlined, fresh=(), outline=outline)):
        message = messages.Round(1 << 20, 1024, each)
        assert messages.decode(messages.encode(message)) == message


def test_impossible_outlines_are_malformed() -> None:
    for outline in (
        messages.Outline(b"o" * 31, b"f"),
        messages.Outline(b"o" * 32, b""),
        messages.Outline(b"o" * 32, b"f" * (messages.MAX_OUTLINE_BYTES + 1)),
    ):
        with pytest.raises(fields.Malformed):
            messages.decode(fields.encode(messages.Round(2, 1, replace(IMAGE, outline=outline))))


def test_a_round_without_the_fields_of_later_versions_is_understood() -> None:
    raw = fields.dump(messages.Round(2, 1, IMAGE))
    assert isinstance(raw["image"], dict)
    del raw["image"]["outline"]
    assert fields.load(raw, messages.FROM_SOURCE) == messages.Round(2, 1, IMAGE)


def test_impossible_chunks_are_malformed() -> None:
    for chunks in ((messages.Chunk(b"f" * 32, 0),), (messages.Chunk(b"f" * 32, 1 << 21),)):
        with pytest.raises(fields.Malformed):
            messages.decode(fields.encode(messages.Round(2, 1, replace(IMAGE, fresh=chunks))))
    raw = fields.dump(messages.Round(2, 1, IMAGE))
    assert isinstance(raw["image"], dict)
    raw["image"]["fresh"] = b"too short"
    with pytest.raises(fields.Malformed):
        fields.load(raw, messages.FROM_SOURCE)


@given(st.binary(max_size=64))
def test_noise_is_malformed(data: bytes) -> None:
    with pytest.raises(fields.Malformed):
        messages.decode(data)


@given(st.data())
def test_damaged_fields_are_malformed_or_in_bounds(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(SAMPLES))
    raw = fields.dump(message)
    key = data.draw(st.sampled_from(sorted(raw)))
    values = st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.none()), st.just({})
    )
    raw[key] = data.draw(values)
    try:
        read = fields.load(raw, {**messages.FROM_SOURCE, **messages.FROM_DESTINATION})
    except fields.Malformed:
        return
    assert messages.decode(messages.encode(read)) == read


def test_unknown_fields_are_ignored_and_defaults_filled_in() -> None:
    raw = {**fields.dump(messages.Closed()), "later": 1}
    del raw["warning"]
    assert fields.load(raw, messages.FROM_DESTINATION) == messages.Closed()


def test_records_survive_json() -> None:
    tally = records.Tally(1.0, Pulled(1, 0, 2, {A: 1}, 0.1), prediction=records.Prediction(1.0, 0.1, 5))
    samples: list[records.Record] = [
        records.Begun(1.0, offer()),
        records.Granted(2.0, 8, tally),
        records.Settled(3.0, tally),
        records.Settled(3.0),
        records.Asked(1.0, APP, 8, A, B),
        records.Closed(4.0, '{"id": "x"}'),
    ]
    assert records.load([records.dump(record) for record in samples]) == samples
    damages: list[object] = [{}, [], None, {"t": "Closed"}, {"t": "Closed", "at": {"hex": "zz"}}, {"t": 5}]
    for damaged in damages:
        with pytest.raises(fields.Malformed):
            records.load([damaged])


def test_facts_of_an_offer_are_bounded() -> None:
    offer = messages.Offer(1, APP, "game", "process", 1, A, B, bytes(32), bytes(32), b"record")
    facts = {"cpu": "sse2 avx", "memory_bytes": "5"}
    sent = replace(offer, facts=facts, sent_at=12.5, network="here")
    assert messages.decode(messages.encode(sent)) == sent
    assert messages.for_journal(sent) == replace(sent, record=b"", facts={})
    for bad in (
        {str(n): "" for n in range(65)},
        {"k" * 65: ""},
        {"k": "v" * 4097},
        {str(n): "v" * 4096 for n in range(16)},
        {"k": 1},
        {1: "v"},
        ["k"],
    ):
        raw = {**fields.dump(offer), "facts": bad}
        with pytest.raises(fields.Malformed):
            fields.load(raw, messages.FROM_SOURCE)


def test_what_is_no_fact_is_not_sent() -> None:
    many = {str(n): "" for n in range(100)}
    assert messages.FACTS.fitting(many) == {str(n): "" for n in range(64)}
    assert messages.FACTS.fitting({"k" * 65: "", "k": "v" * 4097, "\udc00": "", "x": "y"}) == {"x": "y"}
    full = messages.FACTS.fitting({f"{n:02}": "v" * 4094 for n in range(20)} | {"z": ""})
    assert len(full) == 16 and sum(len(key) + len(value) for key, value in full.items()) == 65536


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("4096", 4096), ("-1", 0), ("1e9", 0), ("", 0), ("٣", 0), ("9" * 16, 1 << 50), ("9" * 17, 0)],
)
def test_how_much_memory_moves(text: str, count: int) -> None:
    assert messages.memory_bytes({"memory_bytes": text}) == count
    assert messages.memory_bytes({}) == 0
