"""Merging is commutative, associative and idempotent; whoever talks, directly or not, ends up equal."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import Random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.catalog import CatalogEntry, NameTaken, latest_version
from gossip.errors import Malformed
from gossip.inventory import Holding
from gossip.ledger import Ledger
from gossip.sketch import resemblance, sketch
from tests.support.ledgers import START_S as NOW
from tests.support.ledgers import exchange, key, layer, ledger, sign_as

LATEST = latest_version(NOW)

Step = Callable[[list[Ledger]], None]

nodes = st.integers(0, 2)
numbers = st.integers(0, 5)
names = st.sampled_from(["face", "base", "speech"])
times = st.integers(-5, 5).map(lambda seconds: NOW + seconds)


def _bind(node: int, name: str, number: int, takeover: bool, now: float) -> Step:
    def step(books: list[Ledger]) -> None:
        with suppress(NameTaken):
            books[node].bind(name, layer(number), kind="app", size=1, chunks=1, takeover=takeover, now=now)

    return step


def _unbind(node: int, name: str, now: float) -> Step:
    def step(books: list[Ledger]) -> None:
        with suppress(NameTaken):
            books[node].unbind(name, now=now)

    return step


def _publish(node: int, number: int, now: float) -> Step:
    def step(books: list[Ledger]) -> None:
        layers = {layer(number): Holding(1, 2, 3)}
        books[node].publish_inventory(layers=layers, free_bytes=1, load=0.5, labels={}, apps=(), now=now)

    return step


def _count(node: int, number: int, now: float) -> Step:
    def step(books: list[Ledger]) -> None:
        books[node].count_start("north", layer(number), layer(9), now=now)
        books[node].publish_popularity(now=now)

    return step


def _talk(one: int, other: int) -> Step:
    def step(books: list[Ledger]) -> None:
        if one != other:
            exchange(books[one], books[other])
            assert equal(books[one], books[other])

    return step


steps = st.one_of(
    st.builds(_bind, nodes, names, numbers, st.booleans(), times),
    st.builds(_unbind, nodes, names, times),
    st.builds(_publish, nodes, numbers, times),
    st.builds(_count, nodes, numbers, times),
    st.builds(_talk, nodes, nodes),
)


def equal(one: Ledger, other: Ledger) -> bool:
    same = (one.names(), one.inventories()) == (other.names(), other.inventories())
    counted, also = one.popularity(now=NOW).starts("north"), other.popularity(now=NOW).starts("north")
    assert (one.digest() == other.digest()) == (same and one.summary() == other.summary())
    return same and counted == pytest.approx(also)


def grown(history: list[Step]) -> list[Ledger]:
    books = [ledger(number) for number in range(3)]
    for step in history:
        step(books)
    return books


def reader(*deltas: object) -> Ledger:
    book = ledger(99)
    for delta in deltas:
        book.merge(delta, now=NOW)
    return book


histories = st.lists(steps, max_size=20)


def _claimed(node: int, version: int) -> list[object]:
    """A statement of `node` that takes the name `face` at `version`."""
    book = ledger(node)
    body = CatalogEntry("face", version, book.node, layer(node), "app", 1, 1).encode()
    return book._names.sign(version, body, key(node), partial(sign_as, key(node))).row()


@given(histories)
def test_whoever_talks_ends_up_equal(history: list[Step]) -> None:
    books = grown(history)
    exchange(books[0], books[1])
    assert equal(books[0], books[1])
    exchange(books[1], books[2])
    exchange(books[2], books[0])
    exchange(books[0], books[1])
    assert equal(books[0], books[1]) and equal(books[1], books[2])
    assert exchange(books[0], books[2]) == 2


@given(histories, st.permutations(range(3)))
def test_the_order_of_merges_does_not_matter(history: list[Step], order: list[int]) -> None:
    deltas = [book.delta({}) for book in grown(history)]
    assert equal(reader(*deltas), reader(*(deltas[index] for index in order)))


@given(histories)
def test_merging_again_changes_nothing(history: list[Step]) -> None:
    deltas = [book.delta({}) for book in grown(history)]
    book = reader(*deltas)
    before = book.snapshot()
    assert not any(book.merge(delta, now=NOW) for delta in deltas)
    assert book.snapshot() == before


@given(histories)
def test_it_does_not_matter_who_merged_before(history: list[Step]) -> None:
    one, two, three = (book.delta({}) for book in grown(history))
    left = reader(reader(one, two).delta({}), three)
    right = reader(one, reader(two, three).delta({}))
    assert equal(left, right)


claims = st.lists(st.tuples(nodes, st.sampled_from([1, 2, LATEST - 1, LATEST, LATEST + 1, LATEST + 2])), max_size=6)


@given(claims, st.randoms(use_true_random=False))
def test_versions_that_are_too_early_are_dropped_in_whatever_order(said: list[tuple[int, int]], rng: Random) -> None:
    deltas = [{"names": [_claimed(node, version)]} for node, version in said]
    one = reader(*deltas)
    rng.shuffle(deltas)
    other = reader(*deltas, *deltas)
    assert equal(one, other)
    taken = [version for _, version in said if version <= LATEST]
    assert [entry.version for entry in one.names().values()] == ([max(taken)] if taken else [])


@given(histories)
def test_a_snapshot_loses_nothing(history: list[Step]) -> None:
    for number, book in enumerate(grown(history)):
        again = ledger(number)
        again.restore(book.snapshot(), now=NOW)
        assert again.digest() == book.digest()


@given(histories)
def test_versions_of_a_node_grow_with_every_record(history: list[Step]) -> None:
    books = [ledger(number) for number in range(3)]
    last = [0, 0, 0]
    for step in history:
        step(books)
        for number, book in enumerate(books):
            own = book.inventories().get(book.node)
            version = own.version if own else 0
            assert version >= last[number]
            last[number] = version


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=70),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["names", "inventories", "popularity", "summary", "delta", "digest", "more", "same"]), inner
        )
    ),
    max_leaves=12,
)


@given(plain)
def test_whatever_a_peer_says_is_either_taken_or_refused(document: object) -> None:
    book = grown([_bind(0, "face", 1, False, NOW), _count(0, 1, NOW)])[0]
    before = book.snapshot()
    for hear in (
        lambda: book.merge(document, now=NOW),
        lambda: book.delta(document),
        lambda: book.answer(document, now=NOW),
        lambda: book.follow(document, now=NOW),
        lambda: book.restore(msgpack.packb(document), now=NOW),
    ):
        with suppress(Malformed):
            hear()
    assert book.snapshot() == before


@given(st.integers(0, 1 << 16), st.binary(max_size=4))
@settings(max_examples=300)
def test_a_damaged_snapshot_never_breaks_more_than_itself(at: int, noise: bytes) -> None:
    book = grown([_bind(0, "face", 1, False, NOW), _count(0, 1, NOW), _publish(0, 1, NOW)])[0]
    whole = book.snapshot()
    at %= len(whole)
    again = ledger(0)
    try:
        again.restore(whole[:at] + noise + whole[at + len(noise) :], now=NOW)
    except Malformed:
        return
    for name, entry in again.names().items():
        assert book.names()[name] == entry


@given(st.integers(0, 1000))
def test_a_sketch_tells_how_much_is_shared(shared: int) -> None:
    ids = [layer(number) for number in range(2000 - shared)]
    one, other = sketch(ids[:1000]), sketch(ids[1000 - shared :])
    assert resemblance(one, other) == pytest.approx(shared / (2000 - shared), abs=0.25)
    assert resemblance(one, one) == 1.0
    assert resemblance(one, b"") == 0.0
    assert resemblance(one, other) == resemblance(other, one)
