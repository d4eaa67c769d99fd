"""Nodes that pull from each other over connections in memory: real stores, real serving, real sessions, no sockets.

A `PullMesh` stands in for the peer pool of one node, the puller. Its holders can be cut off, made slow, made to lie.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import trio

from chunkstore.codec import Codec, Group, pack
from chunkstore.digest import ChunkId, LayerId
from chunkstore.importer import import_tree
from chunkstore.ingest import Imported
from chunkstore.store import ChunkStore
from gossip.messages import NodeId
from p2player import errors
from p2player.log import Log
from p2player.net.connection import Connection, Handler, Incoming, Throttle
from p2player.proto import content_wire as wire
from p2player.proto.frames import Hello
from p2player.serving import Serving
from tests.support.streams import counted_pair
from tests.support.swarmnet import node

ME = node(0)
QUIET = Log(level="error")


class Liar:
    """Content whose every group has one flipped byte."""

    key = None

    def __init__(self, store: ChunkStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def groups(self, ids: Sequence[ChunkId]) -> Iterator[Group]:
        for group in self._store.groups(ids):
            raw = pack([(chunk, bytes(data)) for chunk, data in self._store.read(group.ids)])
            payload = bytearray(b"".join(bytes(data) for _, data in self._store.read(raw.ids)))
            payload[len(payload) // 2] ^= 1
            yield replace(raw, codec=Codec.RAW, payload=bytes(payload))


@dataclass
class Peer:
    """One node that serves.

    `wants` counts requests for chunks; `silent` holds answers to them back; `cut_after` closes every session once so
    many were answered; `up` says whether it can be dialled, `dials` how often it was. `wanted` and `down` are set when
    it is first asked for chunks, and when it is cut off.
    """

    node: NodeId
    store: ChunkStore
    serving: Serving
    handlers: dict[str, Handler] = field(default_factory=dict)
    up: bool = True
    dials: int = 0
    wants: int = 0
    asked: list[ChunkId] = field(default_factory=list)
    silent: trio.Event | None = None
    cut_after: int | None = None
    connections: list[Connection] = field(default_factory=list)
    wanted: trio.Event = field(default_factory=trio.Event)
    down: trio.Event = field(default_factory=trio.Event)

    def cut(self) -> None:
        """Go down: end every session, take no new one."""
        self.up = False
        self.down.set()
        for connection in self.connections:
            connection.close("the node died")


class PullMesh:
    """The sessions of one puller; use `open_mesh`."""

    def __init__(self, folder: Path, nursery: trio.Nursery) -> None:
        self._folder = folder
        self._nursery = nursery
        self._idle: dict[NodeId, list[Connection]] = {}
        self.peers: dict[NodeId, Peer] = {}
        self.store = ChunkStore.open(folder / "me", reserve_bytes=0)
        self.throttles: list[Throttle] = []

    def add(self, number: int, *, lies: bool = False) -> Peer:
        """A peer with an empty store."""
        store = ChunkStore.open(self._folder / f"peer{number}", reserve_bytes=0)
        serving = Serving(Liar(store) if lies else store)  # type: ignore[arg-type]
        peer = Peer(node(number), store, serving)

        async def chunks_want(call: Incoming) -> dict[str, Any]:
            if peer.cut_after is not None and peer.wants >= peer.cut_after:
                peer.cut()
            peer.wants += 1
            peer.wanted.set()
            peer.asked += wire.read_want(call.body)[1]
            if peer.silent is not None:
                await peer.silent.wait()
            return await serving.chunks_want(call)

        peer.handlers = {**serving.handlers, wire.CHUNKS_WANT: chunks_want}
        self.peers[peer.node] = peer
        return peer

    @asynccontextmanager
    async def lease(
        self, node: NodeId, *, throttle_in: Throttle | None = None, throttle_out: Throttle | None = None
    ) -> AsyncIterator[Connection]:
        """As `PeerPool.lease`."""
        if throttle_in is not None:
            self.throttles.append(throttle_in)
        peer = self.peers[node]
        peer.dials += 1
        await trio.lowlevel.checkpoint()
        if not peer.up:
            raise errors.Unreachable(f"cannot reach {node[:8]}")
        idle = self._idle.setdefault(node, [])
        connection = idle.pop() if idle else await self._connect(peer)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if not connection.closed.is_set():
            idle.append(connection)

    async def _connect(self, peer: Peer) -> Connection:
        mine, theirs = counted_pair()
        server = Connection(theirs, ME, Hello(peer.node, "peer", "1"), peer.handlers, QUIET)
        client = Connection(mine, peer.node, Hello(ME, "me", "1"), {}, QUIET)
        peer.connections += [server, client]
        self._nursery.start_soon(server.run)
        await self._nursery.start(client.run)
        return client

    def close(self) -> None:
        for store in (self.store, *(peer.store for peer in self.peers.values())):
            store.close()


@asynccontextmanager
async def open_mesh(folder: Path) -> AsyncIterator[PullMesh]:
    """A mesh for the length of the block."""
    async with trio.open_nursery() as nursery:
        mesh = PullMesh(folder, nursery)
        try:
            yield mesh
        finally:
            mesh.close()
            nursery.cancel_scope.cancel()


def put_tree(store: ChunkStore, tree: Path) -> Imported:
    """Import a folder and hold it as a layer."""
    imported = import_tree(store, tree)
    store.put_layer(
        imported.layer_id,
        imported.size,
        imported.manifest_chunks,
        imported.manifest_size,
        imported.manifest.chunks(),
    )
    store.commit()
    return imported


def put_part(store: ChunkStore, source: ChunkStore, layer: LayerId, chunks: Sequence[ChunkId]) -> None:
    """Give `store` the record of a layer that `source` holds, its manifest, and these of its chunks."""
    record = source.layer(layer)
    assert record is not None
    store.add(source.groups(record.manifest_chunks))
    store.put_layer(layer, record.size, record.manifest_chunks, record.manifest_size, source.layer_chunks(layer))
    for chunk, data in source.read(chunks):
        store.add([pack([(chunk, data)])])
    store.commit()
