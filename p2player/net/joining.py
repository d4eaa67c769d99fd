"""Enrolling a node, both ends: the authority's desk on the listener, and the request of a machine that has a token.

Neither end trusts the other before it has to. The newcomer knows the mesh's root and the authority's node id from the
token, and sends the secret only to a peer that proves both. The authority reads one bounded message in bounded time,
and judges it in a worker thread, where the journal's fsync disturbs nobody.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gossip.errors import Malformed
from gossip.sealing import Keyring
from p2player import errors
from p2player.addresses import Address, is_wildcard
from p2player.log import Log
from p2player.net.authority import Authority
from p2player.net.certificates import CertificateError, NodeCertificate, check_chain, read_node
from p2player.net.contexts import ALPN_JOIN, join_context
from p2player.net.handshake import connect
from p2player.net.invites import Contact, Token
from p2player.net.issuing import make_request
from p2player.net.tls import TlsError, TlsStream
from p2player.proto.gate import Gate
from p2player.proto.joining import (
    BUSY,
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    JoinProtocolError,
    JoinRequest,
    MemberRow,
    MessageReader,
    Rejection,
    Welcome,
    decode_reply,
    decode_request,
    describe_skew,
    encode_reply,
    encode_request,
)

REQUEST_S: Final = 10.0
REPLY_S: Final = 20.0
DIAL_S: Final = 5.0
BUSY_S: Final = 1.0
BUSY_TRIES: Final = 10
CLEANUP_S: Final = 1.0
NOTABLE_SKEW_S: Final = 60.0

Clock = Callable[[], float]


def _gates() -> tuple[Gate, Gate]:
    return Gate(rate=2.0, burst=20), Gate(rate=20.0, burst=100)


@dataclass(frozen=True, slots=True)
class JoinDesk:
    """Answers those who come with ALPN `p2player-join/1`; `serve` is what the listener calls.

    Args:
        mesh: the mesh's name.
        authority: None where this node is none; newcomers are then told so.
        keyring: the gossip keys of this moment.
        members: rows of plain values (see `proto.joining`), whom the newcomer gossips with first; 256 are passed on.
        clock: seconds since the Unix epoch.
        gates: how often one host, and all hosts together, are served.
    """

    mesh: str
    authority: Authority | None
    keyring: Callable[[], Keyring]
    members: Callable[[], Sequence[MemberRow]]
    log: Log
    clock: Clock = time.time
    gates: tuple[Gate, Gate] = field(default_factory=_gates)

    async def serve(self, stream: TlsStream, address: tuple[str, int]) -> None:
        """Serve one request and close the stream. Raises nothing that the peer could cause.

        Args:
            address: where the newcomer comes from.
        """
        try:
            reply = await self._answer(stream, address[0])
            with trio.move_on_after(REQUEST_S):
                await stream.send_all(encode_reply(reply))
        except (TlsError, JoinProtocolError) as error:
            self.log.info("join broken off", host=address[0], error=str(error))
        finally:
            with trio.move_on_after(CLEANUP_S, shield=True):
                await stream.aclose()

    async def _answer(self, stream: TlsStream, host: str) -> Welcome | Rejection:
        per_host, overall = self.gates
        if per_host.admit(host, trio.current_time()) or overall.admit("", trio.current_time()):
            return Rejection(BUSY, "too many requests to join: try again in a moment", self.clock())
        message = None
        with trio.move_on_after(REQUEST_S):
            message = await _receive(stream, MAX_REQUEST_BYTES)
        if message is None:
            raise JoinProtocolError(f"no request within {REQUEST_S:g} s")
        try:
            request = decode_request(message)
            if self.authority is None:
                raise errors.Refused(f"this node is no authority of mesh {self.mesh}")
            grant, chain = await trio.to_thread.run_sync(self.authority.admit, request, self.clock())
        except JoinProtocolError as error:
            return Rejection("usage", str(error), self.clock())
        except errors.P2PlayerError as error:
            self.log.warning("join refused", host=host, reason=error.message)
            return Rejection(error.code, error.message, self.clock())
        self.log.info("node joined", name=grant.name, node=grant.node_id, site=grant.site, host=host)
        rows = tuple(self.members())
        return Welcome(chain, (self.authority.root,), self.keyring().keys, rows, self.clock())


@dataclass(frozen=True, slots=True)
class Joined:
    """What a new node was given, checked: its certificate belongs to its key and leads up to the token's root."""

    certificate: NodeCertificate
    chain: tuple[bytes, ...]
    keyring: Keyring
    members: tuple[MemberRow, ...]


@dataclass(frozen=True, slots=True)
class Application:
    """Who wants to join.

    Args:
        key: of the new node.
        listen, advertise: where it will listen, and be reached. Without the latter, and with a wildcard to listen on,
            it is reached at the address that leads to the authority.
    """

    key: Ed25519PrivateKey
    name: str
    site: str
    listen: Address
    advertise: Address | None

    def reached_at(self, local_host: str) -> Address:
        """Where the node will be reached by one that it talks to from `local_host`."""
        wildcard = is_wildcard(self.listen.host)
        return self.advertise or (Address(local_host, self.listen.port) if wildcard else self.listen)


