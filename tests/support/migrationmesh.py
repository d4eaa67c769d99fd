"""Nodes that migrate apps among each other, with everything but the migration service made of paper.

Real: `Migrations` with its journals, vaults, imports and checkouts; `Apps` with its records and rules. Paper: the
engine (a counter in memory that writes a file when it is suspended), peers (function calls with a delay), transfers
(groups copied from vault to vault), layers (a set of ids). The engine outlives its node, and all engines together see
to it that no app runs twice.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import trio
import trio.testing
from trio.testing import MockClock

from backends.base import (
    AppLayout,
    Capabilities,
    Checkpoint,
    EngineState,
    Exit,
    Moment,
    Probe,
    Started,
    Status,
    Workspace,
)
from backends.errors import AlreadyRunning, NotRunning, StartFailed
from backends.folders import remove_tree
from chunkstore.codec import open_group, pack, take
from chunkstore.content import Content
from chunkstore.delta.patch import PatchDecoder, PatchEncoder
from chunkstore.delta.signature import Signature
from chunkstore.digest import ChunkId, LayerId, chunk_id
from chunkstore.store import LayerRecord
from gossip.inventory import AppRow
from gossip.messages import Member, MemberState, NodeId
from p2player import errors
from p2player.apps import Apps
from p2player.events import EventBus
from p2player.kin import Kin
from p2player.log import Log
from p2player.migration import Migrations, Parts
from p2player.migration.driver import OnRecord
from p2player.migration.seams import Holders, Progress
from p2player.proto.frames import Buffer
from p2player.proto.handoff.machine import HandoffConfig
from p2player.proto.roster import HolderHint
from p2player.sources import Source
from p2player.transfer import PullReport

BASE, APP = LayerId(b"b" * 32), LayerId(b"a" * 32)
LAYER_BYTES = 1000
LATENCY_S = 0.005
CONFIG = 'command = ["run"]\n'
EPOCH_S = 1_700_000_000.0


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the node's own runs after it."""


class SecondCopy(BaseException):
    """What must never be."""


@dataclass
class World:
    """All engines: who runs what, and with which count."""

    running: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


