"""Bytes to messages and back: the framing of the peer protocol.

A frame is a fixed prefix of 12 bytes, a msgpack map (the *header*) and a raw payload:

    +------+-------+----------+---------------+----------------+--------+---------+
    | type | flags | reserved | header length | payload length | header | payload |
    |  u8  |  u8   |   u16    |      u32      |      u32       | msgpack| bytes   |
    +------+-------+----------+---------------+----------------+--------+---------+

All integers are big-endian. Flags and reserved are zero. Both lengths are checked against their caps before a byte of
either part is kept, so that a peer can make us hold `MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES` and no more; a header is
measured before it is decoded, so that it cannot become much more than it was on the wire. Chunk data travels as
payload: it is never copied through msgpack.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

import msgpack

from p2player.proto.measure import ITEM_BYTES, Unmeasurable, measure

PREFIX: Final = struct.Struct("!BBHII")
MAX_HEADER_BYTES: Final = 1 << 20
MAX_PAYLOAD_BYTES: Final = 4 << 20
MAX_LEVELS: Final = 16
MAX_ITEMS: Final = 1 << 17
"""Of the header of a request or reply; the largest of ours compares 12,288 records, in some 60,000 items."""
MAX_SMALL_ITEMS: Final = 1 << 10
"""Of any other header."""
MAX_METHOD_CHARS: Final = 64
MAX_TEXT_CHARS: Final = 4096

Buffer = bytes | bytearray | memoryview


class RemoteProtocolError(Exception):
    """The peer broke the protocol: its connection is closed, nothing else is harmed."""


class LocalProtocolError(Exception):
    """Our own side asked for something that the protocol does not allow: a defect here."""


class FrameType(IntEnum):
    """The first byte of a frame."""

    HELLO = 1
    REQUEST = 2
    PART = 3
    REPLY = 4
    ERROR = 5
    CANCEL = 6
    PING = 7
    PONG = 8
    GOODBYE = 9


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of either side.

    `node` is the sender's NodeId, checked against its certificate by the shell. `features` are what the sender can do
    beyond the base protocol; both sides use the intersection, so that neighbouring versions work together.
    """

    node: str
    name: str
    version: str
    features: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Request:
    """Ask the peer to do `method`; it answers with any number of parts and then one reply or error.

    `held_bytes` is about what a received one occupies here while it is open.
    """

    rid: int
    method: str
    body: Mapping[str, Any] = field(default_factory=dict)
    payload: Buffer = b""
    held_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a streamed answer: a small header and raw bytes."""

    rid: int
    header: Mapping[str, Any]
    payload: Buffer = b""


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of an answer: it went well."""

    rid: int
    body: Mapping[str, Any] = field(default_factory=dict)
    payload: Buffer = b""


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of an answer: it did not. `code` is one of `p2player.errors`, or `cancelled`."""

    rid: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """The asker lost interest; the answerer stops and still sends a reply or failure."""

    rid: int


@dataclass(frozen=True, slots=True)
class Ping:
    """Prove that the connection lives; the peer answers with a `Pong`."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a `Ping`."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender closes after this frame; `reason` is for the log."""

    reason: str = ""


Message = Hello | Request | Part | Reply | Failure | Cancel | Ping | Pong | Goodbye


def encode(message: Message) -> list[Buffer]:
    """The frame of `message` as buffers to be sent in order; a payload is passed on uncopied.

    Raises:
        LocalProtocolError: a part is over its cap, or holds what cannot be written down.
    """
    try:
        kind, fields, payload = _fields(message)
        header: bytes = msgpack.packb(fields, use_bin_type=True)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise LocalProtocolError(f"{type(message).__name__} cannot be written: {error}") from None
    if len(header) > MAX_HEADER_BYTES or len(payload) > MAX_PAYLOAD_BYTES:
        raise LocalProtocolError(
            f"{type(message).__name__} too large: header {len(header)}, payload {len(payload)} bytes"
        )
    try:
        _measured(kind, header)
    except Unmeasurable as error:
        raise LocalProtocolError(f"{type(message).__name__} too large: {error}") from None
    head = PREFIX.pack(kind, 0, 0, len(header), len(payload)) + header
    return [head, payload] if len(payload) else [head]


def _measured(kind: int, header: bytes) -> int:
    """The items in a header; raises `Unmeasurable` over the bounds of its type."""
    large = kind in (FrameType.REQUEST, FrameType.REPLY)
    return measure(header, most_items=MAX_ITEMS if large else MAX_SMALL_ITEMS, most_levels=MAX_LEVELS)


def _plain(text: str) -> str:
    """Text for the log of the other side: what has no encoding, such as half of an odd file name, is marked."""
    return text[:MAX_TEXT_CHARS].encode(errors="replace").decode()


def _fields(message: Message) -> tuple[FrameType, dict[str, Any], Buffer]:
    match message:
        case Hello(node, name, version, features):
            fields = {"node": node, "name": name, "version": version, "features": sorted(features)}
            return FrameType.HELLO, fields, b""
        case Request(rid, method, body, payload):
            return FrameType.REQUEST, {"rid": rid, "method": method, "body": dict(body)}, payload
        case Part(rid, header, payload):
            return FrameType.PART, {"rid": rid, "header": dict(header)}, payload
        case Reply(rid, body, payload):
            return FrameType.REPLY, {"rid": rid, "body": dict(body)}, payload
        case Failure(rid, code, text):
            return FrameType.ERROR, {"rid": rid, "code": code, "message": _plain(text)}, b""
        case Cancel(rid):
            return FrameType.CANCEL, {"rid": rid}, b""
        case Ping():
            return FrameType.PING, {}, b""
        case Pong():
            return FrameType.PONG, {}, b""
        case Goodbye(reason):
            return FrameType.GOODBYE, {"reason": _plain(reason)}, b""


class FrameReader:
    """Collects received bytes and cuts them into messages, however they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._offset = 0

    @property
    def lacking(self) -> int:
        """Bytes without which the message that has begun is not complete; 0 where that is not known."""
        available = len(self._buffer)
        if available < PREFIX.size:
            return 0
        _, _, _, header_len, payload_len = PREFIX.unpack_from(self._buffer)
        return int(PREFIX.size + header_len + payload_len - available)

    def feed(self, data: Buffer) -> list[Message]:
        """Add `data` and return the messages that are complete now.

        Raises:
            RemoteProtocolError: the bytes are not a frame of this protocol, or one over its caps.
        """
        self._buffer += data
        messages: list[Message] = []
        while (message := self._next()) is not None:
            messages.append(message)
        if self._offset:
            del self._buffer[: self._offset]
            self._offset = 0
        return messages

    def _next(self) -> Message | None:
        available = len(self._buffer) - self._offset
        if available < PREFIX.size:
            return None
        kind, flags, reserved, header_len, payload_len = PREFIX.unpack_from(self._buffer, self._offset)
        if flags or reserved:
            raise RemoteProtocolError("reserved bits of a frame are set")
        if header_len > MAX_HEADER_BYTES or payload_len > MAX_PAYLOAD_BYTES:
            raise RemoteProtocolError(f"frame of {header_len} + {payload_len} bytes is over the cap")
        if available < PREFIX.size + header_len + payload_len:
            return None
        start = self._offset + PREFIX.size
        with memoryview(self._buffer) as view:
            header = bytes(view[start : start + header_len])
            payload = bytes(view[start + header_len : start + header_len + payload_len])
        self._offset = start + header_len + payload_len
        return _decode(kind, header, payload)


