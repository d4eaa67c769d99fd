"""The TLS stream: trio's stream contract, dribbled and torn bytes, hostile peers, and the rules of the handshake."""

import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, check_two_way_stream, lockstep_stream_pair, memory_stream_pair

from p2player.errors import Unreachable
from p2player.net.contexts import ALPN_JOIN, ALPN_PEER, join_context
from p2player.net.handshake import accept, connect
from p2player.net.link import UNKNOWN
from p2player.net.tls import HandshakeFailed, TlsError, TlsStream, Truncated
from tests.support.meshes import Mesh, MeshNode

BLOB = bytes(range(256)) * 12_000


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("meshes"), "coast", time.time())


@pytest.fixture(scope="module")
def nodes(mesh: Mesh) -> tuple[MeshNode, MeshNode]:
    return mesh.node("a", time.time()), mesh.node("b", time.time())


async def shake(
    left: trio.abc.Stream, right: trio.abc.Stream, client: ssl.SSLContext, server: ssl.SSLContext
) -> tuple[TlsStream, TlsStream]:
    streams: dict[str, TlsStream] = {}

    async def dial() -> None:
        streams["client"] = await connect(left, client)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        streams["server"] = await accept(right, server)
    return streams["client"], streams["server"]


@asynccontextmanager
async def joined(nodes: tuple[MeshNode, MeshNode]) -> AsyncIterator[tuple[TlsStream, TlsStream]]:
    client, server = await shake(*memory_stream_pair(), nodes[0].client(), nodes[1].server())
    async with client, server:
        yield client, server


@asynccontextmanager
async def over_tcp(nodes: tuple[MeshNode, MeshNode]) -> AsyncIterator[tuple[TlsStream, TlsStream]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    near, far = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in (left, right))
    client, server = await shake(near, far, nodes[0].client(), nodes[1].server())
    async with client, server:
        yield client, server


async def drain(stream: TlsStream) -> None:
    while await stream.receive_some():
        pass


async def receive_all(stream: TlsStream, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await stream.receive_some()
        assert part
        data += part
    return bytes(data)


async def test_the_contract_of_trio_streams(nodes: tuple[MeshNode, MeshNode]) -> None:
    async def make() -> tuple[TlsStream, TlsStream]:
        return await shake(*memory_stream_pair(), nodes[0].client(), nodes[1].server())

    async def make_clogged() -> tuple[TlsStream, TlsStream]:
        return await shake(*lockstep_stream_pair(), nodes[0].client(), nodes[1].server())

    await check_two_way_stream(make, make_clogged)


async def test_both_ends_know_each_other(nodes: tuple[MeshNode, MeshNode]) -> None:
    async with joined(nodes) as (client, server):
        assert client.peer_certificate_der() == nodes[1].der
        assert server.peer_certificate_der() == nodes[0].der
        assert client.alpn() == server.alpn() == ALPN_PEER


async def test_sockets_and_wire_counts(nodes: tuple[MeshNode, MeshNode]) -> None:
    pair = [trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in socket.socketpair()]
    client, server = await shake(pair[0], pair[1], nodes[0].client(), nodes[1].server())
    async with client, server, trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, BLOB)
        nursery.start_soon(server.send_all, BLOB)
        assert await receive_all(server, len(BLOB)) == BLOB
        assert await receive_all(client, len(BLOB)) == BLOB
        assert len(BLOB) < client.bytes_out == server.bytes_in < 1.01 * len(BLOB)
        assert len(BLOB) < server.bytes_out == client.bytes_in < 1.01 * len(BLOB)


async def test_several_buffers_are_one_write(nodes: tuple[MeshNode, MeshNode]) -> None:
    async with joined(nodes) as (client, server):
        await client.send_buffers([b"head", b"", bytearray(b"-"), memoryview(b"body")])
        assert await server.receive_some() == b"head-body"


async def test_reads_are_bounded_by_what_is_asked(nodes: tuple[MeshNode, MeshNode]) -> None:
    async with joined(nodes) as (client, server):
        await client.send_all(b"0123456789")
        assert await server.receive_some(4) == b"0123"
        assert await server.receive_some(4) == b"4567"
        assert await server.receive_some() == b"89"
        with pytest.raises(ValueError, match="max_bytes"):
            await server.receive_some(0)


