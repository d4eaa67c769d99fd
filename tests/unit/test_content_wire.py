"""Bodies about content: what is written is read back, and anything else is refused in one way."""

from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkstore.codec import MAX_CHUNK_BYTES, pack
from chunkstore.digest import ChunkId, LayerId, chunk_id
from chunkstore.manifest_codec import MAX_MANIFEST_BYTES
from p2player.proto import content_wire as wire
from p2player.proto.frames import MAX_HEADER_BYTES, RemoteProtocolError

IDS = [ChunkId(bytes([number]) * 32) for number in range(5)]

JUNK = st.dictionaries(
    st.sampled_from(["layer", "start", "scope", "ids", "lengths", "codec", "total", "bitmap"]),
    st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.binary(max_size=200) | st.text(max_size=8),
)
READERS: list[Callable[[Mapping[str, Any]], object]] = [
    wire.read_layer,
    wire.read_want,
    wire.read_manifest_ask,
    lambda body: wire.read_manifest(body, []),
    lambda body: wire.read_have(body, 40),
    lambda body: wire.read_group(body, b"x" * 40),
]


def test_requests_are_read_back() -> None:
    assert wire.read_layer(wire.layer_body(LayerId(b"L" * 32))) == b"L" * 32
    assert wire.read_want(wire.want_body("scope", IDS)) == ("scope", IDS)
    assert wire.read_manifest_ask(wire.manifest_ask(LayerId(b"L" * 32), 7)) == (b"L" * 32, 7)


def test_answers_are_read_back() -> None:
    chunks = [(chunk_id(data), data) for data in (b"one", b"two" * 100)]
    group = pack(chunks)
    assert wire.read_group(wire.group_header(group), group.payload) == group
    listed = list(zip(IDS, [1, 2, 3, 4, MAX_CHUNK_BYTES], strict=True))
    assert wire.read_manifest(wire.manifest_body(5, IDS, [length for _, length in listed]), []) == (listed, True)
    assert wire.read_have(wire.have_body(9, b"\xff\x01"), 9) == b"\xff\x01"


@pytest.mark.parametrize(
    "body",
    [
        {"scope": "", "ids": b""},
        {"scope": "", "ids": b"x" * 33},
        {"scope": "", "ids": b"x" * 32 * (wire.MAX_WANT_IDS + 1)},
        {"scope": "x" * 200, "ids": b"x" * 32},
        {"scope": None, "ids": b"x" * 32},
    ],
)
def test_a_want_out_of_bounds_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.read_want(body)


def test_a_manifest_of_impossible_lengths_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="impossible"):
        wire.read_manifest(wire.manifest_body(1, IDS[:1], [0]), [])
    with pytest.raises(RemoteProtocolError, match="impossible"):
        wire.read_manifest(wire.manifest_body(1, IDS[:1], [MAX_CHUNK_BYTES + 1]), [])
    with pytest.raises(RemoteProtocolError, match="impossible"):
        wire.read_manifest(wire.manifest_body(300, IDS[:1] * 300, [MAX_CHUNK_BYTES] * 300), [])


def test_the_longest_manifest_is_listed_in_pages() -> None:
    whole = [(IDS[number % 5], 4096) for number in range(wire.MAX_MANIFEST_CHUNKS - 1)] + [(IDS[0], 1)]
    assert sum(length for _, length in whole[:-1]) == MAX_MANIFEST_BYTES
    whole[0] = (IDS[0], 4095)
    listed: wire.Listed = []
    done = False
    while not done:
        page = whole[len(listed) : len(listed) + wire.PAGE_CHUNKS]
        body = wire.manifest_body(len(whole), [chunk for chunk, _ in page], [length for _, length in page])
        assert len(msgpack.packb(body)) < MAX_HEADER_BYTES - 100
        listed, done = wire.read_manifest(body, listed)
    assert listed == whole


@pytest.mark.parametrize(
    ("total", "before"), [(4, 0), (6, 0), (5, 1), (5, 5), (0, 0), (wire.MAX_MANIFEST_CHUNKS + 1, 0)]
)
def test_a_page_that_is_not_full_is_refused(total: int, before: int) -> None:
    with pytest.raises(RemoteProtocolError):
        wire.read_manifest(wire.manifest_body(total, IDS, [1] * 5), [(IDS[0], 1)] * before)


def test_a_bitmap_of_another_layer_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="counts"):
        wire.read_have(wire.have_body(8, b"\xff"), 9)
    with pytest.raises(RemoteProtocolError, match="bitmap"):
        wire.read_have(wire.have_body(9, b"\xff"), 9)


@given(JUNK)
def test_junk_is_refused_in_one_way(body: dict[str, Any]) -> None:
    for read in READERS:
        try:
            read(body)
        except RemoteProtocolError:
            continue
