"""Who is dialled, in which order, and how often again."""

from itertools import pairwise
from random import Random

from p2player.proto.roster import ATTEMPTS, MAX_SLOTS, PAUSE_S, HolderHint, Roster, slots_for
from tests.support.swarmnet import node

A, B, C = node(1), node(2), node(3)


def dialled(roster: Roster, now: float) -> list[str]:
    return [hint.node for hint in roster.due(now)]


def test_whole_copies_first_then_the_near_and_idle() -> None:
    roster = Roster(2, Random(1))
    roster.offer([HolderHint(A, 0.001, complete=False), HolderHint(B, 0.02), HolderHint(C, 0.02, load=1.0)])
    assert dialled(roster, 0.0) == [B, C]
    assert roster.wake_at(0.0) is None, "no slot is free"
    roster.ended(B, 1.0, useful=True)
    assert dialled(roster, 1.0) == [A]


def test_a_holder_that_fails_is_tried_again_with_growing_pauses_and_given_up() -> None:
    roster = Roster(1, Random(1))
    roster.offer([HolderHint(A)])
    now, pauses = 0.0, []
    for _ in range(ATTEMPTS):
        assert not roster.exhausted
        assert dialled(roster, now) == [A]
        roster.ended(A, now, useful=False)
        wake_at = roster.wake_at(now)
        if wake_at is not None:
            assert dialled(roster, (now + wake_at) / 2) == []
            pauses.append(wake_at - now)
            now = wake_at
    assert roster.exhausted
    assert dialled(roster, now + 1000) == []
    assert pauses[0] >= PAUSE_S
    assert all(later > 1.5 * earlier for earlier, later in pairwise(pauses))


def test_one_that_delivered_starts_afresh() -> None:
    roster = Roster(1, Random(1))
    roster.offer([HolderHint(A)])
    now = 0.0
    for _ in range(3 * ATTEMPTS):
        assert dialled(roster, now) == [A]
        roster.ended(A, now, useful=True)
        wake_at = roster.wake_at(now)
        assert wake_at is not None
        now = wake_at


def test_a_banned_holder_is_never_dialled_even_if_hinted_at_again() -> None:
    roster = Roster(1, Random(1))
    roster.offer([HolderHint(A)])
    roster.due(0.0)
    roster.ended(A, 0.0, useful=True, ban=True)
    roster.offer([])
    roster.offer([HolderHint(A)])
    assert roster.exhausted
    assert dialled(roster, 100.0) == []


def test_one_that_gossip_no_longer_names_is_not_dialled_again() -> None:
    roster = Roster(2, Random(1))
    roster.offer([HolderHint(A), HolderHint(B)])
    assert dialled(roster, 0.0) == [A, B]
    roster.ended(A, 0.0, useful=False)
    roster.offer([])
    assert roster.exhausted
    assert roster.known, "B is in session"
    assert roster.busy == 1


def test_a_handshake_must_pay() -> None:
    assert slots_for(0) == 2
    assert slots_for(3 << 20) == 5
    assert slots_for(1 << 40) == MAX_SLOTS
