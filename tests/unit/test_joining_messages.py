"""The join protocol's messages and its gate: round trips, strict limits, one error for all that is hostile."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2player.proto.gate import Gate
from p2player.proto.joining import (
    MAX_REQUEST_BYTES,
    JoinProtocolError,
    JoinRequest,
    MessageReader,
    Rejection,
    Welcome,
    decode_reply,
    decode_request,
    describe_skew,
    encode_reply,
    encode_request,
)

REQUEST = JoinRequest(b"i" * 16, b"s" * 32, b"csr", "10.0.0.1", 7420, 1.8e9)
WELCOME = Welcome((b"leaf", b"middle"), (b"root",), (b"k" * 32,), ({"id": "ab", "port": 1, "rtt": None},), 1.8e9)
REJECTION = Rejection("refused", "the invite was used already", 1.8e9)


def body(frame: bytes) -> bytes:
    message = MessageReader(1 << 20).feed(frame)
    assert message is not None
    return message


def changed(frame: bytes, **fields: Any) -> bytes:
    packed: bytes = msgpack.packb({**msgpack.unpackb(body(frame)), **fields})
    return packed


def test_messages_come_back() -> None:
    assert decode_request(body(encode_request(REQUEST))) == REQUEST
    assert decode_reply(body(encode_reply(WELCOME))) == WELCOME
    assert decode_reply(body(encode_reply(REJECTION))) == REJECTION


def test_a_message_may_come_byte_by_byte() -> None:
    reader = MessageReader(MAX_REQUEST_BYTES)
    frame = encode_request(REQUEST)
    results = [reader.feed(frame[at : at + 1]) for at in range(len(frame))]
    assert results == [None] * (len(frame) - 1) + [frame[4:]]


def test_a_long_message_is_refused_at_its_length() -> None:
    reader = MessageReader(MAX_REQUEST_BYTES)
    with pytest.raises(JoinProtocolError, match="16384 are allowed"):
        reader.feed((MAX_REQUEST_BYTES + 1).to_bytes(4, "big"))


def test_one_message_only() -> None:
    with pytest.raises(JoinProtocolError, match="more than one"):
        MessageReader(MAX_REQUEST_BYTES).feed(encode_request(REQUEST) + b"x")


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert decode_request(changed(encode_request(REQUEST), colour="red")) == REQUEST
    with pytest.raises(JoinProtocolError, match="version 2"):
        decode_request(changed(encode_request(REQUEST), v=2))


def test_too_many_members_are_not_sent() -> None:
    many = Welcome((b"leaf",), (b"root",), (b"k" * 32,), tuple({"id": str(n)} for n in range(1000)), 0.0)
    reply = decode_reply(body(encode_reply(many)))
    assert isinstance(reply, Welcome)
    assert len(reply.members) == 256


@pytest.mark.parametrize(
    "fields",
    [
        {"invite": b"short"},
        {"secret": "s" * 32},
        {"csr": b""},
        {"csr": bytes(5000)},
        {"host": ""},
        {"host": "h" * 254},
        {"port": 65536},
        {"port": True},
        {"port": 1.0},
        {"now": float("nan")},
        {"now": -1},
        {"now": None},
    ],
)
def test_malformed_requests_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(JoinProtocolError, match=next(iter(fields))):
        decode_request(changed(encode_request(REQUEST), **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"chain": []},
        {"chain": [b""]},
        {"chain": [b"c"] * 5},
        {"roots": "root"},
        {"keys": [1]},
        {"members": {}},
        {"members": [[]]},
        {"members": [{}] * 257},
        {"members": [{"id": ["nested"]}]},
        {"members": [{"id": "x" * 2000}]},
        {"members": [{str(n): n for n in range(17)}]},
        {"code": 5},
        {"code": "refused"},
    ],
)
def test_malformed_replies_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(JoinProtocolError):
        decode_reply(changed(encode_reply(WELCOME), **fields))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_message(data: bytes) -> None:
    for decode in (decode_request, decode_reply):
        with pytest.raises(JoinProtocolError):
            decode(data)


@given(st.integers(0, 400), st.integers(0, 255))
def test_damage_raises_nothing_else(at: int, value: int) -> None:
    for frame in (encode_request(REQUEST), encode_reply(WELCOME), encode_reply(REJECTION)):
        damaged = bytearray(body(frame))
        damaged[at % len(damaged)] = value
        for decode in (decode_request, decode_reply):
            try:
                decode(bytes(damaged))
            except JoinProtocolError:
                continue


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(JoinProtocolError):
        decode_request(b"\x91" * 10_000)


@pytest.mark.parametrize(
    ("ahead_s", "words"),
    [
        (7200.0, "2.0 hours ahead of"),
        (-86400.0 * 3, "3.0 days behind"),
        (150.0, "2.5 minutes ahead of"),
        (-61.0, "61 seconds behind"),
    ],
)
def test_skew_in_words(ahead_s: float, words: str) -> None:
    assert describe_skew(ahead_s) == f"{words} the authority's"


def test_a_gate_lets_a_burst_pass_and_then_the_rate() -> None:
    gate = Gate(rate=2.0, burst=3)
    assert [gate.admit("a", 100.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert gate.admit("b", 100.0) == 0.0
    assert gate.admit("a", 100.4) == pytest.approx(0.1)
    assert gate.admit("a", 100.5) == 0.0
    assert gate.admit("a", 100.5) == pytest.approx(0.5)
    assert [gate.admit("a", 200.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_knocking_costs_nothing() -> None:
    gate = Gate(rate=1.0, burst=1)
    assert gate.admit("a", 0.0) == 0.0
    assert all(gate.admit("a", 0.001 * n) for n in range(1, 999))
    assert gate.admit("a", 1.0) == 0.0


def test_a_gate_remembers_a_bounded_number_of_keys() -> None:
    gate = Gate(rate=1.0, burst=1, capacity=2)
    for key in "abc":
        assert gate.admit(key, 0.0) == 0.0
    assert gate.admit("c", 0.0) == 1.0
    assert gate.admit("b", 0.0) == 1.0
    assert gate.admit("a", 0.0) == 0.0  # forgotten
