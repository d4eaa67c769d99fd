"""The rules of membership: what moves a row, what does not, and who may say so."""

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.broadcast import BroadcastQueue
from gossip.config import LAN, GossipConfig
from gossip.coordinates import DIMENSIONS, Coordinate
from gossip.distances import Distances
from gossip.errors import Forged, Full
from gossip.health import LocalHealth
from gossip.membership import Membership
from gossip.messages import Dead, MemberState, Suspect
from gossip.records import Record, decode_record
from gossip.simnet import pretend_verify
from gossip.suspicion import min_timeout_s
from gossip.table import MemberChanged, MemberForgotten, MemberTable
from gossip.wire import Message, decode
from tests.support.members import local_node, record

ME = local_node("me")
A, B, C, D = (local_node(name).id for name in "abcd")
ALIVE, SUSPECT, DEAD, LEFT = MemberState


class Desk:
    """A membership with the parts around it in reach."""

    def __init__(self, config: GossipConfig = LAN, incarnation: int = 1) -> None:
        self.queue = BroadcastQueue()
        self.health = LocalHealth(8)
        self.distances = Distances(ME.id, random.Random(0))
        self.table = MemberTable(config.max_members, self.distances)
        self.members = Membership(ME, config, pretend_verify, self.table, self.queue, self.health, incarnation)
        self.news()

    def hear(self, *said: Message, now: float = 0.0) -> None:
        for message in said:
            if isinstance(message, Record):
                self.members.hear_record(message, now)
            elif isinstance(message, Suspect):
                self.members.hear_suspect(message, now)
            elif isinstance(message, Dead):
                self.members.hear_dead(message, now)

    def state(self, name: str) -> MemberState | None:
        row = self.table.get(local_node(name).id)
        return None if row is None else row.state

    def news(self) -> list[Message]:
        """What waits to be told, which empties the queue."""
        return [message for data in self.queue.take(10**6, 1) for message in decode(data)]

    def changes(self) -> list[tuple[str, MemberState | None, MemberState]]:
        changes, self.table.changes[:] = list(self.table.changes), []
        return [
            (change.new.name, change.old.state if change.old else None, change.new.state)
            for change in changes
            if isinstance(change, MemberChanged)
        ]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def with_peers(*names: str, config: GossipConfig = LAN) -> Desk:
    desk = Desk(config)
    desk.hear(*(record(name) for name in names))
    desk.news()
    desk.changes()
    return desk


# Records


def test_a_record_makes_a_member_and_is_passed_on(desk: Desk) -> None:
    desk.hear(record("a"))
    assert desk.changes() == [("a", None, ALIVE)]
    assert desk.news() == [record("a")]
    assert A in desk.table.live


def test_the_same_record_again_is_no_news(desk: Desk) -> None:
    desk.hear(record("a"), record("a"))
    desk.changes(), desk.news()
    desk.hear(record("a"))
    assert desk.changes() == [] and desk.news() == []


def test_a_row_moves_only_forwards(desk: Desk) -> None:
    desk.hear(record("a", 5, host="new"), record("a", 4, host="old"))
    row = desk.table.get(A)
    assert row is not None and row.record.host == "new"


def test_a_new_address_comes_with_a_higher_incarnation(desk: Desk) -> None:
    desk.hear(record("a", 1, host="before"))
    desk.distances.observe(A, Coordinate((0.01,) * DIMENSIONS, 0.001, 0.2), 0.01)
    desk.changes()
    desk.hear(record("a", 2, host="after", boot=2))
    assert desk.changes() == [("a", ALIVE, ALIVE)]
    assert desk.distances.rtt_s(A) is None  # measured on another path
    desk.hear(record("a", 3, host="after", boot=2))
    assert desk.changes() == []  # only the incarnation: a refutation is no change
    desk.hear(record("a", 4, host="after", boot=3))
    assert desk.changes() == [("a", ALIVE, ALIVE)]  # another process


@pytest.mark.parametrize("known", [True, False])
def test_nobody_forges_a_record(desk: Desk, known: bool) -> None:
    if known:
        desk.hear(record("a"))
        desk.changes(), desk.news()
    blob = record("a", 2, left=True).blob
    forged = decode_record(blob[:-1] + bytes([blob[-1] ^ 1]))
    with pytest.raises(Forged):
        desk.hear(forged)
    assert desk.state("a") is (ALIVE if known else None)
    assert desk.news() == [] and desk.changes() == []


