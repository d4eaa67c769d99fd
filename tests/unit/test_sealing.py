"""Sealed packets: who cannot open, change or repeat them, and how keys rotate."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.errors import GossipError, Malformed, Replayed, Unsealable
from gossip.messages import NodeId, node_id
from gossip.sealing import MAX_KEYS, WINDOW, Keyring, Opened, Opener, Sealer, key_id
from gossip.wire import MAX_PACKET_BYTES, MAX_PAYLOAD_BYTES, SEAL_BYTES

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
SENDER = node_id(b"sender")
BOOT = b"boot-one"


def sealer(*keys: bytes, sender: NodeId = SENDER, boot: bytes = BOOT) -> Sealer:
    return Sealer(Keyring(keys or (OLD,)), sender, boot)


def opener(*keys: bytes) -> Opener:
    return Opener(Keyring(keys or (OLD,)))


@given(st.lists(st.binary(max_size=MAX_PAYLOAD_BYTES), max_size=5))
def test_what_is_sealed_opens(payloads: list[bytes]) -> None:
    seals, opens = sealer(), opener()
    for payload in payloads:
        packet = seals.seal(payload)
        assert len(packet) == len(payload) + SEAL_BYTES <= MAX_PACKET_BYTES
        assert opens.open(packet) == Opened(SENDER, BOOT, payload)


def test_a_packet_reveals_nothing_and_never_repeats() -> None:
    seals = sealer()
    first, second = seals.seal(b"secret secret"), seals.seal(b"secret secret")
    assert b"secret" not in first
    assert first[37:] != second[37:]
    assert OLD not in first and key_id(OLD) in first


def test_any_change_breaks_the_seal() -> None:
    packet = sealer().seal(b"payload")
    for at in range(len(packet)):
        changed = bytearray(packet)
        changed[at] ^= 1
        with pytest.raises((Malformed, Unsealable)):
            opener().open(bytes(changed))
    assert opener().open(packet).payload == b"payload"


@given(st.binary(max_size=MAX_PACKET_BYTES + 10))
def test_arbitrary_bytes_do_not_open(data: bytes) -> None:
    with pytest.raises(GossipError):
        opener().open(data)


def test_packets_of_another_mesh_do_not_open() -> None:
    with pytest.raises(Unsealable):
        opener(OLD).open(sealer(OTHER).seal(b"hello"))


def test_no_two_senders_or_boots_share_a_key() -> None:
    packets = [
        sealer().seal(b"same"),
        sealer(boot=b"boot-two").seal(b"same"),
        sealer(sender=node_id(b"other")).seal(b"same"),
        sealer(OTHER).seal(b"same"),
    ]
    assert len({packet[37:-16] for packet in packets}) == 4  # without header and tag


def test_a_packet_cannot_be_passed_off_as_someone_elses() -> None:
    packet = bytearray(sealer().seal(b"hello"))
    packet[5:21] = bytes.fromhex(node_id(b"other"))
    with pytest.raises(Unsealable):
        opener().open(bytes(packet))


def test_each_packet_opens_once() -> None:
    seals, opens = sealer(), opener()
    packet = seals.seal(b"once")
    opens.open(packet)
    with pytest.raises(Replayed):
        opens.open(packet)
    opens.open(seals.seal(b"next"))
    with pytest.raises(Replayed):
        opens.open(packet)


@given(st.integers(0, 2**32))
def test_any_order_within_the_window_opens_once_each(seed: int) -> None:
    seals, opens = sealer(), opener()
    packets = [seals.seal(bytes([n])) for n in range(40)]
    order = packets * 2
    random.Random(seed).shuffle(order)
    opened, replayed = [], 0
    for packet in order:
        try:
            opened.append(opens.open(packet).payload)
        except Replayed:
            replayed += 1
    assert sorted(opened) == [bytes([n]) for n in range(40)]
    assert replayed == 40


def test_a_packet_that_is_too_old_to_tell_is_refused() -> None:
    seals, opens = sealer(), opener()
    packets = [seals.seal(b"") for _ in range(WINDOW + 2)]
    opens.open(packets[-1])
    opens.open(packets[2])  # WINDOW - 1 behind the newest
    for late in packets[:2]:
        with pytest.raises(Replayed):
            opens.open(late)


def test_a_forged_counter_does_not_move_the_window() -> None:
    seals, opens = sealer(), opener()
    first = seals.seal(b"first")
    forged = bytearray(seals.seal(b"later"))
    forged[29:37] = (2**63).to_bytes(8, "big")
    with pytest.raises(Unsealable):
        opens.open(bytes(forged))
    assert opens.open(first).payload == b"first"


def test_a_new_boot_begins_anew() -> None:
    opens = opener()
    opens.open(sealer().seal(b"counter zero"))
    assert opens.open(sealer(boot=b"boot-two").seal(b"counter zero")).boot_id == b"boot-two"


def test_rotation_goes_through_without_losing_a_packet() -> None:
    seals, opens = sealer(OLD), opener(OLD)
    opens.rotate(Keyring((OLD, NEW)))  # step 1: everyone can open the new key
    assert opens.open(seals.seal(b"1")).payload == b"1"
    early = seals.seal(b"under the old key")
    seals.rotate(Keyring((NEW, OLD)))  # step 2: seal with it
    assert opens.open(seals.seal(b"2")).payload == b"2"
    assert opens.open(early).payload == b"under the old key"
    late = sealer(OLD, boot=b"boot-two").seal(b"late")
    opens.rotate(Keyring((NEW,)))  # step 3: the old key is gone
    with pytest.raises(Unsealable):
        opens.open(late)
    assert opens.open(seals.seal(b"3")).payload == b"3"


def test_what_was_seen_stays_seen_over_a_rotation() -> None:
    seals, opens = sealer(OLD), opener(OLD)
    packet = seals.seal(b"hello")
    opens.open(packet)
    opens.rotate(Keyring((NEW, OLD)))
    with pytest.raises(Replayed):
        opens.open(packet)


def test_the_number_of_remembered_senders_is_bounded() -> None:
    opens = Opener(Keyring((OLD,)), max_senders=8)
    kept = sealer()
    for number in range(50):
        opens.open(sealer(boot=number.to_bytes(8, "big")).seal(b""))
        opens.open(kept.seal(b"I am still here"))
    assert len(opens._windows) == len(opens._ciphers) == 8
    with pytest.raises(Replayed):  # whoever speaks is not forgotten
        opens.open(Sealer(Keyring((OLD,)), SENDER, BOOT).seal(b"again from zero"))


def test_nothing_is_remembered_for_packets_that_do_not_open() -> None:
    opens = opener()
    for number in range(20):
        forged = bytearray(sealer(boot=number.to_bytes(8, "big")).seal(b"hello"))
        forged[-1] ^= 1
        with pytest.raises(Unsealable):
            opens.open(bytes(forged))
    assert not opens._windows and not opens._ciphers


@pytest.mark.parametrize("keys", [(), (b"short",), (OLD,) * (MAX_KEYS + 1)])
def test_a_keyring_is_checked(keys: tuple[bytes, ...]) -> None:
    with pytest.raises(Malformed):
        Keyring(keys)


def test_a_keyring_is_a_value() -> None:
    ring = Keyring((OLD,)).with_first(NEW)
    assert ring.keys == (NEW, OLD)
    assert ring.with_first(OLD).keys == (OLD, NEW)
    assert ring.without([OLD]).keys == (NEW,)
    with pytest.raises(Malformed):
        ring.without([OLD, NEW])
    full = Keyring(tuple(bytes([n]) * 32 for n in range(MAX_KEYS)))
    assert len(full.with_first(NEW).keys) == MAX_KEYS
