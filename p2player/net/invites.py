"""The token that lets a machine into a mesh: everything that it has to know before it trusts anybody.

    p2p1_ base64url( msgpack{mesh name, root certificate, authorities, invite id, secret, expiry} + check )

The check is the start of the BLAKE3 of the rest: it tells a mistyped or cut token from one that an authority refuses.
Whoever holds a token can join until it is used up or expires; it is to be kept like a password until then.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, Final

import msgpack
from blake3 import blake3

from gossip.errors import Malformed
from gossip.messages import NodeId, parse_node_id
from p2player.addresses import Address, is_address
from p2player.errors import Refused
from p2player.net.certificates import MAX_CERTIFICATE_BYTES, CertificateError, read_root
from p2player.proto.joining import INVITE_BYTES, SECRET_BYTES, JoinProtocolError, unpack_map

PREFIX: Final = "p2p1_"
CHECK_BYTES: Final = 4
MAX_TOKEN_CHARS: Final = 8192
MAX_CONTACTS: Final = 8

_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*")


class TokenError(Refused):
    """This text is no token, or not as it was printed."""


@dataclass(frozen=True, slots=True)
class Contact:
    """An authority: who it is, and where it may be reached."""

    node: NodeId
    address: Address


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says.

    Attributes:
        root: the mesh's root certificate, DER; `mesh` and `mesh_id` are read from it.
        contacts: authorities that know the invite, in the order in which to try them.
        expires: seconds since the Unix epoch, by the authority's clock.
    """

    mesh: str
    mesh_id: str
    root: bytes
    contacts: tuple[Contact, ...]
    invite: bytes
    secret: bytes
    expires: int

    def __str__(self) -> str:
        fields = {
            "root": self.root,
            "at": [[bytes.fromhex(each.node), each.address.host, each.address.port] for each in self.contacts],
            "invite": self.invite,
            "secret": self.secret,
            "until": self.expires,
        }
        body: bytes = msgpack.packb(fields, use_bin_type=True)
        return PREFIX + base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")

    def __repr__(self) -> str:
        return f"<Token of mesh {self.mesh}, invite {self.invite.hex()}>"


def read_token(text: str) -> Token:
    """Read a token as a user pasted it; white space around it and line breaks inside do no harm.

    Raises:
        TokenError: it is not one; the text says what is wrong with it.
    """
    if len(text) > MAX_TOKEN_CHARS:
        raise TokenError("this is not a p2player token: it is too long")
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        raise TokenError(f"this is not a p2player token: it does not begin with {PREFIX}")
    encoded = text[len(PREFIX) :]
    if not _ALPHABET.fullmatch(encoded):
        raise TokenError("the token is damaged: it holds characters that no token has")
    try:
        data = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError):
        raise TokenError("the token is damaged: copy it again, whole") from None
    body, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
    # The last character may hold bits that mean nothing: they are checked too, so that each text is one token or none.
    if not body or check != _check(body) or base64.urlsafe_b64encode(data).decode().rstrip("=") != encoded:
        raise TokenError("the token is damaged, a character is missing or wrong: copy it again, whole")
    try:
        return _token(unpack_map(body))
    except (JoinProtocolError, Malformed, CertificateError):
        raise TokenError("the token is malformed: it was made by something else than p2player") from None


def _token(fields: dict[str, Any]) -> Token:
    root, invite, secret = (_raw(fields.get(key)) for key in ("root", "invite", "secret"))
    rows, expires = fields.get("at"), fields.get("until")
    if len(root) > MAX_CERTIFICATE_BYTES or len(invite) != INVITE_BYTES or len(secret) != SECRET_BYTES:
        raise JoinProtocolError("lengths")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_CONTACTS:
        raise JoinProtocolError("authorities")
    if isinstance(expires, bool) or not isinstance(expires, int) or not 0 <= expires < 1 << 40:
        raise JoinProtocolError("expiry")
    mesh_id, mesh = read_root(root)
    return Token(mesh, mesh_id, root, tuple(_contact(row) for row in rows), invite, secret, expires)


def _contact(row: Any) -> Contact:
    if not isinstance(row, list) or len(row) != 3 or not is_address(row[1], row[2]):
        raise JoinProtocolError("authority")
    return Contact(parse_node_id(_raw(row[0]).hex()), Address(row[1], row[2]))


def _raw(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise JoinProtocolError("not bytes")
    return value


def _check(body: bytes) -> bytes:
    return blake3(body, derive_key_context="p2player invite token 1").digest(length=CHECK_BYTES)
