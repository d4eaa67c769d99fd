"""The scheduler driven by hand, one event at a time; whole transfers are in `tests/sim`."""

from collections.abc import Collection, Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkstore.digest import ChunkId
from gossip.messages import NodeId
from p2player.proto.fairstart import FairStart
from p2player.proto.peerstats import ALONE_SHARE, ALONE_WINDOW_BYTES, FIRST_WINDOW_BYTES, PeerStats
from p2player.proto.swarm import (
    MAX_ASK_CHUNKS,
    MAX_IN_FLIGHT_BYTES,
    MIN_DEADLINE_S,
    UNMEASURED_DEADLINE_S,
    Swarm,
)
from p2player.proto.swarm_events import (
    Ask,
    Cancel,
    Corrupt,
    Done,
    Drop,
    Event,
    Expected,
    Finished,
    Heard,
    Joined,
    Left,
    Output,
    Received,
    Stuck,
    Tick,
)
from tests.support.swarmnet import node

A, B, C = node(1), node(2), node(3)
KIB, MIB = 1 << 10, 1 << 20


def chunk(number: int) -> ChunkId:
    return ChunkId(number.to_bytes(32, "big"))


def chunks(numbers: Sequence[int]) -> set[ChunkId]:
    return {chunk(number) for number in numbers}


class Driver:
    """A swarm over `count` chunks of `length` bytes, and what it said."""

    def __init__(self, count: int, length: int = 64 * KIB, seed: int = 1) -> None:
        self.wants = {chunk(number): length for number in range(count)}
        self.swarm = Swarm(self.wants, Random(seed))
        self.now = 0.0
        self.asks: dict[int, Ask] = {}

    def feed(self, event: Event) -> list[Output]:
        outputs = self.swarm.handle(event, self.now)
        for output in outputs:
            if isinstance(output, Ask):
                self.asks[output.ask] = output
        return outputs

    def join(self, peer: NodeId, have: Collection[ChunkId] | None = None, rtt_s: float = 0.01) -> list[Output]:
        return self.feed(Joined(peer, None if have is None else self.swarm.table.marks(have), rtt_s))

    def answer(self, ask: Ask, of: Collection[ChunkId] | None = None) -> list[Output]:
        """The peer delivers its ask, or some of it."""
        sent = {name: self.wants[name] for name in ask.chunks if of is None or name in of}
        return self.feed(Received(ask.peer, ask.ask, sent))

    def to(self, peer: NodeId) -> list[Ask]:
        return [ask for ask in self.asks.values() if ask.peer == peer]

    def wait(self, seconds: float) -> list[Output]:
        """Let time pass, with every tick that the swarm asks for."""
        outputs: list[Output] = []
        until = self.now + seconds
        while self.swarm.wake_at is not None and self.swarm.wake_at <= until:
            self.now = max(self.now, self.swarm.wake_at)
            outputs += self.feed(Tick())
        self.now = until
        return outputs


def only(kind: type[Output], outputs: Sequence[Output]) -> list[Output]:
    return [output for output in outputs if isinstance(output, kind)]


def test_one_holder_is_asked_for_everything_in_neighbouring_runs() -> None:
    drive = Driver(40)
    drive.join(A)
    asked = 0
    while asked < len(drive.asks):
        asked += 1
        ask = drive.asks[asked]
        numbers = [int.from_bytes(name, "big") for name in ask.chunks]
        jumps = sum(later != earlier + 1 for earlier, later in pairwise(numbers))
        assert jumps <= 1, "neighbours, but for the end of the layer"
        drive.now += 0.02
        outputs = drive.answer(ask)
    assert outputs[-1] == Done()
    assert drive.swarm.done
    assert drive.swarm.accepted == {A: 40 * 64 * KIB}
    assert drive.swarm.duplicates == 0
    assert not list(drive.swarm.missing())


def test_an_unknown_peer_is_asked_for_little() -> None:
    drive = Driver(1000)
    drive.join(A)
    drive.join(B)
    assert sum(len(ask.chunks) for ask in drive.to(B)) * 64 * KIB == FIRST_WINDOW_BYTES


