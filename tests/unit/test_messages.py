"""Wire forms: what is encoded comes back, and nothing else is let in."""

from contextlib import suppress

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from gossip import errors
from gossip.coordinates import DIMENSIONS, MAX_ERROR, MAX_RTT_S, Coordinate
from gossip.messages import Ack, Dead, Introduce, Nack, NodeId, Ping, PingReq, Suspect, node_id, parse_node_id
from gossip.records import (
    MAX_HOST_BYTES,
    MAX_INCARNATION,
    MAX_NAME_BYTES,
    MAX_RECORD_BYTES,
    MAX_SITE_BYTES,
    MAX_VERSION_BYTES,
    LocalNode,
    Record,
    decode_record,
)
from gossip.simnet import pretend_sign, pretend_verify
from gossip.wire import MAX_MESSAGES, MAX_PAYLOAD_BYTES, Message, decode, encode
from tests.support.members import local_node, record


def texts(most: int, least: int = 0) -> st.SearchStrategy[str]:
    printable = st.characters(codec="utf-8").filter(str.isprintable)
    return st.text(printable, min_size=least, max_size=most).filter(lambda text: least <= len(text.encode()) <= most)


node_ids = st.binary(min_size=16, max_size=16).map(lambda raw: NodeId(raw.hex()))
seqs = st.integers(0, 2**32 - 1)
incarnations = st.integers(1, MAX_INCARNATION)
floats = st.floats(-MAX_RTT_S, MAX_RTT_S, width=32)
coordinates = st.builds(
    Coordinate,
    st.tuples(*[floats] * DIMENSIONS),
    st.floats(0, MAX_RTT_S, width=32),
    st.floats(0, MAX_ERROR, width=32),
)
local_nodes = st.builds(
    lambda key, boot, name, site, host, version, port: LocalNode(
        name, site, host, port, version, key, boot, pretend_sign(key)
    ),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=8, max_size=8),
    texts(MAX_NAME_BYTES, 1),
    texts(MAX_SITE_BYTES),
    texts(MAX_HOST_BYTES, 1),
    texts(MAX_VERSION_BYTES),
    st.integers(1, 65535),
)
records = st.builds(lambda node, n, left: node.record(n, left=left), local_nodes, incarnations, st.booleans())
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ping, seqs, node_ids, coordinates),
    st.builds(Ack, seqs, node_ids, coordinates),
    st.builds(PingReq, seqs, node_ids),
    st.builds(Nack, seqs),
    st.builds(Introduce),
    st.builds(Suspect, node_ids, incarnations, node_ids),
    st.builds(Dead, node_ids, incarnations, node_ids),
    records,
)


@given(st.lists(messages, max_size=2))
def test_a_packet_decodes_to_what_was_encoded(said: list[Message]) -> None:
    assert decode(b"".join(map(encode, said))) == said


@given(st.binary(max_size=MAX_PAYLOAD_BYTES))
def test_arbitrary_bytes_decode_or_are_malformed(data: bytes) -> None:
    with suppress(errors.Malformed):
        decode(data)


@given(messages, st.data())
def test_a_damaged_message_decodes_or_is_malformed(message: Message, data: st.DataObject) -> None:
    damaged = bytearray(encode(message))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    with suppress(errors.Malformed):
        decode(bytes(damaged))


@given(messages)
def test_a_packet_that_is_cut_short_is_malformed(message: Message) -> None:
    whole = encode(message)
    for cut in range(1, len(whole)):
        with pytest.raises(errors.Malformed):
            decode(whole[:cut])


def test_messages_of_a_later_version_are_stepped_over() -> None:
    unknown = b"\xee\x00\x03abc"
    assert decode(encode(Nack(1)) + unknown + encode(Nack(2))) == [Nack(1), Nack(2)]


