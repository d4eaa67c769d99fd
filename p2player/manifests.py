"""Bring a layer's manifest here: ask a holder for it and believe its digest alone.

A manifest of an ordinary size comes in one answer, as a delta of an older one where both ends have that. Of a larger
one, the holder tells the list of its chunks, and those that are not here are fetched from all holders. A list proves
nothing; so whoever gave one that does not lead to the layer's manifest is not asked again, and the next holder is.
Holders are asked one after the other; one that is slow to answer is joined by the next, and the first answer counts, so
that a dead one costs `STAGGER_S` and not its whole time-out.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import trio

from chunkstore.chunker import MANIFEST, cut
from chunkstore.codec import decompress, decompress_against, pack_all
from chunkstore.digest import Buffer, ChunkId, LayerId, chunk_id, layer_id
from chunkstore.errors import BadGroup, ChunkMissing
from chunkstore.manifest import Manifest, load_encoded, outline
from chunkstore.store import ChunkStore
from chunkstore.tree_errors import ManifestInvalid
from gossip.messages import NodeId
from p2player import errors
from p2player.proto import content_wire as wire
from p2player.proto import delta_wire
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
    """What the store needs to know of a layer: the arguments of `ChunkStore.put_layer`. The manifest itself only where
    it was read just now and somebody may compare it with another one: of many files it is large."""

    layer: LayerId
    size: int
    manifest_chunks: tuple[ChunkId, ...]
    manifest_size: int
    content: Mapping[ChunkId, int]
    manifest: Manifest | None = None

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
        bases: layers whose manifests are here, and that resemble this one.
    """

    def __init__(
        self,
        store: ChunkStore,
        layer: LayerId,
        holders: Holders,
        lease: Lease,
        run: Run,
        rng: Random,
        bases: Sequence[LayerId] = (),
    ) -> None:
        self._store = store
        self._layer = layer
        self._holders = holders
        self._lease = lease
        self._run = run
        self._bases = bases
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
            node, found = await self._first_answer()
            try:
                return await (self._keep(found) if isinstance(found, bytes) else self._gather(found))
            except errors.Refused:
                raise
            except errors.P2PlayerError as error:
                self._ended(node, error, ban=True)

    # The first answer

    async def _first_answer(self) -> tuple[NodeId, "bytes | wire.Listed"]:
        """Ask holders until one has the manifest: its encoding, or the list of its chunks."""
        found: list[tuple[NodeId, bytes | wire.Listed]] = []
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

    async def _ask(self, hint: HolderHint, found: list[tuple[NodeId, "bytes | wire.Listed"]]) -> None:
        try:
            async with self._lease(hint.node) as session:
                try:
                    answer: bytes | wire.Listed = await self._whole(session)
                # Too large for that, an older version, or what it refers to is gone from here.
                except (errors.Refused, errors.Usage, errors.NotFound, errors.Failed):
                    answer = await self._list(session)
                found.append((hint.node, answer))
            self._news.set()
        except RemoteProtocolError as error:
            self._ended(hint.node, errors.Integrity(f"{self._label}: {error}"), ban=True)
        except errors.P2PlayerError as error:
            self._ended(hint.node, error, ban=not isinstance(error, errors.Unreachable))

    async def _whole(self, session: Session) -> bytes:
        """One holder's encoding of the manifest; not verified."""
        frame = bytearray()
        with trio.move_on_after(LIST_S):
            body = delta_wire.manifest_ask(wire.SHARED, self._layer, self._bases)
            async with session.stream(delta_wire.LAYER_DELTA, body) as parts:
                async for part in parts:
                    frame += part.payload
                    if len(frame) > delta_wire.MAX_MANIFEST_FRAME_BYTES:
                        raise RemoteProtocolError("a manifest that is too large for one answer")
                basis = delta_wire.read_manifest_reply(parts.reply, self._bases)
            return await trio.to_thread.run_sync(_expand, self._store, bytes(frame), basis)
        raise errors.Unreachable(f"{self._label}: its manifest did not come within {LIST_S:g} s")

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

    # The manifest

    async def _keep(self, encoded: bytes) -> Description:
        return await trio.to_thread.run_sync(_store_encoded, self._store, self._layer, encoded, bool(self._bases))

    async def _gather(self, listed: wire.Listed) -> Description:
        wants = dict(listed)
        if any(wants[chunk] != length for chunk, length in listed):
            raise errors.Integrity(f"{self._label}: a manifest with one chunk of two lengths")
        missing = await trio.to_thread.run_sync(self._store.missing, wants)
        wants = {chunk: length for chunk, length in wants.items() if chunk in missing}
        await self._run(Job(f"manifest of {self._label}", self._store, wire.SHARED, wants), self._holders)
        ids = tuple(chunk for chunk, _ in listed)
        size = sum(length for _, length in listed)
        return await trio.to_thread.run_sync(_describe, self._store, self._layer, ids, size, bool(self._bases))


def _describe(store: ChunkStore, layer: LayerId, ids: tuple[ChunkId, ...], size: int, whole: bool) -> Description:
    """Read and verify the manifest; for a worker thread."""
    try:
        return _read(layer, load_encoded(store, ids, layer), ids, whole)
    except ManifestInvalid as error:
        raise errors.Integrity(str(error)) from None
    except ChunkMissing as error:
        raise errors.NotFound(str(error)) from None


def _read(layer: LayerId, encoded: Buffer, ids: tuple[ChunkId, ...], whole: bool) -> Description:
    """A description from a manifest with the right digest; with the decoded manifest in it if `whole`.

    Raises:
        ManifestInvalid: it is none.
    """
    if whole:
        manifest = Manifest.decode(encoded)
        return Description(layer, manifest.size, ids, len(encoded), manifest.chunks(), manifest)
    found = outline(encoded)
    return Description(layer, found.size, ids, len(encoded), found.chunks)


def _expand(store: ChunkStore, frame: bytes, basis: LayerId | None) -> bytes:
    """Undo the compression of a manifest; for a worker thread."""
    try:
        if basis is None:
            return decompress(frame, delta_wire.MAX_WHOLE_MANIFEST_BYTES)
        record = store.layer(basis)
        if record is None:
            raise errors.NotFound(f"layer {basis.hex()[:16]} is gone from this node")
        old = load_encoded(store, record.manifest_chunks, basis)
        return decompress_against(frame, old, delta_wire.MAX_WHOLE_MANIFEST_BYTES)
    except BadGroup as error:
        raise RemoteProtocolError(str(error)) from None
    except (ChunkMissing, ManifestInvalid) as error:
        raise errors.NotFound(str(error)) from None


def _store_encoded(store: ChunkStore, layer: LayerId, encoded: bytes, whole: bool) -> Description:
    """Verify a manifest and keep its chunks; for a worker thread."""
    if layer_id(encoded) != layer:
        raise errors.Integrity(f"layer {layer.hex()[:16]}: the manifest has another digest")
    pieces = [(chunk_id(piece), piece) for piece in cut(encoded, MANIFEST)]
    try:
        about = _read(layer, encoded, tuple(chunk for chunk, _ in pieces), whole)
    except ManifestInvalid as error:
        raise errors.Integrity(str(error)) from None
    missing = store.missing(about.manifest_chunks)
    store.add(pack_all((chunk, piece) for chunk, piece in pieces if chunk in missing))
    return about
