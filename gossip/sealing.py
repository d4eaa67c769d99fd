"""Sealed packets: only members read and write them, and each counts once.

Theory of operation
-------------------
Members share the mesh key, but two senders never use the same key and nonce: each seals under a key of its own,

    AES-256-GCM key = HKDF-SHA256(mesh key, salt = none, info = DOMAIN | sender id | boot id)

with a counter as nonce. The boot id is random and new with each start of the process, so the counter may begin at zero
again. The header is authenticated, and tells the receiver which key to derive:

    version u8 | key id 4 | sender id 16 | boot id 8 | counter u64 | ciphertext | tag 16

The key id is the start of the BLAKE3 of the mesh key. During a rotation several mesh keys open packets while one
seals. A window of the last counters of each sender and boot refuses what comes twice (as in RFC 4303, section 3.4.3).
Nothing is remembered, and no derived key is kept, for a packet that did not open. A receiver that restarts remembers
nothing, so what is inside has to bear being heard twice, and does: incarnations only grow, and acks answer random
numbers.

A seal says "a member", not "this member": whoever holds the mesh key can derive any sender's key. What must not be
forged is signed (`gossip.records`).
"""

import struct
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeVar

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gossip.errors import Malformed, Replayed, Unsealable
from gossip.messages import BOOT_ID_BYTES, NODE_ID_BYTES, NodeId
from gossip.wire import MAX_PACKET_BYTES, SEAL_BYTES

MESH_KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 4
WINDOW: Final = 1024
MAX_SENDERS: Final = 4096
"""Pairs of sender and boot whose window is kept; the one that was silent for longest goes first."""
MAX_KEYS: Final = 16

DOMAIN: Final = b"p2player gossip packet 1\0"
_VERSION: Final = 1
_TAG_BYTES: Final = 16
_HEADER: Final = struct.Struct(f">B{KEY_ID_BYTES}s{NODE_ID_BYTES}s{BOOT_ID_BYTES}sQ")

_V = TypeVar("_V")

assert _HEADER.size + _TAG_BYTES == SEAL_BYTES


@dataclass(frozen=True, slots=True)
class Keyring:
    """The mesh keys of this moment: the first one seals, all of them open.

    To rotate: add the new key behind the old one on every node, then put it first, then drop the old one. When a node
    is revoked there is no time for that: put the new key first at once, and drop the old one as soon as the news has
    spread.

    Raises:
        Malformed: no key, too many, or one that is not `MESH_KEY_BYTES` long.
    """

    keys: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= MAX_KEYS or any(len(key) != MESH_KEY_BYTES for key in self.keys):
            raise Malformed(f"a keyring holds 1 to {MAX_KEYS} keys of {MESH_KEY_BYTES} bytes")

    def with_first(self, key: bytes) -> "Keyring":
        """The same ring, sealing with `key` from now on; the oldest keys fall off a ring that is full."""
        return Keyring((key, *(old for old in self.keys if old != key))[:MAX_KEYS])

    def without(self, keys: Iterable[bytes]) -> "Keyring":
        """The ring without some keys.

        Raises:
            Malformed: that would leave none.
        """
        drop = set(keys)
        return Keyring(tuple(key for key in self.keys if key not in drop))


@dataclass(frozen=True, slots=True)
class Opened:
    """A packet out of its seal."""

    sender: NodeId
    boot_id: bytes
    payload: bytes


def key_id(mesh_key: bytes) -> bytes:
    """What a packet says of the key that sealed it; reveals nothing of the key."""
    return blake3(mesh_key, derive_key_context="p2player gossip key id 1").digest(length=KEY_ID_BYTES)


def _cipher(mesh_key: bytes, sender: bytes, boot_id: bytes) -> AESGCM:
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=DOMAIN + sender + boot_id)
    return AESGCM(hkdf.derive(mesh_key))


def _nonce(counter: int) -> bytes:
    return counter.to_bytes(12, "big")


