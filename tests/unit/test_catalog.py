"""Who may bind a name, which of two entries is right, and what a name or an id finds."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from gossip import catalog, fields
from gossip.catalog import BadName, Catalog, CatalogEntry, NameTaken, Past
from gossip.errors import Malformed
from gossip.messages import NodeId
from gossip.sketch import sketch
from tests.support.ledgers import DAY_S, START_S, layer

LOW, HIGH = NodeId("1" * 32), NodeId("f" * 32)
WANTED = CatalogEntry("face", 1, LOW, layer(1), "app", 1000, 10, stamp_ms=int(START_S * 1000))
LATER = replace(WANTED, layer=layer(2))
ELSEWHERE = replace(WANTED, owner=HIGH, layer=layer(3))


def first() -> CatalogEntry:
    return catalog.bound(None, WANTED, takeover=False)


def test_an_entry_survives_the_wire() -> None:
    entry = replace(catalog.bound(first(), ELSEWHERE, takeover=True), sketch=b"x" * 64, deleted=True)
    assert catalog.decode(HIGH, entry.version, entry.encode()) == entry


def test_adding_a_name_again_on_its_owner_makes_the_next_version() -> None:
    entry = catalog.bound(first(), LATER, takeover=False)
    assert (entry.version, entry.layer, entry.taken_from) == (2, layer(2), None)
    assert entry.previous == (Past(1, layer(1)),)


def test_adding_the_same_again_changes_nothing() -> None:
    entry = first()
    assert catalog.bound(entry, replace(WANTED, stamp_ms=1), takeover=False) is entry


def test_another_node_is_refused_and_told_whose_the_name_is() -> None:
    with pytest.raises(NameTaken, match="face") as caught:
        catalog.bound(first(), ELSEWHERE, takeover=False)
    assert (caught.value.name, caught.value.owner) == ("face", LOW)


def test_a_takeover_makes_the_next_version_and_is_on_record() -> None:
    entry = catalog.bound(first(), ELSEWHERE, takeover=True)
    assert (entry.version, entry.owner, entry.taken_from) == (2, HIGH, LOW)
    with pytest.raises(NameTaken):
        catalog.bound(entry, LATER, takeover=False)


def test_a_takeover_of_a_name_of_ones_own_is_a_plain_version() -> None:
    assert catalog.bound(first(), LATER, takeover=True).taken_from is None


def test_a_freed_name_may_be_taken_by_anybody_and_counts_on() -> None:
    freed = catalog.tombstone(first(), LOW, START_S)
    assert (freed.version, freed.deleted) == (2, True)
    entry = catalog.bound(freed, ELSEWHERE, takeover=False)
    assert (entry.version, entry.owner, entry.taken_from, entry.deleted) == (3, HIGH, None, False)


def test_binding_a_freed_name_to_the_same_layer_brings_it_back() -> None:
    freed = catalog.tombstone(first(), LOW, START_S)
    assert catalog.bound(freed, WANTED, takeover=False) == replace(WANTED, version=3)


def test_only_the_owner_frees_a_name() -> None:
    with pytest.raises(NameTaken):
        catalog.tombstone(first(), HIGH, START_S)


def test_tombstones_are_kept_for_some_days() -> None:
    freed = catalog.tombstone(first(), LOW, START_S)
    assert not catalog.expired(freed, START_S + 6 * DAY_S)
    assert catalog.expired(freed, START_S + 8 * DAY_S)
    assert not catalog.expired(first(), START_S + 800 * DAY_S)


def test_history_is_bounded_and_has_no_repeats() -> None:
    entry = first()
    for number in range(2, 30):
        entry = catalog.bound(entry, replace(WANTED, layer=layer(number % 3)), takeover=False)
    assert [past.layer for past in entry.previous] == [layer(1), layer(0)]
    for number in range(30, 60):
        entry = catalog.bound(entry, replace(WANTED, layer=layer(number)), takeover=False)
    assert len(entry.previous) == catalog.MAX_PREVIOUS
    assert entry.previous[0].layer == layer(58)


def test_the_higher_version_is_right_then_the_lower_node_then_the_later_clock() -> None:
    ordered = [
        replace(WANTED, owner=HIGH, stamp_ms=99),
        replace(WANTED, owner=LOW, stamp_ms=1),
        replace(WANTED, owner=LOW, stamp_ms=2),
        replace(WANTED, owner=HIGH, version=2, stamp_ms=0),
    ]
    assert all(lower.rank < higher.rank for lower, higher in pairwise(ordered))


@pytest.mark.parametrize("name", ["face", "edge/base:24.04", "größe", "deadbeef", "a", "x" * 128])
def test_names_that_can_be_typed_are_taken(name: str) -> None:
    assert catalog.check_name(name) == name


@pytest.mark.parametrize("name", ["", " ", "two words", "-x", "a\tb", "\x1b", "é" * 65, "ab" * 32, "\udcff"])
def test_names_that_cannot_be_typed_back_are_refused(name: str) -> None:
    with pytest.raises(BadName):
        catalog.check_name(name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None),
        ("name", "two words"),
        ("name", ["face"]),
        ("layer", b"short"),
        ("kind", "instance"),
        ("kind", None),
        ("kind", []),
        ("size", -1),
        ("chunks", 1.5),
        ("deleted", 0),
        ("stamp", None),
        ("from", "me"),
        ("from", ["x"]),
        ("previous", [[1]]),
        ("previous", [[1, layer(1)]] * 9),
        ("sketch", "text"),
    ],
)
def test_whatever_breaks_a_bound_is_refused(key: str, value: Any) -> None:
    document = fields.unpack(WANTED.encode(), 4096)
    with pytest.raises(Malformed):
        catalog.decode(LOW, 1, fields.pack({**document, key: value}))


def test_the_catalog_shows_what_exists() -> None:
    names = Catalog([catalog.tombstone(first(), LOW, START_S), replace(LATER, name="b"), replace(LATER, name="a")])
    assert list(names) == ["a", "b"]
    assert len(names) == 2
    assert "face" not in names


def test_a_name_goes_before_an_id() -> None:
    hidden = bytes.fromhex("deadbeef") + bytes(28)
    names = Catalog([replace(WANTED, name="deadbeef")])
    assert names.find("deadbeef", [hidden]) == [layer(1)]
    assert names.find("deadbeef00", [hidden]) == [hidden]


def test_an_id_is_found_by_a_prefix_of_eight_digits() -> None:
    names = Catalog([catalog.bound(first(), LATER, takeover=False)])
    for known in (layer(1), layer(2)):
        assert names.find(known.hex()[:8]) == [known]
        assert names.find(known.hex().upper()) == [known]
    assert names.find(layer(1).hex()[:7]) == []
    assert names.find(layer(1).hex() + "00") == []
    assert names.find("nobody") == []


def test_an_ambiguous_prefix_finds_all_candidates() -> None:
    one, other = bytes(4) + b"a" * 28, bytes(4) + b"b" * 28
    assert Catalog([]).find("00000000", [other, one]) == [one, other]


def test_older_versions_lead_to_the_newest() -> None:
    names = Catalog([catalog.bound(catalog.bound(first(), LATER, takeover=False), WANTED, takeover=False)])
    assert names.successors() == {layer(2): layer(1)}
    assert [entry.name for entry in names.of(layer(2))] == ["face"]
    assert names.of(layer(9)) == []


def test_relatives_are_other_versions_then_what_resembles() -> None:
    chunks = [layer(n) for n in range(500)]
    alike = replace(WANTED, name="alike", layer=layer(10), sketch=sketch(chunks[100:]))
    unlike = replace(WANTED, name="unlike", layer=layer(11), sketch=sketch(layer(n) for n in range(1000, 1500)))
    newest = replace(catalog.bound(first(), LATER, takeover=False), sketch=sketch(chunks))
    names = Catalog([alike, unlike, newest])
    assert names.relatives(layer(2)) == [layer(1), layer(10)]
    assert names.relatives(layer(1)) == [layer(2)]
    assert names.relatives(layer(99), sketch(chunks[:400])) == [layer(2), layer(10)]
