"""What a machine that wants to join and an authority say to each other: one request, one answer.

Spoken inside TLS under ALPN `p2player-join/1`, where the authority has shown its certificate and the newcomer has none:

    newcomer                                           authority
    u32 length, msgpack map: JoinRequest   ------>     judges it, journals, signs
                                           <------     u32 length, msgpack map: Welcome | Rejection
    close                                              close

Lengths are big-endian and checked against their caps before anything is kept. Every map has `v`, the version of its
form; keys that a reader does not know are passed over, so that later versions can add to it. Both sides tell their
time, so that a wrong clock is found out here and not by a certificate that is not valid yet.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack

VERSION: Final = 1
MAX_REQUEST_BYTES: Final = 16 << 10
MAX_REPLY_BYTES: Final = 512 << 10
INVITE_BYTES: Final = 16
SECRET_BYTES: Final = 32
MAX_DER_BYTES: Final = 4096
MAX_HOST_CHARS: Final = 253
MAX_TEXT_CHARS: Final = 1024
MAX_CHAIN: Final = 4
MAX_MESH_KEYS: Final = 16
MAX_MEMBERS: Final = 256
MAX_MEMBER_KEYS: Final = 16

BUSY: Final = "busy"
"""The code of a `Rejection` that means: the same request again in a second."""

_LENGTH: Final = struct.Struct("!I")

Scalar = str | int | float | bool | None
MemberRow = dict[str, Scalar]


class JoinProtocolError(Exception):
    """The other side broke the protocol; nothing was changed by it."""


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """Let me in.

    Attributes:
        invite, secret: out of the token; which invite, and the proof of holding it.
        csr: PKCS #10 request, DER: the key, name and site to be certified.
        host, port: where the node will be reached.
        sent_at: the newcomer's clock, seconds since the Unix epoch.
    """

    invite: bytes
    secret: bytes
    csr: bytes
    host: str
    port: int
    sent_at: float


@dataclass(frozen=True, slots=True)
class Welcome:
    """You are in.

    Attributes:
        chain: the node's certificate and what lies between it and the root, leaf first, DER.
        roots: the mesh's root certificates, DER; one in this version.
        mesh_keys: the gossip keys; the first one seals.
        members: whom to gossip with first; rows of plain values, passed on unread.
        sent_at: the authority's clock.
    """

    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    mesh_keys: tuple[bytes, ...]
    members: tuple[MemberRow, ...]
    sent_at: float


@dataclass(frozen=True, slots=True)
class Rejection:
    """You are not. `code` is one of `p2player.errors`, or `BUSY`."""

    code: str
    message: str
    sent_at: float


def encode_request(request: JoinRequest) -> bytes:
    """The framed request."""
    return _frame(
        {
            "v": VERSION,
            "invite": request.invite,
            "secret": request.secret,
            "csr": request.csr,
            "host": request.host,
            "port": request.port,
            "now": request.sent_at,
        }
    )


def decode_request(message: bytes) -> JoinRequest:
    """Read what `MessageReader` cut out.

    Raises:
        JoinProtocolError: it is no request of this version.
    """
    fields = _fields(message)
    return JoinRequest(
        invite=_raw(fields, "invite", INVITE_BYTES, INVITE_BYTES),
        secret=_raw(fields, "secret", SECRET_BYTES, SECRET_BYTES),
        csr=_raw(fields, "csr", 1, MAX_DER_BYTES),
        host=_text(fields, "host", MAX_HOST_CHARS),
        port=_whole(fields, "port", 65535),
        sent_at=_time(fields),
    )


def encode_reply(reply: Welcome | Rejection) -> bytes:
    """The framed answer."""
    if isinstance(reply, Rejection):
        rejected = {"v": VERSION, "code": reply.code, "message": reply.message[:MAX_TEXT_CHARS], "now": reply.sent_at}
        return _frame(rejected)
    return _frame(
        {
            "v": VERSION,
            "chain": list(reply.chain),
            "roots": list(reply.roots),
            "keys": list(reply.mesh_keys),
            "members": list(reply.members[:MAX_MEMBERS]),
            "now": reply.sent_at,
        }
    )


def decode_reply(message: bytes) -> Welcome | Rejection:
    """Read what `MessageReader` cut out.

    Raises:
        JoinProtocolError: it is no answer of this version.
    """
    fields = _fields(message)
    if "code" in fields:
        return Rejection(_text(fields, "code", 64), _text(fields, "message", MAX_TEXT_CHARS), _time(fields))
    return Welcome(
        chain=_raws(fields, "chain", MAX_CHAIN),
        roots=_raws(fields, "roots", MAX_CHAIN),
        mesh_keys=_raws(fields, "keys", MAX_MESH_KEYS),
        members=tuple(_member(row) for row in _list(fields, "members", MAX_MEMBERS)),
        sent_at=_time(fields),
    )


class MessageReader:
    """Collects the bytes of one message.

    Args:
        limit: the longest message accepted, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """Add `data`; returns the message once it is complete.

        Raises:
            JoinProtocolError: the message is over the limit, or something follows it.
        """
        self._buffer += data
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self._limit:
            raise JoinProtocolError(f"a message of {length} bytes; {self._limit} are allowed")
        if len(self._buffer) > _LENGTH.size + length:
            raise JoinProtocolError("more than one message")
        return bytes(self._buffer[_LENGTH.size :]) if len(self._buffer) == _LENGTH.size + length else None


