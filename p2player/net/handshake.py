"""Who gets in: the handshake of either side with its deadline, and what must hold before a byte of protocol flows."""

import ssl
from typing import Final

import trio

from p2player.net.contexts import ALPN_JOIN, ALPN_PEER
from p2player.net.tls import HandshakeFailed, TlsStream

HANDSHAKE_S: Final = 10.0
CLEANUP_S: Final = 1.0


async def accept(transport: trio.abc.Stream, context: ssl.SSLContext, *, timeout_s: float = HANDSHAKE_S) -> TlsStream:
    """Shake hands as the server. A stream for peers has a verified certificate; one for joining may have none.

    The transport is closed on every way out but the return.

    Args:
        context: `contexts.server_context`.

    Raises:
        HandshakeFailed: no handshake in time, another protocol, or a peer without a certificate of the mesh.
    """
    stream = TlsStream(transport, context, server_side=True, alpn=(ALPN_PEER, ALPN_JOIN))
    await _shake(stream, timeout_s, certificate_for=(ALPN_PEER,))
    return stream


async def connect(
    transport: trio.abc.Stream, context: ssl.SSLContext, *, alpn: str = ALPN_PEER, timeout_s: float = HANDSHAKE_S
) -> TlsStream:
    """Shake hands as the client; closes the transport if that fails. Who answered is the caller's to check.

    Args:
        context: `contexts.client_context`, or `contexts.join_context` with `alpn=ALPN_JOIN`.

    Raises:
        HandshakeFailed: no handshake in time, another protocol, or a certificate of another mesh.
    """
    stream = TlsStream(transport, context, server_side=False, alpn=(alpn,))
    await _shake(stream, timeout_s, certificate_for=(alpn,))
    return stream


async def _shake(stream: TlsStream, timeout_s: float, certificate_for: tuple[str, ...]) -> None:
    done = False
    try:
        with trio.move_on_after(timeout_s):
            await stream.do_handshake()
            if stream.alpn() in certificate_for and stream.peer_certificate_der() is None:
                raise HandshakeFailed("TLS handshake failed: the peer shows no certificate")
            done = True
            return
        raise HandshakeFailed(f"no TLS handshake within {timeout_s:g} s")
    finally:
        if not done:
            with trio.move_on_after(CLEANUP_S, shield=True):
                await stream.aclose()