def test_a_packet_is_bounded_in_bytes_and_messages() -> None:
    with pytest.raises(errors.Malformed):
        decode(b"\xee\x00\x00" * (MAX_PAYLOAD_BYTES // 3 + 1))
    assert decode(encode(Introduce()) * MAX_MESSAGES)
    with pytest.raises(errors.Malformed):
        decode(encode(Introduce()) * (MAX_MESSAGES + 1))


@pytest.mark.parametrize("incarnation", [0, MAX_INCARNATION + 1])
def test_a_claim_with_an_impossible_incarnation_is_malformed(incarnation: int) -> None:
    node = node_id(b"k" * 32)
    with pytest.raises(errors.Malformed):
        decode(encode(Suspect(node, incarnation, node)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 11.0, -11.0])
def test_a_coordinate_off_the_map_is_malformed(value: float) -> None:
    for absurd in (
        Coordinate((value,) * DIMENSIONS, 0.1, 0.5),
        Coordinate((0.0,) * DIMENSIONS, value, 0.5),
        Coordinate((0.0,) * DIMENSIONS, 0.1, value),
    ):
        with pytest.raises(errors.Malformed):
            decode(encode(Ping(1, node_id(b""), absurd)))


@given(records)
def test_a_record_says_who_signed_it(said: Record) -> None:
    assert decode_record(said.blob) == said


def test_every_record_fits_into_a_packet() -> None:
    assert MAX_RECORD_BYTES + 3 <= MAX_PAYLOAD_BYTES
    key = b"k" * 32
    longest = LocalNode("n" * 64, "s" * 64, "h" * 253, 65535, "v" * 32, key, b"b" * 8, pretend_sign(key))
    assert len(longest.record(MAX_INCARNATION).blob) == MAX_RECORD_BYTES


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "n" * 65},
        {"name": "bell\a"},
        {"name": "two\nlines"},
        {"site": "s" * 65},
        {"host": ""},
        {"host": "h" * 254},
        {"version": "v" * 33},
        {"port": 0},
        {"port": 65536},
        {"port": -1},
    ],
)
def test_a_node_cannot_say_what_nobody_would_read(change: dict[str, object]) -> None:
    good: dict[str, object] = {"name": "a", "site": "", "host": "h", "port": 1, "version": ""}
    key = b"k" * 32
    local = LocalNode(**{**good, **change}, public_key=key, boot_id=b"b" * 8, sign=pretend_sign(key))  # type: ignore[arg-type]
    with pytest.raises(errors.Malformed):
        local.record(1)


@pytest.mark.parametrize("incarnation", [0, -1, MAX_INCARNATION + 1])
def test_incarnations_are_bounded(incarnation: int) -> None:
    with pytest.raises(errors.Malformed):
        local_node("a").record(incarnation)


def test_only_the_owner_signs_a_record() -> None:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()

    def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
        except InvalidSignature:
            return False
        return True

    said = LocalNode("a", "", "host", 7420, "1", public, b"b" * 8, private.sign).record(3)
    decode_record(said.blob).check(verify)
    assert said.node == node_id(public)
    at = said.blob.index(b"host")
    forged = decode_record(said.blob[:at] + b"evil" + said.blob[at + 4 :])
    assert forged.host == "evil"
    with pytest.raises(errors.Forged) as caught:
        forged.check(verify)
    assert caught.value.node == said.node


def test_a_record_cannot_be_put_under_another_key() -> None:
    said, other = record("a"), local_node("b")
    moved = decode_record(said.blob.replace(local_node("a").public_key, other.public_key))
    assert moved.node == other.id
    with pytest.raises(errors.Forged):
        moved.check(pretend_verify)


@pytest.mark.parametrize("value", [None, 7, b"0" * 32, "0" * 31, "0" * 33, "G" * 32, "A" * 32, ["0"] * 32])
def test_node_ids_are_checked(value: object) -> None:
    with pytest.raises(errors.Malformed):
        parse_node_id(value)


def test_a_node_id_is_the_start_of_the_hash_of_its_key() -> None:
    assert node_id(b"k" * 32) == "a05c0a3005340cd6fa4afb0a708a336f"  # a golden value: ids must never change
    assert parse_node_id(node_id(b"k" * 32)) == node_id(b"k" * 32)
