"""The pool of sessions over real sockets and certificates: dial, call, lease, listen, and who is turned away."""

import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from gossip.messages import NodeId
from p2player import errors
from p2player.log import Log
from p2player.net.certificates import read_node
from p2player.net.connection import Handler, Incoming
from p2player.net.handshake import accept, connect
from p2player.net.peers import PeerPool
from tests.support.meshes import Mesh, MeshNode


class Certified:
    """A `MeshNode` as the pool wants to see it."""

    def __init__(self, node: MeshNode, name: str) -> None:
        self._node = node
        self.name = name
        self.node_id = node.id
        self.expired = False

    def client_context(self) -> ssl.SSLContext:
        return self._node.client()

    def server_context(self) -> ssl.SSLContext:
        return self._node.server()

    def peer_node_id(self, certificate_der: bytes) -> NodeId:
        return read_node(certificate_der, self._node.mesh.mesh_id).node_id

    def check_valid(self, now: float) -> None:
        if self.expired:
            raise errors.Refused("the certificate of this node expired")


@asynccontextmanager
async def serving(
    node: MeshNode, name: str, where: dict[NodeId, tuple[str, int]], handlers: Mapping[str, Handler]
) -> AsyncIterator[PeerPool]:
    """A pool that listens on a loopback port, and is found there by its id."""
    async with PeerPool(Certified(node, name), where.get, handlers, Log(level="error"), version="1") as pool:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        where[node.id] = listener.socket.getsockname()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.listen, listener)
            yield pool
            nursery.cancel_scope.cancel()


async def whoami(call: Incoming) -> dict[str, Any]:
    return {"peer": call.peer, "name": call.peer_name}


async def three_parts(call: Incoming) -> dict[str, Any]:
    for number in range(3):
        await call.send_part({"n": number}, bytes(500_000))
    return {}


HANDLERS: Mapping[str, Handler] = {"whoami": whoami, "parts": three_parts}


async def test_calls_and_streams_between_two_nodes(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "m", time.time())
    one, two = mesh.node("one", time.time()), mesh.node("two", time.time())
    where: dict[NodeId, tuple[str, int]] = {}
    with trio.fail_after(20):
        async with serving(one, "one", where, HANDLERS) as first, serving(two, "two", where, HANDLERS):
            assert await first.call(two.id, "whoami") == {"peer": one.id, "name": "one"}
            async with first.lease(two.id) as session:
                before = session.bytes_in
                async with session.stream("parts") as parts:
                    assert [part.header["n"] async for part in parts] == [0, 1, 2]
                assert session.bytes_in - before > 1_500_000
            async with first.lease(two.id) as again:
                assert again is session
                async with first.lease(two.id) as another:
                    assert another is not session
            received, sent = first.bytes()
            assert received > 1_500_000
            assert sent > 0


async def test_a_session_that_broke_is_dialled_anew(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "m", time.time())
    one, two = mesh.node("one", time.time()), mesh.node("two", time.time())
    where: dict[NodeId, tuple[str, int]] = {}
    with trio.fail_after(20):
        async with serving(one, "one", where, HANDLERS) as first:
            async with serving(two, "two", where, HANDLERS):
                await first.call(two.id, "whoami")
            with pytest.raises(errors.Unreachable):
                await first.call(two.id, "whoami", timeout_s=5)
            async with serving(two, "two", where, HANDLERS):
                first.forget(two.id)
                assert (await first.call(two.id, "whoami"))["name"] == "one"


async def test_who_answers_must_be_who_was_called(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "m", time.time())
    one, two, three = (mesh.node(name, time.time()) for name in ("one", "two", "three"))
    where: dict[NodeId, tuple[str, int]] = {}
    with trio.fail_after(20):
        async with serving(one, "one", where, HANDLERS) as first, serving(two, "two", where, HANDLERS):
            where[three.id] = where[two.id]
            with pytest.raises(errors.Unreachable, match="names another"):
                await first.call(three.id, "whoami")
            with pytest.raises(errors.Unreachable, match="no address"):
                await first.call(NodeId("f" * 32), "whoami")


