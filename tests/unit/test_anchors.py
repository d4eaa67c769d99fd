"""Which of the chunks that two files share are believed to tell where the rest lies."""

from hypothesis import given
from hypothesis import strategies as st

from chunkstore.delta.anchors import WORTH, Anchor, ascending, once, supported

KIB, MIB = 1 << 10, 1 << 20


def anchor(piece: int, chunk: int, start: int, old_start: int, length: int = 64 * KIB) -> Anchor:
    return Anchor(piece, chunk, start, old_start, length)


def test_of_repeated_values_none_is_once() -> None:
    assert once([7, -1, 3, 7, 5], 10) == {3: 12, 5: 14}


def test_the_longest_ascending_sequence() -> None:
    assert ascending([(0, 9), (1, 2), (2, 4), (3, 1), (4, 6)]) == [(1, 2), (2, 4), (4, 6)]


def test_a_few_bytes_elsewhere_do_not_pull_apart_what_faces_itself() -> None:
    framing = anchor(300, 140, 80 * MIB, 40 * MIB, length=18)
    before, behind = anchor(10, 10, 5 * MIB, 5 * MIB), anchor(500, 498, 160 * MIB, 160 * MIB)
    assert supported([before, framing, behind], 0) == [before, behind]


def test_the_same_few_bytes_are_believed_where_they_ask_for_nothing() -> None:
    framing = anchor(300, 300, 80 * MIB, 80 * MIB, length=18)
    assert supported([framing], 0) == [framing]


def test_a_file_that_grew_in_front_is_a_detour_of_nothing() -> None:
    small = anchor(300, 300, 80 * MIB, 60 * MIB, length=18)
    assert supported([small], -20 * MIB) == [small]


def test_neighbours_on_one_diagonal_count_together() -> None:
    moved = 20 * MIB
    one = moved * 2 // WORTH // 4
    run = [anchor(100 + at, 200 + at, 30 * MIB + at * one, 30 * MIB + moved + at * one, one) for at in range(5)]
    assert supported(run, 0) == run
    assert supported(run[:1], 0) == []


def test_a_few_bytes_do_not_hold_each_other_where_they_do_not_belong() -> None:
    """Two pieces of framing that moved together, with some bytes between them that changed their number."""
    false = [anchor(100, 300, 20 * MIB, 80 * MIB, 18), anchor(102, 303, 20 * MIB + 600, 80 * MIB + 608, 18)]
    assert supported(false, 0) == []


def test_what_leaned_on_a_dropped_one_is_dropped_too() -> None:
    false = [anchor(100, 150, 20 * MIB, 40 * MIB, 18), anchor(200, 250, 30 * MIB, 60 * MIB, 18)]
    assert supported(false, 0) == []


@st.composite
def chains(draw: st.DrawFn) -> list[Anchor]:
    found, piece, chunk, start, old_start = [], 0, 0, 0, 0
    for _ in range(draw(st.integers(0, 30))):
        gap, old_gap = draw(st.integers(0, 10 * MIB)), draw(st.integers(0, 10 * MIB))
        length = draw(st.sampled_from((18, 4 * KIB, 256 * KIB)))
        start, old_start = start + gap, old_start + old_gap
        found.append(Anchor(piece, chunk, start, old_start, length))
        piece, chunk, start, old_start = piece + 1, chunk + 1, start + length, old_start + length
    return found


@given(chains(), st.integers(-MIB, MIB))
def test_what_is_kept_is_in_order_and_was_there(chain: list[Anchor], end: int) -> None:
    kept = supported(chain, end)
    assert [one for one in chain if one in kept] == kept


@given(chains())
def test_what_lies_on_one_diagonal_is_kept_whole(chain: list[Anchor]) -> None:
    straight = [one._replace(old_start=one.start) for one in chain]
    assert supported(straight, 0) == straight
