"""Commands for migrations of apps that live on other nodes: passed on to the node that decides, and served for others.

Which node that is follows from the app when a migration is begun, and is remembered for its id, so that whoever began
it from here can watch it from here. Rows travel as JSON texts.
"""

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from gossip.messages import NodeId
from p2player.errors import NotFound, Unreachable, Usage
from p2player.migration.commands import Commands
from p2player.migration.parts import Parts
from p2player.net.connection import Handler, Incoming
from p2player.proto.handoff.messages import Mode

REMEMBERED = 1024
CALL_S = 30.0
CANCEL_S = 90.0
MAX_WAIT_S = 60.0


class Remote:
    """See the module."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._where: OrderedDict[str, NodeId] = OrderedDict()

    # -- asking

    async def plan(
        self, node: NodeId, app_id: str, to: NodeId, mode: str, max_freeze_s: float | None
    ) -> dict[str, Any]:
        """As `Migrations.plan`, asked of the app's node."""
        body = {"app": app_id, "to": to, "mode": mode, "max_freeze_s": max_freeze_s}
        return await self._ask(node, "migration.plan", body, CALL_S)

    async def start(
        self, node: NodeId, app_id: str, to: NodeId, mode: str, max_freeze_s: float | None
    ) -> dict[str, Any]:
        """As `Migrations.start`, asked of the app's node."""
        body = {"app": app_id, "to": to, "mode": mode, "max_freeze_s": max_freeze_s}
        row = await self._ask(node, "migration.start", body, CALL_S)
        self._where[str(row.get("id"))] = node
        while len(self._where) > REMEMBERED:
            self._where.popitem(last=False)
        return row

    async def row(self, migration: str, wait_s: float) -> dict[str, Any]:
        """The row of a migration that was begun from here on another node."""
        body = {"id": migration, "wait_s": wait_s}
        return await self._ask(self._node_of(migration), "migration.row", body, CALL_S + wait_s)

    async def cancel(self, migration: str) -> dict[str, Any]:
        """Call off a migration that was begun from here on another node."""
        return await self.cancel_at(self._node_of(migration), migration)

    async def cancel_at(self, node: NodeId, migration: str) -> dict[str, Any]:
        """Call off a migration at its source."""
        return await self._ask(node, "migration.cancel", {"id": migration}, CANCEL_S)

    def _node_of(self, migration: str) -> NodeId:
        found = {node for known, node in self._where.items() if known.startswith(migration.lower())}
        if len(migration) < 8 or len(found) != 1:
            raise NotFound(f"no migration {migration}")
        return found.pop()

    async def _ask(self, node: NodeId, method: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        reply = await self._parts.peers.call(node, method, body, timeout_s=timeout_s)
        try:
            document = json.loads(reply["document"])
        except (KeyError, TypeError, ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise Unreachable(f"node {self._parts.name(node)} answered nonsense to {method}")
        return document


def serve(here: Callable[[], Commands]) -> dict[str, Handler]:
    """What peers may ask of this node; they are not passed on a second time."""

    async def plan(call: Incoming) -> dict[str, Any]:
        return _told(await here().plan(*_wish(call.body)))

    async def start(call: Incoming) -> dict[str, Any]:
        return _told(await here().start(*_wish(call.body)))

    async def row(call: Incoming) -> dict[str, Any]:
        wait_s = call.body.get("wait_s")
        if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not 0 <= wait_s <= MAX_WAIT_S:
            raise Usage("malformed wait_s")
        return _told(await here().row(_text(call.body, "id"), wait_s))

    async def cancel(call: Incoming) -> dict[str, Any]:
        return _told(await here().cancel(_text(call.body, "id")))

    return {"migration.plan": plan, "migration.start": start, "migration.row": row, "migration.cancel": cancel}


def _told(document: dict[str, Any]) -> dict[str, Any]:
    return {"document": json.dumps(document)}


def _wish(body: dict[str, Any]) -> tuple[str, NodeId, Mode, float | None]:
    mode, max_freeze_s = _text(body, "mode"), body.get("max_freeze_s")
    if mode not in set(Mode):
        raise Usage("malformed mode")
    if max_freeze_s is not None and not (
        isinstance(max_freeze_s, int | float) and not isinstance(max_freeze_s, bool) and 0 < max_freeze_s < 1e9
    ):
        raise Usage("malformed max_freeze_s")
    return _text(body, "app"), NodeId(_text(body, "to")), Mode(mode), max_freeze_s


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 64:
        raise Usage(f"malformed {key}")
    return value
