"""Layers where they will be needed, before they are: on request, and by what is started at this node's site."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import trio

from chunkstore.digest import LayerId
from chunkstore.store import ChunkStore
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

PLACE_S = 3600.0
AUTO_INTERVAL_S = 5.0
