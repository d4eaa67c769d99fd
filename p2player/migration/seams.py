"""What the migration service needs of the rest of the node.

Each protocol is the part of a concrete class that is used here; `p2player.node` passes the real ones in, tests pass
fakes.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from backends.base import Checkpoint, Probe, Started
from chunkstore.content import Content
from chunkstore.digest import ChunkId, LayerId
from chunkstore.store import LayerRecord
from gossip.inventory import AppRow
from gossip.messages import Member, NodeId
from p2player.apprecord import AppRecord
from p2player.appstate import AppState
from p2player.kin import Kin
from p2player.proto.frames import Buffer
from p2player.proto.roster import HolderHint
from p2player.sources import Source
from p2player.transfer import PullReport

Progress = Callable[[int, int], None]
Holders = Callable[[], Sequence[HolderHint]]
Locate = Callable[[str], tuple[NodeId, AppRow]]
"""The app of that name, id or id prefix, and the node that it lives on; NotFound, Refused as `Directory.find`."""

Claims = Callable[[str], Sequence[tuple[NodeId, int]]]
"""The other nodes, alive now, whose inventory claims the app of that id, and at which epoch."""


class Peers(Protocol):
    """Calls to other nodes; `PeerPool`."""

    async def call(
        self,
        node: NodeId,
        method: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = ...,
        payload: Buffer = ...,
    ) -> dict[str, Any]: ...


class Members(Protocol):
    """Who is in the mesh; `Mesh`."""

    @property
    def me(self) -> NodeId: ...
    def name_of(self, node: NodeId) -> str: ...
    def site_of(self, node: NodeId) -> str: ...
    def find(self, ref: str) -> NodeId: ...
    def alive(self) -> list[Member]: ...
    def member(self, node: NodeId) -> Member | None: ...


class Apps(Protocol):
    """The applications of this node; `p2player.apps.Apps`."""

    def records(self) -> list[AppRecord]: ...
    def staged(self) -> list[AppRecord]: ...
    def find(self, name_or_id: str) -> AppRecord: ...
    def record(self, app_id: str) -> AppRecord: ...
    def state_path(self, app_id: str) -> Path: ...
    async def probe(self, backend: str) -> Probe | None: ...
    def has_guest_memory(self, backend: str) -> bool: ...
    async def mismatches(self, backend: str, facts: Mapping[str, str]) -> list[str]: ...
    async def obstacles(self, app_id: str) -> list[str]: ...
    async def facts(self, app_id: str) -> Mapping[str, str]: ...
    async def engine_running(self, app_id: str) -> bool: ...
    async def set_state(
        self, app_id: str, state: AppState, epoch: int | None = None, *, reason: str = ""
    ) -> AppRecord: ...
    async def save(self, app_id: str) -> Checkpoint: ...
    async def suspend(self, app_id: str, *, memory: bool = ...) -> Checkpoint: ...
    async def resume(self, app_id: str) -> Started: ...
    async def stage(self, record: AppRecord) -> Path: ...
    async def restore(self, app_id: str, epoch: int) -> Started: ...
    async def run_after_restore(self, app_id: str) -> str | None: ...
    async def stop(self, app_id: str) -> AppRecord: ...
    async def discard(self, app_id: str) -> None: ...


class LayerTrees(Protocol):
    """Shared layers as folders, and who has them; `Layers`."""

    def holder_hints(self, layer: LayerId) -> list[HolderHint]: ...
    async def tree(self, layer: LayerId) -> Path: ...


class Stock(Protocol):
    """What of a shared layer is here; `ChunkStore`."""

    def layer(self, id: LayerId) -> LayerRecord | None: ...
    def lacking(self, id: LayerId) -> dict[ChunkId, int]: ...


class Pulls(Protocol):
    """Content from peers; `Transfers`."""

    async def pull_layer(self, layer: LayerId, holders: Holders, *, progress: Progress | None = ...) -> PullReport: ...
    async def pull_chunks(
        self,
        content: Content,
        wants: Mapping[ChunkId, int],
        holders: Holders,
        *,
        scope: str | None,
        kin: Kin | None = ...,
        layers: Sequence[LayerId] = ...,
        progress: Progress | None = ...,
    ) -> PullReport: ...


class Exposure(Protocol):
    """Content for one peer; `Serving`."""

    def expose(self, scope: str, source: Source, peer: NodeId) -> None: ...
    def withdraw(self, scope: str) -> None: ...