async def request_join(token: Token, application: Application, clock: Clock = time.time) -> Joined:
    """Ask the token's authorities, one after the other, to certify the application's key.

    The same key may ask again with the same token: an authority that granted it and could not say so gives the same
    answer. So a failure, or a cancellation, leaves nothing behind that a repetition would not mend.

    Raises:
        Refused: the authority refuses; its reason.
        Unreachable: none answered; the text names what was tried.
        Integrity: the answer does not fit the token.
    """
    failures: list[str] = []
    for contact in token.contacts:
        try:
            welcome = await _ask(token, contact, application, clock)
        except errors.Unreachable as error:
            failures.append(f"{contact.address} ({error})")
        else:
            return _check(token, contact, application.key, welcome)
    raise errors.Unreachable(f"no authority of mesh {token.mesh} can be reached: tried {', '.join(failures)}")


async def _ask(token: Token, contact: Contact, application: Application, clock: Clock) -> Welcome:
    for _ in range(BUSY_TRIES):
        asked_at = clock()
        reply = await _exchange(token, contact, application, asked_at)
        if isinstance(reply, Welcome):
            return reply
        if reply.code != BUSY:
            skew_s = asked_at - reply.sent_at
            tell_skew = abs(skew_s) > NOTABLE_SKEW_S and "clock" not in reply.message
            clocks = f" (the clock of this machine is {describe_skew(skew_s)})" if tell_skew else ""
            raise errors.from_code(reply.code, reply.message + clocks)
        await trio.sleep(BUSY_S)
    raise errors.Unreachable("it is too busy")


async def _exchange(token: Token, contact: Contact, application: Application, asked_at: float) -> Welcome | Rejection:
    """One connection, one request, one answer."""
    stream, local_host = await _dial(token, contact)
    try:
        with trio.fail_after(REPLY_S):
            csr = make_request(application.key, application.name, application.site)
            host, port = application.reached_at(local_host)
            await stream.send_all(encode_request(JoinRequest(token.invite, token.secret, csr, host, port, asked_at)))
            return decode_reply(await _receive(stream, MAX_REPLY_BYTES))
    except trio.TooSlowError:
        raise errors.Unreachable(f"no answer within {REPLY_S:g} s") from None
    except JoinProtocolError as error:
        raise errors.Unreachable(f"no valid answer: {error}") from None
    finally:
        with trio.move_on_after(CLEANUP_S, shield=True):
            await stream.aclose()


async def _dial(token: Token, contact: Contact) -> tuple[TlsStream, str]:
    """A stream to that very authority, and the local address that leads there."""
    with trio.move_on_after(DIAL_S):
        try:
            raw = await trio.open_tcp_stream(*contact.address)
        except OSError as error:
            raise errors.Unreachable(_why(error)) from None
        stream = await connect(raw, join_context(token.root), alpn=ALPN_JOIN, timeout_s=DIAL_S)
        try:
            found = read_node(stream.peer_certificate_der() or b"", token.mesh_id)
            if found.node_id != contact.node:
                raise CertificateError(f"another node answers there: {found.name}")
        except CertificateError as error:
            await trio.aclose_forcefully(stream)
            raise errors.Unreachable(str(error)) from None
        local_host: str = raw.socket.getsockname()[0]
        return stream, local_host
    raise errors.Unreachable(f"no connection within {DIAL_S:g} s")


async def _receive(stream: TlsStream, limit: int) -> bytes:
    reader = MessageReader(limit)
    while data := await stream.receive_some(limit):
        message = reader.feed(data)
        if message is not None:
            return message
    raise JoinProtocolError("closed in the middle of a message")


def _check(token: Token, contact: Contact, key: Ed25519PrivateKey, welcome: Welcome) -> Joined:
    """Believe nothing that the token does not vouch for."""
    try:
        certificate = read_node(welcome.chain[0], token.mesh_id)
        check_chain(welcome.chain, token.root)
        keyring = Keyring(welcome.mesh_keys)
    except (CertificateError, Malformed) as error:
        raise errors.Integrity(f"the authority {contact.address} sent a wrong answer: {error}") from None
    if token.root not in welcome.roots or certificate.public_key != key.public_key().public_bytes_raw():
        raise errors.Integrity(f"the authority {contact.address} sent another node's certificate")
    return Joined(certificate, welcome.chain, keyring, welcome.members)


def _why(error: OSError) -> str:
    """The reason of a failed dial; trio wraps those of several addresses into one."""
    cause = error.__cause__
    while isinstance(cause, BaseExceptionGroup) and cause.exceptions:
        cause = cause.exceptions[0]
    shown = cause if isinstance(cause, OSError) else error
    if shown.errno is not None and not isinstance(shown, socket.gaierror):
        return os.strerror(shown.errno).lower()  # trio's own text repeats the address
    return (shown.strerror or str(shown)).lower()
