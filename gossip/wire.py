"""Messages to bytes and back: what is inside the seal of one UDP packet.

A packet is a row of messages, each `type u8, length u16, body`. The length lets a node step over a type that only newer
versions know. Node ids travel as 16 raw bytes, numbers big-endian. A whole packet with its seal stays within
`MAX_PACKET_BYTES`, which crosses any IPv6 path unfragmented.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

from gossip.coordinates import COORDINATE_BYTES, Coordinate
from gossip.errors import Malformed
from gossip.messages import NODE_ID_BYTES, Ack, Dead, Introduce, Nack, NodeId, Ping, PingReq, Suspect
from gossip.records import MAX_INCARNATION, Record, decode_record

Message = Ping | Ack | PingReq | Nack | Introduce | Suspect | Dead | Record

MAX_PACKET_BYTES: Final = 1200
SEAL_BYTES: Final = 53
"""What `gossip.sealing` adds to a payload."""
MAX_PAYLOAD_BYTES: Final = MAX_PACKET_BYTES - SEAL_BYTES
MAX_MESSAGES: Final = 256

_HEADER: Final = struct.Struct(">BH")
_PROBE: Final = struct.Struct(f">I{NODE_ID_BYTES}s{COORDINATE_BYTES}s")
_REQUEST: Final = struct.Struct(f">I{NODE_ID_BYTES}s")
_SEQ: Final = struct.Struct(">I")
_CLAIM: Final = struct.Struct(f">{NODE_ID_BYTES}sQ{NODE_ID_BYTES}s")

_PING, _ACK, _PING_REQ, _NACK, _INTRODUCE, _SUSPECT, _DEAD, _RECORD = range(1, 9)


def encode(message: Message) -> bytes:
    """One message with its type and length."""
    match message:
        case Ping(seq, node, coordinate):
            return _framed(_PING, _PROBE.pack(seq, bytes.fromhex(node), coordinate.encode()))
        case Ack(seq, node, coordinate):
            return _framed(_ACK, _PROBE.pack(seq, bytes.fromhex(node), coordinate.encode()))
        case PingReq(seq, target):
            return _framed(_PING_REQ, _REQUEST.pack(seq, bytes.fromhex(target)))
        case Nack(seq):
            return _framed(_NACK, _SEQ.pack(seq))
        case Introduce():
            return _framed(_INTRODUCE, b"")
        case Suspect(node, incarnation, accuser):
            return _framed(_SUSPECT, _CLAIM.pack(bytes.fromhex(node), incarnation, bytes.fromhex(accuser)))
        case Dead(node, incarnation, accuser):
            return _framed(_DEAD, _CLAIM.pack(bytes.fromhex(node), incarnation, bytes.fromhex(accuser)))
        case Record():
            return _framed(_RECORD, message.blob)


def decode(payload: bytes) -> list[Message]:
    """The messages of a packet, in order; types that this version does not know are left out.

    Raises:
        Malformed: it is too long, cut short, or a message breaks a limit; then none of it counts.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise Malformed("a packet is too long")
    messages: list[Message] = []
    at = 0
    while at < len(payload):
        if len(messages) == MAX_MESSAGES:
            raise Malformed("a packet has too many messages")
        if at + _HEADER.size > len(payload):
            raise Malformed("a packet is cut short")
        kind, length = _HEADER.unpack_from(payload, at)
        at += _HEADER.size
        body = payload[at : at + length]
        if len(body) != length:
            raise Malformed("a packet is cut short")
        at += length
        reader = _READERS.get(kind)
        if reader is not None:
            messages.append(reader(body))
    return messages


def _framed(kind: int, body: bytes) -> bytes:
    return _HEADER.pack(kind, len(body)) + body


def _unpack(layout: struct.Struct, body: bytes) -> tuple[Any, ...]:
    if len(body) != layout.size:
        raise Malformed("a message has the wrong length")
    return layout.unpack(body)


def _read_probe(kind: type[Ping] | type[Ack]) -> Callable[[bytes], Message]:
    def read(body: bytes) -> Message:
        seq, node, coordinate = _unpack(_PROBE, body)
        return kind(seq, NodeId(node.hex()), Coordinate.decode(coordinate))

    return read


def _read_ping_req(body: bytes) -> Message:
    seq, target = _unpack(_REQUEST, body)
    return PingReq(seq, NodeId(target.hex()))


def _read_nack(body: bytes) -> Message:
    (seq,) = _unpack(_SEQ, body)
    return Nack(seq)


def _read_introduce(body: bytes) -> Message:
    if body:
        raise Malformed("a message has the wrong length")
    return Introduce()


def _read_claim(kind: type[Suspect] | type[Dead]) -> Callable[[bytes], Message]:
    def read(body: bytes) -> Message:
        node, incarnation, accuser = _unpack(_CLAIM, body)
        if not 1 <= incarnation <= MAX_INCARNATION:
            raise Malformed("a claim with an incarnation out of range")
        return kind(NodeId(node.hex()), incarnation, NodeId(accuser.hex()))

    return read


_READERS: Final[dict[int, Callable[[bytes], Message]]] = {
    _PING: _read_probe(Ping),
    _ACK: _read_probe(Ack),
    _PING_REQ: _read_ping_req,
    _NACK: _read_nack,
    _INTRODUCE: _read_introduce,
    _SUSPECT: _read_claim(Suspect),
    _DEAD: _read_claim(Dead),
    _RECORD: decode_record,
}
