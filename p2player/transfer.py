"""Bring content to this node: whole layers, or single chunks, from every peer that has them.

A pull has three steps: the manifest (`manifests`), which says what the layer is made of; the store, which says what of
that is here already; the swarm (`swarming`), which brings the rest: as deltas where an old layer that is here resembles
the new one (`kin`), else as it is stored. The layer is on record as soon as its manifest is
here, so what arrives is protected from garbage collection, is served to others at once, and is not fetched again after
a kill.

Pulls of one layer at the same time are one pull.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, islice
from random import Random
from weakref import WeakKeyDictionary

import trio

from chunkstore.codec import Boundaries
from chunkstore.content import Content
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import ChunkMissing, LayerUnknown, StoreError
from chunkstore.manifest import load
from chunkstore.store import ChunkStore
from chunkstore.tree_errors import ManifestInvalid
from gossip.messages import NodeId
from p2player import errors, faults
from p2player.allocator import trim_heaps
from p2player.echoes import Echoed
from p2player.kin import Basis, Kin
from p2player.manifests import Description, ManifestHunt, described_here
from p2player.net.connection import Throttle
from p2player.proto import content_wire as wire
from p2player.proto.roster import HolderHint
from p2player.sources import JoinedIds, SharedLayers
from p2player.swarming import Holders, Job, Progress, Session, Sessions, SwarmRun, schedule

__all__ = ["HolderHint", "Holders", "Progress", "PullReport", "Transfers"]

THREADS = 4
HAVE_S = 20.0
GOODPUT_BYTES = 4 << 20
LOOK_CHUNKS = 8192
MANY_CHUNKS = 1 << 16
KIN_BYTES = 16 << 10
ECHO_BYTES = 4 << 20
ENOUGH_KIN = 0.5
_BITS = [bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256)]


@dataclass(frozen=True, slots=True)
class Relative:
    """An old layer that is here.

    Attributes:
        layer: its id.
        also_at: whether a peer has it too.
    """

    layer: LayerId
    also_at: Callable[[NodeId], bool]


Relatives = Callable[[LayerId], Awaitable[Sequence[Relative]]]


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull did.

    Attributes:
        total: bytes of content that were wanted: of a layer, its size.
        deduplicated: those of them that need not be fetched.
        transferred: wire bytes of the sessions used, both directions, protocol and TLS included.
        sources: uncompressed bytes of content that each node was the first to deliver; they sum up to
            `total - deduplicated`.
        seconds: from call to return.
        duplicates: uncompressed bytes that were delivered and not needed.
    """

    total: int = 0
    deduplicated: int = 0
    transferred: int = 0
    sources: Mapping[NodeId, int] = field(default_factory=dict)
    seconds: float = 0.0
    duplicates: int = 0

    def merge(self, other: "PullReport") -> "PullReport":
        """Both pulls, one after the other, as one."""
        sources = dict(self.sources)
        for node, count in other.sources.items():
            sources[node] = sources.get(node, 0) + count
        return PullReport(
            self.total + other.total,
            self.deduplicated + other.deduplicated,
            self.transferred + other.transferred,
            sources,
            self.seconds + other.seconds,
            self.duplicates + other.duplicates,
        )


@dataclass(eq=False)
class _Running:
    """A pull under way, and who else waits for it."""

    listeners: list[Progress] = field(default_factory=list)
    over: trio.Event = field(default_factory=trio.Event)
    report: PullReport | None = None
    error: errors.P2PlayerError | None = None

    def tell(self, done: int, total: int) -> None:
        for listener in list(self.listeners):
            listener(done, total)