def test_a_leave_is_a_signed_word_and_final_for_old_news(desk: Desk) -> None:
    desk.hear(record("a"), record("a", 2, left=True))
    assert desk.state("a") is LEFT
    desk.hear(record("a", 1), Suspect(A, 2, B), Dead(A, 2, B))
    assert desk.state("a") is LEFT
    desk.hear(record("a", 3))
    assert desk.state("a") is ALIVE


def test_the_table_is_bounded_and_the_longest_gone_make_room() -> None:
    desk = Desk(dataclasses.replace(LAN, max_members=3))
    desk.hear(record("a"), record("b"), record("c"))
    with pytest.raises(Full):
        desk.hear(record("d"))
    desk.hear(Dead(B, 1, A), now=1.0)
    desk.hear(Dead(A, 1, C), now=2.0)
    desk.hear(record("d"), now=3.0)
    assert [desk.state(name) for name in "abcd"] == [DEAD, None, ALIVE, ALIVE]
    assert [change.member.name for change in desk.table.changes if isinstance(change, MemberForgotten)] == ["b"]


# Suspicion and death


def test_a_suspect_that_stays_silent_dies() -> None:
    desk = with_peers("a", "b", "c", "d")
    desk.hear(Suspect(A, 1, B), now=10.0)
    assert desk.changes() == [("a", ALIVE, SUSPECT)]
    assert desk.news() == [Suspect(A, 1, B)]
    longest_s = min_timeout_s(LAN.suspicion_multiplier, 5, LAN.probe_interval_s) * LAN.suspicion_max_multiplier
    assert desk.members.deadline == pytest.approx(10 + longest_s)
    desk.members.expire(10 + longest_s - 0.01)
    assert desk.state("a") is SUSPECT
    desk.members.expire(10 + longest_s)
    assert desk.changes() == [("a", SUSPECT, DEAD)]
    assert desk.news() == [Dead(A, 1, ME.id)]
    assert desk.members.deadline is None
    assert A in desk.table.gone and A not in desk.table.live


def test_independent_accusers_shorten_a_suspicion_and_are_passed_on() -> None:
    desk = with_peers("a", "b", "c", "d")
    desk.hear(Suspect(A, 1, B), Suspect(A, 1, B), now=0.0)
    assert desk.news() == [Suspect(A, 1, B)]
    desk.hear(Suspect(A, 1, C), Suspect(A, 1, D), now=0.0)
    assert set(desk.news()) == {Suspect(A, 1, C), Suspect(A, 1, D)}
    shortest_s = min_timeout_s(LAN.suspicion_multiplier, 5, LAN.probe_interval_s)
    assert desk.members.deadline == pytest.approx(shortest_s)


def test_in_a_mesh_of_two_nobody_can_confirm() -> None:
    desk = with_peers("a")
    desk.hear(Suspect(A, 1, ME.id))
    assert desk.members.deadline == pytest.approx(min_timeout_s(LAN.suspicion_multiplier, 2, LAN.probe_interval_s))


@pytest.mark.parametrize("claim", [Suspect(A, 1, B), Dead(A, 1, B)])
def test_a_refutation_ends_any_claim(claim: Message) -> None:
    desk = with_peers("a", "b")
    desk.hear(claim)
    desk.hear(record("a", 2), now=1.0)
    assert desk.state("a") is ALIVE
    assert desk.members.deadline is None
    desk.members.expire(1000.0)
    desk.hear(claim, now=1000.0)  # late news
    assert desk.state("a") is ALIVE


@pytest.mark.parametrize("incarnation", [1, 3, 10**9])
def test_only_the_present_incarnation_can_be_accused(desk: Desk, incarnation: int) -> None:
    desk.hear(record("a", 2))
    desk.changes(), desk.news()
    desk.hear(Suspect(A, incarnation, B), Dead(A, incarnation, B))
    assert desk.changes() == [] and desk.news() == []


def test_claims_about_strangers_are_ignored(desk: Desk) -> None:
    desk.hear(Suspect(A, 1, B), Dead(A, 1, B))
    assert desk.state("a") is None and desk.news() == []


