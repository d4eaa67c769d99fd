"""How chunks are asked for that may repeat parts of shared layers: the body of one method, and its bounds.

    method          asked with            answered with
    chunks.echoes   {scope, ids, layers}  parts {unit} + a patch, or parts with groups as `chunks.want` answers;
                                          then {missing}: how many of the ids are not here

`layers` are shared layers that the asker has whole, joined ids. `unit` says what a patch makes of what: the positions
of chunks among `ids`, and the positions of the chunks that it refers to among those of all `layers`, one layer after
the other, each in the order of its manifest; as `delta_wire` packs them. So it is the asked node that looks for what is
alike, in content that only it has seen, and it needs not be believed: chunks are verified by their digests.

Everything read here comes from a peer, and breaking a bound is a `RemoteProtocolError`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chunkstore.delta.kinship import Unit
from chunkstore.digest import ID_BYTES, ChunkId, LayerId
from p2player.proto.content_wire import read_want, want_body
from p2player.proto.delta_wire import pack_units, read_units
from p2player.proto.frames import RemoteProtocolError

CHUNKS_ECHOES: Final = "chunks.echoes"

MAX_LAYERS: Final = 4
_MAX_UNIT_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class EchoAsk:
    """One request: chunks of a scope, and layers that the asker has."""

    scope: str
    ids: Sequence[ChunkId]
    layers: Sequence[LayerId]

    def body(self) -> dict[str, Any]:
        """The body of `chunks.echoes`."""
        return {**want_body(self.scope, self.ids), "layers": b"".join(self.layers)}

    @staticmethod
    def read(body: Mapping[str, Any]) -> "EchoAsk":
        """The inverse of `body`."""
        scope, ids = read_want(body)
        joined = body.get("layers")
        if not isinstance(joined, bytes) or not joined or len(joined) % ID_BYTES or len(joined) > MAX_LAYERS * ID_BYTES:
            raise RemoteProtocolError("field 'layers' is not made of whole ids, or of too many")
        if len(set(ids)) < len(ids):
            raise RemoteProtocolError("a chunk that is asked for twice")
        layers = [LayerId(joined[at : at + ID_BYTES]) for at in range(0, len(joined), ID_BYTES)]
        if len(set(layers)) < len(layers):
            raise RemoteProtocolError("a layer that is named twice")
        return EchoAsk(scope, ids, layers)


def echo_header(wants: Iterable[int], relative: Iterable[int]) -> dict[str, Any]:
    """The header of the part that carries a patch: positions as above, those of the relative ascending."""
    return {"unit": pack_units([Unit(tuple(wants), tuple(relative))])}


def read_echo_header(header: Mapping[str, Any], wanted: int, shared: int) -> Unit | None:
    """The inverse; None when the part carries a group.

    Args:
        wanted: so many chunks were asked for.
        shared: so many chunks the layers have.
    """
    packed = header.get("unit")
    if packed is None:
        return None
    if not isinstance(packed, bytes) or len(packed) > _MAX_UNIT_BYTES:
        raise RemoteProtocolError("a patch for no unit")
    units = read_units(packed)
    if len(units) != 1 or not units[0].relative:
        raise RemoteProtocolError("a patch of nothing, or for several units")
    if max(units[0].wants) >= wanted or max(units[0].relative) >= shared:
        raise RemoteProtocolError("a position that was not asked for, or that the layers do not have")
    return units[0]
