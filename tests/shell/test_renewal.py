"""Renewal between two nodes over real TLS on loopback, with certificates that were made eleven days ago."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from gossip.messages import NodeId
from p2player import enrol, errors
from p2player.log import Log
from p2player.net import issuing
from p2player.net.certificates import read_node
from p2player.net.connection import Handler, Incoming
from p2player.net.identity import Identity
from p2player.net.peers import PeerPool
from p2player.net.renewing import RenewalDesk, ask_authorities, request_renewal
from p2player.statedir import StateDir
from tests.support.offices import office

QUIET = Log(level="error")


def eleven_days_ago() -> float:
    return time.time() - 11 * 86400


async def whoami(call: Incoming) -> dict[str, Any]:
    return {"peer": call.peer}


class Party:
    """One node's identity and sessions, and the certificates that it was shown."""

    def __init__(self, identity: Identity, pool: PeerPool, shown: list[bytes]) -> None:
        self.identity = identity
        self.pool = pool
        self.shown = shown


@asynccontextmanager
async def party(
    identity: Identity, where: dict[NodeId, tuple[str, int]], handlers: Mapping[str, Handler]
) -> AsyncIterator[Party]:
    shown: list[bytes] = []
    make = partial(PeerPool, version="1", on_certificate=shown.append)
    async with make(identity, where.get, {**handlers, "whoami": whoami}, QUIET) as pool:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        where[identity.node_id] = listener.socket.getsockname()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.listen, listener)
            yield Party(identity, pool, shown)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def two_nodes(folder: Path) -> AsyncIterator[tuple[Party, Party]]:
    """The authority, and a node that joined it eleven days ago."""
    first = enrol.init_mesh(
        folder / "north", mesh="coast", name="north-1", listen="127.0.0.1:7420", clock=eleven_days_ago
    )
    async with office(first, clock=eleven_days_ago) as at:
        token = str(at.token(now=eleven_days_ago()))
        join = partial(enrol.join_mesh, folder / "south", token, name="south-1", clock=eleven_days_ago)
        second = await trio.to_thread.run_sync(partial(join, listen="127.0.0.1:7420"))
    authority = first.open_authority()
    where: dict[NodeId, tuple[str, int]] = {}
    try:
        with trio.fail_after(20):
            async with (
                party(first, where, RenewalDesk(first, authority, QUIET).handlers()) as one,
                party(second, where, RenewalDesk(second, None, QUIET).handlers()) as two,
            ):
                yield one, two
    finally:
        authority.close()


async def test_new_sessions_show_the_new_certificate_and_old_ones_go_on(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (one, two):
        me, authority = two.identity.node_id, one.identity.node_id
        async with two.pool.lease(authority) as outgoing, one.pool.lease(me) as incoming:
            renewed = await request_renewal(two.identity, two.pool, authority, time.time())
            assert renewed.certificate.not_after > two.identity.certificate.not_after + 10 * 86400
            assert renewed == Identity.load(StateDir(tmp_path / "south"))
            assert set(one.shown) == {two.identity.certificate.der}
            two.pool.renew_contexts(renewed)

            assert await outgoing.call("whoami") == {"peer": me}
            assert await incoming.call("whoami") == {"peer": authority}
            assert set(one.shown) == {two.identity.certificate.der}

            async with two.pool.lease(authority) as fresh:
                assert await fresh.call("whoami") == {"peer": me}
            assert one.shown[-1] == renewed.certificate.der
            one.shown.clear()
            async with one.pool.lease(me) as fresh:
                assert await fresh.call("whoami") == {"peer": authority}
            assert one.shown == [renewed.certificate.der]
            assert not outgoing.closed.is_set()
            assert not incoming.closed.is_set()


async def test_an_answer_that_was_lost_is_given_again(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (one, two):
        csr = issuing.make_request(two.identity.key, "south-1", "")
        call = partial(two.pool.call, one.identity.node_id, "identity.renew", {"csr": csr})
        (first,), (second,) = (await call())["chain"], (await call())["chain"]
        assert first == second != two.identity.certificate.der
        assert read_node(first, two.identity.mesh_id).node_id == two.identity.node_id


async def test_foreign_and_tampered_requests_are_refused(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (one, two):
        authority, key = one.identity.node_id, two.identity.key
        journal = one.identity.folder / "authority" / "journal"
        before = journal.read_bytes()
        sound = issuing.make_request(key, "south-1", "")
        requests: list[tuple[Any, type[errors.P2PlayerError], str]] = [
            (issuing.make_request(one.identity.key, "north-1", ""), errors.Refused, "another node's key"),
            (issuing.make_request(key, "north-1", ""), errors.Refused, "same name and site"),
            (sound[:-1] + bytes([sound[-1] ^ 1]), errors.Refused, "not signed by its own key"),
            (bytes(100_000), errors.Refused, "oversize"),
            ("text", errors.Usage, "needs a certificate request"),
            (None, errors.Usage, "needs a certificate request"),
        ]
        for csr, kind, told in requests:
            with pytest.raises(kind, match=told):
                await two.pool.call(authority, "identity.renew", {"csr": csr})
        assert journal.read_bytes() == before
        with pytest.raises(errors.Refused, match="no authority"):
            await one.pool.call(two.identity.node_id, "identity.renew", {"csr": sound})


async def test_everyone_tells_who_the_authority_is(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (one, two):
        authority = one.identity.node_id
        assert await ask_authorities(two.pool, authority) == [authority]
        assert await ask_authorities(one.pool, two.identity.node_id) == [authority]