class CounterEngine:
    """An engine whose apps count their starts and saves in `state/count`.

    `fail` holds what the next calls raise; `dirty` changes the state folder before each save. `against` are obstacles,
    `told` its facts, `wrong` finds mismatches; `memory` is what suspends were asked to keep.
    """

    name = "counter"
    capabilities = Capabilities(live=False, cooperative=True, leave_running=True, root=False)

    def __init__(self, node: str, world: World) -> None:
        self._node = node
        self._world = world
        self._states: dict[str, Status] = {}
        self.available = True
        self.gone = False
        self.fail: dict[str, list[Exception]] = {}
        self.calls: list[str] = []
        self.dirty: Callable[[Path], object] = lambda _state: None
        self.against: list[str] = []
        self.told: dict[str, str] = {}
        self.wrong: Callable[[Mapping[str, str]], list[str]] = lambda _facts: []
        self.memory: list[bool] = []

    def probe(self) -> Probe:
        return Probe(self.name, self.available, "1", None if self.available else "not today")

    def _call(self, name: str) -> None:
        if self.gone:
            raise Killed  # the node that calls is dead already
        self.calls.append(name)
        if self.fail.get(name):
            raise self.fail[name].pop(0)

    def create(self, layout: AppLayout) -> None:
        layout.state_dir.mkdir(parents=True, exist_ok=True)
        (layout.state_dir / "count").write_text("0")
        (layout.state_dir / "bulk").write_bytes(b"".join(n.to_bytes(4) for n in range(50_000)))

    def _begin(self, layout: AppLayout) -> Started:
        if layout.app_id in self._world.running:
            raise SecondCopy(f"{self._node} starts what {self._world.running[layout.app_id]} runs")
        if self.status(layout).state is EngineState.RUNNING:
            raise AlreadyRunning("it runs")
        path = layout.state_dir / "count"
        count = int(path.read_text())
        if count != self._world.counts.setdefault(layout.app_id, count):
            raise SecondCopy(f"{self._node} starts with the count {count}")
        self._world.counts[layout.app_id] = count + 1
        path.write_text(str(count + 1))
        self._world.running[layout.app_id] = self._node
        started = Started(1, Moment.now())
        self._states[layout.app_id] = Status(EngineState.RUNNING, 1, started.at)
        return started

    def start(self, layout: AppLayout) -> Started:
        self._call("start")
        return self._begin(layout)

    def restore(self, layout: AppLayout) -> Started:
        self._call("restore")
        return self._begin(layout)

    def resume(self, layout: AppLayout) -> Started:
        self._call("resume")
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            assert status.started is not None
            return Started(1, status.started)
        return self._begin(layout)

    def _end(self, workspace: Workspace, state: Status) -> None:
        if self._world.running.get(workspace.app_id) == self._node:
            del self._world.running[workspace.app_id]
        self._states[workspace.app_id] = state

    def stop(self, workspace: Workspace) -> None:
        self._call("stop")
        if self.status(workspace).executing:
            self._end(workspace, Status(EngineState.EXITED, exit=Exit(0, None, asked=True)))

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> Checkpoint:
        self._call("checkpoint")
        if self.status(layout).state is not EngineState.RUNNING:
            raise NotRunning("it does not run")
        self._world.counts[layout.app_id] += 1
        self.dirty(layout.state_dir)
        (layout.state_dir / "count").write_text(str(self._world.counts[layout.app_id]))
        return Checkpoint(Moment.now(), paused_s=0.01)

    def obstacles(self, layout: AppLayout) -> Sequence[str]:
        self._call("obstacles")
        return self.against

    def facts(self, layout: AppLayout) -> Mapping[str, str]:
        self._call("facts")
        return self.told

    def mismatches(self, facts: Mapping[str, str]) -> Sequence[str]:
        self._call("mismatches")
        return self.wrong(facts)

    def suspend(self, layout: AppLayout, *, memory: bool = True) -> Checkpoint:
        self._call("suspend")
        self.memory.append(memory)
        self.checkpoint(layout, leave_running=False)
        self._end(layout, Status(EngineState.SUSPENDED))
        return Checkpoint(Moment.now())

    def destroy(self, workspace: Workspace) -> None:
        self._call("destroy")
        self._end(workspace, Status(EngineState.ABSENT))
        remove_tree(workspace.state_dir)

    def logs(self, workspace: Workspace, max_bytes: int) -> bytes:
        return b""

    def status(self, workspace: Workspace) -> Status:
        return self._states.get(workspace.app_id, Status(EngineState.ABSENT))

    def die(self) -> None:
        """The whole machine goes down: so do its apps."""
        for app_id, status in self._states.items():
            if status.state is EngineState.RUNNING:
                del self._world.running[app_id]
                self._states[app_id] = Status(EngineState.LOST)


def never_executed() -> StartFailed:
    return StartFailed("no such program", executed=False)


def executed() -> StartFailed:
    return StartFailed("it ended at once", executed=True)


@dataclass
class Incoming:
    """A call as its handler sees it."""

    peer: NodeId
    peer_name: str
    method: str
    body: dict[str, Any]
    payload: Buffer


