"""Run one swarm with real peers and a real store: what `Swarm` and `Roster` decide happens here.

Tasks: one for each holder that is dialled or in session, below it one for each ask, one for time. What arrives is
verified and stored (`landing`) before the swarm hears of it; so "in flight" includes what waits in memory, and the
swarm's cap on it bounds the memory of this transfer.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Protocol

import trio

from chunkstore.content import Content
from chunkstore.digest import Buffer, ChunkId
from chunkstore.errors import DiskFull, StoreError
from gossip.messages import NodeId
from p2player import errors, faults
from p2player.echoes import Echoed, EchoLanding
from p2player.kin import Kin
from p2player.landing import Landing
from p2player.net.connection import Throttle
from p2player.patching import PatchLanding
from p2player.proto import content_wire as wire
from p2player.proto.delta_wire import CHUNKS_DELTA
from p2player.proto.echo_wire import CHUNKS_ECHOES
from p2player.proto.frames import Part, RemoteProtocolError
from p2player.proto.roster import HolderHint, Roster, slots_for
from p2player.proto.swarm import Swarm
from p2player.proto.swarm_events import (
    Ask,
    Cancel,
    Corrupt,
    Done,
    Drop,
    Event,
    Expected,
    Finished,
    Heard,
    Joined,
    Left,
    Received,
    Stuck,
    Tick,
)

POLL_S = 1.0
LOOK_S = 0.4
WANTS_A_LOOK_S = 500_000
PATIENCE_S = 5.0
CLEANUP_S = 10.0

Progress = Callable[[int, int], None]
Holders = Callable[[], Sequence[HolderHint]]


class Parts(Protocol):
    """The parts of an answer; `reply` is its body once there are no more."""

    reply: dict[str, Any]

    def __aiter__(self) -> AsyncIterator[Part]: ...
    async def __anext__(self) -> Part: ...


class Session(Protocol):
    """What a transfer needs of a data session."""

    @property
    def bytes_in(self) -> int: ...
    @property
    def bytes_out(self) -> int: ...
    async def call(self, method: str, body: Mapping[str, Any], *, timeout_s: float = ...) -> dict[str, Any]: ...
    def stream(
        self, method: str, body: Mapping[str, Any], *, payload: Buffer = ...
    ) -> AbstractAsyncContextManager[Parts]: ...


class Sessions(Protocol):
    """Where sessions come from; `p2player.net.peers.PeerPool`."""

    def lease(
        self, node: NodeId, *, throttle_in: Throttle | None = None, throttle_out: Throttle | None = None
    ) -> AbstractAsyncContextManager[Session]: ...


Lease = Callable[[NodeId], AbstractAsyncContextManager[Session]]
Claims = Callable[[Session], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be fetched.

    Attributes:
        label: for error texts: "layer 9f2c...".
        content: where it goes; its key names the chunks.
        scope: what peers know it by.
        wants: chunk id -> length, in the order of the manifest.
        starts: see `Swarm`.
        claims: asks a partial holder which of `wants` it has; None where that cannot be asked.
        kin: how the wants are related to old content that is here; None where nothing is.
        echoed: layers that are here and may lie in the wants; None where there are none.
        me: this node, as its peers call it: see `Swarm`.
    """

    label: str
    content: Content
    scope: str
    wants: Mapping[ChunkId, int]
    starts: bytes | None = None
    claims: Claims | None = None
    kin: Kin | None = None
    me: NodeId | None = None
    echoed: Echoed | None = None


@dataclass(eq=False)
class _Holder:
    """A holder that is being dialled, or in session."""

    hint: HolderHint
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    asks: dict[int, trio.CancelScope] = field(default_factory=dict)
    nursery: trio.Nursery | None = None
    session: Session | None = None
    partial: bool = False
    refreshing: bool = False
    have: bytes | None = None
    looked_at: float = 0.0
    heard_bytes: int = 0
    patches_failed: bool = False
    echoes_failed: bool = False
    lost: errors.P2PlayerError | None = None
    ban: bool = False

    @property
    def node(self) -> NodeId:
        return self.hint.node


async def schedule(job: Job, rng: Random) -> Swarm:
    """A scheduler for a job; made in a worker thread, since a large layer has millions of chunks."""

    def make() -> Swarm:
        costs = None if job.kin is None else job.kin.costs(job.wants)
        return Swarm(job.wants, rng, starts=job.starts, costs=costs, me=job.me)

    return await trio.to_thread.run_sync(make)