class Sealer:
    """Seals this node's packets.

    Args:
        keyring: its first key is used.
        sender: this node.
        boot_id: 8 random bytes, never used before: key and nonce would repeat.
    """

    def __init__(self, keyring: Keyring, sender: NodeId, boot_id: bytes) -> None:
        self._sender = bytes.fromhex(sender)
        self._boot_id = boot_id
        self._counter = 0
        self.rotate(keyring)

    def rotate(self, keyring: Keyring) -> None:
        """Seal under another ring's first key from now on; the counter goes on."""
        mesh_key = keyring.keys[0]
        self._key_id = key_id(mesh_key)
        self._cipher = _cipher(mesh_key, self._sender, self._boot_id)

    def seal(self, payload: bytes) -> bytes:
        """A packet of `SEAL_BYTES` more than the payload."""
        counter = self._counter
        self._counter += 1
        header = _HEADER.pack(_VERSION, self._key_id, self._sender, self._boot_id, counter)
        return header + self._cipher.encrypt(_nonce(counter), payload, header)


class Opener:
    """Opens other nodes' packets, each once.

    Args:
        keyring: any of its keys may have sealed them.
        max_senders: see `MAX_SENDERS`.
    """

    def __init__(self, keyring: Keyring, *, max_senders: int = MAX_SENDERS) -> None:
        self._max_senders = max_senders
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()
        self._ciphers: OrderedDict[bytes, AESGCM] = OrderedDict()
        self.rotate(keyring)

    def rotate(self, keyring: Keyring) -> None:
        """Open with the keys of another ring from now on; what was seen stays seen."""
        self._keys = {key_id(key): key for key in keyring.keys}
        self._ciphers.clear()

    def open(self, packet: bytes) -> Opened:
        """Check a packet and take it out of its seal.

        Raises:
            Malformed: it is no packet of this version.
            Unsealable: it was sealed with another key, or changed on its way.
            Replayed: it came before, or is too old to tell.
        """
        if not SEAL_BYTES <= len(packet) <= MAX_PACKET_BYTES or packet[0] != _VERSION:
            raise Malformed("not a packet of this version")
        _, used_key, sender, boot_id, counter = _HEADER.unpack_from(packet)
        mesh_key = self._keys.get(used_key)
        if mesh_key is None:
            raise Unsealable("sealed with a key that is not on this ring")
        # Before any work is done for it; a packet that does not open leaves no trace.
        window = self._windows.get(sender + boot_id)
        if window is not None and window.has_seen(counter):
            raise Replayed("this packet came before")
        cipher_key = used_key + sender + boot_id
        cipher = self._ciphers.get(cipher_key) or _cipher(mesh_key, sender, boot_id)
        header, sealed = packet[: _HEADER.size], packet[_HEADER.size :]
        try:
            payload = cipher.decrypt(_nonce(counter), sealed, header)
        except InvalidTag:
            raise Unsealable("the seal is broken") from None
        _remember(self._ciphers, cipher_key, cipher, self._max_senders)
        window = window or _Window()
        window.add(counter)
        _remember(self._windows, sender + boot_id, window, self._max_senders)
        return Opened(NodeId(sender.hex()), boot_id, payload)


class _Window:
    """The newest counter of a sender, and which of the `WINDOW` counters up to it were seen (bit 0: the newest)."""

    __slots__ = ("_bits", "_newest")

    def __init__(self) -> None:
        self._newest = -1
        self._bits = 0

    def has_seen(self, counter: int) -> bool:
        age = self._newest - counter
        return age >= WINDOW or (age >= 0 and bool(self._bits >> age & 1))

    def add(self, counter: int) -> None:
        if counter > self._newest:
            shift = min(counter - self._newest, WINDOW)
            self._bits = (self._bits << shift) & ((1 << WINDOW) - 1) | 1
            self._newest = counter
        else:
            self._bits |= 1 << (self._newest - counter)


def _remember(kept: OrderedDict[bytes, _V], key: bytes, value: _V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)
