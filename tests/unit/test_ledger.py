"""The ledger: own statements, anti-entropy, what is refused, restarts, forgetting."""

from typing import Any

import pytest

from gossip import fields, ledger, replica
from gossip.catalog import SKEW_S, TOMBSTONE_S, BadName, CatalogEntry, NameTaken
from gossip.errors import Full, Malformed
from gossip.inventory import Holding
from gossip.ledger import FLOOR_S, Ledger
from gossip.messages import NodeId, node_id
from gossip.replica import Changes
from gossip.signed import MAX_BODY_BYTES, Table
from tests.support import ledgers
from tests.support.ledgers import START_S as NOW
from tests.support.ledgers import exchange, key, layer


def publish(book: Ledger, now: float = NOW, *held: int, load: float = 0.0) -> bool:
    layers = {layer(number): Holding(4, 4, 1000) for number in held}
    return book.publish_inventory(layers=layers, free_bytes=1 << 30, load=load, labels={}, apps=(), now=now)


def bind(book: Ledger, name: str, number: int, *, takeover: bool = False, now: float = NOW) -> int:
    return book.bind(name, layer(number), kind="app", size=1000, chunks=4, takeover=takeover, now=now).version


def pair() -> tuple[Ledger, Ledger]:
    return ledgers.ledger(1), ledgers.ledger(2)


def assert_equal(one: Ledger, other: Ledger) -> None:
    assert one.digest() == other.digest()
    assert one.names() == other.names()
    assert one.inventories() == other.inventories()
    for site in one.popularity(now=NOW).sites():
        assert one.popularity(now=NOW).starts(site) == pytest.approx(other.popularity(now=NOW).starts(site))


def test_two_nodes_know_the_same_after_one_exchange() -> None:
    one, other = pair()
    publish(one, NOW, 1, 2)
    publish(other, NOW, 3)
    bind(one, "face", 1)
    bind(other, "base", 3)
    one.count_start("north", layer(1), layer(3), now=NOW)
    one.publish_popularity(now=NOW)
    assert exchange(one, other) == 4
    assert_equal(one, other)
    assert set(one.inventories()) == {one.node, other.node}
    assert list(other.catalog()) == ["base", "face"]
    assert other.popularity(now=NOW).starts("north") == {layer(1): 1.0}


def test_equal_ledgers_say_so_in_a_few_bytes() -> None:
    one, other = pair()
    bind(one, "face", 1)
    exchange(one, other)
    assert len(fields.pack(one.offer())) < 32
    assert exchange(one, other) == 2


def test_a_delta_holds_only_what_is_lacking() -> None:
    one, other = pair()
    publish(one, NOW, 1)
    exchange(one, other)
    bind(one, "face", 1)
    delta = one.delta(other.summary())
    assert {name: len(rows) for name, rows in delta.items() if name != "more"} == {
        "names": 1,
        "inventories": 0,
        "popularity": 0,
    }


def test_changes_say_what_is_new() -> None:
    one, other = pair()
    publish(one)
    bind(one, "face", 1)
    one.count_move("north", "south", now=NOW)
    one.publish_popularity(now=NOW)
    changes = other.merge(one.delta({}), now=NOW)
    assert changes.names == {"face"}
    assert changes.inventories == changes.popularity == {one.node}
    assert changes
    assert not other.merge(one.delta({}), now=NOW)


def test_a_long_exchange_takes_several_rounds_both_ways() -> None:
    one, other = ledgers.ledger(1, delta_bytes=2000), ledgers.ledger(2, delta_bytes=2000)
    for book, prefix in ((one, "a"), (other, "b")):
        for number in range(40):
            bind(book, f"{prefix}{number}", number)
    exchange(one, other, rounds=60)
    assert_equal(one, other)
    assert len(one.catalog()) == 80


