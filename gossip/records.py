"""What a node says of itself: one signed record, and the only way to be alive or to have left.

A record carries the public key, so its node id is computed, never read: nobody can write a record for someone
else's id, and nobody without the private key can raise an incarnation. Everything else that is said about a node
(`Suspect`, `Dead`) is a hint that names an incarnation, and the next record of the owner ends it.

Layout, big-endian: format u8, flags u8 (bit 0: left), public key 32, boot id 8, incarnation u64, port u16, then name,
site, host and version, each a u8 length and that many bytes of UTF-8, then the signature (64 bytes) over
`DOMAIN` and everything before it.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from gossip.errors import Forged, Malformed
from gossip.messages import BOOT_ID_BYTES, PUBLIC_KEY_BYTES, NodeId, node_id

Sign = Callable[[bytes], bytes]
"""The owner's Ed25519 key: data -> 64-byte signature."""

Verify = Callable[[bytes, bytes, bytes], bool]
"""(public key, signature, data) -> whether the signature is good; never raises for a bad one."""

DOMAIN: Final = b"p2player member record 1\0"
SIGNATURE_BYTES: Final = 64
MAX_INCARNATION: Final = 1 << 48

MAX_NAME_BYTES: Final = 64
MAX_SITE_BYTES: Final = 64
MAX_HOST_BYTES: Final = 253
MAX_VERSION_BYTES: Final = 32

_FORMAT: Final = 1
_LEFT: Final = 1
_HEAD: Final = struct.Struct(f">BB{PUBLIC_KEY_BYTES}s{BOOT_ID_BYTES}sQH")
_LIMITS: Final = (MAX_NAME_BYTES, MAX_SITE_BYTES, MAX_HOST_BYTES, MAX_VERSION_BYTES)

MAX_RECORD_BYTES: Final = _HEAD.size + sum(_LIMITS) + len(_LIMITS) + SIGNATURE_BYTES


@dataclass(frozen=True, slots=True)
class Record:
    """One node's word about itself at one incarnation; see the module for what is trusted in it.

    Attributes:
        blob: the encoded record, as it was signed and as it travels.
    """

    node: NodeId
    public_key: bytes
    boot_id: bytes
    incarnation: int
    left: bool
    name: str
    site: str
    host: str
    port: int
    version: str
    blob: bytes = field(repr=False)

    def check(self, verify: Verify) -> None:
        """Check the owner's signature.

        Raises:
            Forged: it is not the owner's.
        """
        if not verify(self.public_key, self.blob[-SIGNATURE_BYTES:], DOMAIN + self.blob[:-SIGNATURE_BYTES]):
            raise Forged(self.node, "its record is not signed by its key")


@dataclass(frozen=True, slots=True)
class LocalNode:
    """Who this node is, and the key that says so.

    Attributes:
        name, site, version: what others will see.
        host, port: the advertised address.
        public_key: raw Ed25519, 32 bytes.
        boot_id: 8 random bytes, new with each start of the process.
        sign: signs with the matching private key.
    """

    name: str
    site: str
    host: str
    port: int
    version: str
    public_key: bytes
    boot_id: bytes
    sign: Sign

    @property
    def id(self) -> NodeId:
        """The id that belongs to `public_key`."""
        return node_id(self.public_key)

    def record(self, incarnation: int, *, left: bool = False) -> Record:
        """Sign what this node says of itself.

        Raises:
            Malformed: a field breaks a limit, which is then true for everyone who would read it.
        """
        flags = _LEFT if left else 0
        try:
            head = _HEAD.pack(_FORMAT, flags, self.public_key, self.boot_id, incarnation, self.port)
            texts = [text.encode() for text in (self.name, self.site, self.host, self.version)]
            body = head + b"".join(bytes((len(text),)) + text for text in texts)
        except (struct.error, ValueError) as error:
            raise Malformed(f"this node's own record does not encode: {error}") from error
        return decode_record(body + self.sign(DOMAIN + body))


@lru_cache(maxsize=4096)
def decode_record(blob: bytes) -> Record:
    """Read a record; its signature is not checked yet, see `Record.check`.

    The same record arrives many times, from many peers, hence the cache.

    Raises:
        Malformed: it breaks the layout or one of the limits.
    """
    if not _HEAD.size + len(_LIMITS) + SIGNATURE_BYTES <= len(blob) <= MAX_RECORD_BYTES:
        raise Malformed("a record has an impossible length")
    format_, flags, public_key, boot_id, incarnation, port = _HEAD.unpack_from(blob)
    if format_ != _FORMAT or flags & ~_LEFT:
        raise Malformed("a record of an unknown format")
    if not 1 <= incarnation <= MAX_INCARNATION or port == 0:
        raise Malformed("a record with an incarnation or port out of range")
    texts = []
    at, end = _HEAD.size, len(blob) - SIGNATURE_BYTES
    for limit in _LIMITS:
        length = blob[at] if at < end else limit + 1
        if length > limit or at + 1 + length > end:
            raise Malformed("a record with a text out of bounds")
        texts.append(_text(blob[at + 1 : at + 1 + length]))
        at += 1 + length
    if at != end:
        raise Malformed("a record with something after its end")
    name, site, host, version = texts
    if not name or not host:
        raise Malformed("a record without a name or host")
    return Record(
        node=node_id(public_key),
        public_key=public_key,
        boot_id=boot_id,
        incarnation=incarnation,
        left=bool(flags & _LEFT),
        name=name,
        site=site,
        host=host,
        port=port,
        version=version,
        blob=blob,
    )


def _text(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Malformed("a record with a text that is not UTF-8") from error
    if not text.isprintable():  # these end up on terminals
        raise Malformed("a record with control characters")
    return text