def test_a_node_that_was_not_listening_gives_suspects_more_time() -> None:
    desk = with_peers("a")
    desk.hear(Suspect(A, 1, B), now=0.0)
    before = desk.members.deadline
    assert before is not None
    desk.members.postpone(5.0)
    assert desk.members.deadline == pytest.approx(before + 5.0)


# This node


@pytest.mark.parametrize("claim", [Suspect(ME.id, 1, A), Dead(ME.id, 1, A)])
def test_this_node_refutes_and_takes_the_hint(desk: Desk, claim: Message) -> None:
    desk.hear(claim)
    assert desk.members.record.incarnation == 2 and not desk.members.record.left
    assert desk.news() == [desk.members.record]
    assert desk.health.score == 1
    desk.hear(claim)  # refuted already: some have not heard of it
    assert desk.members.record.incarnation == 2
    assert desk.news() == [desk.members.record]
    assert desk.health.score == 1


@pytest.mark.parametrize("incarnation", [2, 10**9])
def test_nobody_can_push_this_nodes_incarnation_up(desk: Desk, incarnation: int) -> None:
    desk.hear(Suspect(ME.id, incarnation, A), Dead(ME.id, incarnation, A))
    assert desk.members.record.incarnation == 1
    assert desk.news() == []


@pytest.mark.parametrize("left", [True, False])
def test_a_restarted_node_goes_beyond_its_old_record(desk: Desk, left: bool) -> None:
    desk.hear(record("me", 7, boot=0, left=left))
    assert desk.members.record.incarnation == 8 and not desk.members.record.left
    assert desk.members.record.boot_id == ME.boot_id
    assert desk.news() == [desk.members.record]
    assert desk.health.score == 0  # no sign of trouble


def test_an_old_record_of_the_same_incarnation_is_refuted_too(desk: Desk) -> None:
    desk.hear(record("me", 1, boot=0))
    assert desk.members.record.incarnation == 2
    desk.hear(record("me", 1, boot=0), desk.members.record)
    assert desk.members.record.incarnation == 2


def test_twins_with_one_key_do_not_race_each_other(desk: Desk) -> None:
    for incarnation in range(2, 200, 2):
        desk.hear(record("me", incarnation, boot=99), now=0.001 * incarnation)
    assert desk.members.record.incarnation == 3


def test_a_forged_record_of_this_node_is_not_refuted(desk: Desk) -> None:
    blob = record("me", 9, boot=0).blob
    with pytest.raises(Forged):
        desk.hear(decode_record(blob[:-1] + bytes([blob[-1] ^ 1])))
    assert desk.members.record.incarnation == 1


def test_who_left_does_not_defend_itself(desk: Desk) -> None:
    desk.members.leave()
    left = desk.members.record
    assert left.left and left.incarnation == 2
    assert desk.news() == [left]
    desk.hear(Suspect(ME.id, 2, A), Dead(ME.id, 2, A), record("me", 7, boot=0))
    assert desk.members.record is left
    assert desk.members.me.state is LEFT


# Full exchanges


def test_a_death_by_hearsay_makes_suspect(desk: Desk) -> None:
    desk.hear(record("a"), record("b"))
    desk.members.hear_row(record("a"), DEAD, 5.0, B, 0.0)
    assert desk.state("a") is SUSPECT
    desk.members.hear_row(record("b", 2), SUSPECT, 0.0, A, 0.0)
    assert desk.state("b") is SUSPECT
    desk.members.hear_row(record("c"), SUSPECT, 0.0, A, 0.0)
    assert desk.state("c") is SUSPECT


def test_a_dead_stranger_is_remembered_silently(desk: Desk) -> None:
    desk.members.hear_row(record("a"), DEAD, 100.0, B, 1000.0)
    desk.members.hear_row(record("c", 2, left=True), LEFT, 100.0, B, 1000.0)
    assert (desk.state("a"), desk.state("c")) == (DEAD, LEFT)
    assert desk.news() == []
    row = desk.table.get(A)
    assert row is not None and row.since == 900.0
    desk.members.hear_row(record("d"), DEAD, LAN.remember_dead_s + 1, B, 1000.0)
    assert desk.state("d") is None


def test_what_a_newcomer_learns_is_not_passed_on(desk: Desk) -> None:
    desk.members.hear_row(record("a"), ALIVE, 0.0, B, 0.0, spread=False)
    assert desk.state("a") is ALIVE and desk.news() == []


