"""How a wanted layer is related to an old one that is here: which chunks come as deltas, and of what.

The old layer is the *basis*. Which of its chunks a wanted chunk is compared with was decided from the two manifests
(`chunkstore.delta.kinship`), before anything was read. A peer that holds the basis too reads it by itself; for any
other one, a signature of the relative goes along with the request.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from chunkstore.content import Content
from chunkstore.delta.kinship import RELATIVE_BYTES, Kinship, Unit
from chunkstore.delta.signature import sign
from chunkstore.digest import Buffer, ChunkId, LayerId
from chunkstore.manifest import Manifest
from chunkstore.pinning import hold
from gossip.messages import NodeId
from p2player.proto.delta_choice import DeltaChoice, cost
from p2player.proto.delta_wire import DeltaAsk, may_be_asked
from p2player.proto.roster import HolderHint

SIGNED_BYTES = 768 << 10
"""Of signatures that go along with one request: as many requests as a peer is asked at a time stay within the 16 MiB
that it takes."""


@dataclass(frozen=True, slots=True)
class Basis:
    """An old layer that is here, nearly whole at least, and who else has it."""

    layer: LayerId
    manifest: Manifest
    also_at: Callable[[NodeId], bool]


class Kin:
    """The deltas of one transfer.

    Args:
        layer: what is wanted.
        manifest: its manifest.
        missing: chunks of it that are not here.
        basis: the old layer.
        goodput: bytes a second that peers were last seen to send plain chunks with.

    Attributes:
        choice: whether a delta pays; learns as they come.
    """

    def __init__(
        self,
        layer: LayerId,
        manifest: Manifest,
        missing: Mapping[ChunkId, int],
        basis: Basis,
        goodput: Mapping[NodeId, float],
    ) -> None:
        self.layer = layer
        self.basis = basis.layer
        self.choice = DeltaChoice()
        self._goodput = goodput
        self._also_at = basis.also_at
        self._kinship = Kinship.between(manifest, basis.manifest, missing)
        self._new = list(manifest.chunks())
        self._old = list(basis.manifest.chunks())
        self._position = {chunk: at for at, chunk in enumerate(self._new) if chunk in missing}

    @property
    def covered_bytes(self) -> int:
        """Bytes of the missing chunks that have a relative."""
        return self._kinship.covered_bytes

    def pays(self, holder: HolderHint) -> bool:
        """Whether deltas are the faster way to get chunks from this peer."""
        return self.choice.pays(self._goodput.get(holder.node), holder.rtt_s)

    def costs(self, wants: Mapping[ChunkId, int]) -> list[int]:
        """Wire bytes that each want is expected to need."""
        covers, position = self._kinship.covers, self._position
        return [cost(length) if covers(position[chunk]) else length for chunk, length in wants.items()]

    def units(self, chunks: Iterable[ChunkId]) -> list[Unit]:
        """How these chunks are encoded; empty when none of them has a relative, or there are too many."""
        units = self._kinship.units([self._position[chunk] for chunk in chunks])
        return units if any(unit.relative for unit in units) and may_be_asked(units) else []

    def wanted(self, unit: Unit) -> list[ChunkId]:
        """The chunks that a unit brings, in its order."""
        return [self._new[at] for at in unit.wants]

    def relative(self, unit: Unit) -> list[ChunkId]:
        """The chunks of the basis that it refers to, in its order."""
        return [self._old[at] for at in unit.relative]

    def ask(self, peer: NodeId, scope: str, units: Sequence[Unit], content: Content) -> DeltaAsk:
        """The request for `units`; reads the relatives where the peer does not have them. For a worker thread.

        Old chunks that are not here, perhaps since gc took them, are left out of the relatives.
        """
        gone = content.missing({self._old[at] for unit in units for at in unit.relative})
        if gone:
            units = [Unit(unit.wants, tuple(at for at in unit.relative if self._old[at] not in gone)) for unit in units]
        signatures = [b""] * len(units)
        if not self._also_at(peer):
            room = SIGNED_BYTES
            for number, unit in enumerate(units):
                relative = self.read(unit, content)
                if not relative:
                    continue
                signature = sign(relative).encode()
                if len(signature) > room:
                    break
                room -= len(signature)
                signatures[number] = signature
            units = [
                unit if signature else Unit(unit.wants, ()) for unit, signature in zip(units, signatures, strict=True)
            ]
        return DeltaAsk(scope, self.layer, self.basis, units, signatures)

    def read(self, unit: Unit, content: Content) -> list[Buffer]:
        """The bytes of a unit's relative, chunk by chunk; empty when they are not all here any more."""
        ids = self.relative(unit)
        found = hold(content.read(ids), 2 * RELATIVE_BYTES)
        return [found[chunk] for chunk in ids] if len(found) == len(ids) else []
