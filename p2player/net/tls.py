"""A TLS stream made for bulk data: OpenSSL between two memory buffers, fed by large reads.

Theory of operation
-------------------
    transport --receive_some(1 MiB)--> incoming BIO --SSL_read, 16 KiB--> receive_some()
    send_all() --SSL_write, 256 KiB--> outgoing BIO --send_all--> transport

`trio.SSLStream` reads 64 KiB from its transport and hands out one TLS record (16 KiB) a call. Here a read takes all
that the socket has, and all its records are decrypted and joined before anything is returned; a write encrypts 256 KiB,
small enough to stay in the processor's cache, and sends that with one call. No buffer outlives a call: an idle
connection holds next to no memory.

The two directions are independent: one task may receive while another sends. OpenSSL itself has things to say while it
reads (alerts, answers to key updates), so ciphertext is taken out of the outgoing BIO and sent under one lock only,
and whoever holds the lock empties the BIO before letting go: order is kept, and a receiver never waits for a sender.

Cancellation. A cancelled `receive_some` loses nothing. A cancelled `send_all` leaves a torn record on the wire: sending
is over, receiving goes on, and `aclose` then ends without a close_notify so that the peer sees the truncation. A
cancelled `aclose` still closes the transport.

What is not supported: renegotiation (TLS 1.3 has none), a peer that spreads one post-handshake message over several
records while this side writes (the write fails), and more than about 2^38 bytes a direction, where RFC 8446, section
5.5, asks for fresh keys: connections are far shorter.
"""

import ssl
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final

import trio

from p2player.errors import Unreachable
from p2player.net.gathering import Gathering
from p2player.net.link import UNKNOWN, LinkEstimate, estimate

Buffer = bytes | bytearray | memoryview

READ_BYTES: Final = 1 << 20
WRITE_BYTES: Final = 256 << 10
RECORD_BYTES: Final = 16 << 10
CLOSE_S: Final = 1.0


class TlsError(Unreachable, trio.BrokenResourceError):
    """The secured connection failed; the text says why, as far as OpenSSL or the peer's alert tells."""


class HandshakeFailed(TlsError):
    """No secured connection came about."""


class Truncated(TlsError):
    """The connection ended without the peer saying so under its key: it died, or someone cut it."""


_REASONS: Final = {
    "WRONG_VERSION_NUMBER": "the other end does not speak TLS",
    "HTTP_REQUEST": "the other end speaks plain HTTP",
    "UNSUPPORTED_PROTOCOL": "the other end does not speak TLS 1.3",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other end does not speak TLS 1.3",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer rejects our certificate: it is of another mesh",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer asks for a certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer rejects our certificate: expired, or not yet valid by its clock",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the peer rejects our certificate: revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer rejects our certificate",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "received data is forged or damaged",
    "SSLV3_ALERT_BAD_RECORD_MAC": "the peer received forged or damaged data",
}


def _explain(error: ssl.SSLError) -> str:
    """One line for people; the reason's own name where there is nothing better."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate does not verify: {error.verify_message}"
    reason = error.reason or str(error)
    return _REASONS.get(reason, reason.replace("_", " ").lower())


_TORN: Final = "an earlier send broke off: this TLS stream cannot send any more"


class _Exclusive:
    """Lets one task at a time into a block; a second one is a defect of the caller."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(f"another task is {self._what} this TLS stream")
        self._busy = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._busy = False


