"""Layers where they will be needed, before they are: on request, and by what is started at this node's site.

`proto.warming` decides; this service asks it with what the ledger tells and has the layers fetched: by this node, or by
others, each of which pulls for itself from whoever is nearest to it.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import trio

from chunkstore.digest import LayerId
from gossip.ledger import Ledger
from gossip.messages import NodeId
from p2player import errors
from p2player.directory import Directory
from p2player.events import EventBus
from p2player.layers import Layers
from p2player.log import Log
from p2player.mesh import Mesh
from p2player.net.connection import Incoming
from p2player.net.peers import PeerPool
from p2player.operations import Operation
from p2player.proto.warming import Candidate, Copy, CopyRequest, plan_auto, plan_copies

PLACE_S = 3600.0
AUTO_INTERVAL_S = 5.0
AT_A_TIME = 4


class Warmer:
    """Places layers, on this node and on others.

    Args:
        budget_bytes: what automatic warming may hold on this node.
        remember_auto: keeps the switch for the next start.
    """

    def __init__(
        self,
        ledger: Ledger,
        layers: Layers,
        directory: Directory,
        pool: PeerPool,
        mesh: Mesh,
        events: EventBus,
        log: Log,
        *,
        auto: bool,
        budget_bytes: int,
        remember_auto: Callable[[bool], None],
    ) -> None:
        self._ledger = ledger
        self._layers = layers
        self._directory = directory
        self._pool = pool
        self._mesh = mesh
        self._events = events
        self._log = log
        self._auto = auto
        self._budget_bytes = budget_bytes
        self._remember_auto = remember_auto
        self._placed: Counter[str] = Counter()
        self._last_error: str | None = None

    # On request

    async def warm(
        self,
        target: str,
        *,
        operation: Operation,
        to: str | None = None,
        site: str | None = None,
        copies: int | None = None,
    ) -> dict[str, Any]:
        """Place the layers of an app, or one layer, on a node, on a site, or on so many nodes.

        Returns:
            `{placed: [{node, id, size, transferred}], nodes: [names that hold everything now]}`.

        Raises:
            NotFound: no such app, layer or node.
            Refused: the mesh has not enough nodes or disk for it.
        """
        if copies is not None and not 0 < copies <= 10_000:
            raise errors.Usage("'copies' must be a positive number")
        request = CopyRequest(self._mesh.find(to) if to is not None else None, site, copies)
        wanted = await self._target_layers(target)
        sizes = await self._layers.sizes(wanted)
        plan = plan_copies(sizes, self._whole_holders(wanted), self._candidates(), request)
        if plan.refusals:
            raise errors.Refused("; ".join(plan.refusals))
        placed: list[dict[str, Any]] = []
        total = sum(copy.size for copy in plan.copies)
        limiter = trio.CapacityLimiter(AT_A_TIME)

        async def place(copy: Copy) -> None:
            async with limiter:
                placed.append(await self._place(copy))
            operation.progress(sum(row["size"] for row in placed), total, f"{copy.layer.hex()[:12]} placed")

        async with trio.open_nursery() as nursery:
            for copy in plan.copies:
                nursery.start_soon(place, copy)
        return {"placed": placed, "nodes": [self._mesh.name_of(node) for node in plan.nodes]}

    async def _target_layers(self, target: str) -> list[LayerId]:
        """The layers of an app of that name, or else the layer of that name."""
        try:
            _, row = self._directory.find(target)
        except errors.NotFound:
            return [await self._layers.resolve(target)]
        return [LayerId(row.base), LayerId(row.app)]

    def _whole_holders(self, wanted: Iterable[LayerId]) -> dict[LayerId, frozenset[NodeId]]:
        inventories = self._ledger.inventories()
        return {
            layer: frozenset(
                node for node, held in inventories.items() if layer in held.layers and held.layers[layer].whole
            )
            for layer in wanted
        }

    def _candidates(self) -> list[Candidate]:
        inventories = self._ledger.inventories()
        nodes = [self._mesh.me, *(member.id for member in self._mesh.alive())]
        return [
            Candidate(node, self._mesh.site_of(node), inventories[node].free_bytes, inventories[node].load)
            for node in nodes
            if node in inventories
        ]

    async def _place(self, copy: Copy) -> dict[str, Any]:
        name = self._mesh.name_of(copy.node)
        if copy.node == self._mesh.me:
            transferred = (await self._layers.fetch(copy.layer)).transferred
        else:
            body = {"layer": copy.layer}
            reply = await self._pool.call(copy.node, "warm.place", body, timeout_s=PLACE_S)
            transferred = reply.get("transferred", 0)
        self._events.emit("warm.placed", node=name, id=copy.layer.hex())
        return {"node": name, "id": copy.layer.hex(), "size": copy.size, "transferred": transferred}

    async def handle_place(self, call: Incoming) -> dict[str, Any]:
        """Serve `warm.place {layer}`: fetch it here, and answer when it is here."""
        layer = call.body.get("layer")
        if not isinstance(layer, bytes) or len(layer) != 32:
            raise errors.Usage("malformed layer id")
        report = await self._layers.fetch(LayerId(layer))
        return {"transferred": report.transferred}

    # By itself

    def status(self) -> dict[str, Any]:
        """The document of `/v1/warm`."""
        return {
            "auto": self._auto,
            "budget_bytes": self._budget_bytes,
            "site": self._mesh.my_site,
            "wanted": [layer.hex() for layer in self._wanted()] if self._auto else [],
            "placed": sum(self._placed.values()),
            "last_error": self._last_error,
        }

    async def set_auto(self, enabled: bool) -> None:
        """Switch automatic warming on this node; the switch survives a restart."""
        await trio.to_thread.run_sync(self._remember_auto, enabled)
        self._auto = enabled

    def _wanted(self) -> list[LayerId]:
        """The layers that this node's site should hold."""
        alive = {self._mesh.me, *(member.id for member in self._mesh.alive())}
        inventories = [held for node, held in self._ledger.inventories().items() if node in alive]
        return plan_auto(
            self._ledger.popularity(now=time.time()),
            inventories,
            self._mesh.my_site,
            self._budget_bytes,
            newest=self._ledger.catalog().successors(),
        )

    async def run(self) -> None:
        """Now and then fetch what this site should hold and this node was chosen for."""
        while True:
            await trio.sleep(AUTO_INTERVAL_S)
            if self._auto:
                await self._fetch_my_share()

    async def _fetch_my_share(self) -> None:
        """Fetch what is planned for this node; all layers of the site go to one place, an app beside its base."""
        wanted = self._wanted()
        sizes = await self._layers.sizes(wanted)
        request = CopyRequest(site=self._mesh.my_site, copies=1)
        plan = plan_copies(sizes, self._whole_holders(wanted), self._candidates(), request)
        for copy in plan.copies if wanted else ():
            if copy.node != self._mesh.me:
                continue
            try:
                await self._layers.fetch(copy.layer)
            except errors.P2PlayerError as error:
                # The next round tries again; what keeps going wrong is seen in the status.
                self._last_error = error.message
                self._log.warning("automatic warming failed", layer=copy.layer.hex()[:16], error=error.message)
            else:
                self._placed[copy.layer.hex()] += 1
                self._events.emit("warm.placed", node=self._mesh.name_of(self._mesh.me), id=copy.layer.hex())