def test_a_delta_holds_one_record_however_large() -> None:
    one, other = pair()
    publish(one, NOW, *range(50))
    bind(one, "face", 1)
    delta = one.delta({}, limit_bytes=1)
    assert (len(delta["names"]), len(delta["inventories"]), delta["more"]) == (1, 0, True)
    other.merge(delta, now=NOW)
    delta = one.delta(other.summary(), limit_bytes=1)
    assert (len(delta["inventories"]), delta["more"]) == (1, False)


def test_versions_grow_though_the_clock_goes_back() -> None:
    book = ledgers.ledger(1)
    versions = []
    for step, now in enumerate([NOW, NOW, NOW - 500, NOW + 5]):
        assert publish(book, now, step)
        versions.append(book.inventories()[book.node].version)
    assert versions == [int(NOW * 1000), int(NOW * 1000) + 1, int(NOW * 1000) + 2, int((NOW + 5) * 1000)]


def test_versions_grow_over_a_restart_without_a_snapshot() -> None:
    one, other = pair()
    publish(one, NOW, 1)
    exchange(one, other)
    again = ledgers.ledger(1)
    publish(again, NOW - 3600, 2)
    exchange(again, other)
    exchange(again, other)
    assert_equal(again, other)
    assert list(other.inventories()[one.node].layers) == [layer(2)]
    assert other.inventories()[one.node].version == int(NOW * 1000) + 1


def test_a_node_that_lost_its_state_gets_its_names_and_counts_back() -> None:
    one, other = pair()
    bind(one, "face", 1)
    one.count_start("north", layer(1), layer(2), now=NOW)
    one.publish_popularity(now=NOW)
    exchange(one, other)
    again = ledgers.ledger(1)
    exchange(again, other)
    assert bind(again, "face", 2) == 2
    again.count_start("north", layer(1), layer(2), now=NOW)
    assert again.popularity(now=NOW).starts("north") == {layer(1): 2.0}


def test_small_changes_are_not_published() -> None:
    book = ledgers.ledger(1)
    assert publish(book, NOW, 1)
    assert not publish(book, NOW + 1, 1, load=0.1)
    assert publish(book, NOW + 2, 1, load=1.0)


def test_popularity_is_published_when_something_was_counted() -> None:
    book = ledgers.ledger(1)
    assert not book.publish_popularity(now=NOW)
    book.count_pull("north", layer(1), now=NOW)
    assert book.publish_popularity(now=NOW)
    assert not book.publish_popularity(now=NOW)


def test_names_belong_to_the_node_that_made_them() -> None:
    one, other = pair()
    assert bind(one, "face", 1) == 1
    exchange(one, other)
    with pytest.raises(NameTaken):
        bind(other, "face", 2)
    with pytest.raises(NameTaken):
        other.unbind("face", now=NOW)
    assert bind(other, "face", 2, takeover=True) == 2
    changes = one.merge(other.delta(one.summary()), now=NOW)
    assert changes.lost == {"face"}
    assert one.catalog()["face"].taken_from == one.node
    assert other.catalog().find("face") == [layer(2)]


def test_a_tie_after_a_partition_goes_to_the_lower_node_and_the_loser_stays_reachable() -> None:
    books = sorted(pair(), key=lambda book: book.node)
    for number, book in enumerate(books):
        bind(book, "face", number)
        publish(book, NOW, number)
    exchange(books[1], books[0])
    assert_equal(*books)
    for book in books:
        assert book.find("face") == [layer(0)]
        assert book.find(layer(1).hex()[:12]) == [layer(1)]


def test_a_freed_name_is_gone_everywhere_and_stays_gone() -> None:
    one, other = pair()
    third = ledgers.ledger(3)
    bind(one, "face", 1)
    exchange(one, other)
    exchange(one, third)
    assert one.unbind("nobody", now=NOW) is None
    assert one.unbind("face", now=NOW) is not None
    assert one.unbind("face", now=NOW) is None
    exchange(one, other)
    exchange(third, other)
    assert [list(book.catalog()) for book in (one, other, third)] == [[], [], []]
    assert other.names()["face"].deleted


