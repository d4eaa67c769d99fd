"""Whoever sees a higher epoch stops its copy.

In the life of a migration the machines see to that. What is left is the exception: an app that was taken back by
force while its other copy was out of reach, or a node that came back from an old backup. Gossip tells which node
claims an app at which epoch; the lower claim gives way.
"""

from collections.abc import Callable

import trio

from p2player import errors
from p2player.apprecord import AppRecord
from p2player.appstate import AppState
from p2player.log import Log
from p2player.migration.parts import Parts
from p2player.migration.seams import Locate

LOOK_S = 2.0


async def keep_fenced(parts: Parts, locate: Locate, held: Callable[[str], bool], log: Log) -> None:
    """Stop every app here that another node owns at a higher epoch; runs until cancelled.

    Args:
        held: whether a migration has the app, and decides alone.
    """
    while True:
        await trio.sleep(LOOK_S)
        for record in parts.apps.records():
            if record.state is AppState.RUNNING and not held(record.id):
                await _look_at(parts, locate, record, log)


async def _look_at(parts: Parts, locate: Locate, record: AppRecord, log: Log) -> None:
    try:
        node, row = locate(record.id)
        if node == parts.members.me or row.epoch <= record.epoch:
            return
        await parts.apps.stop(record.id)
    except errors.P2PlayerError as error:
        log.warning("cannot fence an app", app=record.name, error=error.message)
        return
    log.warning("stopped an app that another node owns", app=record.name, node=parts.name(node), epoch=row.epoch)
