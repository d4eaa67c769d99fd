"""Noting in the authority's journal who has left the mesh, so that its name is free: as often as it takes.

Members are told of in the node's own tasks, which must survive a journal that cannot be written now.
"""

import time
from typing import Final, Protocol

import trio

from gossip.messages import NodeId
from p2player.errors import P2PlayerError
from p2player.log import Log

RETRY_S: Final = 60.0


class Releasing(Protocol):
    """What is needed of the authority."""

    def release(self, node: NodeId, now: float) -> bool:
        """Free the name of `node`; blocks for an fsync.

        Raises:
            Failed: the journal cannot be written.
        """
        ...


async def release(authority: Releasing, node: NodeId, log: Log) -> None:
    """Free the name of `node`, which has left; failures are logged and tried again until it worked."""
    while True:
        try:
            await trio.to_thread.run_sync(authority.release, node, time.time())
        except P2PlayerError as error:
            log.warning("the name of a node that left is not free yet", node=node[:12], error=error.message)
            await trio.sleep(RETRY_S)
        else:
            return