def test_tombstones_go_in_time_and_nobody_brings_them_back() -> None:
    one, other = pair()
    bind(one, "face", 1)
    one.unbind("face", now=NOW)
    exchange(one, other)
    later = NOW + TOMBSTONE_S + 60
    one.expire(now=later)
    assert one.names() == {}
    assert exchange(one, other, later) == 2
    assert one.names() == {}
    one.expire(now=later + FLOOR_S + 1)
    other.expire(now=later + FLOOR_S + 1)
    assert other.names() == {}


def test_a_name_that_was_freed_long_ago_counts_on() -> None:
    book = ledgers.ledger(1)
    bind(book, "face", 1)
    book.unbind("face", now=NOW)
    book.expire(now=NOW + TOMBSTONE_S + 60)
    assert bind(book, "face", 2, now=NOW + TOMBSTONE_S + 61) == 3


def test_bad_names_are_refused_at_home() -> None:
    with pytest.raises(BadName):
        bind(ledgers.ledger(1), "two words", 1)


def test_a_forgotten_node_does_not_come_back_from_others() -> None:
    one, other = pair()
    gone = ledgers.ledger(3)
    publish(gone, NOW, 1)
    bind(gone, "lost", 1)
    publish(one, NOW, 2)
    bind(gone, "kept", 2)
    gone.count_start("north", layer(1), layer(2), now=NOW)
    gone.publish_popularity(now=NOW)
    exchange(gone, one)
    exchange(gone, other)
    exchange(one, other)
    one.forget(gone.node, now=NOW)
    assert set(one.inventories()) == {one.node}
    assert list(one.catalog()) == ["kept"]
    assert one.popularity(now=NOW).starts("north") == {}
    assert exchange(one, other) == 2
    one.merge(other.delta({}), now=NOW)
    assert set(one.inventories()) == {one.node}
    publish(gone, NOW + 60, 1, 2)
    exchange(gone, one)
    assert set(one.inventories()) == {one.node, gone.node}


def test_a_name_of_a_forgotten_node_can_be_bound_again() -> None:
    one, _ = pair()
    gone = ledgers.ledger(3)
    bind(gone, "lost", 1)
    exchange(gone, one)
    one.forget(gone.node, now=NOW)
    assert bind(one, "lost", 2) == 2
    exchange(one, gone)
    assert gone.catalog()["lost"].owner == one.node


def test_a_snapshot_restores_everything() -> None:
    one, other = pair()
    publish(other, NOW, 3)
    bind(other, "base", 3)
    exchange(one, other)
    publish(one, NOW, 1)
    bind(one, "face", 1)
    one.forget(other.node, now=NOW)
    one.count_start("north", layer(1), layer(2), now=NOW)
    one.publish_popularity(now=NOW)
    again = ledgers.ledger(1)
    assert again.restore(one.snapshot(), now=NOW).dropped == {}
    assert_equal(one, again)
    assert again.snapshot() == one.snapshot()
    assert not again.publish_popularity(now=NOW)
    again.merge(other.delta({}), now=NOW)
    assert set(again.inventories()) == {one.node}


def test_a_snapshot_is_taken_though_the_membership_is_still_empty() -> None:
    one, other = pair()
    publish(other, NOW, 3)
    exchange(one, other)
    again = ledgers.ledger(1, admit=lambda _node: False)
    again.restore(one.snapshot(), now=NOW)
    assert set(again.inventories()) == {other.node}


@pytest.mark.parametrize("snapshot", [b"", b"\x00" * 50, fields.pack({"format": 2}), fields.pack([1])])
def test_what_is_no_snapshot_is_refused(snapshot: bytes) -> None:
    with pytest.raises(Malformed):
        ledgers.ledger(1).restore(snapshot, now=NOW)


def test_a_damaged_record_in_a_snapshot_costs_that_record_only() -> None:
    one = ledgers.ledger(1)
    publish(one, NOW, 1)
    bind(one, "face", 1)
    damaged = one.snapshot().replace(b"face", b"fade")
    again = ledgers.ledger(1)
    assert again.restore(damaged, now=NOW).dropped == {"forged": 1}
    assert set(again.inventories()) == {one.node}


