"""A document is measured as it would decode, and never taken for less."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2player.proto.measure import Unmeasurable, measure

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=300)
    | st.text(max_size=70)
)
documents = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=4), inner, max_size=20)
)


def count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + count(inner) for inner in value.values())
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


def levels(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(levels, inner), default=0)


@given(documents)
def test_it_counts_what_is_there(value: Any) -> None:
    items, depth = count(value), levels(value)
    data = msgpack.packb(value)
    assert measure(data, most_items=items, most_levels=depth) == items
    if items > 1:
        with pytest.raises(Unmeasurable, match="items"):
            measure(data, most_items=items - 1, most_levels=depth)
        with pytest.raises(Unmeasurable, match="levels"):
            measure(data, most_items=items, most_levels=depth - 1)


@given(st.binary(max_size=60) | documents.map(lambda value: msgpack.packb(value)[:-1]))
def test_what_it_takes_the_decoder_takes(data: bytes) -> None:
    try:
        items = measure(data, most_items=1000, most_levels=20)
    except Unmeasurable:
        return
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError):  # a text that is no UTF-8, a key that cannot be one
        return
    assert count(value) <= items


def test_items_that_wait_on_outer_levels_count() -> None:
    with pytest.raises(Unmeasurable, match="items"):
        measure(b"\x9f\x91\x9f\x91\x9f", most_items=40, most_levels=10)


@pytest.mark.parametrize("data", [b"", b"\x91", b"\xc4", b"\xc4\x05abc", b"\xdc\x00", b"\x01\x01", b"\xc7\x00\x01"])
def test_what_is_no_whole_document_is_refused(data: bytes) -> None:
    with pytest.raises(Unmeasurable):
        measure(data, most_items=100, most_levels=10)
