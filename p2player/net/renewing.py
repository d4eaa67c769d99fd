"""Renewing a certificate, both ends: what an authority answers to a member, and what a member makes of the answer.

    identity.renew      {csr}  ->  {chain}          the next certificate for the asker's own key, name and site
    identity.authority  {}     ->  {authorities}    whom the callee takes for authorities of the mesh

Both are asked over sessions, so the authority knows who asks. The member believes a chain, not its sender: it must lead
from this node's own key to the mesh's root. So it does no harm to ask somebody who is no authority.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

import trio

from gossip.errors import Malformed
from gossip.messages import NodeId, parse_node_id
from p2player import errors
from p2player.log import Log
from p2player.net.authority import Authority
from p2player.net.certificates import (
    CertificateError,
    chain_pem,
    check_chain,
    read_node,
)
from p2player.net.connection import Handler, Incoming
from p2player.net.identity import MAX_AUTHORITIES, Identity
from p2player.net.issuing import make_request
from p2player.statedir import write_atomic

RENEW: Final = "identity.renew"
AUTHORITY: Final = "identity.authority"
RENEW_S: Final = 20.0
AUTHORITY_S: Final = 5.0


class Peers(Protocol):
    """Calls to other nodes: `PeerPool`."""

    async def call(
        self, node: NodeId, method: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0
    ) -> dict[str, Any]: ...


class RenewalDesk:
    """Answers members that ask for their next certificate, or for who may give it.

    Args:
        identity: this node's.
        authority: None where this node is none; askers are then told so.
        clock: seconds since the Unix epoch.
    """

    def __init__(
        self, identity: Identity, authority: Authority | None, log: Log, clock: Callable[[], float] = time.time
    ) -> None:
        self._identity = identity
        self._authority = authority
        self._log = log
        self._clock = clock

    def handlers(self) -> dict[str, Handler]:
        """What peers may ask, by method."""
        return {RENEW: self._renew, AUTHORITY: self._authorities}

    async def _renew(self, call: Incoming) -> dict[str, Any]:
        if self._authority is None:
            raise errors.Refused(f"node {self._identity.name} is no authority of mesh {self._identity.mesh_name}")
        csr = call.body.get("csr")
        if not isinstance(csr, bytes):
            raise errors.Usage("a renewal needs a certificate request")
        try:
            chain = await trio.to_thread.run_sync(self._authority.renew, csr, call.peer, self._clock())
        except errors.P2PlayerError as error:
            self._log.warning("renewal refused", node=call.peer, name=call.peer_name, reason=error.message)
            raise
        self._log.info("certificate given", node=call.peer, name=call.peer_name)
        return {"chain": list(chain)}

    async def _authorities(self, call: Incoming) -> dict[str, Any]:
        mine = self._identity.authorities if self._authority is None else (self._identity.node_id,)
        return {"authorities": list(mine)}


async def request_renewal(identity: Identity, peers: Peers, authority: NodeId, now: float) -> Identity:
    """Ask that authority for the next certificate; the identity with it, durable on disk.

    Raises:
        P2PlayerError: no answer, a refusal, or an answer that is not to be believed; nothing has changed.
    """
    csr = make_request(identity.key, identity.name, identity.site)
    reply = await peers.call(authority, RENEW, {"csr": csr}, timeout_s=RENEW_S)
    chain = reply.get("chain")
    if not isinstance(chain, list) or not all(isinstance(der, bytes) for der in chain):
        raise errors.Integrity("the authority sent a malformed answer")
    return await trio.to_thread.run_sync(accept_renewal, identity, chain, now)


def renew_own(identity: Identity, authority: Authority, now: float) -> Identity:
    """Let the authority on this very node renew its node's certificate; as `request_renewal`. Blocks for fsyncs."""
    csr = make_request(identity.key, identity.name, identity.site)
    return accept_renewal(identity, authority.renew(csr, identity.node_id, now), now)


async def ask_authorities(peers: Peers, node: NodeId) -> list[NodeId]:
    """Whom `node` takes for authorities; raises what `call` does, and `Integrity` for a malformed answer."""
    rows = (await peers.call(node, AUTHORITY, {}, timeout_s=AUTHORITY_S)).get("authorities")
    try:
        if not isinstance(rows, list) or len(rows) > MAX_AUTHORITIES:
            raise Malformed("no list of authorities")
        return [parse_node_id(row) for row in rows]
    except Malformed as error:
        raise errors.Integrity(f"the peer sent a malformed answer: {error}") from None


def accept_renewal(identity: Identity, chain: Sequence[bytes], now: float) -> Identity:
    """Check a renewed chain as one that joining brings, and make it this node's: `node.pem` is replaced atomically.

    Args:
        chain: leaf first, DER, without the root.

    Raises:
        Integrity: it is not a certificate of this node's key, name and site that leads to the mesh's root.
        Refused: it is not valid by this machine's clock, or no newer than the present one.
        Failed: it cannot be written.
    """
    try:
        check_chain(chain, identity.roots[0])
        certificate = read_node(chain[0], identity.mesh_id)
    except CertificateError as error:
        raise errors.Integrity(f"the authority sent a wrong answer: {error}") from None
    if (certificate.public_key, certificate.name, certificate.site) != (
        identity.public_key,
        identity.name,
        identity.site,
    ):
        raise errors.Integrity("the authority sent another node's certificate")
    if certificate.not_after <= identity.certificate.not_after:
        raise errors.Refused("the authority sent no newer certificate: its clock is behind this machine's")
    renewed = replace(identity, certificate=certificate, chain=tuple(chain))
    renewed.check_valid(now)
    try:
        write_atomic(identity.folder / "node.pem", chain_pem(chain), 0o644)
    except OSError as error:
        raise errors.Failed(f"cannot write {identity.folder / 'node.pem'}: {error.strerror}") from None
    return renewed