class PaperNode:
    """One node; `running` runs it, `kill` ends it as SIGKILL would."""

    def __init__(self, mesh: "PaperMesh", name: str, root: Path) -> None:
        self.mesh = mesh
        self.name = name
        self.id = NodeId(name.encode().hex().ljust(32, "0")[:32])
        self.root = root
        self.engine = CounterEngine(name, mesh.world)
        self.layers: set[LayerId] = {BASE, APP} if name == "a" else set()
        self.exposed: dict[str, tuple[Source, NodeId]] = {}
        self.knows_deltas = True
        self.claimed: dict[NodeId, int] = {}
        self.up = False
        self.on_record: OnRecord | None = None
        self.return_basis_s = 3600.0
        self.hints: dict[LayerId, list[HolderHint]] = {}
        self.events = EventBus()
        self.moves: list[tuple[str, str]] = []
        self.pulls: list[tuple[str, int, int]] = []
        self.pulled_bytes: list[int] = []
        self.lost: Callable[[NodeId, str], bool] = lambda _node, _method: False
        self.apps: Apps
        self.migrations: Migrations
        self._scope = trio.CancelScope()

    @property
    def me(self) -> NodeId:
        return self.id

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is killed or stopped."""
        self._scope = trio.CancelScope()
        self.exposed.clear()
        self.engine.gone = False
        try:
            with self._scope:
                self.apps = Apps(self.root / "apps", {"counter": self.engine}, self.tree, lambda _event: None)
                parts = Parts(
                    self.root / "migrations", self.apps, self, self, self, self, self, self, threads=self.mesh.threads
                )
                self.migrations = Migrations(
                    parts,
                    self.mesh.locate,
                    self.claims,
                    self.events,
                    Log(level="error"),
                    wall=lambda: EPOCH_S + trio.current_time(),
                    return_basis_s=self.return_basis_s,
                    config=self.mesh.config,
                    moved=lambda source, destination: self.moves.append((source, destination)),
                    on_record=self.on_record,
                )
                async with self.migrations:
                    await self.apps.adopt_all()
                    await self.migrations.recover_all()
                    self.up = True
                    task_status.started()
                    await trio.sleep_forever()
        except BaseExceptionGroup as group:
            killed, rest = group.split(Killed)
            if rest is not None:
                raise rest from None
            assert killed is not None
        finally:
            self.up = False

    def stop(self) -> None:
        """As SIGTERM does: the node cleans up."""
        self._scope.cancel()

    def claims(self, app_id: str) -> list[tuple[NodeId, int]]:
        """What gossip tells: the truth, and `claimed`."""
        others = [node for node in self.mesh.nodes.values() if node is not self and node.up]
        told = [(node.id, record.epoch) for node in others for record in node.apps.records() if record.id == app_id]
        return [*told, *self.claimed.items()]

    # -- members, peers

    def name_of(self, node: NodeId) -> str:
        found = self.mesh.by_id(node)
        return node[:12] if found is None else found.name

    def site_of(self, node: NodeId) -> str:
        return f"site-{self.name_of(node)}"

    def find(self, ref: str) -> NodeId:
        for node in self.mesh.nodes.values():
            if ref in (node.name, node.id):
                return node.id
        raise errors.NotFound(f"no node {ref}")

    def member(self, node: NodeId) -> Member | None:
        found = self.mesh.by_id(node)
        if found is None:
            return None
        state = MemberState.ALIVE if found.up else MemberState.DEAD
        return Member(found.id, found.name, "", "127.0.0.1", 1, state, 1, LATENCY_S, "1")

    def alive(self) -> list[Member]:
        members = [self.member(node.id) for node in self.mesh.nodes.values() if node.up and node is not self]
        return [member for member in members if member is not None]

    async def call(
        self,
        node: NodeId,
        method: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 10.0,
        payload: Buffer = b"",
    ) -> dict[str, Any]:
        await trio.sleep(LATENCY_S)
        target = self.mesh.by_id(node)
        if target is None or not target.up or self.lost(node, method):
            raise errors.Unreachable(f"{node[:6]} does not answer")
        handler: Any = target.migrations.handlers()[method]
        copied = msgpack.unpackb(msgpack.packb(dict(body or {})))
        try:
            with trio.fail_after(timeout_s):
                reply = await handler(Incoming(self.id, self.name, method, copied, bytes(payload)))
        except errors.P2PlayerError as error:
            raise errors.from_code(error.code, error.message) from None
        except trio.TooSlowError:
            raise errors.Unreachable(f"{node[:6]} did not answer in time") from None
        await trio.sleep(LATENCY_S)
        replied: dict[str, Any] = msgpack.unpackb(msgpack.packb(reply))
        return replied

    # -- layers, stock

    def holder_hints(self, layer: LayerId) -> list[HolderHint]:
        return self.hints.get(layer, [])

    async def tree(self, layer: LayerId) -> Path:
        assert layer in self.layers
        return self.root / "checkouts" / layer.hex()

    def layer(self, id: LayerId) -> LayerRecord | None:
        if id not in self.layers:
            return None
        return LayerRecord(id, LAYER_BYTES, 1, (), 0, True, False, 0.0, 0.0)

    def lacking(self, id: LayerId) -> dict[ChunkId, int]:
        return {}

    # -- transfers, serving

    def expose(self, scope: str, source: Source, peer: NodeId) -> None:
        self.exposed[scope] = (source, peer)

    def withdraw(self, scope: str) -> None:
        self.exposed.pop(scope, None)

    async def pull_layer(self, layer: LayerId, holders: Holders, *, progress: Progress | None = None) -> PullReport:
        here = layer in self.layers
        node = holders()[0].node
        found = self.mesh.by_id(node)
        assert found is not None and layer in found.layers
        await trio.sleep(0.1)
        self.layers.add(layer)
        if here:
            return PullReport(LAYER_BYTES, LAYER_BYTES, 0, {}, 0.1)
        if progress is not None:
            progress(LAYER_BYTES, LAYER_BYTES)
        return PullReport(LAYER_BYTES, 0, LAYER_BYTES + 100, {node: LAYER_BYTES}, 0.1)

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
    ) -> PullReport:
        began_at = trio.current_time()
        total = sum(wants.values())
        missing = await trio.to_thread.run_sync(content.missing, list(wants))
        lacking = sum(wants[chunk] for chunk in missing)
        assert scope is not None
        node = holders()[0].node
        wire = 0
        if missing:
            source = self.mesh.by_id(node)
            if source is None or not source.up or scope not in source.exposed:
                raise errors.Unreachable("the holder is away")
            held, peer = source.exposed[scope]
            assert peer == self.id
            names = [name for name in wants if name in missing]
            if kin is not None and source.knows_deltas:
                wire, names = await trio.to_thread.run_sync(_copy_deltas, held, content, kin, node, names)
            wire += await trio.to_thread.run_sync(_copy, held.content, content, names)
            self.pulled_bytes.append(wire)
        await trio.sleep(LATENCY_S + wire / self.mesh.goodput_bytes_s)
        if progress is not None:
            progress(total, total)
        self.pulls.append((scope, total, lacking))
        sources = {node: lacking} if lacking else {}
        return PullReport(total, total - lacking, wire, sources, trio.current_time() - began_at)


def _copy_deltas(
    source: Source, target: Content, kin: Kin, holder: NodeId, names: list[ChunkId]
) -> tuple[int, list[ChunkId]]:
    """Carry chunks as patches; the bytes of those, and the chunks that are to be carried as they are."""
    wire, left = 0, dict.fromkeys(names)
    ask = kin.ask(holder, "", kin.units(names), target)
    encoder, decoder = PatchEncoder(None), PatchDecoder()
    new = source.chunks_of(ask.layer)
    for unit, signature in zip(ask.units, ask.signatures, strict=True):
        if not unit.relative:
            continue
        wanted = dict(source.content.read([new[at] for at in unit.wants]))
        targets = [wanted[name] for name in kin.wanted(unit)]
        relative: Signature | list[Buffer]
        if signature:
            wire += len(signature)
            relative = Signature.decode(signature, sum(map(len, kin.read(unit, target))))
        else:
            old = source.chunks_of(ask.basis)
            held = dict(source.content.read([old[at] for at in unit.relative]))
            relative = [held[old[at]] for at in unit.relative]
        patch = encoder.encode(targets, relative)
        data = memoryview(decoder.decode(patch, sum(map(len, targets)), kin.read(unit, target)))
        wire, at = wire + len(patch), 0
        for name in kin.wanted(unit):
            piece = data[at : at + len(wanted[name])]
            assert chunk_id(piece, target.key) == name
            target.add([pack([(name, piece)])])
            del left[name]
            at += len(piece)
    target.commit()
    return wire, list(left)


def _copy(source: Content, target: Content, names: list[ChunkId]) -> int:
    wire = 0
    for group in source.groups(names):
        cut = take(group, set(names))
        if cut is not None:
            open_group(cut, target.key)
            target.add([cut])
            wire += len(cut.payload)
    target.commit()
    return wire


class PaperMesh:
    """All nodes. `goodput_bytes_s` is what every link carries."""

    def __init__(self, root: Path, nursery: trio.Nursery, config: HandoffConfig | None = None) -> None:
        self.root = root
        self.world = World()
        self.nodes: dict[str, PaperNode] = {}
        self.goodput_bytes_s = 10e6
        self.config = config
        self.threads = trio.CapacityLimiter(8)
        self._nursery = nursery

    def __getitem__(self, name: str) -> PaperNode:
        return self.nodes[name]

    def by_id(self, id_: NodeId) -> PaperNode | None:
        return next((node for node in self.nodes.values() if node.id == id_), None)

    async def add(self, name: str) -> PaperNode:
        """Make and start a node; the one called `a` has the layers."""
        node = self.nodes[name] = PaperNode(self, name, self.root / name)
        node.root.mkdir(parents=True)
        await self.start(node)
        return node

    async def start(self, node: PaperNode) -> None:
        await self._nursery.start(node.run)

    def locate(self, ref: str) -> tuple[NodeId, AppRow]:
        found = [
            (node, record)
            for node in self.nodes.values()
            if hasattr(node, "apps")
            for record in node.apps.records()
            if ref in (record.name, record.id)
        ]
        if not found:
            raise errors.NotFound(f"no app {ref}")
        node, r = max(found, key=lambda pair: pair[1].epoch)
        return node.id, AppRow(r.id, r.name, r.backend, r.state.value, r.epoch, r.base, r.app, r.addresses)

    async def new_app(self, on: PaperNode, name: str = "game", *, start: bool = True) -> str:
        """Create an app; returns its id."""
        record = await on.apps.create(name, "counter", BASE, APP, CONFIG)
        self.world.counts[record.id] = 0
        if start:
            await on.apps.start(record.id)
        return record.id

    async def ended(self, on: PaperNode, migration: str) -> dict[str, Any]:
        """The row of a migration when it is over."""
        while True:
            row = await on.migrations.row(migration, wait_s=5.0)
            if row["state"] in ("done", "failed", "cancelled"):
                return row

    async def quiet(self) -> None:
        """Until no node has an open migration."""
        while any(_open(node) for node in self.nodes.values()):
            await trio.sleep(0.5)


def _open(node: PaperNode) -> bool:
    folder = node.root / "migrations"
    return any((place / "journal").exists() for place in folder.iterdir()) if folder.exists() else False


@asynccontextmanager
async def paper_mesh(root: Path, *names: str, config: HandoffConfig | None = None) -> AsyncIterator[PaperMesh]:
    """A mesh of nodes of these names, running while the block does. Time jumps; see `_Jumper`."""
    async with trio.open_nursery() as nursery:
        with _Jumper() as jumper:
            nursery.start_soon(jumper.run)
            mesh = PaperMesh(root, nursery, config)
            for name in names:
                await mesh.add(name)
            yield mesh
            nursery.cancel_scope.cancel()


class _Jumper:
    """Moves a mock clock to the next deadline whenever every task waits and no worker thread is at work.

    Trio's own autojump does not know of threads: time would run away from whatever is written to a disk.
    """

    def __init__(self) -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        self._clock = clock
        self._real = trio.to_thread.run_sync
        self._threads = 0
        self._ended = trio.Event()

    def __enter__(self) -> "_Jumper":
        trio.to_thread.run_sync = self._run_sync  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        trio.to_thread.run_sync = self._real

    async def _run_sync(self, *args: Any, **kwargs: Any) -> Any:
        self._threads += 1
        try:
            return await self._real(*args, **kwargs)
        finally:
            self._threads -= 1
            self._ended.set()

    async def run(self) -> None:
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if self._threads:
                self._ended = trio.Event()
                await self._ended.wait()
                continue
            ahead_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
            assert ahead_s < float("inf"), "nothing will ever happen again"
            self._clock.jump(max(ahead_s, 0.0))
