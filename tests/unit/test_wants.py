"""The table of wants against a naive model, and the choices it makes."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkstore.digest import ChunkId
from p2player.proto.wants import ASKED, DONE, IDLE, WantTable
from tests.support.swarmnet import node

A, B, C = node(1), node(2), node(3)


class FirstPlace(Random):
    """Starts every table at its first position."""

    def randrange(self, *args: int) -> int:  # type: ignore[override]
        return 0


def chunk(number: int) -> ChunkId:
    return ChunkId(number.to_bytes(32, "big"))


def table(count: int, length: int = 10, *, starts: bytes | None = None) -> WantTable:
    return WantTable({chunk(number): length for number in range(count)}, FirstPlace(), starts)


def test_neighbours_are_taken_together_and_at_least_one() -> None:
    wants = table(10)
    wants.add_holder(A, None)
    (mask,) = wants.rarest(A)
    assert wants.take(mask, 35, 100) == [0, 1, 2]
    assert wants.take(mask, 1, 100) == [3]
    assert wants.take(mask, 1000, 2) == [4, 5]
    assert wants.idle_bytes == 40
    assert wants.state(3) == ASKED


def test_nothing_is_to_be_taken_by_a_stranger() -> None:
    wants = table(3)
    wants.add_holder(A, None)
    assert wants.rarest(B) == []
    assert not wants.holds(B, 0)
    assert wants.sharers(wants.rarest(A)[0]) == [A]


def test_the_rarest_chunks_come_first() -> None:
    wants = table(6)
    wants.add_holder(A, None)
    wants.add_holder(B, wants.marks({chunk(0), chunk(1), chunk(2), chunk(3)}))
    wants.add_holder(C, wants.marks({chunk(0), chunk(1)}))
    taken = [wants.take(mask, 1000, 100) for mask in wants.rarest(A)]
    assert taken == [[4, 5], [2, 3], [0, 1]]


def test_what_is_put_back_comes_first_again() -> None:
    wants = table(6)
    wants.add_holder(A, None)
    (mask,) = wants.rarest(A)
    taken = wants.take(mask, 30, 100)
    wants.finish(1)
    wants.put_back(taken)
    assert wants.take(mask, 30, 100) == [0, 2, 3]


def test_a_denied_chunk_goes_to_others_until_it_is_claimed_again() -> None:
    wants = table(2)
    wants.add_holder(A, None)
    wants.add_holder(B, None)
    (mask,) = wants.rarest(A)
    taken = wants.take(mask, 100, 100)
    wants.deny(A, [0])
    wants.put_back(taken)
    assert [wants.take(mask, 100, 100) for mask in wants.rarest(A)] == [[1]]
    assert not wants.holds(A, 0)
    wants.add_holder(A, None)
    assert wants.holds(A, 0)


def test_chunks_of_a_holder_that_left_are_orphans() -> None:
    wants = table(2)
    wants.add_holder(A, None)
    wants.add_holder(B, wants.marks({chunk(1)}))
    wants.remove_holder(A)
    assert [wants.take(mask, 100, 100) for mask in wants.rarest(B)] == [[1]]
    assert wants.orphaned
    assert list(wants.missing()) == [chunk(0), chunk(1)]


def test_an_ask_ends_where_a_stored_group_ends() -> None:
    wants = table(12, starts=bytes([1, 0, 0, 0] * 3))
    wants.add_holder(A, None)
    (mask,) = wants.rarest(A)
    assert wants.take(mask, 60, 100) == [0, 1, 2, 3]
    assert wants.take(mask, 30, 100) == [4, 5, 6], "ending before the group would leave nothing"
    assert wants.take(mask, 100, 100) == [7, 8, 9, 10, 11]


def test_marks_must_fit() -> None:
    with pytest.raises(ValueError, match="2 marks for 3 wants"):
        table(3).add_holder(A, b"\1\1")


def test_transfers_start_in_different_places() -> None:
    def first(seed: int) -> int:
        wants = WantTable({chunk(number): 10 for number in range(1000)}, Random(seed))
        wants.add_holder(A, None)
        return wants.take(wants.rarest(A)[0], 10, 1)[0]

    assert len({first(seed) for seed in range(10)}) > 5


def test_pullers_take_parts_of_their_own_of_what_only_whole_copies_have() -> None:
    first = []
    for number in range(4):
        wants = table(40, starts=bytes([1, 0, 0, 0] * 10))
        wants.add_holder(A, None)
        wants.divide(number, 4)
        first.append(wants.take(wants.rarest(A)[0], 40, 100)[0])
    assert first == [0, 8, 20, 28], "parts begin where stored groups do"


def test_who_is_done_with_its_part_helps_behind_the_front_of_another() -> None:
    wants = table(40)
    wants.add_holder(A, None)
    wants.divide(0, 4)
    (mask,) = wants.rarest(A)
    assert wants.take(mask, 100, 100) == list(range(10))
    (helped,) = {position // 10 for position in wants.take(mask, 10, 100)}
    assert helped >= 1
    left = [wants.take(mask, 10, 1)[0] for _ in range(29)]
    assert wants.idle_bytes == 0
    assert len(set(left)) == 29


def test_what_pullers_have_is_taken_in_order_from_the_own_part_on() -> None:
    wants = table(40)
    wants.add_holder(A, None)
    wants.add_holder(B, wants.marks({chunk(number) for number in (*range(5), *range(30, 40))}))
    wants.divide(1, 2)
    _, shared = wants.rarest(A)
    assert wants.take(shared, 100, 100) == list(range(30, 40))
    assert wants.take(shared, 100, 100) == list(range(5))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(0, 1 << 32))
def test_the_table_agrees_with_a_naive_model(data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, 24))
    lengths = {chunk(number): number % 5 + 1 for number in range(count)}
    starts = data.draw(st.none() | st.binary(min_size=count, max_size=count).map(lambda raw: bytes(b & 1 for b in raw)))
    wants = WantTable(lengths, Random(seed), starts)
    states = [IDLE] * count
    have: dict[bytes, set[int]] = {}
    for _ in range(data.draw(st.integers(1, 30))):
        what = data.draw(st.sampled_from(["join", "leave", "take", "back", "finish", "deny", "divide"]))
        peer = data.draw(st.sampled_from([A, B, C]))
        key = peer.encode()
        if what == "join":
            held = data.draw(st.none() | st.sets(st.integers(0, count - 1)))
            wants.add_holder(peer, None if held is None else wants.marks({chunk(number) for number in held}))
            have[key] = set(range(count)) if held is None else set(held)
        elif what == "leave":
            wants.remove_holder(peer)
            have.pop(key, None)
        elif what == "take":
            masks = wants.rarest(peer)
            if masks:
                taken = wants.take(masks[0], data.draw(st.integers(1, 30)), 8)
                assert taken
                assert len(taken) <= 8
                for position in taken:
                    assert states[position] == IDLE
                    assert position in have[key]
                    states[position] = ASKED
        elif what == "divide":
            of = data.draw(st.integers(1, 4))
            wants.divide(data.draw(st.integers(0, of - 1)), of)
        elif what == "back":
            asked = [position for position, state in enumerate(states) if state == ASKED]
            back = data.draw(st.lists(st.sampled_from(asked), unique=True)) if asked else []
            wants.put_back(back)
            for position in back:
                states[position] = IDLE
        elif what == "finish":
            position = data.draw(st.integers(0, count - 1))
            assert wants.finish(position) == (states[position] != DONE)
            states[position] = DONE
        else:
            asked = [position for position, state in enumerate(states) if state == ASKED]
            wants.deny(peer, asked)
            have[key] = have.get(key, set()) - set(asked) if key in have else set()
            if not have[key] and not wants.rarest(peer):
                have.pop(key)
                wants.remove_holder(peer)
        idle = {position for position, state in enumerate(states) if state == IDLE}
        assert wants.idle_bytes == sum(wants.lengths[position] for position in idle)
        assert wants.left == sum(state != DONE for state in states)
        assert wants.orphaned == (not any(idle & held for held in have.values()))
        for other in (A, B, C):
            mine = idle & have.get(other.encode(), set())
            assert bool(wants.rarest(other)) == bool(mine)
            assert {position for position in range(count) if wants.holds(other, position)} == have.get(
                other.encode(), set()
            )