def test_this_node_hears_in_an_exchange_that_it_is_dead(desk: Desk) -> None:
    desk.members.hear_row(desk.members.record, DEAD, 0.0, B, 0.0)
    assert desk.members.record.incarnation == 2
    desk.members.hear_row(record("me", 5, boot=0), DEAD, 0.0, B, 0.0)
    assert desk.members.record.incarnation == 6


# Memory


def test_a_restored_member_lives_at_the_first_sign_of_it(desk: Desk) -> None:
    for name in "abcd":
        desk.members.remember(record(name), 0.0, 0.0, unheard=True)
    assert {desk.state(name) for name in "abcd"} == {DEAD}
    desk.hear(record("a"))  # someone tells its record
    desk.members.vouch(B, record("b").boot_id, 1.0)  # it sends a packet
    desk.members.vouch(C, b"reborn!!", 1.0)  # another process: its new record will tell
    desk.hear(Dead(D, 1, A))
    desk.hear(record("d"))  # an old record, after a word of its death
    assert [desk.state(name) for name in "abcd"] == [ALIVE, ALIVE, DEAD, DEAD]
    desk.hear(record("c", 2), record("d", 2))
    assert [desk.state(name) for name in "cd"] == [ALIVE, ALIVE]


def test_a_member_that_is_dead_by_word_needs_a_new_record(desk: Desk) -> None:
    desk.hear(record("a"), Dead(A, 1, B))
    desk.members.vouch(A, record("a").boot_id, 1.0)
    desk.hear(record("a"))
    assert desk.state("a") is DEAD


def test_the_gone_are_forgotten_after_days(desk: Desk) -> None:
    desk.hear(record("a"), record("b"), record("c", 1, left=True), Dead(A, 1, B))
    desk.table.changes.clear()
    desk.members.forget_old(LAN.remember_left_s)
    assert len(desk.table) == 3
    desk.members.forget_old(LAN.remember_left_s + 1)
    assert desk.state("c") is None
    desk.members.forget_old(LAN.remember_dead_s + 1)
    assert (desk.state("a"), desk.state("b")) == (None, ALIVE)
    assert [change.member.name for change in desk.table.changes if isinstance(change, MemberForgotten)] == ["c", "a"]


def test_the_banned_are_gone_for_good(desk: Desk) -> None:
    desk.hear(record("a"), Suspect(A, 1, B))
    desk.members.ban(A)
    desk.members.ban(B)
    desk.hear(record("a", 9), record("b"))
    assert (desk.state("a"), desk.state("b")) == (None, None)
    assert desk.members.deadline is None
    assert desk.members.is_banned(A) and not desk.members.is_banned(C)


# Everything at once

names = st.sampled_from(["a", "b", "c", "me"])
incarnations = st.integers(1, 4)
anything = st.one_of(
    st.builds(
        lambda n, i, left, boot: record(n, i, left=left, boot=boot), names, incarnations, st.booleans(), incarnations
    ),
    st.builds(lambda n, i, by: Suspect(local_node(n).id, i, local_node(by).id), names, incarnations, names),
    st.builds(lambda n, i, by: Dead(local_node(n).id, i, local_node(by).id), names, incarnations, names),
)


@given(st.lists(st.tuples(anything, st.floats(0, 3)), max_size=30))
def test_whatever_is_heard_the_table_stays_sound(heard: list[tuple[Message, float]]) -> None:
    desk, now = Desk(), 0.0
    newest: dict[str, int] = {}
    for message, passed_s in heard:
        now += passed_s
        desk.hear(message, now=now)
        desk.members.expire(now)
        for row in desk.table:
            node = row.record.node
            assert row.record.incarnation >= newest.get(node, 0)
            newest[node] = row.record.incarnation
            assert (node in desk.table.live) == (row.state in (ALIVE, SUSPECT))
            assert (node in desk.table.gone) == (row.state is DEAD)
            assert row.record.left == (row.state is LEFT)
        suspects = {row.record.node for row in desk.table if row.state is SUSPECT}
        assert suspects == set(desk.members._suspicions)
        assert (desk.members.deadline is not None) == bool(suspects)
        assert ME.id not in {row.record.node for row in desk.table}
        assert desk.members.record.boot_id == ME.boot_id and not desk.members.record.left
