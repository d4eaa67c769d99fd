"""The framing: every message survives its own encoding, however the bytes arrive, and nothing hostile gets further."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2player.proto.frames import (
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    PREFIX,
    Cancel,
    Failure,
    FrameReader,
    FrameType,
    Goodbye,
    Hello,
    LocalProtocolError,
    Message,
    Part,
    Ping,
    Pong,
    RemoteProtocolError,
    Reply,
    Request,
    encode,
)

rids = st.integers(1, (1 << 63) - 1)
names = st.text(max_size=64)
bodies: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.text(max_size=8), st.none() | st.integers(-(1 << 40), 1 << 40) | st.binary(max_size=64) | st.text(max_size=16)
)
payloads = st.binary(max_size=2000)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Hello, names, names, names, st.frozensets(st.text(max_size=8), max_size=5)),
    st.builds(Request, rids, names, bodies, payloads),
    st.builds(Part, rids, bodies, payloads),
    st.builds(Reply, rids, bodies, payloads),
    st.builds(Failure, rids, names, st.text(max_size=200)),
    st.builds(Cancel, rids),
    st.just(Ping()),
    st.just(Pong()),
    st.builds(Goodbye, st.text(max_size=200)),
)


@given(st.lists(messages, max_size=6), st.lists(st.integers(1, 400), max_size=40))
def test_messages_survive_any_cutting_of_their_bytes(sent: list[Message], cuts: list[int]) -> None:
    data = b"".join(bytes(buffer) for message in sent for buffer in encode(message))
    reader, received, offset = FrameReader(), [], 0
    for cut in [*cuts, len(data)]:
        received += reader.feed(data[offset : offset + cut])
        offset += cut
    assert received == sent


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_a_protocol_error(data: bytes) -> None:
    reader = FrameReader()
    try:
        received = reader.feed(data)
    except RemoteProtocolError:
        return
    assert all(isinstance(message, Message) for message in received)


@given(messages, st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_raises_only_a_protocol_error(message: Message, position: int, mask: int) -> None:
    data = bytearray(b"".join(bytes(buffer) for buffer in encode(message)))
    data[position % len(data)] ^= mask
    try:
        received = FrameReader().feed(data)
    except RemoteProtocolError:
        return
    assert all(isinstance(item, Message) for item in received)


@pytest.mark.parametrize(("header", "payload"), [(MAX_HEADER_BYTES + 1, 0), (0, MAX_PAYLOAD_BYTES + 1)])
def test_lengths_over_the_cap_are_refused_before_any_byte_of_them(header: int, payload: int) -> None:
    with pytest.raises(RemoteProtocolError, match="cap"):
        FrameReader().feed(PREFIX.pack(FrameType.PING, 0, 0, header, payload))


def test_our_own_oversize_messages_are_a_local_error() -> None:
    with pytest.raises(LocalProtocolError, match="too large"):
        encode(Part(1, {}, bytes(MAX_PAYLOAD_BYTES + 1)))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (FrameType.REQUEST, {"rid": 0, "method": "x", "body": {}}),
        (FrameType.REQUEST, {"rid": True, "method": "x", "body": {}}),
        (FrameType.REQUEST, {"rid": 1, "method": "x" * 65, "body": {}}),
        (FrameType.REQUEST, {"rid": 1, "method": 5, "body": {}}),
        (FrameType.REQUEST, {"rid": 1, "method": "x"}),
        (FrameType.HELLO, {"node": "n", "name": "a", "version": "1", "features": ["x"] * 65}),
        (FrameType.CANCEL, {}),
        (99, {}),
        (FrameType.PING, []),
    ],
)
def test_malformed_headers_are_refused(kind: int, fields: Any) -> None:
    header = msgpack.packb(fields)
    with pytest.raises(RemoteProtocolError):
        FrameReader().feed(PREFIX.pack(kind, 0, 0, len(header), 0) + header)


def test_reserved_bits_and_stray_payloads_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="reserved"):
        FrameReader().feed(PREFIX.pack(FrameType.PING, 1, 0, 1, 0) + b"\x80")
    with pytest.raises(RemoteProtocolError, match="no payload"):
        FrameReader().feed(PREFIX.pack(FrameType.PING, 0, 0, 1, 1) + b"\x80x")
