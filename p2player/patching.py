"""What becomes of deltas that arrive: they are applied to old content that is here, verified, and stored as chunks.

A patch is only a way of writing chunks down: what it gives is believed when every digest is right. If it does not give
that, perhaps because two different pieces of content have one fingerprint, nothing is known of its sender: the chunks
are asked for once more, as they are.
"""

from collections.abc import AsyncIterator, Sequence
from functools import partial

import trio

from chunkstore.codec import Group, pack_all
from chunkstore.content import Content
from chunkstore.delta.errors import BadPatch
from chunkstore.delta.kinship import Unit
from chunkstore.delta.patch import PatchDecoder
from chunkstore.digest import Buffer, ChunkId, chunk_id
from p2player.kin import Kin
from p2player.landing import BATCH_BYTES, Landed, Landing
from p2player.proto import content_wire, delta_wire
from p2player.proto.delta_wire import DeltaAsk
from p2player.proto.frames import Part, RemoteProtocolError


class PatchLanding:
    """The way of one transfer's deltas into its content.

    Args:
        content: has the basis, and gets the chunks.
        threads: how many worker threads apply patches at a time.
    """

    def __init__(self, landing: Landing, kin: Kin, content: Content, threads: trio.CapacityLimiter) -> None:
        self._landing = landing
        self._kin = kin
        self._content = content
        self._threads = threads

    async def receive(self, ask: DeltaAsk, parts: AsyncIterator[Part], landed: Landed) -> list[ChunkId]:
        """Take the answer to `ask`.

        Args:
            landed: as for `Landing.receive`.

        Returns:
            Chunks whose patch did not give them.

        Raises:
            As `Landing.receive`.
        """
        due = {chunk for unit in ask.units for chunk in self._kin.wanted(unit)}
        failed: list[ChunkId] = []
        batch, size = list[Group](), 0
        async for part in parts:
            number = delta_wire.read_patch_header(part.header, len(ask.units))
            if number is None:
                group = content_wire.read_group(part.header, part.payload)
                self._landing.expect(group, due)
                batch.append(group)
                size += group.raw_bytes
                if size >= BATCH_BYTES:
                    landed(await self._landing.keep(batch))
                    batch, size = [], 0
                continue
            unit = ask.units[number]
            wanted = self._kin.wanted(unit)
            if not due.issuperset(wanted):
                raise RemoteProtocolError("a patch that came twice")
            due.difference_update(wanted)
            raw_bytes = self._landing.size_of(wanted)
            apply = partial(self._apply, unit, wanted, part.payload)
            if await trio.to_thread.run_sync(apply, limiter=self._threads):
                self._kin.choice.observe(raw_bytes, len(part.payload))
                landed(self._landing.kept(wanted))
            else:
                failed += wanted
        if batch:
            landed(await self._landing.keep(batch))
        return failed

    def _apply(self, unit: Unit, wanted: Sequence[ChunkId], patch: Buffer) -> bool:
        """Make a unit's chunks and store them; in a worker thread. False: they are not what they should be."""
        relative = self._kin.read(unit, self._content)
        return bool(relative) and rebuild(self._landing, self._content, wanted, relative, patch)


def rebuild(
    landing: Landing, content: Content, wanted: Sequence[ChunkId], relative: Sequence[Buffer], patch: Buffer
) -> bool:
    """Make chunks out of a patch, and store them if they are what their digests say; in a worker thread.

    Args:
        landing: knows the lengths of the chunks.
        content: gets them.
        wanted: the chunks that the patch makes, in its order.
        relative: the old content that it refers to, in its order.

    Returns:
        False when the patch does not give them; nothing was stored.
    """
    try:
        raw = memoryview(PatchDecoder().decode(patch, landing.size_of(wanted), relative))
    except BadPatch:
        return False
    chunks, at = list[tuple[ChunkId, memoryview]](), 0
    for name in wanted:
        data = raw[at : at + landing.size_of((name,))]
        if chunk_id(data, content.key) != name:
            return False
        chunks.append((name, data))
        at += len(data)
    content.add(pack_all(chunks))
    return True