def describe_skew(ahead_s: float) -> str:
    """How the newcomer's clock stands to the authority's, in words; positive: it is ahead."""
    amount = abs(ahead_s)
    for unit, length_s in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if amount >= 2 * length_s:
            return f"{amount / length_s:.1f} {unit} {'ahead of' if ahead_s > 0 else 'behind'} the authority's"
    return f"{amount:.0f} seconds {'ahead of' if ahead_s > 0 else 'behind'} the authority's"


def _frame(fields: Mapping[str, Any]) -> bytes:
    body: bytes = msgpack.packb(fields, use_bin_type=True)
    return _LENGTH.pack(len(body)) + body


def unpack_map(data: bytes) -> dict[str, Any]:
    """One msgpack map with text keys, nothing after it, nested no deeper than msgpack's own limits allow.

    Raises:
        JoinProtocolError: it is something else.
    """
    try:
        fields = msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True)
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError) as error:
        raise JoinProtocolError(f"not msgpack: {error}") from None
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise JoinProtocolError("not a map")
    return fields


def _fields(message: bytes) -> dict[str, Any]:
    fields = unpack_map(message)
    if fields.get("v") != VERSION:
        raise JoinProtocolError(f"version {fields.get('v')!r} of the join protocol; this one speaks {VERSION}")
    return fields


def _raw(fields: Mapping[str, Any], key: str, least: int, most: int) -> bytes:
    value = fields.get(key)
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        raise JoinProtocolError(f"field {key!r} is not {least} to {most} bytes")
    return value


def _list(fields: Mapping[str, Any], key: str, most: int) -> list[Any]:
    value = fields.get(key)
    if not isinstance(value, list) or len(value) > most:
        raise JoinProtocolError(f"field {key!r} is not a list of at most {most}")
    return value


def _raws(fields: Mapping[str, Any], key: str, most: int) -> tuple[bytes, ...]:
    values = _list(fields, key, most)
    if not values or not all(isinstance(value, bytes) and 0 < len(value) <= MAX_DER_BYTES for value in values):
        raise JoinProtocolError(f"field {key!r} is not a list of byte strings")
    return tuple(values)


def _text(fields: Mapping[str, Any], key: str, most: int) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise JoinProtocolError(f"field {key!r} is not a text of 1 to {most} characters")
    return value


def _whole(fields: Mapping[str, Any], key: str, most: int) -> int:
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise JoinProtocolError(f"field {key!r} is not a number from 0 to {most}")
    return value


def _time(fields: Mapping[str, Any]) -> float:
    value = fields.get("now")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e11:
        raise JoinProtocolError("field 'now' is not a time")
    return float(value)


def _member(row: Any) -> MemberRow:
    if not isinstance(row, dict) or len(row) > MAX_MEMBER_KEYS:
        raise JoinProtocolError("a member is not a small map")
    for key, value in row.items():
        if not isinstance(key, str) or not isinstance(value, Scalar) or len(str(value)) > MAX_TEXT_CHARS:
            raise JoinProtocolError("a member holds more than plain values")
    return row