async def test_dribbled_bytes(nodes: tuple[MeshNode, MeshNode]) -> None:
    left, right = memory_stream_pair()
    middle_left, middle_right = memory_stream_pair()

    async def dribble(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
        async for data in source:
            for at in range(len(data)):
                await sink.send_all(data[at : at + 1])
        await sink.send_eof() if isinstance(sink, trio.StapledStream) else await sink.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dribble, right, middle_left)
        nursery.start_soon(dribble, middle_left, right)
        client, server = await shake(left, middle_right, nodes[0].client(), nodes[1].server())
        nursery.start_soon(client.send_all, BLOB[:10_000])
        assert await receive_all(server, 10_000) == BLOB[:10_000]
        await server.send_all(b"answer")
        assert await client.receive_some() == b"answer"
        await client.aclose()
        assert await server.receive_some() == b""
        nursery.cancel_scope.cancel()


async def test_goodbye_is_told_from_truncation(nodes: tuple[MeshNode, MeshNode]) -> None:
    async with joined(nodes) as (client, server):
        await client.send_all(b"all of it")
        await client.aclose()
        assert await server.receive_some() == b"all of it"
        assert await server.receive_some() == b""
        assert await server.receive_some() == b""
    left, right = memory_stream_pair()
    client, server = await shake(left, right, nodes[0].client(), nodes[1].server())
    await client.send_all(b"some of it")
    await left.aclose()
    assert await server.receive_some() == b"some of it"
    with pytest.raises(Truncated, match="without a word"):
        await server.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await server.send_all(b"x")


async def test_forged_bytes(nodes: tuple[MeshNode, MeshNode]) -> None:
    left, right = memory_stream_pair()
    client, server = await shake(left, right, nodes[0].client(), nodes[1].server())
    await left.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(TlsError, match="forged or damaged"):
        await server.receive_some()
    await server.aclose()  # its alert tells the other end
    with pytest.raises(TlsError, match="the peer received forged"):
        await client.receive_some()


async def test_a_cancelled_receive_loses_nothing(nodes: tuple[MeshNode, MeshNode]) -> None:
    async with joined(nodes) as (client, server):
        with trio.move_on_after(0):
            await server.receive_some()
        await client.send_all(b"data")
        with trio.CancelScope() as scope:
            scope.cancel()
            await server.receive_some()
        assert await server.receive_some() == b"data"


async def test_a_send_that_never_began_does_no_harm(nodes: tuple[MeshNode, MeshNode]) -> None:
    async with joined(nodes) as (client, server):
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.send_all(b"never said")
        assert scope.cancelled_caught
        await client.send_all(b"said")
        assert await server.receive_some() == b"said"


async def test_a_cancelled_send_ends_sending_only(nodes: tuple[MeshNode, MeshNode], autojump_clock: MockClock) -> None:
    client, server = await shake(*lockstep_stream_pair(), nodes[0].client(), nodes[1].server())
    with trio.move_on_after(1) as scope:
        await client.send_all(BLOB)
    assert scope.cancelled_caught
    with pytest.raises(TlsError, match="broke off"):
        await client.send_all(b"more")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, b"still heard")
        assert await client.receive_some() == b"still heard"
    await client.aclose()
    with pytest.raises(Truncated):
        await drain(server)


async def test_closing_does_not_wait_for_a_peer_that_does_not_read(
    nodes: tuple[MeshNode, MeshNode], autojump_clock: MockClock
) -> None:
    client, _ = await shake(*lockstep_stream_pair(), nodes[0].client(), nodes[1].server())
    failure: list[BaseException] = []

    async def send() -> None:
        try:
            await client.send_all(BLOB)
        except trio.ClosedResourceError as error:
            failure.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        await client.aclose()
        assert trio.current_time() - started < 2
    assert failure


async def test_closing_wakes_the_receiver(nodes: tuple[MeshNode, MeshNode]) -> None:
    async with joined(nodes) as (client, _), trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await client.receive_some()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()


async def test_tickets_of_another_server_are_taken_in_passing(nodes: tuple[MeshNode, MeshNode]) -> None:
    server_context = nodes[1].server()
    server_context.num_tickets = 4
    client, server = await shake(*memory_stream_pair(), nodes[0].client(), server_context)
    await server.send_all(b"after the tickets")
    assert await client.receive_some() == b"after the tickets"
    await client.send_all(b"answer")
    assert await server.receive_some() == b"answer"