class SwarmRun:
    """One swarm; run it once.

    Args:
        swarm: the scheduler of the job's wants; made by `schedule`.
        lease: a data session with a node, for the length of a block.
        threads: how many worker threads verify and store at a time.
        progress: called with bytes here and bytes wanted.

    """

    def __init__(
        self,
        job: Job,
        swarm: Swarm,
        holders: Holders,
        lease: Lease,
        rng: Random,
        threads: trio.CapacityLimiter,
        progress: Progress | None = None,
    ) -> None:
        self._job = job
        self._offers = holders
        self._lease = lease
        self._progress = progress
        self._swarm = swarm
        self._threads = threads
        self._landing = Landing(job.content, job.wants, threads)
        self._patches = None if job.kin is None else PatchLanding(self._landing, job.kin, job.content, threads)
        self._echoes = None if job.echoed is None else EchoLanding(self._landing, job.echoed, job.content, threads)
        self._liars = 0
        self._roster = Roster(slots_for(self._swarm.wanted_bytes), rng)
        self._holders: dict[NodeId, _Holder] = {}
        self._unreachable: errors.P2PlayerError | None = None
        self._failure: errors.P2PlayerError | None = None
        self._ended = trio.Event()
        self._look_s = min(POLL_S, LOOK_S + len(job.wants) / WANTS_A_LOOK_S)
        self._stuck_since: float | None = None
        self._wake_at = 0.0
        self._poke = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Fetch everything that is wanted and commit it.

        Cancelled or failed, it leaves what was verified in the content, committed.

        Raises:
            NotFound: nobody who can be reached holds the rest.
            Unreachable: holders of the rest cannot be reached.
            Integrity: holders of the rest lied.
            Refused: the disk is full.
        """
        if self._swarm.done:
            return
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._keep_time)
                await self._ended.wait()
                self._part()
            await self._landing.commit()
        except BaseException:
            with trio.move_on_after(CLEANUP_S, shield=True):
                await trio.to_thread.run_sync(self._job.content.commit, abandon_on_cancel=True)
            raise
        if self._failure is not None:
            raise self._failure

    def _part(self) -> None:
        """Let go of every holder: sessions that are in order may be used again."""
        for holder in self._holders.values():
            if holder.nursery is None:
                holder.scope.cancel()
            else:
                holder.over.set()
        self._poke.set()

    # The swarm's words

    def _feed(self, event: Event) -> None:
        """Tell the swarm, and do what it says."""
        outputs = self._swarm.handle(event, trio.current_time())
        if self._ended.is_set():
            return
        for output in outputs:
            match output:
                case Ask(peer=peer):
                    self._stuck_since = None
                    holder = self._holders[peer]
                    assert holder.nursery is not None
                    holder.nursery.start_soon(self._carry, holder, output)
                case Cancel(ask=ask, peer=peer):
                    scope = self._holders[peer].asks.get(ask)
                    if scope is not None:
                        scope.cancel()
                case Drop(peer=peer, reason=reason, retry=retry):
                    self._hang_up(self._holders[peer], errors.Unreachable(f"peer {peer[:12]} {reason}"), ban=not retry)
                case Stuck():
                    if self._stuck_since is None:
                        self._stuck_since = trio.current_time()
                    self._poke.set()
                case Done():
                    self._ended.set()
        wake_at = self._swarm.wake_at
        if wake_at is not None and wake_at < self._wake_at:
            self._poke.set()

    def _lose(self, holder: _Holder, error: errors.P2PlayerError, *, ban: bool) -> None:
        """The session with `holder` is of no more use, which the swarm does not know yet."""
        if holder.lost is None:
            self._hang_up(holder, error, ban=ban)
            self._feed(Left(holder.node))

    def _hang_up(self, holder: _Holder, error: errors.P2PlayerError, *, ban: bool) -> None:
        """Let the task of `holder` end its session."""
        if holder.lost is None:
            holder.lost = error
            holder.ban = ban
            holder.over.set()

    def _fail(self, error: errors.P2PlayerError) -> None:
        """Give the transfer up."""
        if not self._ended.is_set():
            self._failure = error
            self._ended.set()

    # Time

    async def _keep_time(self) -> None:
        """Wake the swarm and the roster when they asked for it, and look around now and then."""
        poll_at = 0.0
        while not self._ended.is_set():
            now = trio.current_time()
            if now >= poll_at:
                poll_at = now + min(LOOK_S, POLL_S)
                self._look_around()
            for hint in self._roster.due(now):
                self._dial(hint)
            self._feed(Tick())
            self._give_up_if_stuck()
            times = (poll_at, self._swarm.wake_at, self._roster.wake_at(now))
            self._wake_at = min(at for at in times if at is not None)
            self._poke = trio.Event()
            if not self._ended.is_set():
                with trio.move_on_at(self._wake_at):
                    await self._poke.wait()
            await trio.lowlevel.checkpoint()

    def _look_around(self) -> None:
        self._roster.offer(self._offers())
        for holder in list(self._holders.values()):
            if holder.session is None or holder.nursery is None:
                continue
            if holder.session.bytes_in != holder.heard_bytes:
                holder.heard_bytes = holder.session.bytes_in
                self._feed(Heard(holder.node))
            due = trio.current_time() >= holder.looked_at + self._look_s
            if holder.partial and due and not holder.refreshing and not self._ended.is_set():
                holder.nursery.start_soon(self._refresh, holder, holder.session)

    def _dial(self, hint: HolderHint) -> None:
        holder = self._holders[hint.node] = _Holder(hint)
        assert self._nursery is not None
        self._feed(Expected(hint.node, hint.rtt_s))
        self._nursery.start_soon(self._attend, holder)

    def _give_up_if_stuck(self) -> None:
        """Fail when nobody has the rest and nobody can be expected to get it."""
        coming_or_going = any(holder.nursery is None or holder.over.is_set() for holder in self._holders.values())
        if self._stuck_since is None or coming_or_going or not self._roster.exhausted:
            return
        now = trio.current_time()
        hopeful = any(holder.partial for holder in self._holders.values()) or not self._roster.known
        if not hopeful or now - self._stuck_since >= PATIENCE_S:
            self._fail(self._why_stuck())

    def _why_stuck(self) -> errors.P2PlayerError:
        swarm, label = self._swarm, self._job.label
        missing = f"{label}: {swarm.bytes_left} of {swarm.wanted_bytes} bytes are missing"
        if self._liars:
            return errors.Integrity(f"{missing}; {self._liars} holder(s) sent corrupt data")
        if self._unreachable is not None:
            return errors.Unreachable(f"{missing}; {self._unreachable.message}")
        return errors.NotFound(f"{missing}, and no peer that can be reached has them")

    # Holders

    async def _attend(self, holder: _Holder) -> None:
        """Dial a holder, and stay in session until it is of no more use."""
        try:
            with holder.scope:
                async with self._lease(holder.node) as session:
                    await self._converse(holder, session)
        except errors.P2PlayerError as error:
            self._lose(holder, error, ban=not isinstance(error, errors.Unreachable | errors.Failed))
        if isinstance(holder.lost, errors.Unreachable):
            self._unreachable = holder.lost
        del self._holders[holder.node]
        useful = holder.heard_bytes > 0 and holder.node in self._swarm.accepted
        self._roster.ended(holder.node, trio.current_time(), useful=useful, ban=holder.ban)
        self._poke.set()

    async def _converse(self, holder: _Holder, session: Session) -> None:
        """Ask what the swarm wants asked. A session that failed is closed by raising what it failed with."""
        have: bytes | None = None
        if not holder.hint.complete and self._job.claims is not None:
            have = await self._claims(session)
            holder.partial, holder.have, holder.looked_at = True, have, trio.current_time()
        holder.heard_bytes = session.bytes_in
        async with trio.open_nursery() as nursery:
            holder.session, holder.nursery = session, nursery
            self._feed(Joined(holder.node, have, holder.hint.rtt_s, holder.hint.load))
            await holder.over.wait()
            nursery.cancel_scope.cancel()
        if holder.lost is not None:
            raise holder.lost

    async def _claims(self, session: Session) -> bytes:
        assert self._job.claims is not None
        try:
            return await self._job.claims(session)
        except RemoteProtocolError as error:
            raise errors.Integrity(str(error)) from None

    async def _refresh(self, holder: _Holder, session: Session) -> None:
        """Ask a partial holder what it has by now; what it says again is news only where it is asked for nothing."""
        holder.refreshing = True
        try:
            have = await self._claims(session)
        except errors.P2PlayerError as error:
            self._lose(holder, error, ban=not isinstance(error, errors.Unreachable))
        else:
            if holder.lost is None and (have != holder.have or not holder.asks):
                holder.have = have
                self._feed(Joined(holder.node, have, holder.hint.rtt_s, holder.hint.load))
        finally:
            holder.refreshing, holder.looked_at = False, trio.current_time()

    # Chunks

    async def _carry(self, holder: _Holder, ask: Ask) -> None:
        """Send one ask and take what comes."""
        assert holder.session is not None
        with trio.CancelScope() as scope:
            holder.asks[ask.ask] = scope
            try:
                plain = await self._carry_deltas(holder, holder.session, ask)
                if plain:
                    plain = await self._carry_echoes(holder, holder.session, ask, plain)
                if plain:
                    body = wire.want_body(self._job.scope, plain)
                    async with holder.session.stream(wire.CHUNKS_WANT, body) as parts:
                        await self._landing.receive(plain, parts, partial(self._landed, ask))
                self._feed(Finished(ask.peer, ask.ask))
            except RemoteProtocolError:
                self._liars += 1
                self._feed(Corrupt(ask.peer))
            except errors.P2PlayerError as error:
                self._lose(holder, error, ban=not isinstance(error, errors.Unreachable | errors.Failed))
            except DiskFull as error:
                self._fail(errors.Refused(f"{self._job.label}: {error}; what was fetched is kept"))
            except (StoreError, OSError) as error:
                self._fail(faults.describe(error))
            finally:
                holder.asks.pop(ask.ask, None)

    async def _carry_deltas(self, holder: _Holder, session: Session, ask: Ask) -> Sequence[ChunkId]:
        """Send an ask as one for deltas where that pays. Returns the chunks that are to be asked for as they are."""
        kin = self._job.kin
        if kin is None or self._patches is None or holder.patches_failed or not kin.pays(holder.hint):
            return ask.chunks
        units = kin.units(ask.chunks)
        if not units:
            return ask.chunks
        make = partial(kin.ask, holder.node, self._job.scope, units, self._job.content)
        delta = await trio.to_thread.run_sync(make, limiter=self._threads)
        left = dict.fromkeys(ask.chunks)

        def landed(chunks: Mapping[ChunkId, int]) -> None:
            for chunk in chunks:
                del left[chunk]
            self._landed(ask, chunks)

        try:
            async with session.stream(CHUNKS_DELTA, delta.body(), payload=delta.payload) as parts:
                failed = await self._patches.receive(delta, parts, landed)
        # An older version, one that has other layers on record, or one for which that is too much: as it is, perhaps.
        except (errors.Usage, errors.NotFound, errors.Refused, errors.Failed):
            failed = list(left)
        holder.patches_failed |= bool(failed)
        return failed

    async def _carry_echoes(
        self, holder: _Holder, session: Session, ask: Ask, chunks: Sequence[ChunkId]
    ) -> Sequence[ChunkId]:
        """Ask for chunks as what they repeat of layers that are here. Returns those to be asked for as they are."""
        if self._echoes is None or holder.echoes_failed:
            return chunks
        echo = self._echoes.ask(self._job.scope, chunks)
        left = dict.fromkeys(chunks)

        def landed(chunks: Mapping[ChunkId, int]) -> None:
            for chunk in chunks:
                del left[chunk]
            self._landed(ask, chunks)

        try:
            async with session.stream(CHUNKS_ECHOES, echo.body()) as parts:
                failed = await self._echoes.receive(echo, parts, landed)
        except (errors.Usage, errors.NotFound, errors.Refused, errors.Failed):  # an older version, for example
            failed = list(left)
        holder.echoes_failed |= bool(failed)
        return failed

    def _landed(self, ask: Ask, chunks: Mapping[ChunkId, int]) -> None:
        """Chunks of an ask are in the content."""
        self._feed(Received(ask.peer, ask.ask, chunks))
        if self._progress is not None:
            total = self._swarm.wanted_bytes
            self._progress(total - self._swarm.bytes_left, total)
        if self._landing.commit_due and not self._ended.is_set():
            assert self._nursery is not None
            self._nursery.start_soon(self._commit)

    async def _commit(self) -> None:
        try:
            await self._landing.commit()
        except (StoreError, OSError) as error:
            self._fail(faults.describe(error))