def forged_rows() -> list[tuple[str, Any]]:
    one = ledgers.ledger(1)
    bind(one, "face", 1)
    version, body, public_key, signature = one.delta({})["names"][0]
    return [
        ("forged", [version, body, public_key, bytes(64)]),
        ("forged", [version + 1, body, public_key, signature]),
        ("forged", [version, body.replace(b"face", b"fade"), public_key, signature]),
        ("forged", [version, body, key(2), signature]),
        ("malformed", [version, body, public_key, signature[:63]]),
        ("malformed", [version, body, public_key[:31], signature]),
        ("malformed", [0, body, public_key, signature]),
        ("malformed", [1 << 60, body, public_key, signature]),
        ("malformed", [version, b"\xc1", public_key, signature]),
        ("malformed", [version, b"x" * (MAX_BODY_BYTES + 1), public_key, signature]),
        ("malformed", [version, body, public_key]),
        ("malformed", None),
        ("malformed", {}),
        ("malformed", b"bytes"),
        ("malformed", [[]] * 4),
    ]


@pytest.mark.parametrize(("reason", "row"), forged_rows())
def test_a_bad_record_is_dropped_and_counted_and_the_rest_is_taken(reason: str, row: Any) -> None:
    one, other = pair()
    bind(other, "good", 1)
    good = other.delta({})["names"][0]
    changes = one.merge({"names": [row, good]}, now=NOW)
    assert changes.names == {"good"}
    assert changes.dropped == {reason: 1}


def test_a_statement_is_void_in_another_table() -> None:
    one, other = pair()
    one.count_start("north", layer(1), layer(2), now=NOW)
    one.publish_popularity(now=NOW)
    changes = other.merge({"inventories": one.delta({})["popularity"]}, now=NOW)
    assert not changes
    assert sum(changes.dropped.values()) == 1


def test_the_records_of_strangers_wait_until_they_are_known() -> None:
    known: set[NodeId] = set()
    one = ledgers.ledger(1, admit=known.__contains__)
    other = ledgers.ledger(2)
    publish(other, NOW, 1)
    assert one.merge(other.delta({}), now=NOW).dropped == {"stranger": 1}
    known.add(node_id(key(2)))
    exchange(one, other)
    assert set(one.inventories()) == {other.node}


@pytest.mark.parametrize(
    "document",
    [
        None,
        5,
        [],
        {},
        {"digest": b"short"},
        {"digest": "text"},
        {"summary": []},
        {"summary": {"names": [[1]]}, "delta": {}},
    ],
)
def test_what_is_no_exchange_is_refused(document: Any) -> None:
    one = ledgers.ledger(1)
    bind(one, "face", 1)
    with pytest.raises(Malformed):
        one.answer(document, now=NOW)
    with pytest.raises(Malformed):
        one.follow(document, now=NOW)


@pytest.mark.parametrize(
    "summary",
    [
        {"names": {}},
        {"names": [[b"k" * 15, 1, bytes(4)]]},
        {"names": [[b"k" * 16, -1, bytes(4)]]},
        {"names": [[b"k" * 16, 1, b""]]},
        {"names": [[b"k" * 16, 1, bytes(4)]] * 20_000},
    ],
)
def test_what_is_no_summary_is_refused(summary: Any) -> None:
    one = ledgers.ledger(1)
    with pytest.raises(Malformed):
        one.delta(summary)


def test_a_table_that_is_full_takes_no_new_key_but_newer_versions() -> None:
    table: Table[str] = Table("small", 2, lambda _owner, _version, body: body.decode(), str, lambda _value: (1,))
    table.offer(table.sign(1, b"a", key(1), lambda _message: bytes(64)), lambda *_: True)
    table.offer(table.sign(1, b"b", key(1), lambda _message: bytes(64)), lambda *_: True)
    with pytest.raises(Full):
        table.offer(table.sign(1, b"c", key(1), lambda _message: bytes(64)), lambda *_: True)
    table.drop("a", NOW)
    with pytest.raises(Full):
        table.offer(table.sign(1, b"c", key(1), lambda _message: bytes(64)), lambda *_: True)
    assert table.offer(table.sign(2, b"a", key(1), lambda _message: bytes(64)), lambda *_: True) is not None
    assert table.expire(NOW + 1) is False


