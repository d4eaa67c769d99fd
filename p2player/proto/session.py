"""One authenticated connection between two nodes, as a machine without a socket.

Theory of operation
-------------------
Both sides speak first: a `Hello` each, and nothing is accepted before it. Then either side may *request*; a request is
answered by any number of `Part`s and exactly one ending, `Reply` or `Failure`. Request numbers belong to the asker, and
the frame type tells whose number a frame bears, so that the two directions never collide:

            asker                                   answerer
    REQUEST(rid) ------------------------------------->  inbound[rid] opens
                 <-------------------------  PART(rid)*
                 <---------------  REPLY(rid) | ERROR(rid)   inbound[rid] closes
    CANCEL(rid)  ------------------------------------->  stop; still sends an ending

A cancelled request stays known until its ending arrives, since parts of it may be on the wire; they are dropped.
What a peer can make us hold is bounded: `Limits.inbound` requests at a time, of `Limits.inbound_bytes` together, and
one frame. Who asks counts as well, so as not to be cut off: a request that was cancelled is on the peer's side until
its ending has come. Bytes cannot be counted from afar; a request too many is answered with a refusal.

`Session.receive` turns bytes into events, `Session.send` messages into buffers. A `RemoteProtocolError` means that
the connection is to be closed; the machine answers nothing afterwards.
"""

from dataclasses import dataclass

from p2player.proto.frames import (
    Buffer,
    Cancel,
    Failure,
    FrameReader,
    Goodbye,
    Hello,
    LocalProtocolError,
    Message,
    Part,
    Ping,
    Pong,
    RemoteProtocolError,
    Reply,
    Request,
    encode,
)

CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may have open with us at a time, and we with it.

    Attributes:
        inbound_bytes: about what all open requests of the peer occupy, decoded (`Request.held_bytes`).
        outbound: requests of ours; below any peer's `inbound`.
    """

    inbound: int = 64
    inbound_bytes: int = 16 << 20
    outbound: int = 48


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer's hello came: requests may flow. `features` is what both sides know."""

    hello: Hello
    features: frozenset[str]


@dataclass(frozen=True, slots=True)
class Excess:
    """The peer asked for more at once than it may: the request was dropped, and is to be answered with a failure."""

    rid: int


Event = Opened | Excess | Request | Part | Reply | Failure | Cancel | Ping | Pong | Goodbye


class Session:
    """The state of one connection, from hello to goodbye.

    Args:
        hello: what this side says of itself.
        limits: caps on what the peer may have open.
    """

    def __init__(self, hello: Hello, limits: Limits | None = None) -> None:
        self._hello = hello
        self.limits = limits or Limits()
        self._reader = FrameReader()
        self._opened = False
        self._said_hello = False
        self._closed = False
        self._next_rid = 1
        self._outbound: set[int] = set()
        self._abandoned: set[int] = set()
        self._inbound: dict[int, int] = {}

    @property
    def opened(self) -> bool:
        """Whether the peer's hello has arrived."""
        return self._opened

    def hello(self) -> list[Buffer]:
        """The buffers that open our side; sent once, before anything else."""
        if self._said_hello:
            raise LocalProtocolError("hello was sent already")
        self._said_hello = True
        return encode(self._hello)

    def awaits(self, rid: int) -> bool:
        """Whether our request `rid` was sent and has neither ended nor been cancelled."""
        return rid in self._outbound

    @property
    def asking(self) -> int:
        """Requests of ours that the peer may still be at, cancelled ones included."""
        return len(self._outbound) + len(self._abandoned)

    def retract(self, rid: int) -> None:
        """Forget our request `rid`: the buffers that `send` gave for it were not sent."""
        self._outbound.discard(rid)

    def next_rid(self) -> int:
        """A fresh request number."""
        rid = self._next_rid
        self._next_rid += 1
        return rid

    def send(self, message: Message) -> list[Buffer]:
        """The buffers of `message`, after a check that it may be said now.

        Raises:
            LocalProtocolError: it may not: no hello yet, an ending for a request that is not open, or it is over a cap.
                Nothing has changed then.
        """
        if self._closed:
            raise LocalProtocolError("the session is closed")
        if not (self._said_hello and self._opened) and not isinstance(message, Goodbye):
            raise LocalProtocolError("hellos have not been exchanged")
        match message:
            case Hello():
                raise LocalProtocolError("hello is sent by hello()")
            case Request(rid=rid):
                if rid in self._outbound or rid in self._abandoned:
                    raise LocalProtocolError(f"request {rid} is open already")
                buffers = encode(message)
                self._outbound.add(rid)
                return buffers
            case Cancel(rid=rid):
                if rid not in self._outbound:
                    raise LocalProtocolError(f"request {rid} is not open")
                self._outbound.discard(rid)
                self._abandoned.add(rid)
            case Part(rid=rid):
                if rid not in self._inbound:
                    raise LocalProtocolError(f"request {rid} of the peer is not open")
            case Reply(rid=rid) | Failure(rid=rid):
                if rid not in self._inbound:
                    raise LocalProtocolError(f"request {rid} of the peer is not open")
                buffers = encode(message)
                del self._inbound[rid]
                return buffers
            case Goodbye():
                self._closed = True
            case Ping() | Pong():
                pass
        return encode(message)

    @property
    def lacking(self) -> int:
        """See `FrameReader.lacking`."""
        return self._reader.lacking

    def receive(self, data: Buffer) -> list[Event]:
        """What the received bytes mean.

        Raises:
            RemoteProtocolError: close the connection.
        """
        events: list[Event] = []
        for message in self._reader.feed(data):
            event = self._accept(message)
            if event is not None:
                events.append(event)
        return events

    def _accept(self, message: Message) -> Event | None:
        if not self._opened:
            if not isinstance(message, Hello):
                raise RemoteProtocolError(f"{type(message).__name__} before hello")
            self._opened = True
            return Opened(message, message.features & self._hello.features)
        match message:
            case Hello():
                raise RemoteProtocolError("a second hello")
            case Request(rid=rid):
                if rid in self._inbound:
                    raise RemoteProtocolError(f"request {rid} is open already")
                if len(self._inbound) >= self.limits.inbound:
                    raise RemoteProtocolError(f"more than {self.limits.inbound} requests open")
                if sum(self._inbound.values()) + message.held_bytes > self.limits.inbound_bytes:
                    self._inbound[rid] = 0
                    return Excess(rid)
                self._inbound[rid] = message.held_bytes
            case Cancel(rid=rid):
                # A cancel crosses the ending on the wire now and then: nothing to stop any more.
                return message if rid in self._inbound else None
            case Part(rid=rid):
                if rid in self._abandoned:
                    return None
                if rid not in self._outbound:
                    raise RemoteProtocolError(f"a part for request {rid}, which is not open")
            case Reply(rid=rid) | Failure(rid=rid):
                if rid in self._abandoned:
                    self._abandoned.discard(rid)
                    return None
                if rid not in self._outbound:
                    raise RemoteProtocolError(f"an ending for request {rid}, which is not open")
                self._outbound.discard(rid)
            case Ping() | Pong() | Goodbye():
                pass
        return message