class Transfers:
    """The asking side of transfers on this node.

    Args:
        store: where layers go.
        sessions: the peer pool.
        relatives: old layers that are here and resemble one, the most promising first.
        rng: where transfers start, and how retries spread; a seed makes them repeatable.
    """

    def __init__(
        self, store: ChunkStore, sessions: Sessions, *, relatives: Relatives | None = None, rng: Random | None = None
    ) -> None:
        self._store = store
        self._relatives = relatives
        self._goodput: dict[NodeId, float] = {}
        self._meter = _Meter(sessions)
        self._rng = rng or Random()
        self._threads = trio.CapacityLimiter(THREADS)
        self._running: dict[LayerId, _Running] = {}
        self._layers = SharedLayers(store)

    async def pull_layer(
        self,
        layer: LayerId,
        holders: Holders,
        *,
        me: NodeId | None = None,
        progress: Progress | None = None,
        throttle_in: Throttle | None = None,
    ) -> PullReport:
        """Bring a layer here and hold it.

        Args:
            layer: its id; nothing that a holder says can make another layer of it.
            holders: who has it, as far as is known now; asked again while the pull runs.
            me: this node, where others may pull the layer at the same time: they share the work out.
            progress: called in the trio thread with bytes here and bytes in total.
            throttle_in: a bandwidth cap of this pull, besides the node's. A pull that joins another one shares its cap.

        Raises:
            NotFound: nobody who can be reached has the rest.
            Unreachable: holders of the rest cannot be reached.
            Integrity: what holders gave for the rest is not what its digest says.
            Refused: the disk is full.

        However it ends, what was verified is in the store, and the next pull begins there.
        """
        while True:
            running = self._running.get(layer)
            if running is None:
                return await self._lead(layer, holders, me, progress, throttle_in)
            if progress is not None:
                running.listeners.append(progress)
            try:
                await running.over.wait()
            finally:
                if progress is not None:
                    running.listeners.remove(progress)
            if running.report is not None:
                return running.report
            if running.error is not None:
                raise errors.from_code(running.error.code, running.error.message)
            # The one that led was cancelled: take over.

    async def relatives(self, layer: LayerId) -> Sequence[Relative]:
        """Old layers that are here and resemble `layer`, the most promising first."""
        return [] if self._relatives is None else await self._relatives(layer)

    def pulling(self) -> set[LayerId]:
        """Layers that are being pulled now."""
        return set(self._running)

    async def pull_chunks(
        self,
        content: Content,
        wants: Mapping[ChunkId, int],
        holders: Holders,
        *,
        scope: str | None,
        kin: Kin | None = None,
        layers: Sequence[LayerId] = (),
        progress: Progress | None = None,
        throttle_in: Throttle | None = None,
    ) -> PullReport:
        """Bring single chunks into `content`: repair, or what belongs to one migration.

        Args:
            content: its key names the chunks.
            wants: chunk id -> length in bytes; neighbours in storage should be neighbours here.
            holders: as for `pull_layer`.
            scope: what the holders expose the content under; None for what the whole mesh may read.
            kin: how `wants` are related to an old layer that is in `content` too.
            layers: shared ones that are here as a whole, and of which `wants` may repeat something; at most four.
            progress, throttle_in: as for `pull_layer`.

        Raises:
            As `pull_layer`.
        """
        pull = self._pull(throttle_in, progress)
        with _told():
            missing = await trio.to_thread.run_sync(content.missing, list(wants))
            rest = {chunk: length for chunk, length in wants.items() if chunk in missing}
            label = f"{len(rest)} chunks" if scope is None else f"content of {scope[:16]}"
            echoed = await trio.to_thread.run_sync(self._echoed, layers, sum(rest.values()))
            job = Job(label, content, wire.SHARED if scope is None else scope, rest, kin=kin, echoed=echoed)
            return await pull.content(job, sum(wants.values()), holders)

    def _echoed(self, layers: Sequence[LayerId], wanted_bytes: int) -> Echoed | None:
        """What is here of layers that may lie in what is wanted, if that is enough to be worth it."""
        if not layers or wanted_bytes < ECHO_BYTES:
            return None
        try:
            chunks = JoinedIds(self._layers.chunks_of(layer) for layer in layers)
        except LayerUnknown:
            return None
        return Echoed(layers, chunks, self._store)

    async def _lead(
        self,
        layer: LayerId,
        holders: Holders,
        me: NodeId | None,
        progress: Progress | None,
        throttle_in: Throttle | None,
    ) -> PullReport:
        """Pull a layer for everybody who waits for it."""
        running = self._running[layer] = _Running([] if progress is None else [progress])
        try:
            with _told():
                running.report = await self._pull_layer(layer, holders, me, running.tell, throttle_in)
            return running.report
        except errors.P2PlayerError as error:
            running.error = error
            raise
        finally:
            del self._running[layer]
            running.over.set()

    async def _pull_layer(
        self,
        layer: LayerId,
        holders: Holders,
        me: NodeId | None,
        progress: Progress,
        throttle_in: Throttle | None,
    ) -> PullReport:
        pull = self._pull(throttle_in, progress)
        job, size = await self._job(layer, holders, pull)
        report = await pull.content(replace(job, me=me), size, holders)
        if len(job.wants) >= MANY_CHUNKS:
            await trio.to_thread.run_sync(give_back, self._store)
        return report

    async def _job(self, layer: LayerId, holders: Holders, pull: "_Pull") -> tuple[Job, int]:
        """What of a layer is to be fetched, and its size. Nothing else of its description stays in memory meanwhile."""
        about = await trio.to_thread.run_sync(described_here, self._store, layer)
        relatives = await self.relatives(layer)
        if about is None:
            bases = [relative.layer for relative in relatives]
            hunt = ManifestHunt(self._store, layer, holders, pull.lease, pull.run, self._rng, bases)
            about = await hunt.run()
        await trio.to_thread.run_sync(about.put, self._store)
        return await trio.to_thread.run_sync(_plan, self._store, about, relatives, self._goodput), about.size

    def _pull(self, throttle_in: Throttle | None, progress: Progress | None) -> "_Pull":
        return _Pull(self._meter, self._rng, self._threads, throttle_in, progress, self._goodput)


