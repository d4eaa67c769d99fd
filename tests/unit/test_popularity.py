"""Counters decay, add up over nodes, and count nothing twice."""

from typing import Any

import pytest

from gossip import fields, popularity
from gossip.errors import Malformed
from gossip.messages import NodeId
from gossip.popularity import HALF_LIFE_S, Counters, Popularity, Tally
from gossip.signed import MAX_BODY_BYTES
from tests.support.ledgers import START_S as NOW
from tests.support.ledgers import layer

NODE = NodeId("1" * 32)
APP, BASE, OTHER = layer(1), layer(2), layer(3)


def tally() -> Tally:
    counted = Tally()
    counted.start("north", APP, BASE, NOW)
    counted.start("north", APP, BASE, NOW)
    counted.start("south", OTHER, BASE, NOW)
    counted.pull("north", BASE, NOW)
    counted.move("north", "south", NOW)
    return counted


def test_a_record_survives_the_wire() -> None:
    record = tally().counters(NODE, 7, NOW)
    assert record.starts == {("north", APP): 2.0, ("south", OTHER): 1.0}
    assert popularity.decode(NODE, 7, record.encode()) == record


def test_counts_lose_half_in_a_half_life() -> None:
    record = tally().counters(NODE, 1, NOW)
    view = Popularity([record], NOW + HALF_LIFE_S)
    assert view.starts("north") == pytest.approx({APP: 1.0})
    assert view.pulls("north") == pytest.approx({BASE: 0.5})
    assert view.moves("north") == pytest.approx({"south": 0.5})


def test_it_does_not_matter_when_a_record_was_made() -> None:
    early, late = tally(), tally()
    record = late.counters(NODE, 1, NOW + 5 * HALF_LIFE_S / 7)
    later = NOW + HALF_LIFE_S
    expected = Popularity([early.counters(NODE, 1, NOW)], later)
    assert Popularity([record], later).starts("north") == pytest.approx(expected.starts("north"))


def test_nodes_add_up() -> None:
    other = Tally()
    other.start("north", APP, BASE, NOW)
    other.start("east", APP, BASE, NOW)
    view = Popularity([tally().counters(NODE, 1, NOW), other.counters(NodeId("2" * 32), 1, NOW)], NOW)
    assert view.starts("north") == {APP: 3.0}
    assert view.starts("nowhere") == {}
    assert view.sites() == ["east", "north", "south"]


def test_an_application_leads_to_the_base_that_it_last_ran_on() -> None:
    counted = tally()
    counted.start("north", APP, OTHER, NOW + 1)
    view = Popularity([counted.counters(NODE, 1, NOW + 1), tally().counters(NodeId("2" * 32), 1, NOW)], NOW + 1)
    assert view.bases() == {APP: OTHER, OTHER: BASE}


def test_a_move_within_a_site_is_none() -> None:
    counted = Tally()
    counted.move("north", "north", NOW)
    assert not counted.dirty
    assert counted.counters(NODE, 1, NOW).moves == {}


def test_what_has_faded_is_dropped() -> None:
    counted = tally()
    assert counted.counters(NODE, 1, NOW + 20 * HALF_LIFE_S) == Counters(NODE, 1, NOW + 20 * HALF_LIFE_S)


def test_only_the_strongest_counters_are_published() -> None:
    counted = Tally()
    for number in range(popularity.MAX_COUNTERS + 5):
        counted.start("north", layer(number), BASE, NOW)
    counted.start("north", layer(1), BASE, NOW)
    record = counted.counters(NODE, 1, NOW)
    assert len(record.starts) == popularity.MAX_COUNTERS
    assert record.starts["north", layer(1)] == 2.0
    assert popularity.decode(NODE, 1, record.encode()) == record


def test_what_does_not_fit_into_a_record_is_cut_weakest_first() -> None:
    counted, sites = Tally(), [f"{n:03}".ljust(64, "x") for n in range(popularity.MAX_COUNTERS)]
    for number, site in enumerate(sites):
        counted.start(site, layer(number), BASE, NOW)
        counted.pull(site, layer(number), NOW)
        counted.move(site, sites[number - 1], NOW)
    counted.start(sites[7], layer(7), BASE, NOW)
    counted.move(sites[9], sites[8], NOW)
    whole = counted.counters(NODE, 1, NOW)
    assert len(whole.encode()) > MAX_BODY_BYTES
    cut = popularity.fitting(whole)
    assert MAX_BODY_BYTES - 200 < len(cut.encode()) <= MAX_BODY_BYTES
    assert popularity.decode(NODE, 1, cut.encode()) == cut
    assert cut.starts[sites[7], layer(7)] == cut.moves[sites[9], sites[8]] == 2.0
    assert popularity.fitting(cut) == cut


def test_a_clock_that_goes_back_makes_nothing_grow() -> None:
    counted = tally()
    counted.start("north", APP, BASE, NOW - 100 * HALF_LIFE_S)
    record = counted.counters(NODE, 1, NOW - HALF_LIFE_S)
    assert record.starts["north", APP] == 3.0
    assert Popularity([record], NOW - HALF_LIFE_S).starts("north") == {APP: 3.0}


def test_a_node_goes_on_from_what_it_published_before() -> None:
    before = tally().counters(NODE, 1, NOW)
    counted = Tally()
    counted.start("north", APP, OTHER, NOW + HALF_LIFE_S)
    counted.start("north", APP, OTHER, NOW + HALF_LIFE_S)
    counted.adopt(before)
    record = counted.counters(NODE, 2, NOW + HALF_LIFE_S)
    assert record.starts == pytest.approx({("north", APP): 2.0, ("south", OTHER): 0.5})
    assert record.bases == {APP: OTHER, OTHER: BASE}


@pytest.mark.parametrize(
    "count",
    [
        lambda tally: tally.start("nor\nth", APP, BASE, NOW),
        lambda tally: tally.start("north", b"short", BASE, NOW),
        lambda tally: tally.pull("n" * 65, APP, NOW),
        lambda tally: tally.move("north", "\x1b", NOW),
    ],
)
def test_nothing_is_counted_that_could_not_be_published(count: Any) -> None:
    counted = Tally()
    with pytest.raises(Malformed):
        count(counted)
    assert counted.counters(NODE, 1, NOW) == Counters(NODE, 1, NOW)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stamp", None),
        ("stamp", float("nan")),
        ("stamp", -1.0),
        ("starts", [["north", APP, BASE, float("inf")]]),
        ("starts", [["north", APP, BASE, 1e10]]),
        ("starts", [["north", APP, BASE, -1.0]]),
        ("starts", [["north", APP, b"", 1.0]]),
        ("starts", [["no\nrth", APP, BASE, 1.0]]),
        ("starts", {}),
        ("pulls", [["north", APP]]),
        ("pulls", [["north", APP, 1.0]] * (popularity.MAX_COUNTERS + 1)),
        ("moves", [["north", b"south", 1.0]]),
        ("moves", [["north", "s" * 65, 1.0]]),
    ],
)
def test_whatever_breaks_a_bound_is_refused(key: str, value: Any) -> None:
    document = fields.unpack(tally().counters(NODE, 1, NOW).encode(), MAX_BODY_BYTES)
    with pytest.raises(Malformed):
        popularity.decode(NODE, 1, fields.pack({**document, key: value}))
