"""The composition root: makes every part of a node, ties them together, and runs them in one nursery.

Nothing else names concrete classes. A part gets what it needs through its constructor; where two need each other, one
of them gets a function of the other's.

`p2player.daemon` makes a process of it: signals, the control API, readiness.
"""

import random
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import trio

from backends.registry import builtin
from chunkstore.digest import LayerId
from chunkstore.store import ChunkStore
from gossip.config import PRESETS
from gossip.errors import Malformed
from gossip.inventory import AppRow
from gossip.ledger import Ledger
from gossip.messages import MemberState, NodeId
from gossip.records import LocalNode
from gossip.replica import Changes
from gossip.sealing import Opener, Sealer
from gossip.state import GossipState
from gossip.table import Change, MemberChanged
from p2player import __version__, errors, listening
from p2player.addresses import Address
from p2player.adoption import Adoption
from p2player.apprecord import AppRecord
from p2player.apps import AppEvent, Apps
from p2player.appstate import AppState
from p2player.config import Settings
from p2player.directory import Directory
from p2player.events import EventBus
from p2player.layers import Layers
from p2player.log import Log
from p2player.mesh import Invite, Mesh
from p2player.migration import Migrations, Parts
from p2player.migration.driver import OnRecord
from p2player.net.authority import Authority
from p2player.net.certificates import verify
from p2player.net.connection import Handler
from p2player.net.gossip import GossipService
from p2player.net.identity import Identity
from p2player.net.invites import Contact
from p2player.net.joining import JoinDesk
from p2player.net.peers import PeerPool
from p2player.net.releasing import release
from p2player.net.shaping import Shaper
from p2player.operations import Operations
from p2player.presence import Presence
from p2player.proto.joining import MemberRow
from p2player.relatives import HeldRelatives
from p2player.remembered import Remembered
from p2player.renewal import Renewal, renew_at_start
from p2player.serving import Serving
from p2player.statedir import StateDir
from p2player.transfer import Transfers
from p2player.upkeep import Upkeep
from p2player.warmer import Warmer

DRAIN_POLL_S = 0.05
REMEMBER_S = 30.0