class _Meter:
    """Leases data sessions and counts their wire bytes; of a session that is new here, the handshake too."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._counted: WeakKeyDictionary[Session, int] = WeakKeyDictionary()

    @asynccontextmanager
    async def lease(
        self, node: NodeId, throttle_in: Throttle | None, spent: Callable[[int], None]
    ) -> AsyncIterator[Session]:
        """A session for the length of the block; `spent` is told its bytes afterwards."""
        async with self._sessions.lease(node, throttle_in=throttle_in) as session:
            before = self._counted.get(session, 0)
            try:
                yield session
            finally:
                after = session.bytes_in + session.bytes_out
                self._counted[session] = after
                spent(after - before)


class _Pull:
    """One pull: how it leases sessions and runs swarms, and what it cost so far."""

    def __init__(
        self,
        meter: _Meter,
        rng: Random,
        threads: trio.CapacityLimiter,
        throttle_in: Throttle | None,
        progress: Progress | None,
        goodput: dict[NodeId, float],
    ) -> None:
        self._goodput = goodput
        self._meter = meter
        self._rng = rng
        self._threads = threads
        self._throttle_in = throttle_in
        self._progress = progress
        self._transferred = 0
        self._duplicates = 0
        self._started_at = trio.current_time()

    def lease(self, node: NodeId) -> AbstractAsyncContextManager[Session]:
        """A session whose bytes count for this pull."""
        return self._meter.lease(node, self._throttle_in, self._spend)

    def _spend(self, count: int) -> None:
        self._transferred += count

    async def run(self, job: Job, holders: Holders, progress: Progress | None = None) -> Mapping[NodeId, int]:
        """Fetch a job's chunks; bytes accepted from each node."""
        swarm = await schedule(job, self._rng)
        try:
            await SwarmRun(job, swarm, holders, self.lease, self._rng, self._threads, progress).run()
        finally:
            self._duplicates += swarm.duplicates
            if job.kin is None and job.echoed is None:
                self._goodput.update(swarm.goodput(GOODPUT_BYTES))
        return swarm.accepted

    async def content(self, job: Job, total: int, holders: Holders) -> PullReport:
        """Fetch a job's chunks, the missing part of `total` bytes of content; the report on the whole pull."""
        here = total - sum(job.wants.values())
        sources = await self.run(job, holders, partial(self._tell, here))
        self._tell(here, total - here, total - here)
        return PullReport(
            total=total,
            deduplicated=here,
            transferred=self._transferred,
            sources=dict(sources),
            seconds=trio.current_time() - self._started_at,
            duplicates=self._duplicates,
        )

    def _tell(self, here: int, done: int, wanted: int) -> None:
        if self._progress is not None:
            self._progress(here + done, here + wanted)


