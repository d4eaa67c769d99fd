"""Joining, both ends over real sockets: what is handed out, every refusal, hostile newcomers and false authorities."""

import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import MockClock, memory_stream_pair

from gossip.messages import node_id
from p2player import enrol
from p2player.addresses import Address
from p2player.errors import Integrity, Refused, Unreachable
from p2player.net.contexts import ALPN_JOIN, join_context
from p2player.net.handshake import accept, connect
from p2player.net.identity import Identity
from p2player.net.invites import Contact
from p2player.net.joining import Application, JoinDesk, request_join
from p2player.net.tls import TlsStream
from p2player.proto.gate import Gate
from p2player.proto.joining import (
    JoinRequest,
    MessageReader,
    Rejection,
    Welcome,
    decode_reply,
    encode_request,
)
from tests.support.meshes import Mesh
from tests.support.offices import MEMBERS, desk, listening, office

HERE = Address("127.0.0.1", 7420)


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    return enrol.init_mesh(tmp_path / "state", mesh="coast", name="north-1", listen="127.0.0.1:7420")


def application(name: str = "south", **changes: object) -> Application:
    plain = Application(Ed25519PrivateKey.generate(), name, "bay", HERE, None)
    return replace(plain, **changes)  # type: ignore[arg-type]


async def test_a_machine_joins(identity: Identity) -> None:
    async with office(identity) as at:
        who = application()
        joined = await request_join(at.token(), who)
        assert (joined.certificate.name, joined.certificate.site) == ("south", "bay")
        assert joined.certificate.node_id == node_id(who.key.public_key().public_bytes_raw())
        assert joined.keyring == identity.keyring()
        assert joined.members == tuple(MEMBERS)
        identity.peer_node_id(joined.chain[0])


async def test_the_same_machine_may_ask_again(identity: Identity) -> None:
    async with office(identity) as at:
        token, who = at.token(), application()
        assert await request_join(token, who) == await request_join(token, who)
        with pytest.raises(Refused, match="used already"):
            await request_join(token, application("east"))


async def test_refusals_are_told_in_the_authoritys_words(identity: Identity) -> None:
    async with office(identity) as at:
        with pytest.raises(Refused, match="the name north-1 is taken"):
            await request_join(at.token(), application("north-1"))
        with pytest.raises(Refused, match="no such invite"):
            await request_join(replace(at.token(), secret=b"x" * 32), application())
        with pytest.raises(Refused, match="the invite expired at"):
            await request_join(at.token(now=time.time() - 120), application())


async def test_a_wrong_clock_is_named(identity: Identity) -> None:
    async with office(identity) as at:
        token = at.token()
        with pytest.raises(Refused, match=r"clock of this machine is 3\.0 hours ahead of"):
            await request_join(token, application(), lambda: time.time() + 3 * 3600)
        with pytest.raises(Refused, match=r"clock of this machine is 2\.0 days behind"):
            await request_join(token, application(), lambda: time.time() - 2 * 86400)
        with pytest.raises(Refused, match=r"taken .* \(the clock of this machine is 10.0 minutes behind"):
            await request_join(token, application("north-1"), lambda: time.time() - 600)
        await request_join(token, application())


async def test_an_authority_whose_certificate_looks_expired_can_still_tell_the_time(identity: Identity) -> None:
    """The newcomer's clock decides about dates, so they must not stop it before the authority's clock is heard."""
    async with office(identity) as at:
        with pytest.raises(Refused, match=r"40\.0 days ahead of"):
            await request_join(at.token(), application(), lambda: time.time() + 40 * 86400)


async def test_a_node_that_is_no_authority_says_so(identity: Identity) -> None:
    async with office(identity, enrols=False) as at:
        with pytest.raises(Refused, match="no authority of mesh coast"):
            await request_join(at.token(), application())


async def test_nobody_answers(identity: Identity) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = Address(*free.getsockname())
    authority = identity.open_authority()
    token = authority.invite(Contact(identity.node_id, address), ttl_s=60, uses=1, now=time.time())
    token = replace(token, contacts=(*token.contacts, Contact(identity.node_id, Address("127.0.0.1", 1))))
    authority.close()
    with pytest.raises(Unreachable) as caught:
        await request_join(token, application())
    assert f"tried {address} (connection refused), 127.0.0.1:1 (connection refused)" in caught.value.message


