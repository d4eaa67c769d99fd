"""Bring a layer's manifest here: ask holders for the list of its chunks, fetch those, believe the digest alone.

The list itself proves nothing, so whoever gave one that does not lead to the layer's manifest is not asked again, and
the next holder is. Holders are asked one after the other; one that is slow to answer is joined by the next, and the
first answer counts, so that a dead one costs `STAGGER_S` and not its whole time-out.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random

import trio

from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import ChunkMissing
from chunkstore.manifest import load
from chunkstore.store import ChunkStore
from chunkstore.tree_errors import ManifestInvalid
from gossip.messages import NodeId
from p2player import errors
from p2player.proto import content_wire as wire
from p2player.proto.frames import RemoteProtocolError
from p2player.proto.roster import HolderHint, Roster
from p2player.swarming import PATIENCE_S, POLL_S, Holders, Job, Lease, Session

AT_A_TIME = 3
STAGGER_S = 0.5
SETTLE_S = 0.05
LIST_S = 20.0

Run = Callable[[Job, Holders], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Description:
    """What the store needs to know of a layer; the arguments of `ChunkStore.put_layer`."""

    layer: LayerId
    size: int
    manifest_chunks: tuple[ChunkId, ...]
    manifest_size: int
    content: Mapping[ChunkId, int]

    def put(self, store: ChunkStore) -> None:
        """Record the layer as wanted here."""
        store.put_layer(self.layer, self.size, self.manifest_chunks, self.manifest_size, self.content)


def described_here(store: ChunkStore, layer: LayerId) -> Description | None:
    """What the store knows already, if it has the whole manifest; for a worker thread."""
    record = store.layer(layer)
    if record is None or store.missing(record.manifest_chunks):
        return None
    content = store.layer_chunks(layer)
    return Description(layer, record.size, record.manifest_chunks, record.manifest_size, content)


class ManifestHunt:
    """The search for one layer's manifest; run it once.

    Args:
        lease: a data session with a node, for the length of a block.
        run: fetches a job's chunks from holders.
    """

    def __init__(
        self, store: ChunkStore, layer: LayerId, holders: Holders, lease: Lease, run: Run, rng: Random
    ) -> None:
        self._store = store
        self._layer = layer
        self._holders = holders
        self._lease = lease
        self._run = run
        self._roster = Roster(AT_A_TIME, rng)
        self._label = f"layer {layer.hex()[:16]}"
        self._errors: dict[NodeId, errors.P2PlayerError] = {}
        self._news = trio.Event()

    async def run(self) -> Description:
        """Find, fetch and verify the manifest.

        Raises:
            NotFound: no holder has it.
            Unreachable: no holder can be reached.
            Integrity: holders gave something else for it.
            Refused: the disk is full.
        """
        while True:
            node, listed = await self._first_list()
            try:
                return await self._gather(listed)
            except errors.Refused:
                raise
            except errors.P2PlayerError as error:
                self._ended(node, error, ban=True)

    # The list

    async def _first_list(self) -> tuple[NodeId, wire.Listed]:
        """Ask holders for the list until one has it."""
        found: list[tuple[NodeId, wire.Listed]] = []
        failure: errors.P2PlayerError | None = None
        started_at = next_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            while not found:
                now = trio.current_time()
                self._news = trio.Event()
                self._roster.offer(self._holders())
                if now >= next_at:
                    for hint in self._roster.due(now, at_most=1):
                        nursery.start_soon(self._ask, hint, found)
                        next_at = now + STAGGER_S
                if self._hopeless(now - started_at):
                    failure = self._why()
                    break
                with trio.move_on_after(min(POLL_S, max(next_at - now, SETTLE_S))):
                    await self._news.wait()
                    next_at = 0.0
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return found[0]

    async def _ask(self, hint: HolderHint, found: list[tuple[NodeId, wire.Listed]]) -> None:
        try:
            async with self._lease(hint.node) as session:
                found.append((hint.node, await self._list(session)))
            self._news.set()
        except RemoteProtocolError as error:
            self._ended(hint.node, errors.Integrity(f"{self._label}: {error}"), ban=True)
        except errors.P2PlayerError as error:
            self._ended(hint.node, error, ban=not isinstance(error, errors.Unreachable))

    async def _list(self, session: Session) -> wire.Listed:
        """All pages of one holder's list."""
        listed: wire.Listed = []
        whole = False
        while not whole:
            ask = wire.manifest_ask(self._layer, len(listed))
            body = await session.call(wire.LAYER_MANIFEST, ask, timeout_s=LIST_S)
            listed, whole = wire.read_manifest(body, listed)
        return listed

    def _ended(self, node: NodeId, error: errors.P2PlayerError, *, ban: bool) -> None:
        self._errors[node] = error
        self._roster.ended(node, trio.current_time(), useful=False, ban=ban)
        self._news.set()

    def _hopeless(self, waited_s: float) -> bool:
        if not self._roster.exhausted or self._roster.busy:
            return False
        return self._roster.known or waited_s >= PATIENCE_S

    def _why(self) -> errors.P2PlayerError:
        """The gravest of what went wrong."""
        for kind in (errors.Integrity, errors.Unreachable, errors.Failed):
            for error in self._errors.values():
                if isinstance(error, kind):
                    return kind(f"{self._label}: its manifest cannot be had: {error.message}")
        return errors.NotFound(f"{self._label}: no peer that can be reached has it")

    # The chunks

    async def _gather(self, listed: wire.Listed) -> Description:
        wants = dict(listed)
        if any(wants[chunk] != length for chunk, length in listed):
            raise errors.Integrity(f"{self._label}: a manifest with one chunk of two lengths")
        missing = await trio.to_thread.run_sync(self._store.missing, wants)
        wants = {chunk: length for chunk, length in wants.items() if chunk in missing}
        await self._run(Job(f"manifest of {self._label}", self._store, wire.SHARED, wants), self._holders)
        ids = tuple(chunk for chunk, _ in listed)
        size = sum(length for _, length in listed)
        return await trio.to_thread.run_sync(partial(_describe, self._store, self._layer, ids, size))


def _describe(store: ChunkStore, layer: LayerId, ids: tuple[ChunkId, ...], size: int) -> Description:
    """Read, verify and decode the manifest; for a worker thread."""
    try:
        manifest = load(store, ids, layer)
        return Description(layer, manifest.size, ids, size, manifest.chunks())
    except ManifestInvalid as error:
        raise errors.Integrity(str(error)) from None
    except ChunkMissing as error:
        raise errors.NotFound(str(error)) from None
