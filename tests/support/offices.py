"""An authority that listens on loopback, for tests that join it."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from p2player.addresses import Address
from p2player.log import Log
from p2player.net.authority import Authority
from p2player.net.handshake import accept
from p2player.net.identity import Identity
from p2player.net.invites import Contact, Token
from p2player.net.joining import JoinDesk
from p2player.proto.joining import MemberRow

QUIET = Log(level="error")
MEMBERS: Sequence[MemberRow] = ({"id": "ab" * 16, "name": "north-1", "host": "10.0.0.1", "port": 7420},)


class Office:
    """A listening authority, and tokens for it."""

    def __init__(self, identity: Identity, authority: Authority, address: Address) -> None:
        self.identity = identity
        self.authority = authority
        self.address = address

    def token(self, *, uses: int = 1, now: float | None = None, ttl_s: float = 60) -> Token:
        contact = Contact(self.identity.node_id, self.address)
        return self.authority.invite(contact, ttl_s=ttl_s, uses=uses, now=now or time.time())


def desk(identity: Identity, authority: Authority | None, clock: Callable[[], float] = time.time) -> JoinDesk:
    return JoinDesk(identity.mesh_name, authority, identity.keyring, lambda: MEMBERS, QUIET, clock)


@asynccontextmanager
async def listening(serve: Callable[[trio.SocketStream], Awaitable[object]]) -> AsyncIterator[Address]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listeners[0].socket.getsockname()
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, listeners)
        yield Address(host, port)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def office(
    identity: Identity, *, enrols: bool = True, clock: Callable[[], float] = time.time
) -> AsyncIterator[Office]:
    authority = identity.open_authority()
    served = desk(identity, authority if enrols else None, clock)
    context = identity.server_context()

    async def serve(raw: trio.SocketStream) -> None:
        await served.serve(await accept(raw, context), raw.socket.getpeername())

    try:
        async with listening(serve) as address:
            yield Office(identity, authority, address)
    finally:
        authority.close()