async def test_the_second_authority_is_tried(identity: Identity) -> None:
    async with office(identity) as at:
        token = at.token()
        dead = Contact(identity.node_id, Address("127.0.0.1", 1))
        assert await request_join(replace(token, contacts=(dead, *token.contacts)), application())


async def test_the_secret_goes_to_that_authority_only(identity: Identity, tmp_path: Path) -> None:
    """Neither a node of another mesh nor another node of this one gets to see it."""
    seen: list[bytes] = []
    other = enrol.init_mesh(tmp_path / "other", mesh="coast", name="b", listen="127.0.0.1:1")

    async def listen_in(raw: trio.SocketStream, context_of: Identity) -> None:
        try:
            stream = await accept(raw, context_of.server_context())
            seen.append(await stream.receive_some())
        except Unreachable:
            seen.append(b"")

    authority = identity.open_authority()
    for impostor, contact_id, told in (
        (other, identity.node_id, "does not verify"),
        (identity, other.node_id, "another node answers there: north-1"),
    ):
        async with listening(lambda raw, who=impostor: listen_in(raw, who)) as address:  # type: ignore[misc]
            token = authority.invite(Contact(contact_id, address), ttl_s=60, uses=1, now=time.time())
            with pytest.raises(Unreachable, match=told):
                await request_join(token, application())
    authority.close()
    assert seen == [b""] * len(seen)


async def answered_with(identity: Identity, reply: bytes) -> str:
    """Ask an authority that always says `reply`; what the newcomer is told."""

    async def serve(raw: trio.SocketStream) -> None:
        stream = await accept(raw, identity.server_context())
        await stream.receive_some()
        await stream.send_all(reply)
        await stream.aclose()

    authority = identity.open_authority()
    async with listening(serve) as address:
        token = authority.invite(Contact(identity.node_id, address), ttl_s=60, uses=1, now=time.time())
        authority.close()
        with pytest.raises(Unreachable) as caught:
            await request_join(token, application())
        return caught.value.message


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"", "closed in the middle"),
        (b"\xff\xff\xff\xff", "are allowed"),
        (b"\x00\x00\x00\x01\x80", "no valid answer"),
        (b"\x00\x00\x00\x01\x80more", "more than one"),
    ],
)
async def test_answers_that_make_no_sense(identity: Identity, reply: bytes, told: str) -> None:
    assert told in await answered_with(identity, reply)


