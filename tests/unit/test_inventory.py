"""A node's record: what it carries, what is refused, and when a change is worth telling."""

from dataclasses import replace
from typing import Any

import pytest

from backends.config import MAX_ADDRESS_BYTES, MAX_ADDRESSES, is_address
from gossip import fields, inventory
from gossip.errors import Malformed
from gossip.inventory import AppRow, Holding, Inventory
from gossip.messages import NodeId
from gossip.signed import MAX_BODY_BYTES
from tests.support.ledgers import layer

NODE = NodeId("0" * 31 + "1")
APP = AppRow("ab" * 16, "face", "runc", "running", 3, layer(1), layer(2), ("10.0.0.7:80", "face.edge"))
RECORD = Inventory(
    node=NODE,
    version=5,
    layers={layer(1): Holding(10, 10, 1 << 20), layer(2): Holding(3, 40, 9 << 20)},
    free_bytes=1 << 33,
    load=0.5,
    labels={"cost": "3", "metered": ""},
    apps=(APP,),
    sketch=b"s" * 64,
)


def test_a_record_survives_the_wire() -> None:
    assert inventory.decode(NODE, 5, RECORD.encode()) == RECORD


def test_equal_inventories_have_equal_encodings() -> None:
    turned = replace(RECORD, layers=dict(list(RECORD.layers.items())[::-1]), labels={"metered": "", "cost": "3"})
    assert turned.encode() == RECORD.encode()


def test_fields_of_a_later_version_are_left_alone() -> None:
    document = fields.unpack(RECORD.encode(), MAX_BODY_BYTES)
    document["colour"] = "green"
    document["layers"][0].append("a new column")
    assert inventory.decode(NODE, 5, fields.pack(document)) == RECORD


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layers", None),
        ("layers", [[layer(1), 2, 1, 5]]),
        ("layers", [[layer(1)[:31], 1, 1, 5]]),
        ("layers", [[layer(1), 1, 1, -5]]),
        ("layers", [[layer(1), True, 1, 5]]),
        ("layers", [[layer(1), 1, 1]]),
        ("layers", [[layer(1), 1, 1, 5]] * (inventory.MAX_LAYERS + 1)),
        ("free", -1),
        ("free", 1 << 60),
        ("free", "much"),
        ("load", float("nan")),
        ("load", float("inf")),
        ("load", -0.1),
        ("labels", {"x": "\x1b[2J"}),
        ("labels", {1: "x"}),
        ("labels", {"": "x"}),
        ("labels", {str(n): "x" for n in range(inventory.MAX_LABELS + 1)}),
        ("apps", [["id"]]),
        ("apps", [["id", "name", "runc", "running", 1, layer(1), layer(2), ["x"] * 33]]),
        ("apps", [["id", "na\nme", "runc", "running", 1, layer(1), layer(2), []]]),
        ("sketch", b"s" * 2000),
        ("sketch", None),
    ],
)
def test_whatever_breaks_a_bound_is_refused(key: str, value: Any) -> None:
    document = fields.unpack(RECORD.encode(), MAX_BODY_BYTES)
    with pytest.raises(Malformed):
        inventory.decode(NODE, 5, fields.pack({**document, key: value}))


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x91", b"[]", b"\x90", b"\x91" * 5000, b"x" * (MAX_BODY_BYTES + 1)])
def test_what_is_no_record_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed):
        inventory.decode(NODE, 5, body)


def test_what_no_peer_would_take_is_left_out_and_the_rest_is_told() -> None:
    bad = replace(
        RECORD,
        layers={**RECORD.layers, layer(3): Holding(2, 1, 5)},
        free_bytes=1 << 60,
        load=1e9,
        labels={**RECORD.labels, "x" * 129: "long", "rack": "a\nb", "": "x"},
        apps=(APP, replace(APP, name="na\nme"), replace(APP, name="shop", addresses=("", "x" * 257, "10.0.0.8:80"))),
        sketch=b"s" * 2000,
    )
    told, left_out = inventory.tellable(bad)
    assert inventory.decode(NODE, 5, told.encode()) == told
    assert (told.layers, told.labels) == (RECORD.layers, RECORD.labels)
    assert told.apps == (APP, replace(APP, name="shop", addresses=("10.0.0.8:80",)))
    assert len(left_out) == 7
    assert "label 'rack'" in left_out
    assert "address '' of app 'shop'" in left_out


