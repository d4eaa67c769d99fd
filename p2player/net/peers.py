"""Sessions with peers: dial them, listen for them, call them, borrow a session for bulk data.

Two kinds of outgoing session are kept a peer. One *control* session carries small calls and stays open. *Data* sessions
are leased to one transfer at a time, so that bulk data never delays a call and every byte on such a session belongs to
the transfer that leased it; returned ones are kept for a while and reused. Incoming sessions serve requests; they are
never used to ask.
"""

import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Protocol, Self

import trio

from gossip.messages import NodeId
from p2player import errors
from p2player.faults import describe
from p2player.log import Log
from p2player.net.connection import Connection, Handler, Throttle
from p2player.net.contexts import ALPN_PEER
from p2player.net.handshake import accept, connect
from p2player.net.tls import TlsStream
from p2player.proto.frames import Buffer, Hello

DIAL_S = 8.0
CLEANUP_S = 1.0
IDLE_S = 60.0
MAX_IDLE_PER_PEER = 2
MAX_HANDSHAKES = 64
MAX_INBOUND = 512

Address = tuple[str, int]


class Trust(Protocol):
    """What this node can prove, and whom it believes."""

    @property
    def node_id(self) -> NodeId: ...
    @property
    def name(self) -> str: ...
    def client_context(self) -> ssl.SSLContext: ...
    def server_context(self) -> ssl.SSLContext: ...
    def peer_node_id(self, certificate_der: bytes) -> NodeId: ...
    def check_valid(self, now: float) -> None: ...


ServeJoin = Callable[[TlsStream, Address], Any]