async def test_an_answer_for_somebody_else_is_not_believed(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = Mesh(tmp_path, "hills", time.time())
    mine, theirs = identity.chain, (mesh.node("x").der,)
    keys = identity.keyring().keys
    for welcome, told in (
        (Welcome(mine, identity.roots, keys, (), 0.0), "another node's certificate"),
        (Welcome(theirs, identity.roots, keys, (), 0.0), "another mesh"),
        (Welcome(mine, (mesh.root,), keys, (), 0.0), "another node's certificate"),
        (Welcome(mine, identity.roots, (b"short",), (), 0.0), "keyring"),
    ):

        async def admit(*arguments: object, answer: Welcome = welcome) -> Welcome:
            await trio.lowlevel.checkpoint()
            return answer

        async with office(identity) as at:
            monkeypatch.setattr(JoinDesk, "_answer", admit)
            with pytest.raises(Integrity, match=told):
                await request_join(at.token(uses=9), application())


async def at_desk(
    nursery: trio.Nursery, identity: Identity, served: JoinDesk, host: str = "10.0.0.9"
) -> tuple[TlsStream, trio.Event]:
    """A newcomer's stream to a desk that serves it in the background; the event tells when it is done."""
    left, right = memory_stream_pair()
    done = trio.Event()

    async def serve() -> None:
        await served.serve(await accept(right, identity.server_context()), (host, 1))
        done.set()

    nursery.start_soon(serve)
    return await connect(left, join_context(identity.roots[0]), alpn=ALPN_JOIN), done


async def read_reply(stream: TlsStream) -> Welcome | Rejection:
    message = MessageReader(1 << 20).feed(await stream.receive_some())
    assert message is not None
    return decode_reply(message)


async def test_an_oversize_request_is_dropped(nursery: trio.Nursery, identity: Identity) -> None:
    stream, done = await at_desk(nursery, identity, desk(identity, None))
    await stream.send_all((16385).to_bytes(4, "big"))
    assert await stream.receive_some() == b""
    await done.wait()


async def test_a_slow_request_is_dropped_in_time(
    nursery: trio.Nursery, identity: Identity, autojump_clock: MockClock
) -> None:
    stream, done = await at_desk(nursery, identity, desk(identity, None))
    started = trio.current_time()
    for byte in (b"\x00", b"\x00", b"\x01"):
        await stream.send_all(byte)
        await trio.sleep(3)
    await done.wait()
    assert trio.current_time() - started == pytest.approx(10, abs=1)


async def test_a_request_that_is_none_is_answered(nursery: trio.Nursery, identity: Identity) -> None:
    stream, done = await at_desk(nursery, identity, desk(identity, None))
    await stream.send_all(b"\x00\x00\x00\x01\x80")
    reply = await read_reply(stream)
    assert isinstance(reply, Rejection)
    assert (reply.code, reply.message[:7]) == ("usage", "version")
    await done.wait()


async def test_a_malformed_certificate_request_is_refused(nursery: trio.Nursery, identity: Identity) -> None:
    authority = identity.open_authority()
    token = authority.invite(Contact(identity.node_id, HERE), ttl_s=60, uses=1, now=time.time())
    stream, done = await at_desk(nursery, identity, desk(identity, authority))
    await stream.send_all(encode_request(JoinRequest(token.invite, token.secret, b"csr", "h", 1, time.time())))
    reply = await read_reply(stream)
    assert isinstance(reply, Rejection)
    assert reply.code == "refused"
    await done.wait()
    authority.close()


async def test_who_leaves_in_the_middle_harms_nobody(nursery: trio.Nursery, identity: Identity) -> None:
    served = desk(identity, None)
    for _ in range(3):
        stream, done = await at_desk(nursery, identity, served)
        await stream.send_all(b"\x00\x00")
        await stream.aclose()
        await done.wait()


async def test_knocking_too_often_is_answered_with_patience(
    nursery: trio.Nursery, identity: Identity, autojump_clock: MockClock
) -> None:
    served = replace(desk(identity, None), gates=(Gate(1.0, 1), Gate(100.0, 100)))
    replies = []
    for host in ("10.0.0.1", "10.0.0.1", "10.0.0.2"):
        stream, done = await at_desk(nursery, identity, served, host)
        await stream.send_all(encode_request(JoinRequest(b"i" * 16, b"s" * 32, b"c", "h", 1, 0.0)))
        reply = await read_reply(stream)
        assert isinstance(reply, Rejection)
        replies.append(reply.code)
        await done.wait()
    assert replies == ["refused", "busy", "refused"]


async def test_a_busy_authority_is_asked_again(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["busy", "busy"]
    answer = JoinDesk._answer

    async def sometimes(self: JoinDesk, stream: TlsStream, host: str) -> Welcome | Rejection:
        return (
            Rejection("busy", "slow down", time.time())
            if answers and answers.pop()
            else await answer(self, stream, host)
        )

    monkeypatch.setattr(JoinDesk, "_answer", sometimes)
    monkeypatch.setattr("p2player.net.joining.BUSY_S", 0.0)
    async with office(identity) as at:
        await request_join(at.token(), application())
    assert not answers


@pytest.mark.parametrize(
    ("listen", "advertise", "told"),
    [
        ("0.0.0.0", None, Address("127.0.0.1", 7420)),
        ("10.9.8.7", None, Address("10.9.8.7", 7420)),
        ("0.0.0.0", Address("edge.example", 1), Address("edge.example", 1)),
    ],
)
async def test_the_address_that_is_told(
    identity: Identity, listen: str, advertise: Address | None, told: Address
) -> None:
    async with office(identity) as at:
        await request_join(at.token(), application(listen=Address(listen, 7420), advertise=advertise))
    assert f'"address":"{told}"' in (identity.folder / "authority" / "journal").read_text()