async def _claims(layer: LayerId, wanted: bytes, session: Session) -> bytes:
    """Ask a partial holder which of the chunks of a layer that are `wanted`, one byte a chunk, it has."""
    body = await session.call(wire.LAYER_HAVE, wire.layer_body(layer), timeout_s=HAVE_S)
    bitmap = wire.read_have(body, len(wanted))
    return await trio.to_thread.run_sync(_marks, wanted, bitmap)


def _marks(wanted: bytes, bitmap: bytes) -> bytes:
    return bytes(compress(b"".join(map(_BITS.__getitem__, bitmap)), wanted))


def _plan(store: ChunkStore, about: Description, relatives: Sequence[Relative], goodput: Mapping[NodeId, float]) -> Job:
    """How the part of a layer is fetched that is not here; for a worker thread."""
    wants = _lacking(store, about.content)
    starts = group_starts(about.content, wants)
    claims = partial(_claims, about.layer, bytes(chunk in wants for chunk in about.content))
    kin = _find_kin(store, about, wants, relatives, goodput)
    return Job(f"layer {about.layer.hex()[:16]}", store, wire.SHARED, wants, starts, claims, kin)


def _lacking(store: ChunkStore, content: Mapping[ChunkId, int]) -> Mapping[ChunkId, int]:
    """The chunks that are not here; `content` itself if that is all of them."""
    wants: dict[ChunkId, int] = {}
    rest = iter(content.items())
    while some := list(islice(rest, LOOK_CHUNKS)):
        missing = store.missing(chunk for chunk, _ in some)
        wants.update(pair for pair in some if pair[0] in missing)
    return wants if len(wants) < len(content) else content


def _find_kin(
    store: ChunkStore,
    about: Description,
    wants: Mapping[ChunkId, int],
    relatives: Sequence[Relative],
    goodput: Mapping[NodeId, float],
) -> Kin | None:
    """The old layer that resembles most of what is wanted; None when none does. For a worker thread."""
    best: Kin | None = None
    if sum(wants.values()) < KIN_BYTES:
        return None
    for relative in relatives:
        try:
            new = about.manifest or load(store, about.manifest_chunks, about.layer)
            record = store.layer(relative.layer)
            if record is None:
                continue
            old = load(store, record.manifest_chunks, relative.layer)
        except (ChunkMissing, ManifestInvalid):
            continue
        kin = Kin(about.layer, new, wants, Basis(relative.layer, old, relative.also_at), goodput)
        if kin.covered_bytes > (best.covered_bytes if best else 0):
            best = kin
        if best is not None and best.covered_bytes >= ENOUGH_KIN * sum(wants.values()):
            break
    return best


def group_starts(content: Mapping[ChunkId, int], wants: Mapping[ChunkId, int]) -> bytes:
    """Where the groups of a layer begin that was imported in one go: one byte a want, 1 for a beginning.

    A holder sends whole groups as they are stored, and must repack cut ones: a wrong guess costs it time, and nothing
    else.
    """
    boundaries = Boundaries()
    starts = bytearray()
    begins = False
    for chunk, length in content.items():
        begins = boundaries.starts_group(chunk, length) or begins
        if chunk in wants:
            starts.append(begins)
            begins = False
    return bytes(starts)


def give_back(store: ChunkStore) -> None:
    """After a layer of `MANY_CHUNKS`: what comes next, such as its checkout, needs the memory for something else."""
    store.give_back()
    trim_heaps()


@contextmanager
def _told() -> Iterator[None]:
    """Turn what goes wrong in the store into what is told to users."""
    try:
        yield
    except (StoreError, OSError) as error:
        raise faults.describe(error) from error
