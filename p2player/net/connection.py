"""One session over one TLS stream: a reader task, a writer task, and callers that wait for answers.

The `Session` core says what every byte means; this shell moves bytes, wakes callers and runs a handler task for each
request of the peer. Bulk answers travel as parts through bounded channels: a consumer that is slow stops the reader,
and so the peer, through TCP's own back-pressure.

A peer is given up when it is *silent*: nothing came for `SILENCE_S` while the reader was waiting for it; or *stuck*: it
took not a byte for `STUCK_S` while the writer was waiting for it. Time that passes under our own bandwidth caps, or
while our own consumers are slow, counts for neither. Under a cap on sending, long messages go out in slices, so that
the other side goes on hearing something. That a peer may be stuck for so much longer than silent is for peers with a
cap on receiving: they take a megabyte at a time.

More callers than the peer serves at a time wait for their turn.
"""

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from gossip.messages import NodeId
from p2player import errors
from p2player.faults import describe
from p2player.log import Log
from p2player.net.link import LinkEstimate
from p2player.proto.frames import (
    Buffer,
    Cancel,
    Failure,
    Goodbye,
    Hello,
    LocalProtocolError,
    Part,
    Ping,
    Pong,
    RemoteProtocolError,
    Reply,
    Request,
)
from p2player.proto.session import CANCELLED, Event, Excess, Limits, Opened, Session

HELLO_S = 10.0
CLEANUP_S = 2.0
PING_S = 20.0
SILENCE_S = 60.0
STUCK_S = 600.0
SLICE_BYTES = 64 << 10
READ_BYTES = 1 << 20
PART_QUEUE = 4
SEND_QUEUE = 8


class ByteStream(Protocol):
    """What a connection needs of a TLS stream."""

    bytes_in: int
    bytes_out: int

    async def receive_some(self, max_bytes: int = ..., *, lacking: int = ...) -> bytes: ...
    async def send_buffers(self, buffers: Iterable[Buffer]) -> None: ...
    def link(self) -> LinkEstimate: ...
    async def aclose(self) -> None: ...


class Throttle(Protocol):
    """A bandwidth cap: `spend` waits until `count` bytes may pass."""

    async def spend(self, count: int) -> None: ...


class Incoming:
    """A request of the peer, as its handler sees it."""

    def __init__(self, connection: "Connection", request: Request) -> None:
        self._connection = connection
        self._rid = request.rid
        self.peer = connection.peer
        self.peer_name = connection.peer_name
        self.method = request.method
        self.body: dict[str, Any] = dict(request.body)
        self.payload = request.payload

    async def send_part(self, header: Mapping[str, Any], payload: Buffer) -> None:
        """Stream one part of the answer; waits while the peer is slow."""
        await self._connection.transmit(Part(self._rid, header, payload))

    def link(self) -> LinkEstimate:
        """What is known by now of the link that the answer is sent on; worth asking anew every few hundred KiB."""
        return self._connection.link()


