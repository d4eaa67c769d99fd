"""The body of a request for chunks that may repeat layers: what goes in comes out, and nothing else is taken."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chunkstore.delta.kinship import Unit
from chunkstore.digest import ChunkId, LayerId
from p2player.proto.delta_wire import pack_units
from p2player.proto.echo_wire import MAX_LAYERS, EchoAsk, echo_header, read_echo_header
from p2player.proto.frames import RemoteProtocolError

ids = st.binary(min_size=32, max_size=32)
ASK = EchoAsk("scope", [ChunkId(b"a" * 32), ChunkId(b"b" * 32)], [LayerId(b"l" * 32)])


@given(st.lists(ids, min_size=1, max_size=20, unique=True), st.lists(ids, min_size=1, max_size=MAX_LAYERS, unique=True))
def test_an_ask_comes_back_as_it_was(chunks: list[bytes], layers: list[bytes]) -> None:
    ask = EchoAsk("5c" * 16, [ChunkId(chunk) for chunk in chunks], [LayerId(layer) for layer in layers])
    assert EchoAsk.read(ask.body()) == ask


@pytest.mark.parametrize(
    "change",
    [
        {"layers": b""},
        {"layers": b"l" * 31},
        {"layers": b"l" * 32 * (MAX_LAYERS + 1)},
        {"layers": b"l" * 64},
        {"layers": None},
        {"ids": b"a" * 64},
        {"ids": b""},
        {"scope": 1},
        {"scope": "x" * 1000},
    ],
)
def test_no_other_ask_is_taken(change: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError):
        EchoAsk.read({**ASK.body(), **change})


def test_a_header_comes_back_as_it_was() -> None:
    assert read_echo_header(echo_header((0, 1), (3, 9)), 2, 10) == Unit((0, 1), (3, 9))
    assert read_echo_header({"ids": b""}, 2, 10) is None


@pytest.mark.parametrize(
    "unit",
    [
        b"",
        b"\xff" * 8,
        7,
        b"\0" * (1 << 17),
        pack_units([Unit((2,), (0,))]),
        pack_units([Unit((0,), (10,))]),
        pack_units([Unit((0,), ())]),
        pack_units([Unit((0,), (0,)), Unit((1,), (0,))]),
    ],
)
def test_no_other_header_is_taken(unit: Any) -> None:
    with pytest.raises(RemoteProtocolError):
        read_echo_header({"unit": unit}, 2, 10)


@given(st.binary(max_size=200))
def test_noise_is_a_protocol_error_or_a_unit_within_bounds(noise: bytes) -> None:
    try:
        unit = read_echo_header({"unit": noise}, 5, 7)
    except RemoteProtocolError:
        return
    assert unit is not None and max(unit.wants) < 5 and max(unit.relative) < 7
