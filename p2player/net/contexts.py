"""The TLS settings of each kind of connection: TLS 1.3 only, trust in one mesh root only, no tickets.

Host names are not checked: a peer is known by the node id in its certificate, whatever address it has
(`Identity.peer_node_id`). One listener serves both protocols, and Python's contexts decide about client certificates
before the protocol is agreed, so the server asks for a certificate and does not insist; `p2player.net.handshake` does,
right after the handshake.
"""

import ssl
from pathlib import Path
from typing import Final

ALPN_PEER: Final = "p2player/1"
ALPN_JOIN: Final = "p2player-join/1"

_NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name."""


def server_context(chain: Path, key: Path, root: bytes) -> ssl.SSLContext:
    """For the listener: peers with a certificate of the mesh, and strangers who want to join.

    Args:
        chain, key: PEM files of this node.
        root: the mesh's root certificate, DER.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, root)
    context.load_cert_chain(chain, key)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    context.set_alpn_protocols([ALPN_PEER, ALPN_JOIN])
    return context


def client_context(chain: Path, key: Path, root: bytes) -> ssl.SSLContext:
    """For dialling peers; arguments as `server_context`."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, root)
    context.load_cert_chain(chain, key)
    context.set_alpn_protocols([ALPN_PEER])
    return context


def join_context(root: bytes) -> ssl.SSLContext:
    """For a machine that has no certificate yet and trusts `root`, the one in its token.

    Validity times are not checked here: a machine whose clock is wrong must get as far as being told so. The node id
    in the token, not the date, is what tells the authority from others.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, root)
    context.verify_flags |= _NO_CHECK_TIME
    context.set_alpn_protocols([ALPN_JOIN])
    return context


def _context(kind: int, root: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=root)
    return context