async def refused(client: ssl.SSLContext, server: ssl.SSLContext, alpn: str = ALPN_PEER) -> tuple[str, str]:
    """What the client and the server are told, where the server lets nobody in."""
    left, right = memory_stream_pair()
    told: dict[str, str] = {}

    async def dial() -> None:
        # A TLS 1.3 client may be done before it is rejected: then it is told when it reads.
        try:
            stream = await connect(left, client, alpn=alpn)
            assert await stream.receive_some() == b""
            told["client"] = "closed"
        except TlsError as error:
            told["client"] = error.message

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial)
        with pytest.raises(HandshakeFailed) as caught:
            await accept(right, server)
        told["server"] = caught.value.message
    with pytest.raises(trio.ClosedResourceError):
        await right.send_all(b"x")
    return told["client"], told["server"]


async def test_a_certificate_of_another_mesh(nodes: tuple[MeshNode, MeshNode], tmp_path: Path) -> None:
    stranger = Mesh(tmp_path, "hills", time.time()).node("c", time.time())
    told = await refused(stranger.client(), nodes[1].server())
    assert "the peer's certificate does not verify" in told[0]
    assert "rejects our certificate: it is of another mesh" in told[1]
    # A stranger that trusts our root, but cannot show a certificate under it.
    context = stranger.client()
    context.load_verify_locations(cadata=nodes[1].mesh.root)
    told = await refused(context, nodes[1].server())
    assert "rejects our certificate" in told[0]
    assert "the peer's certificate does not verify" in told[1]


async def test_no_certificate_but_the_peer_protocol(nodes: tuple[MeshNode, MeshNode], mesh: Mesh) -> None:
    context = join_context(mesh.root)
    context.set_alpn_protocols([ALPN_PEER])
    told = await refused(context, nodes[1].server())
    assert told[0] == "closed"
    assert "the peer shows no certificate" in told[1]


async def test_no_certificate_is_needed_to_join(nodes: tuple[MeshNode, MeshNode], mesh: Mesh) -> None:
    left, right = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def dial() -> None:
            await connect(left, join_context(mesh.root), alpn=ALPN_JOIN)

        nursery.start_soon(dial)
        server = await accept(right, nodes[1].server())
        assert server.alpn() == ALPN_JOIN
        assert server.peer_certificate_der() is None


async def test_another_protocol(nodes: tuple[MeshNode, MeshNode]) -> None:
    context = nodes[0].client()
    context.set_alpn_protocols(["h2"])
    told = await refused(context, nodes[1].server())
    assert "no common protocol" in told[1]


async def test_an_expired_certificate(nodes: tuple[MeshNode, MeshNode], mesh: Mesh) -> None:
    old = mesh.node("old", time.time() - 31 * 86400)
    told = await refused(old.client(), nodes[1].server())
    assert "expired" in told[0]
    assert "expired" in told[1]


async def test_older_tls(nodes: tuple[MeshNode, MeshNode]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([ALPN_PEER])
    told = await refused(context, nodes[1].server())
    assert "does not speak TLS 1.3" in told[0]
    assert "does not speak TLS 1.3" in told[1]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "plain HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n" * 10, "does not speak TLS"),
        (b"\x16\x03\x01\xff\xff" + bytes(100_000), "TLS handshake failed"),
        (b"", "without a word"),
    ],
)
async def test_plain_clients(nodes: tuple[MeshNode, MeshNode], data: bytes, told: str) -> None:
    left, right = memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def talk() -> None:
            await left.send_all(data)
            await left.send_eof()

        nursery.start_soon(talk)
        with pytest.raises(HandshakeFailed, match=told):
            await accept(right, nodes[1].server())
    with pytest.raises(trio.ClosedResourceError):
        await right.receive_some()


async def test_a_silent_client_is_dropped_in_time(nodes: tuple[MeshNode, MeshNode], autojump_clock: MockClock) -> None:
    left, right = memory_stream_pair()
    started = trio.current_time()
    with pytest.raises(HandshakeFailed, match="within 10 s"):
        await accept(right, nodes[1].server())
    assert trio.current_time() - started == pytest.approx(10, abs=1.5)
    assert await left.receive_some() == b""


def test_failures_are_both_for_users_and_for_trio() -> None:
    for kind in (TlsError, HandshakeFailed, Truncated):
        assert issubclass(kind, Unreachable)
        assert issubclass(kind, trio.BrokenResourceError)
        assert kind("x").exit_code == 4


async def test_the_link_is_known_over_a_socket_and_unknown_over_anything_else(nodes: tuple[MeshNode, MeshNode]) -> None:
    async with joined(nodes) as (client, _):
        assert client.link() == UNKNOWN
    async with over_tcp(nodes) as (client, server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, BLOB)
            await receive_all(server, len(BLOB))
        found = client.link()
    assert found.rtt_s is not None
    assert found.bytes_per_s is not None
    assert client.link() == UNKNOWN
