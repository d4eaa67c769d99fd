"""The piggyback queue: how often, in what order and in how much room news is told."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.broadcast import BroadcastQueue, retransmit_limit
from gossip.roster import Roster
from tests.support.members import local_node

NODES = [local_node(f"n{number}").id for number in range(8)]
A, B, C = NODES[:3]


def news(tag: str, size: int = 50) -> bytes:
    return tag.encode().ljust(size, b".")


@pytest.mark.parametrize(("members", "expected"), [(1, 4), (9, 4), (10, 8), (99, 8), (100, 12), (999, 12)])
def test_the_limit_grows_with_the_logarithm_of_the_mesh(members: int, expected: int) -> None:
    assert retransmit_limit(4, members) == expected


def test_each_piece_is_told_as_often_as_the_limit_says() -> None:
    queue = BroadcastQueue()
    queue.put(A, news("a"))
    told = [queue.take(1000, 3) for _ in range(5)]
    assert told == [[news("a")]] * 3 + [[], []]
    assert len(queue) == 0


def test_what_was_told_least_goes_first_then_the_newest() -> None:
    queue = BroadcastQueue()
    queue.put(A, news("a"))
    assert queue.take(60, 9) == [news("a")]
    queue.put(B, news("b"))
    queue.put(C, news("c"))
    assert queue.take(60, 9) == [news("c")]
    assert queue.take(60, 9) == [news("b")]
    assert queue.take(200, 9) == [news("b"), news("c"), news("a")]


def test_newer_news_of_a_node_replaces_the_older() -> None:
    queue = BroadcastQueue()
    queue.put(A, news("old"))
    queue.put(A, news("accused"), accuser=B)
    queue.put(A, news("new"))
    assert queue.take(1000, 1) == [news("new")]


def test_accusations_of_different_accusers_travel_side_by_side() -> None:
    queue = BroadcastQueue()
    queue.put(A, news("by b"), accuser=B)
    queue.put(A, news("by c"), accuser=C)
    queue.put(A, news("again by c"), accuser=C)
    assert set(queue.take(1000, 1)) == {news("by b"), news("again by c")}


def test_a_long_piece_lets_shorter_ones_by() -> None:
    queue = BroadcastQueue()
    queue.put(A, news("short"))
    queue.put(B, news("long", 500))
    assert queue.take(100, 9) == [news("short")]
    assert queue.take(500, 9) == [news("long", 500)]


def test_what_is_dropped_is_not_told() -> None:
    queue = BroadcastQueue()
    queue.put(A, news("a"), accuser=B)
    queue.put(B, news("b"))
    queue.drop(A)
    queue.drop(C)
    assert queue.take(1000, 1) == [news("b")]


operations = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(NODES), st.integers(43, 700), st.sampled_from([None, *NODES])),
    st.tuples(st.just("take"), st.integers(0, 1200), st.integers(1, 5)),
    st.tuples(st.just("drop"), st.sampled_from(NODES)),
)


@given(st.lists(operations, max_size=60))
def test_the_room_is_kept_and_nothing_is_told_too_often(done: list[tuple[object, ...]]) -> None:
    queue, told, serial = BroadcastQueue(), dict[bytes, int](), 0
    for operation in done:
        match operation:
            case ("put", node, int(size), accuser):
                serial += 1
                queue.put(node, news(f"{serial} ", size), accuser=accuser)  # type: ignore[arg-type]
            case ("take", int(room), int(limit)):
                taken = queue.take(room, limit)
                assert sum(map(len, taken)) <= room
                for message in taken:
                    told[message] = told.get(message, 0) + 1
            case ("drop", node):
                queue.drop(node)  # type: ignore[arg-type]
    assert all(times <= 5 for times in told.values())
    for _ in range(len(queue) * 5 + 1):
        queue.take(1200, 1)
    assert len(queue) == 0


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(NODES))))
def test_a_roster_is_a_set_that_can_be_drawn_from(done: list[tuple[bool, str]]) -> None:
    roster, expected, rng = Roster(), set[str](), random.Random(0)
    for add, node in done:
        if add:
            roster.add(node)  # type: ignore[arg-type]
            expected.add(node)
        else:
            roster.discard(node)  # type: ignore[arg-type]
            expected.discard(node)
        assert set(roster) == expected and len(roster) == len(expected)
        for count in (1, 3, 20):
            drawn = roster.draw(rng, count, but=A)
            assert len(drawn) == len(set(drawn)) == min(count, len(expected - {A}))
            assert set(drawn) <= expected - {A}
