"""Whoever sees a higher epoch stops its copy.

In the life of a migration the machines see to that. What is left is the exception: an app that was taken back by
force while its other copy was out of reach, or a node that came back from an old backup. Gossip tells which node
claims an app at which epoch; the lower claim gives way.

What gossip tells may be old, so it is only a reason to ask: a copy stops when a node that is alive now says itself,
over a session, that it owns the app at a higher epoch. An epoch grows by one or two with each migration. One that is
far ahead of ours is not believed: it is damage or malice, and no later epoch could ever outbid it.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from gossip.messages import NodeId
from p2player import errors
from p2player.apprecord import AppRecord
from p2player.appstate import AppState
from p2player.log import Log
from p2player.migration.parts import Parts
from p2player.migration.seams import Apps, Claims
from p2player.net.connection import Incoming
from p2player.proto.handoff.fields import Malformed, Text, Whole

OWNED = "app.owned"
LOOK_S = 2.0
ASK_S = 5.0
MAX_AHEAD = 1 << 20
MAX_ASKED = 64

_ID = Text(32, hex_digits=32)
_EPOCH = Whole(1, 1 << 53)


async def keep_fenced(parts: Parts, claims: Claims, held: Callable[[str], bool], log: Log) -> None:
    """Stop every app here that another node owns at a higher epoch; runs until cancelled.

    Args:
        held: whether a migration has the app, and decides alone.
    """
    while True:
        await trio.sleep(LOOK_S)
        asked = [
            (record, node)
            for record in parts.apps.records()
            if record.state is AppState.RUNNING and not held(record.id)
            for node, epoch in claims(record.id)
            if node != parts.members.me and _outbids(epoch, record)
        ]
        async with trio.open_nursery() as nursery:
            for record, node in asked[:MAX_ASKED]:
                nursery.start_soon(_look_at, parts, record, node, held, log)


def serve(apps: Apps) -> Callable[[Incoming], Awaitable[dict[str, Any]]]:
    """Serve `app.owned {app}` -> `{epoch, state}`: at which epoch this node owns an app."""

    async def owned(call: Incoming) -> dict[str, Any]:
        try:
            app_id = _ID.load(call.body.get("app"))
        except Malformed:
            raise errors.Usage("malformed app id") from None
        for record in apps.records():
            if record.id == app_id:
                return {"epoch": record.epoch, "state": record.state.value}
        raise errors.NotFound("no such app on this node")

    return owned


def _outbids(epoch: int, record: AppRecord) -> bool:
    return record.epoch < epoch <= record.epoch + MAX_AHEAD


async def _look_at(parts: Parts, record: AppRecord, node: NodeId, held: Callable[[str], bool], log: Log) -> None:
    try:
        reply = await parts.peers.call(node, OWNED, {"app": record.id}, timeout_s=ASK_S)
        epoch = _EPOCH.load(reply.get("epoch"))
    except (errors.P2PlayerError, Malformed) as error:
        log.debug("a claim to an app is not confirmed", app=record.name, node=parts.name(node), error=str(error))
        return
    try:
        now = parts.apps.record(record.id)
        if now.state is not AppState.RUNNING or held(now.id) or not _outbids(epoch, now):
            return  # it was stopped, or moves, since the node was asked
        await parts.apps.stop(now.id)
    except errors.P2PlayerError as error:
        log.warning("cannot fence an app", app=record.name, error=error.message)
        return
    log.warning("stopped an app that another node owns", app=record.name, node=parts.name(node), epoch=epoch)