def test_a_sound_inventory_is_told_as_it_is() -> None:
    assert inventory.tellable(RECORD) == (RECORD, {})


def test_too_many_labels_and_addresses_are_cut() -> None:
    labels = {f"l{n}": "x" for n in range(inventory.MAX_LABELS + 2)}
    addresses = tuple(f"10.0.0.{n}" for n in range(inventory.MAX_ADDRESSES + 2))
    told, left_out = inventory.tellable(replace(RECORD, labels=labels, apps=(replace(APP, addresses=addresses),)))
    assert inventory.decode(NODE, 5, told.encode()) == told
    assert len(told.labels) == inventory.MAX_LABELS
    assert told.apps[0].addresses == addresses[: inventory.MAX_ADDRESSES]
    assert len(left_out) == 3


def test_an_inventory_takes_every_address_that_a_configuration_may_have() -> None:
    longest = "é" * (MAX_ADDRESS_BYTES // 2)
    assert is_address(longest)
    told = replace(RECORD, apps=(replace(APP, addresses=(longest,) * MAX_ADDRESSES),))
    assert inventory.tellable(told) == (told, {})
    assert inventory.decode(NODE, 5, told.encode()) == told


def test_a_node_with_too_much_tells_what_is_whole_and_large_first() -> None:
    layers = {layer(n): Holding(1 if n % 2 else 0, 1, n) for n in range(2 * inventory.MAX_LAYERS)}
    cut = inventory.fitting(replace(RECORD, layers=layers))
    assert len(cut.encode()) <= MAX_BODY_BYTES
    assert inventory.decode(NODE, 5, cut.encode()) == cut
    assert all(held.whole for held in cut.layers.values())
    assert layer(2 * inventory.MAX_LAYERS - 1) in cut.layers


def test_a_node_with_too_many_applications_tells_some() -> None:
    apps = tuple(replace(APP, addresses=("a" * 250,) * 16, epoch=n) for n in range(600))
    cut = inventory.fitting(replace(RECORD, apps=apps))
    assert 0 < len(cut.apps) < 600
    assert inventory.decode(NODE, 5, cut.encode()) == cut


@pytest.mark.parametrize(
    ("changed", "worth"),
    [
        ({}, False),
        ({"free_bytes": RECORD.free_bytes - RECORD.free_bytes // 17}, False),
        ({"free_bytes": RECORD.free_bytes - RECORD.free_bytes // 15}, True),
        ({"load": 0.7}, False),
        ({"load": 0.75}, True),
        ({"labels": {}}, True),
        ({"apps": ()}, True),
        ({"apps": (replace(APP, state="migrating"),)}, True),
        ({"layers": {}}, True),
        ({"layers": {**RECORD.layers, layer(2): Holding(12, 40, 9 << 20)}}, False),
        ({"layers": {**RECORD.layers, layer(2): Holding(13, 40, 9 << 20)}}, True),
        ({"layers": {**RECORD.layers, layer(1): Holding(9, 10, 1 << 20)}}, True),
        ({"layers": {**RECORD.layers, layer(2): Holding(3, 40, 8 << 20)}}, True),
    ],
)
def test_small_wandering_is_not_worth_telling(changed: dict[str, Any], worth: bool) -> None:
    assert inventory.worth_telling(RECORD, replace(RECORD, **changed)) is worth


def test_the_first_record_is_worth_telling() -> None:
    assert inventory.worth_telling(None, RECORD)