def test_a_full_mesh_fits_one_message() -> None:
    row = [b"k" * 16, 1 << 52, b"fpfp"]
    summary = {"names": [row] * ledger.MAX_NAMES, "inventories": [row] * ledger.MAX_NODES}
    summary["popularity"] = summary["inventories"]
    assert len(fields.pack(summary)) + replica.MAX_DELTA_BYTES < 1 << 20


def test_no_change_is_false() -> None:
    assert not Changes()


def claim(number: int, version: int) -> dict[str, Any]:
    """A delta in which test node `number` claims the name `face` at `version`."""
    body = CatalogEntry("face", version, node_id(key(number)), layer(number), "app", 1, 1).encode()
    statement = ledgers.ledger(number)._names.sign(
        version, body, key(number), lambda message: ledgers.sign_as(key(number), message)
    )
    return {"names": [statement.row()]}


def test_no_version_captures_a_name_for_good() -> None:
    owner, other = pair()
    bind(owner, "face", 1)
    exchange(owner, other)
    assert owner.merge(claim(66, fields.MAX_INTEGER), now=NOW).dropped == {"early": 1}
    assert owner.catalog()["face"].owner == owner.node
    highest = int((NOW + SKEW_S) * 1000)
    for book in (owner, other):
        assert book.merge(claim(66, highest), now=NOW).names == {"face"}
    assert bind(owner, "face", 1, takeover=True, now=NOW) == highest + 1
    exchange(owner, other, NOW + 0.002)
    assert other.catalog()["face"].owner == owner.node


def test_what_comes_too_early_is_taken_when_its_time_has_come() -> None:
    one, other = pair()
    early, plain = claim(66, int((NOW + SKEW_S) * 1000) + 500), claim(67, 2)
    for book, order in ((one, (early, plain)), (other, (plain, early))):
        for delta in order:
            book.merge(delta, now=NOW)
        assert book.catalog()["face"].owner == node_id(key(67))
    assert one.digest() == other.digest()
    assert one.merge(early, now=NOW + 1).names == {"face"}
    exchange(one, other, NOW + 1)
    assert other.catalog()["face"].owner == node_id(key(66))


def test_a_name_that_was_captured_before_is_free_after_a_restart() -> None:
    captured = ledgers.ledger(1)
    captured.merge(claim(66, fields.MAX_INTEGER), now=fields.MAX_INTEGER / 1000)
    again = ledgers.ledger(1)
    again.restore(captured.snapshot(), now=NOW)
    assert "face" not in again.catalog()


def test_a_text_that_no_peer_would_take_costs_itself_only() -> None:
    one, other = pair()
    labels = {"cost": "3", "rack": "x" * 129}
    assert one.publish_inventory(layers={}, free_bytes=5, load=0.5, labels=labels, apps=(), now=NOW)
    assert list(one.untold) == ["label 'rack'"]
    exchange(one, other)
    assert other.inventories()[one.node].labels == {"cost": "3"}


def test_more_counters_than_a_record_holds_are_published_as_far_as_they_fit() -> None:
    one, other = pair()
    for number in range(512):
        one.count_start(f"{number:03}".ljust(64, "a"), layer(number), layer(1), now=NOW)
        one.count_pull(f"{number:03}".ljust(64, "b"), layer(number), now=NOW)
        one.count_move(f"{number:03}".ljust(64, "a"), f"{number:03}".ljust(64, "b"), now=NOW)
    assert one.publish_popularity(now=NOW)
    exchange(one, other)
    assert other.popularity(now=NOW).sites()