class PeerPool:
    """Every session of this node; use it with `async with`.

    Args:
        trust: certificates and whom they prove.
        locate: the address of a node, or None while it is unknown.
        handlers: what peers may ask; filled by the composition root before the first session.
        serve_join: serves one enrolment on a stream without a client certificate; None where this node cannot enrol.
        throttle_in, throttle_out: the node's bandwidth caps.
        on_certificate: hears the certificate (DER) that proved who a peer is, at each handshake, in either direction.
    """

    def __init__(
        self,
        trust: Trust,
        locate: Callable[[NodeId], Address | None],
        handlers: Mapping[str, Handler],
        log: Log,
        *,
        version: str,
        serve_join: ServeJoin | None = None,
        throttle_in: Throttle | None = None,
        throttle_out: Throttle | None = None,
        on_certificate: Callable[[bytes], object] | None = None,
    ) -> None:
        self._trust = trust
        self._locate = locate
        self._handlers = handlers
        self._log = log
        self._hello = Hello(trust.node_id, trust.name, version)
        self._serve_join = serve_join
        self._throttles = (throttle_in, throttle_out)
        self._on_certificate = on_certificate or (lambda der: None)
        self._client_context = trust.client_context()
        self._server_context = trust.server_context()
        self._control: dict[NodeId, Connection] = {}
        self._dialling: dict[NodeId, trio.Lock] = {}
        self._idle: dict[NodeId, list[Connection]] = {}
        self._live: set[Connection] = set()
        self._past_bytes = [0, 0]
        self._handshakes = trio.CapacityLimiter(MAX_HANDSHAKES)
        self._nurseries = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> Self:
        self._nursery = await self._nurseries.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        return await self._nurseries.__aexit__(kind, error, trace)  # noqa: ASYNC102 - cancelled just above

    def bytes(self) -> tuple[int, int]:
        """Wire bytes (received, sent) over all sessions since the start."""
        return (
            self._past_bytes[0] + sum(connection.bytes_in for connection in self._live),
            self._past_bytes[1] + sum(connection.bytes_out for connection in self._live),
        )

    def renew_contexts(self, trust: Trust) -> None:
        """Prove who this node is by `trust`, the same node's, from the next handshake on; open sessions go on."""
        self._client_context, self._server_context = trust.client_context(), trust.server_context()
        self._trust = trust

    def forget(self, node: NodeId) -> None:
        """Close what is open to a peer that went away, so that the next call dials anew."""
        connection = self._control.pop(node, None)
        for old in [*self._idle.pop(node, []), *([connection] if connection else [])]:
            old.close("the peer went away")

    async def call(
        self,
        node: NodeId,
        method: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = 10.0,
        payload: Buffer = b"",
    ) -> dict[str, Any]:
        """Ask `node` over its control session and wait for the reply.

        Raises:
            Unreachable: it cannot be dialled, or does not answer within `timeout_s`.
            P2PlayerError: what it answered.
        """
        with trio.move_on_after(timeout_s):
            connection = await self._control_session(node)
            return await connection.call(method, body, timeout_s=timeout_s, payload=payload)
        raise errors.Unreachable(f"peer {self._label(node)} did not answer {method} in {timeout_s:g} s")

    async def _control_session(self, node: NodeId) -> Connection:
        async with self._dialling.setdefault(node, trio.Lock()):
            connection = self._control.get(node)
            if connection is None or connection.closed.is_set():
                connection = self._control[node] = await self._dial(node)
            return connection

    @asynccontextmanager
    async def lease(
        self, node: NodeId, *, throttle_in: Throttle | None = None, throttle_out: Throttle | None = None
    ) -> AsyncIterator[Connection]:
        """A data session that is the block's alone; its byte counters may start above zero.

        Raises:
            Unreachable: the node cannot be dialled.
        """
        private = throttle_in is not None or throttle_out is not None
        connection = None if private else self._take_idle(node)
        if connection is None:
            connection = await self._dial(node, throttle_in, throttle_out)
        try:
            yield connection
        except BaseException:
            connection.close("the transfer was broken off")
            raise
        idle = self._idle.setdefault(node, [])
        if private or connection.closed.is_set() or len(idle) >= MAX_IDLE_PER_PEER:
            connection.close("the transfer is done")
        else:
            idle.append(connection)
            assert self._nursery is not None
            self._nursery.start_soon(self._expire, node, connection)

    def _take_idle(self, node: NodeId) -> Connection | None:
        idle = self._idle.get(node, [])
        while idle:
            connection = idle.pop()
            if not connection.closed.is_set():
                return connection
        return None

    async def _expire(self, node: NodeId, connection: Connection) -> None:
        await trio.sleep(IDLE_S)
        idle = self._idle.get(node, [])
        if connection in idle:
            idle.remove(connection)
            connection.close("idle")

    def _label(self, node: NodeId) -> str:
        connection = self._control.get(node)
        return connection.peer_name if connection is not None and connection.peer_name else node[:12]

    async def _dial(
        self, node: NodeId, throttle_in: Throttle | None = None, throttle_out: Throttle | None = None
    ) -> Connection:
        address = self._locate(node)
        if address is None:
            raise errors.Unreachable(f"no address is known for node {node[:12]}")
        self._trust.check_valid(time.time())
        where = f"{address[0]}:{address[1]}"
        with trio.move_on_after(DIAL_S):
            try:
                raw = await trio.open_tcp_stream(*address)
            except OSError as error:
                raise errors.Unreachable(f"cannot reach {where}: {error}") from None
            stream = await connect(raw, self._client_context)
            async with _closed_on_failure(stream):
                certificate = stream.peer_certificate_der()
                if certificate is None or self._trust.peer_node_id(certificate) != node:
                    raise errors.Unreachable(f"{where} is not node {node[:12]}: its certificate names another")
                self._on_certificate(certificate)
                connection = self._connection(stream, node, throttle_in, throttle_out)
                assert self._nursery is not None
                await self._nursery.start(self._run, connection)
                return connection
        raise errors.Unreachable(f"{where} did not answer within {DIAL_S:g} s")

    def _connection(
        self, stream: TlsStream, node: NodeId, throttle_in: Throttle | None, throttle_out: Throttle | None
    ) -> Connection:
        return Connection(
            stream,
            node,
            self._hello,
            self._handlers,
            self._log,
            throttle_in=throttle_in or self._throttles[0],
            throttle_out=throttle_out or self._throttles[1],
        )

    async def _run(
        self, connection: Connection, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self._live.add(connection)
        try:
            await connection.run(task_status=task_status)
        finally:
            self._live.discard(connection)
            self._past_bytes[0] += connection.bytes_in
            self._past_bytes[1] += connection.bytes_out

    async def listen(self, listener: trio.SocketListener) -> None:
        """Accept peers until cancelled; a failing one costs itself only."""
        assert self._nursery is not None
        async with listener:
            await trio.serve_listeners(self._accept, [listener], handler_nursery=self._nursery)

    async def _accept(self, raw: trio.SocketStream) -> None:
        # One raising handler would take the listener down: whatever a stranger causes ends here.
        try:
            if self._handshakes.available_tokens < 1 or len(self._live) > MAX_INBOUND:
                await trio.aclose_forcefully(raw)
                return
            await self._greet(raw)
        except Exception as error:
            fault = error if isinstance(error, errors.P2PlayerError) else describe(error)
            self._log.debug("connection refused", error=fault.message)

    async def _greet(self, raw: trio.SocketStream) -> None:
        address: Address = raw.socket.getpeername()[:2]
        async with self._handshakes:
            stream = await accept(raw, self._server_context)
        async with _closed_on_failure(stream):
            certificate = stream.peer_certificate_der()
            if stream.alpn() == ALPN_PEER and certificate is not None:
                self._trust.check_valid(time.time())
                node = self._trust.peer_node_id(certificate)
                self._on_certificate(certificate)
                connection = self._connection(stream, node, None, None)
                with suppress(errors.Unreachable):  # its end is in the log of the connection already
                    await self._run(connection)
            elif self._serve_join is not None:
                await self._serve_join(stream, address)
            else:
                raise errors.Refused("no joining here")


@asynccontextmanager
async def _closed_on_failure(stream: TlsStream) -> AsyncIterator[None]:
    """Close `stream`, for `CLEANUP_S` at most, when the block does not come to its end; then the error goes on."""
    try:
        yield
    except BaseException:
        with trio.move_on_after(CLEANUP_S, shield=True):
            await stream.aclose()
        raise