@pytest.mark.parametrize(
    ("rtt_s", "chunks", "window"),
    [(0.001, 4000, ALONE_WINDOW_BYTES), (0.02, 4000, ALONE_WINDOW_BYTES), (0.02, 64, 64 * 64 * KIB // ALONE_SHARE)],
)
def test_a_peer_that_is_alone_may_have_more(rtt_s: float, chunks: int, window: int) -> None:
    drive = Driver(chunks)
    drive.join(A, rtt_s=rtt_s)
    assert sum(len(ask.chunks) for ask in drive.to(A)) * 64 * KIB == window


def test_a_near_peer_beside_another_starts_small() -> None:
    drive = Driver(4000)
    drive.join(A, rtt_s=0.001)
    drive.join(B, rtt_s=0.001)
    assert sum(len(ask.chunks) for ask in drive.to(B)) * 64 * KIB == FIRST_WINDOW_BYTES


def test_what_is_in_flight_is_bounded_whatever_the_peers_deliver() -> None:
    drive = Driver(4000)
    peers = [node(number) for number in range(1, 9)]
    for peer in peers:
        drive.join(peer, rtt_s=0.001)
    for number in range(1, 300):
        if number in drive.asks:
            drive.now += 1e-5
            drive.answer(drive.asks[number])
        assert drive.swarm.bytes_in_flight < MAX_IN_FLIGHT_BYTES + 4 * MIB


def test_tiny_chunks_make_asks_of_bounded_length() -> None:
    drive = Driver(10_000, length=1)
    drive.join(A)
    assert max(len(ask.chunks) for ask in drive.to(A)) == MAX_ASK_CHUNKS


def test_nothing_wanted_is_done_at_once() -> None:
    drive = Driver(0)
    assert drive.swarm.done
    assert drive.feed(Tick()) == [Done()]
    assert drive.feed(Tick()) == []
    assert drive.swarm.wake_at is None


def test_the_rarest_chunks_are_asked_first() -> None:
    drive = Driver(100)
    drive.join(B, chunks(range(80)))
    drive.join(A)
    assert set(drive.to(A)[0].chunks) <= chunks(range(80, 100))


def test_a_chunk_that_a_peer_lacks_is_asked_of_another() -> None:
    drive = Driver(2)
    drive.join(A)
    drive.join(B)
    (lacking,), (first,) = drive.to(A), drive.to(B)
    drive.feed(Finished(A, lacking.ask))
    drive.answer(first)
    assert drive.to(B)[1].chunks == lacking.chunks
    assert len(drive.to(A)) == 1


def test_what_nobody_has_is_told_once_until_somebody_joins() -> None:
    drive = Driver(2)
    drive.join(A, chunks([0]))
    (ask,) = drive.to(A)
    assert drive.answer(ask) == [Stuck(64 * KIB)]
    assert drive.feed(Tick()) == []
    drive.join(B, chunks([0]))
    assert drive.to(B) == []
    assert only(Ask, drive.join(C, chunks([1])))
    assert drive.answer(drive.to(C)[0]) == [Done()]


def test_it_is_not_stuck_while_a_holder_is_dialled() -> None:
    drive = Driver(1)
    assert drive.feed(Expected(A)) == []
    assert drive.feed(Left(A)) == [Stuck(64 * KIB)]


def test_a_peer_that_denies_what_it_claims_is_asked_for_more_at_once() -> None:
    drive = Driver(1000)
    drive.join(A)
    number = 0
    while number < len(drive.asks):
        number += 1
        last = drive.feed(Finished(A, number))
    assert number < 60
    assert last == [Stuck(1000 * 64 * KIB)]
    drive.join(A)
    assert drive.to(A)[-1].ask > number, "it may say so again, and then it is believed"


def test_a_liar_is_barred_and_its_chunks_are_fetched_elsewhere() -> None:
    drive = Driver(6)
    drive.join(A)
    drive.join(B)
    first = drive.to(A)[0]
    drive.answer(first)
    outputs = drive.feed(Corrupt(A))
    assert only(Drop, outputs) == [Drop(A, "sent corrupt data", retry=False)]
    assert drive.join(A) == []
    for number in range(1, 20):
        ask = drive.asks.get(number)
        if ask is not None and ask.peer == B:
            drive.now += 0.02
            drive.answer(ask)
    assert drive.swarm.done
    assert drive.swarm.accepted[A] == len(first.chunks) * 64 * KIB


def test_a_silent_peer_costs_one_deadline_and_may_come_back() -> None:
    drive = Driver(3)
    drive.join(A)
    assert only(Drop, drive.wait(UNMEASURED_DEADLINE_S - 0.1)) == []
    (dropped,) = only(Drop, drive.wait(0.2))
    assert isinstance(dropped, Drop)
    assert dropped.retry
    drive.join(A)
    assert len(drive.to(A)) > 1


def test_a_trickle_keeps_a_slow_peer() -> None:
    drive = Driver(3)
    drive.join(A)
    for _ in range(60):
        assert only(Drop, drive.wait(1.0)) == []
        drive.feed(Heard(A))


def test_a_measured_peer_is_given_up_sooner() -> None:
    drive = Driver(1000)
    drive.join(A)
    for ask in list(drive.asks.values()):
        drive.now += 0.01
        drive.answer(ask)
    assert only(Drop, drive.wait(MIN_DEADLINE_S - 0.1)) == []
    assert only(Drop, drive.wait(0.2))


def test_what_a_peer_took_with_it_goes_to_others_and_late_data_counts() -> None:
    drive = Driver(8)
    drive.join(A)
    ask = drive.to(A)[0]
    drive.feed(Left(A))
    drive.join(B)
    drive.answer(ask)
    assert drive.swarm.accepted[A] == len(ask.chunks) * 64 * KIB
    assert drive.swarm.bytes_left == (8 - len(ask.chunks)) * 64 * KIB


def hedged() -> tuple[Driver, Ask]:
    """A is fast and done; B was asked at the start and says nothing. The ask of A that doubles one of B."""
    drive = Driver(200)
    drive.join(A, rtt_s=0.002)
    drive.join(B, rtt_s=0.002)
    slow = {name for ask in drive.to(B) for name in ask.chunks}
    number = 0
    while number < len(drive.asks):
        number += 1
        if drive.asks[number].peer == A:
            if slow & set(drive.asks[number].chunks):
                return drive, drive.asks[number]
            drive.now += 0.003
            drive.answer(drive.asks[number])
        if number == len(drive.asks):
            drive.wait(0.1)
    raise AssertionError("nothing was doubled")


def test_a_slow_ask_is_doubled_at_the_end_and_the_loser_cancelled() -> None:
    drive, hedge = hedged()
    assert drive.swarm.table.idle_bytes == 0
    outputs: list[Output] = []
    for number in range(hedge.ask, 500):
        if number in drive.asks:
            drive.now += 0.003
            outputs += drive.answer(drive.asks[number])
        elif not drive.swarm.done:
            outputs += drive.wait(0.1)
    assert {output.ask for output in outputs if isinstance(output, Cancel)} == {ask.ask for ask in drive.to(B)}
    assert outputs[-1] == Done()
    assert drive.swarm.duplicates == 0
    assert drive.swarm.accepted == {A: 200 * 64 * KIB}


def test_a_double_that_comes_twice_is_counted() -> None:
    drive, hedge = hedged()
    slow = next(ask for ask in drive.to(B) if set(ask.chunks) & set(hedge.chunks))
    twice = set(slow.chunks) & set(hedge.chunks)
    drive.answer(hedge)
    drive.answer(slow, of=twice)
    assert drive.swarm.duplicates == len(twice) * 64 * KIB
    assert drive.swarm.accepted.get(B, 0) == 0


def test_a_double_goes_on_when_the_original_dies() -> None:
    drive, hedge = hedged()
    drive.feed(Left(B))
    again = [name for ask in drive.asks.values() if ask.ask > hedge.ask for name in ask.chunks]
    assert again
    assert not set(again) & set(hedge.chunks), "that is being fetched already"


def test_a_part_is_kept_for_a_holder_that_still_shakes_hands_but_not_for_long() -> None:
    drive = Driver(400)
    drive.feed(Expected(A, 0.001))
    drive.feed(Expected(B, 0.001))
    drive.join(A, rtt_s=0.001)
    number = 0
    while number + 1 in drive.asks:
        number += 1
        drive.now += 1e-4
        drive.answer(drive.asks[number])
    kept = drive.swarm.bytes_left / (400 * 64 * KIB)
    assert kept == pytest.approx(0.25, abs=0.01)
    assert only(Ask, drive.wait(0.3)), "B did not come"


def test_nothing_is_kept_for_the_far_the_slow_and_the_small() -> None:
    fast, far = PeerStats(0.001, 0.0), PeerStats(0.3, 0.0)
    start = FairStart(100 * MIB)
    start.join(A, 0.001, 0.0)
    start.join(B, 0.3, 0.0)
    peers = {A: fast, B: far}
    assert start.kept_from(A, [A, B], peers, 1.0, 0.0) == 0
    assert start.kept_from(B, [A, B], peers, 1.0, 0.0) == 25 * MIB
    far.asked(64 * KIB, 0.0)
    assert start.kept_for(B, peers, 0.001, 0.24) < MIB
    assert start.kept_for(B, peers, 1.0, 10.0) == 0
    small = FairStart(MIB)
    small.join(A, None, 0.0)
    assert small.kept_for(A, {A: fast}, 1.0, 0.0) == 0


def test_who_shakes_hands_much_longer_than_others_is_not_waited_for() -> None:
    start = FairStart(100 * MIB)
    start.expect(A, None, 0.0)
    start.expect(B, None, 0.0)
    start.join(A, None, 0.01)
    peers = {A: PeerStats(None, 0.0)}
    assert start.kept_from(A, [A], peers, 1.0, 0.12) == 25 * MIB
    assert start.kept_from(A, [A], peers, 1.0, 0.15) == 0
    start.leave(B)
    assert start.expecting == 0
    assert start.kept_from(A, [A], peers, 1.0, 0.02) == 0


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 1 << 32))
def test_whatever_happens_the_books_balance_and_no_chunk_is_lost(data: st.DataObject, seed: int) -> None:
    drive = Driver(data.draw(st.integers(1, 60)), length=40 * KIB, seed=seed)
    peers = [A, B, C]
    open_asks: dict[int, set[ChunkId]] = {}
    present: set[NodeId] = set()

    def note(outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Ask(ask, peer, names):
                    assert peer in present
                    open_asks[ask] = set(names)
                case Cancel(ask):
                    open_asks.pop(ask, None)
                case Drop(peer):
                    gone(peer)
                case _:
                    pass

    def gone(peer: NodeId) -> None:
        present.discard(peer)
        for number in [number for number in open_asks if drive.asks[number].peer == peer]:
            del open_asks[number]

    for _ in range(data.draw(st.integers(1, 60))):
        what = data.draw(st.sampled_from(["join", "leave", "some", "all", "finish", "corrupt", "wait", "expect"]))
        peer = data.draw(st.sampled_from(peers))
        if what == "join":
            present.add(peer)
            have = data.draw(st.none() | st.sets(st.sampled_from(sorted(drive.wants))))
            barred = peer in drive.swarm._barred
            note(drive.join(peer, have))
            if barred:
                gone(peer)
        elif what == "leave":
            gone(peer)
            note(drive.feed(Left(peer)))
        elif what == "corrupt":
            gone(peer)
            note(drive.feed(Corrupt(peer)))
        elif what == "expect":
            note(drive.feed(Expected(peer)))
        elif what == "wait":
            note(drive.wait(data.draw(st.floats(0, 12))))
        elif open_asks:
            number = data.draw(st.sampled_from(sorted(open_asks)))
            ask = drive.asks[number]
            if what == "finish":
                open_asks.pop(number)
                note(drive.feed(Finished(ask.peer, number)))
            else:
                names = open_asks[number]
                sent = (
                    names if what == "all" else data.draw(st.sets(st.sampled_from(sorted(names)))) if names else set()
                )
                open_asks[number] = names - sent
                note(drive.answer(ask, sent))
        missing = set(drive.swarm.missing())
        expected = sum(drive.wants[name] for names in open_asks.values() for name in names & missing)
        assert drive.swarm.bytes_in_flight == expected

    # Whatever state that left: one honest holder with everything ends it.
    honest = node(9)
    present.add(honest)
    note(drive.feed(Joined(honest, None, 0.001)))
    for peer in peers:
        gone(peer)
        note(drive.feed(Left(peer)))
    for _ in range(500):
        mine = [number for number in open_asks if drive.asks[number].peer == honest]
        if drive.swarm.done:
            break
        if mine:
            drive.now += 0.01
            open_asks.pop(mine[0])
            note(drive.answer(drive.asks[mine[0]]))
        else:
            note(drive.wait(0.3))
    assert drive.swarm.done
    assert sum(drive.swarm.accepted.values()) == sum(drive.wants.values())
