"""How deltas are asked for and sent: the bodies of two methods, and their bounds.

    method        asked with                      answered with
    layer.delta   {scope, layer, bases}           parts {} + bytes, which joined are one zstd frame of the encoded
                                                  manifest; then {basis}: which of `bases` (layer ids, joined) the frame
                                                  refers to, empty when to none
    chunks.delta  {scope, layer, basis, units,    for each unit a part {unit} + a patch, or parts with groups as
                  signed} + payload               `chunks.want` answers; then {missing}

Chunks are not named by their ids here, which would often cost more than the delta itself, but by their *positions*
among the distinct chunks of the wanted layer and of the basis, in the order of their manifests: both ends know those.

`units` holds units one after the other: the wanted positions, then those of the relative. Each list is its length and
then runs of neighbours: the step from the position expected next (a signed number) and the length of the run. Numbers
are LEB128, signed ones folded as 0, -1, 1, -2, ... . `signed` says how many bytes of the payload are the signature of
each unit's relative (32-bit big-endian, joined): 0 when the asked peer holds the relative itself.

Everything read here comes from a peer, and breaking a bound is a `RemoteProtocolError`.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chunkstore.delta.kinship import Unit
from chunkstore.digest import ID_BYTES, LayerId
from p2player.proto.content_wire import MAX_SCOPE_CHARS, MAX_WANT_IDS
from p2player.proto.frames import MAX_PAYLOAD_BYTES, RemoteProtocolError

LAYER_DELTA: Final = "layer.delta"
CHUNKS_DELTA: Final = "chunks.delta"

MAX_BASES: Final = 4
MAX_WHOLE_MANIFEST_BYTES: Final = 4 << 20
"""Larger ones are listed and fetched chunk by chunk (`layer.manifest`): `layer.delta` is answered with `refused`."""
MAX_MANIFEST_FRAME_BYTES: Final = MAX_WHOLE_MANIFEST_BYTES + (64 << 10)
MAX_UNITS: Final = 1024
MAX_UNIT_CHUNKS: Final = 4096
MAX_RELATIVES: Final = 1 << 16
"""Positions in the relatives of all units of a request: a run of thousands takes a few bytes on the wire."""
MAX_POSITION: Final = 1 << 32
MAX_UNITS_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class DeltaAsk:
    """One request for chunks as deltas.

    Attributes:
        scope: what the content is known by; "" is what the whole mesh may read.
        layer, basis: the wanted layer and the old one.
        units: what is to be encoded together.
        signatures: of each unit's relative; empty where the peer is to read the relative itself.
    """

    scope: str
    layer: LayerId
    basis: LayerId
    units: Sequence[Unit]
    signatures: Sequence[bytes]

    @property
    def payload(self) -> bytes:
        """What goes along with `body`."""
        return b"".join(self.signatures)

    def body(self) -> dict[str, Any]:
        """The body of `chunks.delta`."""
        return {
            "scope": self.scope,
            "layer": self.layer,
            "basis": self.basis,
            "units": pack_units(self.units),
            "signed": struct.pack(f"!{len(self.signatures)}I", *map(len, self.signatures)),
        }

    @staticmethod
    def read(body: Mapping[str, Any], payload: bytes) -> "DeltaAsk":
        """The inverse of `body` and `payload`."""
        units = read_units(_raw(body, "units", 1, MAX_UNITS_BYTES))
        signatures = _cut(payload, _raw(body, "signed", 4 * len(units), 4 * len(units)))
        return DeltaAsk(_scope(body), _layer(body, "layer"), _layer(body, "basis"), units, signatures)


def patch_header(unit: int) -> dict[str, Any]:
    """The header of the part that carries the patch of the unit with this number."""
    return {"unit": unit}


def read_patch_header(header: Mapping[str, Any], units: int) -> int | None:
    """Which of so many units a part is the patch of; None when it carries a group."""
    unit = header.get("unit")
    if unit is None:
        return None
    if type(unit) is not int or not 0 <= unit < units:
        raise RemoteProtocolError("a patch for no unit that was asked for")
    return unit


def manifest_ask(scope: str, layer: LayerId, bases: Sequence[LayerId]) -> dict[str, Any]:
    """The body of `layer.delta`."""
    return {"scope": scope, "layer": layer, "bases": b"".join(bases[:MAX_BASES])}


def read_manifest_ask(body: Mapping[str, Any]) -> tuple[str, LayerId, list[LayerId]]:
    """The inverse of `manifest_ask`."""
    joined = _raw(body, "bases", 0, MAX_BASES * ID_BYTES)
    if len(joined) % ID_BYTES:
        raise RemoteProtocolError("field 'bases' is not made of whole ids")
    bases = [LayerId(joined[at : at + ID_BYTES]) for at in range(0, len(joined), ID_BYTES)]
    return _scope(body), _layer(body, "layer"), bases


def manifest_reply(basis: LayerId | None) -> dict[str, Any]:
    """The reply of `layer.delta`."""
    return {"basis": basis or b""}


def read_manifest_reply(body: Mapping[str, Any], bases: Sequence[LayerId]) -> LayerId | None:
    """The inverse of `manifest_reply`: one of `bases`, or None."""
    basis = LayerId(_raw(body, "basis", 0, ID_BYTES))
    if not basis:
        return None
    if basis not in bases:
        raise RemoteProtocolError("a manifest against a basis that was not offered")
    return basis


def pack_units(units: Sequence[Unit]) -> bytes:
    """Units as numbers, see above."""
    out = bytearray()
    for unit in units:
        _pack_positions(out, unit.wants)
        _pack_positions(out, unit.relative)
    return bytes(out)


def may_be_asked(units: Sequence[Unit]) -> bool:
    """Whether units are within what one request can say."""
    relatives = sum(len(unit.relative) for unit in units)
    return len(units) <= MAX_UNITS and relatives <= MAX_RELATIVES and len(pack_units(units)) <= MAX_UNITS_BYTES


def read_units(data: bytes) -> list[Unit]:
    """The inverse of `pack_units`, within the bounds of this module.

    No position may be wanted twice, or be twice in one relative: a few bytes must not make a node read the same again
    and again.
    """
    numbers = _numbers(data)
    units: list[Unit] = []
    wants: set[int] = set()
    relatives = 0
    while (count := next(numbers, None)) is not None:
        wanted = _read_positions(numbers, count)
        if not wanted:
            raise RemoteProtocolError("a unit that wants nothing")
        count = next(numbers, None)
        if count is None:
            raise RemoteProtocolError("half a unit")
        units.append(Unit(wanted, _read_positions(numbers, count)))
        if not wants.isdisjoint(wanted):
            raise RemoteProtocolError("a position that is wanted twice")
        wants.update(wanted)
        relatives += count
        if len(units) > MAX_UNITS or len(wants) > MAX_WANT_IDS or relatives > MAX_RELATIVES:
            raise RemoteProtocolError("too many units")
    if not units:
        raise RemoteProtocolError("no units")
    return units


def _pack_positions(out: bytearray, positions: Sequence[int]) -> None:
    _pack_number(out, len(positions))
    expected = at = 0
    while at < len(positions):
        first, start = positions[at], at
        while at < len(positions) and positions[at] == first + at - start:
            at += 1
        step = first - expected
        _pack_number(out, step << 1 if step >= 0 else (-step << 1) - 1)
        _pack_number(out, at - start)
        expected = first + at - start


def _read_positions(numbers: Iterator[int], count: int) -> tuple[int, ...]:
    if count > MAX_UNIT_CHUNKS:
        raise RemoteProtocolError("a unit of too many chunks")
    positions: list[int] = []
    expected = 0
    while len(positions) < count:
        folded, run = next(numbers, None), next(numbers, None)
        if folded is None or run is None or not 0 < run <= count - len(positions):
            raise RemoteProtocolError("positions that are no runs")
        first = expected + (folded >> 1 if folded & 1 == 0 else -((folded + 1) >> 1))
        if not 0 <= first <= MAX_POSITION:
            raise RemoteProtocolError("a position out of bounds")
        positions.extend(range(first, first + run))
        expected = first + run
    if len(set(positions)) < count:
        raise RemoteProtocolError("a position twice in one list")
    return tuple(positions)


def _pack_number(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _numbers(data: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0
        elif shift > 42:
            raise RemoteProtocolError("a number that is too large")
    if shift:
        raise RemoteProtocolError("a number that does not end")


def _cut(payload: bytes, lengths: bytes) -> list[bytes]:
    sizes = struct.unpack(f"!{len(lengths) // 4}I", lengths)
    if sum(sizes) != len(payload) or len(payload) > MAX_PAYLOAD_BYTES:
        raise RemoteProtocolError("signatures that do not fill the payload")
    cut, at = list[bytes](), 0
    for size in sizes:
        cut.append(bytes(payload[at : at + size]))
        at += size
    return cut


def _scope(body: Mapping[str, Any]) -> str:
    scope = body.get("scope")
    if not isinstance(scope, str) or len(scope) > MAX_SCOPE_CHARS:
        raise RemoteProtocolError("field 'scope' is not a short text")
    return scope


def _layer(body: Mapping[str, Any], key: str) -> LayerId:
    return LayerId(_raw(body, key, ID_BYTES, ID_BYTES))


def _raw(body: Mapping[str, Any], key: str, least: int, most: int) -> bytes:
    value = body.get(key)
    if not isinstance(value, bytes) or not least <= len(value) <= most:
        raise RemoteProtocolError(f"field {key!r} is not {least} to {most} bytes")
    return value