Handler = Callable[[Incoming], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class _Waiting:
    """A request of ours that has no ending yet."""

    parts: trio.MemorySendChannel[Part]
    ended: trio.Event = field(default_factory=trio.Event)
    ending: Reply | Failure | None = None


class PartStream:
    """The parts of one streamed answer; after the last one, `reply` holds the answer's body."""

    def __init__(self, connection: "Connection", parts: trio.MemoryReceiveChannel[Part], waiting: _Waiting) -> None:
        self._connection = connection
        self._parts = parts
        self._waiting = waiting
        self.reply: dict[str, Any] = {}

    def __aiter__(self) -> "PartStream":
        return self

    async def __anext__(self) -> Part:
        try:
            return await self._parts.receive()
        except trio.EndOfChannel:
            self.reply = self._connection.outcome(self._waiting)
            raise StopAsyncIteration from None


class Connection:
    """A session with one peer; made by `PeerPool`, alive while `run` runs.

    Args:
        stream: the TLS stream, already shaken hands.
        peer: the NodeId that the peer's certificate proves.
        hello: our own hello.
        handlers: what the peer may ask of us, by method.
        throttle_in, throttle_out: bandwidth caps.
    """

    def __init__(
        self,
        stream: ByteStream,
        peer: NodeId,
        hello: Hello,
        handlers: Mapping[str, Handler],
        log: Log,
        *,
        throttle_in: Throttle | None = None,
        throttle_out: Throttle | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.peer = peer
        self.peer_name = ""
        self.features: frozenset[str] = frozenset()
        self.closed = trio.Event()
        self._stream = stream
        self._session = Session(hello, limits)
        self._handlers = handlers
        self._log = log
        self._in = throttle_in
        self._out = throttle_out
        self._send_queue, self._to_send = trio.open_memory_channel[list[Buffer]](SEND_QUEUE)
        self._waiting: dict[int, _Waiting] = {}
        self._serving: dict[int, trio.CancelScope] = {}
        self._opened = trio.Event()
        self._turns = trio.Semaphore(self._session.limits.outbound)
        self._why_closed = "connection closed"
        self._listening_since = math.inf
        self._sending_since = math.inf

    @property
    def bytes_in(self) -> int:
        """Wire bytes received so far, TLS included."""
        return self._stream.bytes_in

    @property
    def bytes_out(self) -> int:
        """Wire bytes sent so far, TLS included."""
        return self._stream.bytes_out

    def link(self) -> LinkEstimate:
        """What is known by now of the link that this side sends on."""
        return self._stream.link()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Exchange hellos, report started, then move messages until either side closes.

        Contains its own failures: whatever happens here ends this connection and nothing else. Without the peer's hello
        it never starts: then `Unreachable` is raised to the one who starts it.
        """
        ready = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._send_queue.send(self._session.hello())
                nursery.start_soon(self._read, nursery)
                with trio.move_on_after(HELLO_S):
                    await self._opened.wait()
                if not self._opened.is_set():
                    self.close("no hello came")
                elif not self.closed.is_set():
                    ready = True
                    task_status.started()
                    nursery.start_soon(self._keep_alive)
                    await self.closed.wait()
                nursery.cancel_scope.cancel()
        # Nothing of one peer's, and no defect in what serves it, may end the tasks of the others.
        except* Exception as failures:
            self._fail(_first(failures))
        finally:
            self._shut()
            with trio.move_on_after(CLEANUP_S, shield=True), suppress(OSError, trio.BrokenResourceError):
                await self._stream.aclose()
        if not ready:
            raise errors.Unreachable(f"peer {self.peer}: {self._why_closed}")

    def _shut(self) -> None:
        self.closed.set()
        self._opened.set()
        self._send_queue.close()
        for _ in range(self._turns.statistics().tasks_waiting):
            self._turns.release()
        for waiting in list(self._waiting.values()):
            waiting.parts.close()
            waiting.ended.set()

    def close(self, why: str = "closed by this node") -> None:
        """End the connection; callers that wait get `Unreachable`."""
        if not self.closed.is_set():
            self._why_closed = why
            self.closed.set()

    def _fail(self, error: BaseException) -> None:
        """End the connection for a defect here."""
        self._log.failure("connection failed", error, peer=self.peer_name or self.peer)
        self.close(f"internal error: {type(error).__name__}")

    async def transmit(self, message: Request | Part | Reply | Failure | Cancel | Ping | Pong | Goodbye) -> None:
        """Queue one message for the writer; waits while the queue is full.

        Raises:
            Unreachable: the connection is closed.
            LocalProtocolError: the message is over a cap.
        """
        if self.closed.is_set():
            raise errors.Unreachable(f"peer {self.peer_name or self.peer}: {self._why_closed}")
        await self._queue(self._session.send(message))

    async def _queue(self, buffers: list[Buffer]) -> None:
        try:
            await self._send_queue.send(buffers)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise errors.Unreachable(f"peer {self.peer_name or self.peer}: {self._why_closed}") from None

    async def call(
        self, method: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0, payload: Buffer = b""
    ) -> dict[str, Any]:
        """Ask and wait for the reply; parts, if any, are dropped.

        Raises:
            Unreachable: no reply in time, or the connection closed.
            P2PlayerError: what the peer answered.
        """
        with trio.move_on_after(timeout_s):
            async with self.stream(method, body, payload=payload) as parts:
                async for _ in parts:
                    pass
                return parts.reply
        raise errors.Unreachable(f"peer {self.peer_name or self.peer} did not answer {method} in {timeout_s:g} s")

    @asynccontextmanager
    async def stream(
        self, method: str, body: Mapping[str, Any] | None = None, *, payload: Buffer = b""
    ) -> AsyncIterator[PartStream]:
        """Ask for a streamed answer; leaving the block early cancels it at the peer.

        Waits while the peer is at as many requests of ours as it takes at a time.

        Raises:
            Unreachable: the connection closed.
        """
        if not self.closed.is_set():
            await self._turns.acquire()
        rid = self._session.next_rid()
        sender, receiver = trio.open_memory_channel[Part](PART_QUEUE)
        waiting = _Waiting(sender)
        self._waiting[rid] = waiting
        try:
            try:
                try:
                    await self.transmit(Request(rid, method, body or {}, payload))
                except BaseException:
                    self._session.retract(rid)
                    self._turns.release()
                    raise
                yield PartStream(self, receiver, waiting)
            finally:
                self._waiting.pop(rid, None)
                receiver.close()
        except BaseException:
            await self._abandon(rid)  # noqa: ASYNC102 - shields itself, for CLEANUP_S at most
            raise
        if not waiting.ended.is_set():
            await self._abandon(rid)

    async def _abandon(self, rid: int) -> None:
        """Tell the peer to stop answering `rid`, if it still does."""
        if self.closed.is_set() or not self._session.awaits(rid):
            return
        with trio.move_on_after(CLEANUP_S, shield=True) as scope:
            try:
                await self.transmit(Cancel(rid))
            except errors.Unreachable:
                return
        if scope.cancelled_caught:
            self.close("the peer does not take a cancel")

    def outcome(self, waiting: _Waiting) -> dict[str, Any]:
        """The body of a reply, or the error that the ending means."""
        match waiting.ending:
            case Reply(body=body):
                return dict(body)
            case Failure(code=code, message=message):
                raise errors.from_code(code, message)
            case None:
                raise errors.Unreachable(f"peer {self.peer_name or self.peer}: {self._why_closed}")

    async def _write(self) -> None:
        async for buffers in self._to_send:
            try:
                if self._out is None:
                    await self._pass_on(buffers)
                else:
                    for piece in _slices(buffers):
                        await self._out.spend(len(piece))
                        await self._pass_on([piece])
            except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self.close(f"sending failed: {error}")
                return

    async def _pass_on(self, buffers: list[Buffer]) -> None:
        self._sending_since = trio.current_time()
        await self._stream.send_buffers(buffers)
        self._sending_since = math.inf

    async def _receive(self) -> Buffer:
        self._listening_since = trio.current_time()
        data = await self._stream.receive_some(READ_BYTES, lacking=self._session.lacking)
        self._listening_since = math.inf
        return data

    async def _read(self, nursery: trio.Nursery) -> None:
        try:
            while data := await self._receive():
                asking = self._session.asking
                events = self._session.receive(data)
                for _ in range(asking - self._session.asking):
                    self._turns.release()
                for event in events:
                    await self._dispatch(event, nursery)
                if self._in is not None:
                    await self._in.spend(len(data))
            self.close("the peer closed the connection")
        except RemoteProtocolError as error:
            self._log.warning("peer broke the protocol", peer=self.peer_name or self.peer, error=str(error))
            self.close(f"protocol error: {error}")
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.close(f"receiving failed: {error}")
        except Exception as error:  # what a peer says must not end more than its connection, whatever it meets here
            self._fail(error)
        finally:
            self.close()
            self._opened.set()

    async def _dispatch(self, event: Event, nursery: trio.Nursery) -> None:
        match event:
            case Opened(hello=hello, features=features):
                if hello.node != self.peer:
                    raise RemoteProtocolError(f"hello of {hello.node[:12]} under the certificate of {self.peer[:12]}")
                self.peer_name, self.features = hello.name, features
                self._opened.set()
            case Request():
                nursery.start_soon(self._serve, event)
            case Excess(rid=rid):
                nursery.start_soon(self._end, Failure(rid, errors.Refused.code, "too much is asked for at once"))
            case Part(rid=rid):
                waiting = self._waiting.get(rid)
                if waiting is not None:
                    # The asker may leave while we wait for room in its queue.
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await waiting.parts.send(event)
            case Reply(rid=rid) | Failure(rid=rid):
                waiting = self._waiting.get(rid)
                if waiting is not None:
                    waiting.ending = event
                    waiting.ended.set()
                    waiting.parts.close()
            case Cancel(rid=rid):
                scope = self._serving.get(rid)
                if scope is not None:
                    scope.cancel()
            case Ping():
                self._try_send(Pong())
            case Pong():
                pass
            case Goodbye(reason=reason):
                self.close(f"the peer said goodbye: {reason}")

    def _try_send(self, message: Ping | Pong) -> None:
        """Send a sign of life, unless the queue is full: what fills it is one as well, and nobody is to wait for it."""
        try:
            self._send_queue.send_nowait(self._session.send(message))
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            return

    async def _serve(self, request: Request) -> None:
        ending: Reply | Failure = Failure(request.rid, CANCELLED, "cancelled")
        handler = self._handlers.get(request.method)
        if handler is None:
            ending = Failure(request.rid, "usage", f"unknown method {request.method!r}")
        else:
            with trio.CancelScope() as scope:
                self._serving[request.rid] = scope
                try:
                    ending = Reply(request.rid, await handler(Incoming(self, request)))
                # A handler of ours may meet anything in a peer's request: it costs that request, not the node.
                except Exception as error:
                    fault = describe(error)
                    if not isinstance(error, errors.P2PlayerError):
                        self._log.failure("request failed", error, method=request.method, peer=self.peer_name)
                    ending = Failure(request.rid, fault.code, fault.message)
            self._serving.pop(request.rid, None)
        await self._end(ending)

    async def _end(self, ending: Reply | Failure) -> None:
        """Send the ending of a request of the peer; what cannot be sent becomes a failure that can."""
        if self.closed.is_set():
            return
        try:
            buffers = self._session.send(ending)
        except LocalProtocolError as error:
            self._log.warning("an answer cannot be sent", peer=self.peer_name, error=str(error))
            buffers = self._session.send(Failure(ending.rid, errors.Failed.code, f"the answer cannot be sent: {error}"))
        with suppress(errors.Unreachable):
            await self._queue(buffers)

    async def _keep_alive(self) -> None:
        taken, taken_at = self.bytes_out, trio.current_time()
        while not self.closed.is_set():
            await trio.sleep(PING_S)
            now = trio.current_time()
            if taken != self.bytes_out:
                taken, taken_at = self.bytes_out, now
            if now - self._listening_since > SILENCE_S:
                self.close(f"silent for {SILENCE_S:g} s")
            elif now - max(self._sending_since, taken_at) > STUCK_S:
                self.close(f"took nothing for {STUCK_S:g} s")
            else:
                self._try_send(Ping())


def _first(error: BaseException) -> BaseException:
    """The first one that a group of errors holds."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _slices(buffers: Iterable[Buffer]) -> Iterator[memoryview]:
    """The same bytes in pieces of `SLICE_BYTES` at most."""
    for buffer in buffers:
        view = memoryview(buffer)
        for start in range(0, len(view), SLICE_BYTES):
            yield view[start : start + SLICE_BYTES]