def _decode(kind: int, header: bytes, payload: bytes) -> Message:
    try:
        items = _measured(kind, header)
        fields = msgpack.unpackb(header, raw=False, strict_map_key=True)
    # A key that is no text or bytes is a ValueError; the rest is what the decoder says of bytes that are no msgpack.
    except (Unmeasurable, ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise RemoteProtocolError(f"frame header is not msgpack: {error}") from None
    if not isinstance(fields, dict):
        raise RemoteProtocolError("frame header is not a map")
    if payload and kind not in (FrameType.REQUEST, FrameType.PART, FrameType.REPLY):
        raise RemoteProtocolError(f"frame type {kind} carries no payload")
    match kind:
        case FrameType.HELLO:
            features = _get(fields, "features", list)
            if len(features) > 64 or not all(isinstance(item, str) for item in features):
                raise RemoteProtocolError("malformed features")
            return Hello(_text(fields, "node"), _text(fields, "name"), _text(fields, "version"), frozenset(features))
        case FrameType.REQUEST:
            held_bytes = len(header) + len(payload) + items * ITEM_BYTES
            return Request(_rid(fields), _text(fields, "method"), _get(fields, "body", dict), payload, held_bytes)
        case FrameType.PART:
            return Part(_rid(fields), _get(fields, "header", dict), payload)
        case FrameType.REPLY:
            return Reply(_rid(fields), _get(fields, "body", dict), payload)
        case FrameType.ERROR:
            return Failure(_rid(fields), _text(fields, "code"), _text(fields, "message", MAX_TEXT_CHARS))
        case FrameType.CANCEL:
            return Cancel(_rid(fields))
        case FrameType.PING:
            return Ping()
        case FrameType.PONG:
            return Pong()
        case FrameType.GOODBYE:
            return Goodbye(_text(fields, "reason", MAX_TEXT_CHARS))
        case _:
            raise RemoteProtocolError(f"unknown frame type {kind}")


def _get(fields: dict[Any, Any], key: str, kind: type) -> Any:
    value = fields.get(key)
    if not isinstance(value, kind):
        raise RemoteProtocolError(f"frame field {key!r} is missing or not a {kind.__name__}")
    return value


def _text(fields: dict[Any, Any], key: str, limit: int = MAX_METHOD_CHARS) -> str:
    value: str = _get(fields, key, str)
    if len(value) > limit:
        raise RemoteProtocolError(f"frame field {key!r} is longer than {limit} characters")
    return value


def _rid(fields: dict[Any, Any]) -> int:
    value = fields.get("rid")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 63:
        raise RemoteProtocolError("frame field 'rid' is not a request number")
    return value