async def test_a_node_of_another_mesh_is_turned_away_on_either_side(tmp_path: Path) -> None:
    ours, theirs = Mesh(tmp_path, "ours", time.time()), Mesh(tmp_path, "theirs", time.time())
    one, stranger = ours.node("one", time.time()), theirs.node("stranger", time.time())
    where: dict[NodeId, tuple[str, int]] = {}
    with trio.fail_after(20):
        async with (
            serving(one, "one", where, HANDLERS) as first,
            serving(stranger, "stranger", where, HANDLERS) as second,
        ):
            with pytest.raises(errors.Unreachable):
                await first.call(stranger.id, "whoami")
            with pytest.raises(errors.Unreachable):
                await second.call(one.id, "whoami")


async def test_with_an_expired_certificate_no_session_is_opened(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "m", time.time())
    one, two = mesh.node("one", time.time()), mesh.node("two", time.time())
    where: dict[NodeId, tuple[str, int]] = {}
    with trio.fail_after(20):
        async with serving(two, "two", where, HANDLERS):
            trust = Certified(one, "one")
            trust.expired = True
            async with PeerPool(trust, where.get, HANDLERS, Log(level="error"), version="1") as pool:
                with pytest.raises(errors.Refused, match="expired"):
                    await pool.call(two.id, "whoami")


async def test_a_dialled_stream_is_closed_when_its_certificate_is_not_taken(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "m", time.time())
    one, two = mesh.node("one", time.time()), mesh.node("two", time.time())

    class Picky(Certified):
        def peer_node_id(self, certificate_der: bytes) -> NodeId:
            raise errors.Refused("an odd certificate")

    ended = trio.Event()

    async def server(raw: trio.SocketStream) -> None:
        stream = await accept(raw, two.server())
        try:
            assert await stream.receive_some() == b""
            ended.set()
        finally:
            await stream.aclose()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, server, 0, host="127.0.0.1"))
            where = {two.id: listeners[0].socket.getsockname()}
            async with PeerPool(Picky(one, "one"), where.get, HANDLERS, Log(level="error"), version="1") as pool:
                with pytest.raises(errors.Refused, match="odd"):
                    await pool.call(two.id, "whoami")
                await ended.wait()
            nursery.cancel_scope.cancel()


async def test_an_accepted_stream_says_goodbye_when_this_node_expired(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "m", time.time())
    one, two = mesh.node("one", time.time()), mesh.node("two", time.time())
    trust = Certified(two, "two")
    trust.expired = True
    with trio.fail_after(20):
        async with PeerPool(trust, lambda _: None, HANDLERS, Log(level="error"), version="1") as pool:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.listen, listener)
                raw = await trio.open_tcp_stream(*listener.socket.getsockname())
                stream = await connect(raw, one.client())
                assert await stream.receive_some() == b""  # a close_notify, not a torn connection
                await stream.aclose()
                nursery.cancel_scope.cancel()


async def test_a_dialled_session_contains_its_own_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh(tmp_path, "m", time.time())
    one, two = mesh.node("one", time.time()), mesh.node("two", time.time())
    where: dict[NodeId, tuple[str, int]] = {}
    with trio.fail_after(20):
        async with serving(one, "one", where, HANDLERS) as first, serving(two, "two", where, HANDLERS):
            async with first.lease(two.id) as session:

                def broken(_: object) -> list[object]:
                    raise ZeroDivisionError

                monkeypatch.setattr(session._session, "receive", broken)
                with pytest.raises(errors.Unreachable):
                    await session.call("whoami")
            assert (await first.call(two.id, "whoami"))["peer"] == one.id


async def test_one_bad_client_does_not_hurt_the_others(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, "m", time.time())
    one, two = mesh.node("one", time.time()), mesh.node("two", time.time())
    where: dict[NodeId, tuple[str, int]] = {}
    with trio.fail_after(20):
        async with serving(one, "one", where, HANDLERS) as first, serving(two, "two", where, HANDLERS):
            for garbage in (b"", b"GET / HTTP/1.0\r\n\r\n", bytes(100_000)):
                async with await trio.open_tcp_stream(*where[two.id]) as raw:
                    if garbage:
                        await raw.send_all(garbage)
            assert (await first.call(two.id, "whoami"))["peer"] == one.id