class TlsStream(trio.abc.Stream):
    """One end of a TLS connection over `transport`, which it owns from now on.

    Args:
        context: see `p2player.net.contexts`.
        alpn: the handshake fails unless it agrees on one of these; empty: anything goes.

    Attributes:
        bytes_in, bytes_out: bytes on the wire so far, handshake and record overhead included.
    """

    def __init__(
        self, transport: trio.abc.Stream, context: ssl.SSLContext, *, server_side: bool, alpn: Sequence[str] = ()
    ) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self._transport = transport
        self._alpn = tuple(alpn)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._receiving = _Exclusive("receiving from")
        self._sending = _Exclusive("sending to")
        self._wire = trio.Lock()
        self._gathering = Gathering(transport.socket if isinstance(transport, trio.SocketStream) else None)
        self._ended = False
        self._broken = False
        self._closed = False

    async def do_handshake(self) -> None:
        """Agree on keys and check each other's certificates; set a deadline around it.

        On the side of a TLS 1.3 client this returns before the server has checked the client's certificate: a rejection
        shows in the first `receive_some`. After a failure `aclose` tells the peer why, by an alert.

        Raises:
            HandshakeFailed: the peer speaks no TLS, has no acceptable certificate, or went away.
        """
        with self._sending, self._receiving:
            while not self._advance():
                await self._flush(HandshakeFailed)
                await self._fill(HandshakeFailed)
            await self._flush(HandshakeFailed)
            if self._alpn and self.alpn() not in self._alpn:
                raise HandshakeFailed(f"TLS handshake failed: no common protocol ({self.alpn() or 'none'} was agreed)")

    def _advance(self) -> bool:
        """Take the handshake as far as the data at hand allows; whether it is done."""
        self._check_open()
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise HandshakeFailed(f"TLS handshake failed: {_explain(error)}") from None
        return True

    async def receive_some(self, max_bytes: int | None = READ_BYTES, *, lacking: int = 0) -> bytes:
        """Wait for data and return what has come, up to `max_bytes`; b"" once the peer has closed.

        Args:
            lacking: with less than so many bytes the caller can do nothing. Data that comes fast is then gathered for
                some hundredths of a second, since each waking costs as much as thousands of bytes.

        Raises:
            Truncated: the connection ended without the peer's close_notify.
            TlsError: what came is not TLS under the agreed keys, or the peer sent an alert.
        """
        limit = min(READ_BYTES if max_bytes is None else max_bytes, READ_BYTES)
        if limit < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._receiving:
            self._check_open()
            await trio.lowlevel.checkpoint()
            while True:
                self._check_open()
                # Nothing is awaited between decrypting and returning: a cancellation finds no plaintext to lose.
                data = self._decrypt(limit)
                if data or self._ended:
                    return data
                if self._outgoing.pending and not self._wire.locked() and not self._broken:
                    await self._flush()
                self._gathering.wait_for(lacking)
                await self._fill(Truncated)

    def _decrypt(self, limit: int) -> bytes:
        """The plaintext of what has arrived; notes the peer's goodbye."""
        records: list[bytes] = []
        try:
            while limit and not self._ended:
                data = self._tls.read(min(limit, RECORD_BYTES))
                self._ended = not data
                records.append(data)
                limit -= len(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise TlsError(f"TLS connection failed: {_explain(error)}") from None
        return records[0] if len(records) == 1 else b"".join(records)

    async def send_all(self, data: Buffer) -> None:
        """Send `data`; returns once the transport has taken all of it.

        Raises:
            TlsError: the connection is broken, or an earlier send was cancelled.
        """
        await self.send_buffers((data,))

    async def send_buffers(self, buffers: Iterable[Buffer]) -> None:
        """Send several buffers as if they were one, small ones with one call of the transport; else as `send_all`."""
        with self._sending:
            self._check_open()
            if self._broken:
                raise TlsError(_TORN)
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                for buffer in buffers:
                    await self._encrypt(buffer)
                await self._flush()
            except BaseException:
                # Some of it may be encrypted and some not: what follows could not be told from the missing part.
                self._broken = True
                raise

    async def _encrypt(self, buffer: Buffer) -> None:
        """Add a buffer to the ciphertext, which is sent on the way as often as it fills a batch."""
        with memoryview(buffer) as view, view.cast("B") as data:
            offset = 0
            while offset < len(data):
                self._check_open()
                try:
                    offset += self._tls.write(data[offset : offset + WRITE_BYTES])
                except ssl.SSLError as error:
                    raise TlsError(f"TLS connection failed: {_explain(error)}") from None
                if self._outgoing.pending >= WRITE_BYTES:
                    await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until `send_all` has a chance to make progress at once."""
        with self._sending:
            self._check_open()
            async with self._wire:
                await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Say goodbye, or why there is no connection, for at most `CLOSE_S`; then close the transport."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            if not self._broken:
                # During a handshake and after a failure this raises, and otherwise it would like to wait for the peer's
                # goodbye. What there is to say from here, a goodbye or an alert, is in the buffer either way.
                with suppress(ssl.SSLError):
                    self._tls.unwrap()
                with trio.move_on_after(CLOSE_S), suppress(TlsError, trio.ClosedResourceError):
                    await self._flush()
        finally:
            await self._transport.aclose()

    def alpn(self) -> str | None:
        """The protocol that the handshake agreed on."""
        return self._tls.selected_alpn_protocol()

    def peer_certificate_der(self) -> bytes | None:
        """The peer's own certificate, verified up to the mesh root; None if it showed none."""
        return self._tls.getpeercert(binary_form=True)

    def link(self) -> LinkEstimate:
        """What is known of the link that this side sends on."""
        if self._closed or not isinstance(self._transport, trio.SocketStream):
            return UNKNOWN
        return estimate(self._transport.socket)

    async def _flush(self, failure: type[TlsError] = TlsError) -> None:
        """Send all ciphertext there is, in order."""
        async with self._wire:
            while self._outgoing.pending:
                if self._broken:
                    raise failure(_TORN)
                data = self._outgoing.read()
                self.bytes_out += len(data)
                try:
                    await self._transport.send_all(data)
                except trio.BrokenResourceError as error:
                    self._broken = True
                    raise failure(f"connection lost: {error.__cause__ or error}") from None
                except BaseException:
                    # Cancelled: how much of it went out is unknown, and records must not have gaps.
                    self._broken = True
                    raise

    async def _fill(self, failure: type[TlsError]) -> None:
        """Wait for ciphertext."""
        try:
            data = await self._transport.receive_some(READ_BYTES)
        except trio.BrokenResourceError as error:
            raise failure(f"connection lost: {error.__cause__ or error}") from None
        if not data:
            raise failure("connection closed by the other end without a word")
        self.bytes_in += len(data)
        self._gathering.took(len(data), trio.current_time())
        self._incoming.write(data)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this TLS stream was closed")
