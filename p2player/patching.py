"""What becomes of deltas that arrive: they are applied to old content that is here, verified, and stored as chunks.

A patch is only a way of writing chunks down: what it gives is believed when every digest is right. If it does not give
that, perhaps because two different pieces of content have one fingerprint, nothing is known of its sender: the chunks
are asked for once more, as they are.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import trio

from chunkstore.codec import Group, pack_all
from chunkstore.content import Content
from chunkstore.delta.errors import BadPatch
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

        def read(header: Mapping[str, Any]) -> Patch | None:
            number = delta_wire.read_patch_header(header, len(ask.units))
            if number is None:
                return None
            unit = ask.units[number]
            return Patch(self._kin.wanted(unit), partial(self._kin.read, unit, self._content))

        return await receive_patches(
            self._landing, self._content, self._threads, due, parts, landed, read, self._kin.choice.observe
        )


class Patch(NamedTuple):
    """What a part says of the patch in it.

    Attributes:
        wanted: the chunks that it makes, in its order.
        relative: reads what it refers to, in its order; empty where that is not here any more. For a worker thread.
    """

    wanted: Sequence[ChunkId]
    relative: Callable[[], Sequence[Buffer]]


def _unobserved(_raw_bytes: int, _wire_bytes: int) -> None:
    """The default of `receive_patches`."""


async def receive_patches(
    landing: Landing,
    content: Content,
    threads: trio.CapacityLimiter,
    due: set[ChunkId],
    parts: AsyncIterator[Part],
    landed: Landed,
    read: Callable[[Mapping[str, Any]], Patch | None],
    observe: Callable[[int, int], None] = _unobserved,
) -> list[ChunkId]:
    """Take an answer of patches, and of groups where chunks come as they are.

    Args:
        landing: knows the lengths of the chunks, and keeps groups.
        content: gets what patches make.
        threads: how many worker threads apply patches at a time.
        due: the chunks that were asked for; used up.
        landed: as for `Landing.receive`.
        read: what the header of a part says; None when the part carries a group.
        observe: told of every patch that held: bytes that it made, and its own.

    Returns:
        Chunks whose patch did not give them.

    Raises:
        As `Landing.receive`.
    """
    failed: list[ChunkId] = []
    batch, size = list[Group](), 0
    async for part in parts:
        patch = read(part.header)
        if patch is None:
            group = content_wire.read_group(part.header, part.payload)
            landing.expect(group, due)
            batch.append(group)
            size += group.raw_bytes
            if size >= BATCH_BYTES:
                landed(await landing.keep(batch))
                batch, size = [], 0
            continue
        wanted = patch.wanted
        if not due.issuperset(wanted):
            raise RemoteProtocolError("a chunk that came twice")
        due.difference_update(wanted)
        if await trio.to_thread.run_sync(_apply, landing, content, patch, part.payload, limiter=threads):
            observe(landing.size_of(wanted), len(part.payload))
            landed(landing.kept(wanted))
        else:
            failed += wanted
    if batch:
        landed(await landing.keep(batch))
    return failed


def _apply(landing: Landing, content: Content, patch: Patch, payload: Buffer) -> bool:
    """Make chunks and store them; in a worker thread. False: they are not what they should be."""
    relative = patch.relative()
    return bool(relative) and _rebuild(landing, content, patch.wanted, relative, payload)


def _rebuild(
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