class Node:
    """One node of a mesh; `running` makes and runs all of it.

    The attributes are the services that the control API speaks to. `stopping` is set when the node is to end, `left`
    says whether that is for good.

    Args:
        on_record: called around every record of a migration's journal; for tests that kill the node there.
    """

    def __init__(self, state: StateDir, settings: Settings, log: Log, on_record: OnRecord | None = None) -> None:
        self.state = state
        self.settings = settings
        self.log = log
        self.events = EventBus()
        self.identity = renew_at_start(Identity.load(state), log, time.time())
        self.identity.check_valid(time.time())
        self.pool: PeerPool
        self.mesh: Mesh
        self.operations: Operations
        self.apps: Apps
        self.layers: Layers
        self.directory: Directory
        self.adoption: Adoption
        self.migrations: Migrations
        self.warmer: Warmer
        self.upkeep: Upkeep
        self._presence: Presence
        self._on_record = on_record
        self._gossip: GossipService
        self._nursery: trio.Nursery
        self._handlers: dict[str, Handler] = {}
        self.stopping = trio.Event()
        self.left = False

    # Making the parts

    @asynccontextmanager
    async def _open(self, ports: listening.Ports) -> AsyncIterator[trio.Nursery]:
        """Make every part, in the order in which they need each other; yields the nursery that they live in."""
        identity, log = self.identity, self.log
        reached_at = identity.reached_at()
        async with AsyncExitStack() as stack:
            store = stack.enter_context(await trio.to_thread.run_sync(ChunkStore.open, self.state.store))
            remembered = Remembered(self.state.gossip, log)
            ledger = Ledger(identity.public_key, identity.sign, verify)
            remembered.restore_ledger(ledger)
            boot_id = secrets.token_bytes(8)
            gossip_state = self._gossip_state(reached_at, boot_id, remembered)
            authority = identity.open_authority() if identity.is_authority else None
            if authority is not None:
                stack.callback(authority.close)

            self.mesh = Mesh(
                identity, reached_at, gossip_state.members, self._inviter(authority, reached_at), self._depart
            )
            self.pool = await stack.enter_async_context(self._make_pool(gossip_state, authority))
            self._gossip = GossipService(
                trio.socket.from_stdlib_socket(ports.udp),
                gossip_state,
                Sealer(identity.keyring(), identity.node_id, boot_id),
                Opener(identity.keyring()),
                self.pool,
                ledger,
                on_member=partial(self._on_member, authority, ledger),
                on_ledger=self._on_ledger,
            )
            self._make_services(store, ledger, remembered)
            renewal = Renewal(
                identity, authority, self.pool, lambda: [m.id for m in self.mesh.alive()], self._renewed, log
            )
            self._handlers.update(renewal.handlers())
            await stack.enter_async_context(self.migrations)

            nursery = self._nursery = await stack.enter_async_context(trio.open_nursery())
            self.operations = Operations(nursery, log)
            nursery.start_soon(self._keep_remembering, remembered, gossip_state, ledger)
            nursery.start_soon(renewal.run)
            try:
                yield nursery
            finally:
                nursery.cancel_scope.cancel()
                remembered.keep(gossip_state.snapshot(trio.current_time()), ledger.snapshot())

    def _gossip_state(self, reached_at: Address, boot_id: bytes, remembered: Remembered) -> GossipState:
        identity = self.identity
        local = LocalNode(
            identity.name,
            identity.site,
            reached_at.host,
            reached_at.port,
            __version__,
            identity.public_key,
            boot_id,
            identity.sign,
        )
        pace = PRESETS[self.settings.preset_for(identity.listen.host)]
        make = partial(GossipState, local, verify=verify, rng=random.Random(), now=trio.current_time(), config=pace)
        try:
            return make(restored=remembered.members())
        except Malformed as error:
            remembered.put_members_aside(error)
            return make()

    def _make_pool(self, gossip_state: GossipState, authority: Authority | None) -> PeerPool:
        identity, settings = self.identity, self.settings
        desk = JoinDesk(identity.mesh_name, authority, identity.keyring, self._member_rows, self.log)

        def locate(node: NodeId) -> tuple[str, int] | None:
            member = gossip_state.member(node)
            return None if member is None else (member.host, member.port)

        return PeerPool(
            identity,
            locate,
            self._handlers,
            self.log,
            version=__version__,
            serve_join=desk.serve,
            throttle_in=Shaper(settings.limit_in) if settings.limit_in else None,
            throttle_out=Shaper(settings.limit_out) if settings.limit_out else None,
            on_certificate=self._on_certificate,
        )

    def _make_services(self, store: ChunkStore, ledger: Ledger, remembered: Remembered) -> None:
        settings, log, events, mesh, pool = self.settings, self.log, self.events, self.mesh, self.pool
        serving = Serving(store)
        transfers = Transfers(store, pool, relatives=HeldRelatives(store, ledger))
        self._presence = presence = Presence(
            ledger,
            store,
            self.state.store,
            self._app_rows,
            settings.labels,
            self._gossip.announce,
            log,
        )
        self.layers = layers = Layers(
            store,
            ledger,
            transfers,
            pool,
            mesh,
            presence,
            events,
            log,
            trees=self.state.checkouts,
            in_use=self._layers_in_use,
        )
        self.apps = Apps(self.state.apps, builtin(settings.engines), layers.tree, self._on_app)
        self.migrations = Migrations(
            Parts(self.state.migrations, self.apps, layers, store, transfers, serving, pool, mesh, presence.publish),
            self._locate_app,
            self._claims_to_app,
            events,
            log,
            wall=time.time,
            return_basis_s=settings.return_basis_s,
            moved=lambda source, destination: ledger.count_move(source, destination, now=time.time()),
            on_record=self._on_record,
        )
        self.directory = Directory(self.apps, ledger, layers, pool, mesh, presence, self.migrations.recover)
        self.adoption = Adoption(self.apps, layers, self.directory, self.state.adopting, log)
        self.upkeep = Upkeep(
            store,
            ledger,
            layers,
            presence,
            log,
            me=mesh.me,
            root=self.state.store,
            high=settings.store_high_watermark,
            low=settings.store_low_watermark,
            in_use=self._layers_in_use,
            may_sweep=lambda: not self.apps.damaged,
        )
        self.warmer = Warmer(
            ledger,
            layers,
            self.directory,
            pool,
            mesh,
            events,
            log,
            auto=remembered.warm_auto(settings.warm_auto),
            budget_bytes=settings.warm_budget_bytes,
            remember_auto=remembered.keep_warm_auto,
        )
        self._handlers.update(
            {
                **serving.handlers,
                **self._gossip.handlers(),
                **self.migrations.handlers(),
                "layer.resolve": layers.handle_resolve,
                "app.command": self.directory.handle_command,
                "warm.place": self.warmer.handle_place,
            }
        )

    # What parts ask of others that are made after them

    def _app_rows(self) -> tuple[AppRow, ...]:
        return self.directory.inventory_rows()

    def _locate_app(self, ref: str) -> tuple[NodeId, AppRow]:
        return self.directory.find(ref)

    def _claims_to_app(self, app_id: str) -> list[tuple[NodeId, int]]:
        return self.directory.claims(app_id)

    def _layers_in_use(self) -> set[LayerId]:
        """What apps of this node run on, or are about to: here, on their way here, or being taken apart."""
        return self.apps.layers_in_use() | self.migrations.layers_in_use() | self.adoption.layers_in_use()

    # What parts tell

    def _on_member(self, authority: Authority | None, ledger: Ledger, change: Change) -> None:
        if not isinstance(change, MemberChanged):
            ledger.forget(change.member.id, now=time.time())
            self.mesh.forget(change.member.id)
            return
        old, new = change.old, change.new
        moved = old is not None and (old.host, old.port) != (new.host, new.port)
        if moved or new.state in (MemberState.DEAD, MemberState.LEFT):
            self.pool.forget(new.id)
        if old is None or old.state is not new.state:
            self.log.info("peer changed", name=new.name, state=new.state.value)
            self.events.emit("peer.changed", name=new.name, id=new.id, site=new.site, state=new.state.value)
        if authority is not None and new.state is MemberState.LEFT:
            self._nursery.start_soon(release, authority, new.id, self.log)

    def _on_certificate(self, der: bytes) -> None:
        certificate = self.identity.peer(der)
        record = self.mesh.learn(certificate)
        if record is not None:
            self.log.warning(
                "a peer claims another name or site than its certificate",
                node=record.id,
                claims=f"{record.name} at {record.site or 'no site'}",
                certified=f"{certificate.name} at {certificate.site or 'no site'}",
            )

    def _renewed(self, identity: Identity) -> None:
        self.pool.renew_contexts(identity)
        self.identity = identity

    def _on_ledger(self, changes: Changes) -> None:
        for name in changes.lost:
            self.log.warning("name lost to another node", name=name)
        if changes.names:
            self.events.emit("names.changed", names=sorted(changes.names))

    def _on_app(self, event: AppEvent) -> None:
        record = event.record
        if event.type == "app.discarded" and record.state is AppState.IN_DOUBT:
            self._note_move(record)
        self.log.info(event.type.replace(".", " "), app=record.name, state=record.state.value, note=event.message)
        self.events.emit(
            "app.changed", what=event.type, name=record.name, id=record.id, state=record.state.value, note=event.message
        )
        self._presence.changed()

    def _note_move(self, record: AppRecord) -> None:
        """An app that was given away is gone from here: until its new node has told so, say where it went."""
        me = self.identity.name
        mine = [row for row in self.migrations.rows() if row["app"] == record.name and row["from"] == me]
        with suppress(errors.NotFound):
            if mine:
                self.directory.note_move(record, self.mesh.find(mine[0]["to"]))

    # Joining and leaving

    def _member_rows(self) -> list[MemberRow]:
        me = self.identity.reached_at()
        rows: list[MemberRow] = [{"id": self.mesh.me, "host": me.host, "port": me.port}]
        rows += [{"id": m.id, "host": m.host, "port": m.port} for m in self.mesh.alive()]
        return rows

    def _inviter(self, authority: Authority | None, reached_at: Address) -> Invite | None:
        if authority is None:
            return None

        async def invite(ttl_s: float, uses: int) -> str:
            contact = Contact(self.identity.node_id, reached_at)
            make = partial(authority.invite, contact, ttl_s=ttl_s, uses=uses, now=time.time())
            return str(await trio.to_thread.run_sync(make))

        return invite

    async def _depart(self) -> None:
        hosted = [record.name for record in self.apps.records()]
        if hosted:
            raise errors.Refused(f"apps live on this node: {', '.join(hosted)}; migrate or remove them first")
        if self.identity.is_authority and self.mesh.alive():
            raise errors.Refused("this node is the mesh's authority and other nodes are alive: they would be orphaned")
        await self._gossip.leave()
        self.log.info("left the mesh", mesh=self.identity.mesh_name)
        self.left = True
        self.stopping.set()

    # Running

    @asynccontextmanager
    async def running(self, ports: listening.Ports) -> AsyncIterator[trio.Nursery]:
        """Be part of the mesh while the block runs: apps adopted, peers served, interrupted migrations resumed."""
        async with self._open(ports) as nursery:
            await self.apps.adopt_all()
            await self.adoption.tidy()
            nursery.start_soon(self.pool.listen, trio.SocketListener(trio.socket.from_stdlib_socket(ports.tcp)))
            await nursery.start(self._gossip.run)
            self._gossip.join([(str(row["host"]), int(row["port"])) for row in self.identity.members])
            await self._presence.publish()
            await self.migrations.recover_all()
            for service in (self._presence.run, self.apps.watch, self.warmer.run, self.upkeep.run):
                nursery.start_soon(service)
            yield nursery

    def stop(self) -> None:
        """Ask the node to end in good order."""
        self.stopping.set()

    async def drain(self) -> None:
        """Wait until nothing is under way that a client would miss."""
        while self.operations.running() or self.migrations.running():  # noqa: ASYNC110 - two sources, once in a life
            await trio.sleep(DRAIN_POLL_S)

    async def _keep_remembering(self, remembered: Remembered, gossip_state: GossipState, ledger: Ledger) -> None:
        while True:
            await trio.sleep(REMEMBER_S)
            ledger.expire(now=time.time())
            await trio.to_thread.run_sync(
                remembered.keep, gossip_state.snapshot(trio.current_time()), ledger.snapshot()
            )
