"""The framing: every message survives its own encoding, however the bytes arrive, and nothing hostile gets further."""

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2player.proto.frames import (
    MAX_HEADER_BYTES,
    MAX_ITEMS,
    MAX_LEVELS,
    MAX_PAYLOAD_BYTES,
    MAX_SMALL_ITEMS,
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


def framed(kind: int, header: bytes) -> bytes:
    return PREFIX.pack(kind, 0, 0, len(header), 0) + header


@pytest.mark.parametrize(
    "header",
    [
        b"\x81\x90\x01",  # a list as key
        b"\x81\x80\x01",  # a map as key
        b"\x81\x01\x01",  # a number as key
        b"\x81\xc0\x01",  # nil as key
        b"\x81\xa1x\xd4\x01\x00",  # an extension type
        b"\x81\xa1x\xc1",  # what msgpack never uses
        b"\x81\xa2\xff\xfe\x01",  # no UTF-8
        b"\x80\x80",  # more than one document
        b"\x81\xa1x",  # less than one
        b"\x81\xa1x\xa5abc",
        b"",
    ],
)
def test_odd_msgpack_is_a_protocol_error(header: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        FrameReader().feed(framed(FrameType.REQUEST, header))


def test_a_header_cannot_become_much_more_than_it_was_on_the_wire() -> None:
    start = msgpack.packb({"rid": 1, "method": "x"})[1:]
    swarm = b"\x83" + start + b"\xa4body\x81\xa1x\xdd" + (1 << 20).to_bytes(4) + b"\x90" * (1 << 19)
    nest = b"\x83" + start + b"\xa4body\x81\xa1x" + b"\xdc\x40\x00" * 1000
    for header in (swarm, nest):
        tracemalloc.start()
        try:
            with pytest.raises(RemoteProtocolError, match="more than"):
                FrameReader().feed(framed(FrameType.REQUEST, header))
            assert tracemalloc.get_traced_memory()[1] < 4 * len(header) + 100_000
        finally:
            tracemalloc.stop()


def nested(levels: int) -> Any:
    inner: Any = 1
    for _ in range(levels):
        inner = [inner]
    return inner


def test_bounds_hold_for_what_is_said_as_for_what_is_heard() -> None:
    for body in ({"x": [0] * (MAX_ITEMS - 20)}, {"x": nested(MAX_LEVELS - 2)}):
        data = b"".join(bytes(buffer) for buffer in encode(Request(1, "m", body)))
        assert FrameReader().feed(data) == [Request(1, "m", body)]
    for body in ({"x": [0] * MAX_ITEMS}, {"x": nested(MAX_LEVELS - 1)}):
        with pytest.raises(LocalProtocolError, match="too large"):
            encode(Request(1, "m", body))
    with pytest.raises(LocalProtocolError, match="too large"):
        encode(Part(1, {"x": [0] * MAX_SMALL_ITEMS}))


def test_the_largest_comparison_of_ledgers_fits() -> None:
    summary = {"names": [[bytes(16), 1 << 41, bytes(4)]] * 8192, "inventories": [[bytes(16), 1 << 41, bytes(4)]] * 4096}
    delta = {"names": [[1, bytes(40), bytes(32), bytes(64)]] * 2700}
    request = Request(1, "ledger.exchange", {"summary": summary, "delta": delta})
    (received,) = FrameReader().feed(b"".join(bytes(buffer) for buffer in encode(request)))
    assert received == request
    assert isinstance(received, Request)
    assert 1 << 20 < received.held_bytes < 8 << 20


@pytest.mark.parametrize("body", [{"x": object()}, {"x": 1 << 64}, {"x": "\ud800"}, None, 5])
def test_what_cannot_be_written_is_a_local_error(body: Any) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be written"):
        encode(Reply(1, body))


def test_a_failure_about_an_odd_file_name_can_be_told() -> None:
    (received,) = FrameReader().feed(encode(Failure(1, "failed", "no \udcff here"))[0])
    assert received == Failure(1, "failed", "no ? here")


def test_a_reader_tells_how_much_of_a_message_it_lacks() -> None:
    buffers = b"".join(bytes(piece) for piece in encode(Part(1, {}, bytes(5000))))
    reader = FrameReader()
    assert reader.lacking == 0
    reader.feed(buffers[: PREFIX.size - 1])
    assert reader.lacking == 0, "the length has not come yet"
    reader.feed(buffers[PREFIX.size - 1 : 1000])
    assert reader.lacking == len(buffers) - 1000
    assert len(reader.feed(buffers[1000:])) == 1
    assert reader.lacking == 0
