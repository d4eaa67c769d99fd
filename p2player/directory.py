"""The apps of the mesh: where each lives, and commands that reach it there from any node.

`Apps` keeps what lives on this node. The directory adds what the inventories tell of other nodes, and passes a command
for an app on another node to that node.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from gossip.inventory import AppRow
from gossip.ledger import Ledger
from gossip.messages import NodeId
from p2player import errors
from p2player.apps import AppRecord, Apps
from p2player.layers import Layers
from p2player.mesh import Mesh
from p2player.net.connection import Incoming
from p2player.net.peers import PeerPool
from p2player.presence import Presence

COMMAND_S = 300.0
MOVE_KNOWN_S = 10.0
LOG_BYTES = 64 << 10

Recover = Callable[[str, bool], Awaitable[AppRecord]]


class Directory:
    """Apps by name or id, wherever they are.

    Args:
        recover: resolves an app in doubt; the migration service's.
    """

    def __init__(
        self,
        apps: Apps,
        ledger: Ledger,
        layers: Layers,
        pool: PeerPool,
        mesh: Mesh,
        presence: Presence,
        recover: Recover,
    ) -> None:
        self._apps = apps
        self._ledger = ledger
        self._layers = layers
        self._pool = pool
        self._mesh = mesh
        self._presence = presence
        self._recover = recover
        self._moves: dict[str, tuple[NodeId, AppRow, float]] = {}

    def states(self) -> dict[str, int]:
        """How many apps of this node are in which state."""
        return dict(Counter(record.state.value for record in self._apps.records()))

    def inventory_rows(self) -> tuple[AppRow, ...]:
        """The apps of this node, as its inventory tells them."""
        return tuple(
            AppRow(r.id, r.name, r.backend, r.state.value, r.epoch, r.base, r.app, r.addresses)
            for r in self._apps.records()
        )

    def _everywhere(self) -> dict[str, tuple[NodeId, AppRow]]:
        """Each app and its node; of two nodes that claim one app the higher epoch is right."""
        found: dict[str, tuple[NodeId, AppRow]] = {}
        known = {self._mesh.me: self.inventory_rows()}
        present = {member.id for member in self._mesh.alive()}
        for node, inventory in self._ledger.inventories().items():
            if node != self._mesh.me and (node in present or self._mesh.member(node) is not None):
                known[node] = inventory.apps
        for node, rows in [*known.items(), *self._just_moved()]:
            for row in rows:
                seen = found.get(row.id)
                if seen is None or _claim(row) > _claim(seen[1]):
                    found[row.id] = (node, row)
        return found

    def claims(self, app_id: str) -> list[tuple[NodeId, int]]:
        """The other nodes, alive now, whose inventory says that they own the app, and at which epoch."""
        inventories = self._ledger.inventories()
        return [
            (member.id, row.epoch)
            for member in self._mesh.alive()
            if member.id in inventories
            for row in inventories[member.id].apps
            if row.id == app_id
        ]

    def note_move(self, record: AppRecord, node: NodeId) -> None:
        """An app of this node runs on `node` now, one epoch on; that node's own word of it is on its way."""
        owned = record.epoch + 1
        row = AppRow(
            record.id, record.name, record.backend, "running", owned, record.base, record.app, record.addresses
        )
        self._moves[record.id] = (node, row, time.monotonic() + MOVE_KNOWN_S)

    def _just_moved(self) -> list[tuple[NodeId, tuple[AppRow]]]:
        now = time.monotonic()
        self._moves = {app: move for app, move in self._moves.items() if move[2] > now}
        return [(node, (row,)) for node, row, _ in self._moves.values()]

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `/v1/apps`."""
        rows = [self._row(node, row) for node, row in self._everywhere().values()]
        return sorted(rows, key=lambda row: (row["name"], row["id"]))

    def _row(self, node: NodeId, row: AppRow) -> dict[str, Any]:
        return {
            "name": row.name,
            "id": row.id,
            "backend": row.backend,
            "node": self._mesh.name_of(node),
            "state": row.state,
            "epoch": row.epoch,
            "base": row.base.hex(),
            "app": row.app.hex(),
            "addresses": list(row.addresses),
        }

    def find(self, ref: str) -> tuple[NodeId, AppRow]:
        """The app of that name, id or id prefix, and the node that it lives on.

        Raises:
            NotFound: there is none.
            Refused: `ref` fits several.
        """
        everywhere = self._everywhere()
        fitting = [pair for pair in everywhere.values() if ref in (pair[1].name, pair[1].id)]
        if not fitting and len(ref) >= 8:
            fitting = [pair for pair in everywhere.values() if pair[1].id.startswith(ref.lower())]
        if not fitting:
            raise errors.NotFound(f"no app {ref} in the mesh")
        if len(fitting) > 1:
            raise errors.Refused(f"{ref} fits several apps; name it by id: {', '.join(row.id for _, row in fitting)}")
        return fitting[0]

    # Commands

    async def create(self, name: str, *, backend: str, base: str, app: str, config: str) -> dict[str, Any]:
        """Create an app on this node.

        Raises:
            NotFound: no such backend or layer.
            Refused: the name is taken, or the backend does not run here.
        """
        self.check_name(name)
        base_id, app_id = await self._layers.resolve(base), await self._layers.resolve(app)
        record = await self._apps.create(name, backend, base_id, app_id, config)
        await self._presence.publish()
        return self._row(self._mesh.me, self._row_of(record.id))

    def check_name(self, name: str) -> None:
        """Refuse the name of an app that the mesh has."""
        if any(row.name == name for _, row in self._everywhere().values()):
            raise errors.Refused(f"an app {name} exists already")

    def _row_of(self, app_id: str) -> AppRow:
        return next(row for row in self.inventory_rows() if row.id == app_id)

    async def start(self, ref: str) -> dict[str, Any]:
        """Start an app where it lives; its layers are brought there if they are not."""
        return await self._command("start", ref)

    async def stop(self, ref: str) -> dict[str, Any]:
        """Stop an app and keep its state."""
        return await self._command("stop", ref)

    async def remove(self, ref: str) -> dict[str, Any]:
        """Remove a stopped app, its state included."""
        return await self._command("remove", ref)

    async def recover(self, ref: str, *, force: bool) -> dict[str, Any]:
        """Resolve an app in doubt; `force` takes it back without the other side's answer."""
        return await self._command("recover", ref, force=force)

    async def logs(self, ref: str) -> str:
        """The newest output of an app."""
        return str((await self._command("logs", ref))["text"])

    async def _command(self, verb: str, ref: str, *, force: bool = False) -> dict[str, Any]:
        node, row = self.find(ref)
        if node == self._mesh.me:
            return await self._obey(verb, row.id, force)
        body = {"verb": verb, "app": row.id, "force": force}
        return await self._pool.call(node, "app.command", body, timeout_s=COMMAND_S)

    async def handle_command(self, call: Incoming) -> dict[str, Any]:
        """Serve `app.command {verb, app, force}` for a peer's user."""
        verb, app, force = call.body.get("verb"), call.body.get("app"), call.body.get("force")
        if verb not in ("start", "stop", "remove", "recover", "logs") or not isinstance(app, str):
            raise errors.Usage("malformed app command")
        return await self._obey(verb, app, force is True)

    async def _obey(self, verb: str, app_id: str, force: bool) -> dict[str, Any]:
        record = self._apps.find(app_id)
        match verb:
            case "start":
                await self._apps.start(record.id)
                self._ledger.count_start(self._mesh.my_site, record.app, record.base, now=time.time())
            case "stop":
                await self._apps.stop(record.id)
            case "recover":
                await self._recover(record.id, force)
                await self._presence.publish()
                return self._row(*self.find(record.id))  # it may live on the other node now
            case "logs":
                text = await self._apps.logs(record.id, LOG_BYTES)
                return {"text": text.decode(errors="replace")}
            case "remove":
                row = self._row(self._mesh.me, self._row_of(record.id))
                await self._apps.remove(record.id)
                await self._presence.publish()
                return row
        await self._presence.publish()
        return self._row(self._mesh.me, self._row_of(record.id))

    async def backends(self) -> list[dict[str, Any]]:
        """The rows of `/v1/backends`: what each engine's probe says."""
        return [
            {"name": p.name, "available": p.available, "version": p.version, "reason": p.reason}
            for p in await self._apps.engines.probes()
        ]


def _claim(row: AppRow) -> tuple[int, bool]:
    """How good a node's claim to an app is: by epoch; at one epoch the copy that runs."""
    return row.epoch, row.state == "running"
