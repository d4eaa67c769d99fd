"""The node that lets others in: it makes invites, certifies who shows one, and renews what it certified.

Everything it promises is on disk before it is said: the journal's fsync comes before the signature, and the signature
is a function of the journalled grant. So a crash at any point leaves either no use of the invite, or one that the same
machine can repeat.

    identity/authority/   ca.key    signs node certificates (0600)
                          ca.pem    the issuing certificate, and what lies between it and the root
                          journal   see `p2player.net.register`
"""

import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gossip.messages import NodeId
from p2player.addresses import Address
from p2player.errors import Failed, Integrity, Refused, Usage
from p2player.journal import Journal
from p2player.net import issuing, register
from p2player.net.certificates import (
    BACKDATE_S,
    CertificateError,
    Grant,
    Request,
    chain_pem,
    read_chain,
    read_key,
    read_request,
    read_root,
    renewal_due,
)
from p2player.net.invites import Contact, Token
from p2player.net.register import Register
from p2player.proto.joining import INVITE_BYTES, SECRET_BYTES, JoinRequest, describe_skew
from p2player.statedir import write_atomic

MIN_TTL_S: Final = 1.0
MAX_TTL_S: Final = 30 * 86400.0
MAX_USES: Final = 1000
MAX_SKEW_S: Final = BACKDATE_S / 2
"""How wrong the clock of a newcomer may be. Certificates are backdated by twice that."""


class Authority:
    """An authority of one mesh; safe to use from several threads, by one process at a time (STATE's lock).

    Made by `create` or `open`.

    Attributes:
        root: the mesh's root certificate, DER.
    """

    def __init__(
        self,
        mesh_id: str,
        root: bytes,
        chain: tuple[bytes, ...],
        key: Ed25519PrivateKey,
        journal: Journal,
        known: Register,
    ) -> None:
        self.root = root
        self._mesh_id = mesh_id
        self._mesh = read_root(root)[1]
        self._issuer = x509.load_der_x509_certificate(chain[0])
        self._above = () if chain[0] == root else chain
        self._key = key
        self._journal = journal
        self._register = known
        self._lock = threading.Lock()

    @classmethod
    def create(cls, folder: Path, key: Ed25519PrivateKey, root: bytes, now: float) -> "Authority":
        """Write the files of a new mesh's authority, which signs with the root key itself.

        Args:
            folder: made with mode 0700; must not exist.
            root: the self-signed certificate of `key`, DER.
        """
        folder.mkdir(mode=0o700)
        write_atomic(folder / "ca.key", issuing.key_pem(key))
        write_atomic(folder / "ca.pem", chain_pem([root]), 0o644)
        journal = Journal.open(folder / "journal")
        journal.append(register.begin_record(read_root(root)[0], now))
        journal.close()
        return cls.open(folder, root)

    @classmethod
    def open(cls, folder: Path, root: bytes) -> "Authority":
        """Read the files and replay the journal.

        Raises:
            Integrity: they are damaged, or of another mesh, or of a version that this one does not know.
            Failed: they cannot be read.
        """
        try:
            key = read_key((folder / "ca.key").read_bytes())
            chain = read_chain((folder / "ca.pem").read_bytes())
            if x509.load_der_x509_certificate(chain[0]).public_key() != key.public_key():
                raise CertificateError("ca.key is not the key of ca.pem")
            journal = Journal.open(folder / "journal")
        except CertificateError as error:
            raise Integrity(f"{folder}: {error}") from None
        except OSError as error:
            raise Failed(f"cannot read the authority's files: {error.filename}: {error.strerror}") from None
        mesh_id, known = read_root(root)[0], Register()
        try:
            for number, record in enumerate(journal.records, 1):
                if number == 1 and (record.get("kind"), record.get("mesh")) != ("begin", mesh_id):
                    raise Integrity(f"{journal.path} belongs to another mesh")
                try:
                    known.apply(record)
                except (KeyError, TypeError, ValueError) as error:
                    raise Integrity(f"{journal.path}: line {number} is not understood: {error}") from None
            return cls(mesh_id, root, chain, key, journal, known)
        except BaseException:
            journal.close()
            raise

    def invite(self, contact: Contact, *, ttl_s: float, uses: int, now: float) -> Token:
        """Make an invite. The token's text is `str(token)`; the secret in it is kept nowhere else.

        Args:
            contact: this node, where newcomers will reach it.
            ttl_s: how long the invite is valid, 1 s to 30 days.
            uses: how many machines may join with it, 1 to 1000.

        Raises:
            Usage: a number is out of bounds.
            Failed: the journal cannot be written.
        """
        if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise Usage("an invite is valid for 1 second to 30 days")
        if not 1 <= uses <= MAX_USES:
            raise Usage(f"an invite has 1 to {MAX_USES} uses")
        invite_id, secret = secrets.token_bytes(INVITE_BYTES), secrets.token_bytes(SECRET_BYTES)
        expires = int(now + ttl_s)
        with self._lock:
            self._write(register.invite_record(invite_id, secret, uses, expires, now))
        return Token(self._mesh, self._mesh_id, self.root, (contact,), invite_id, secret, expires)

    def found(self, request: Request, address: Address, now: float) -> tuple[bytes, ...]:
        """Certify the mesh's first node, which needs no invite; the chain."""
        with self._lock:
            self._register.check_name(request)
            return self._grant(None, request, address, now)[1]

    def admit(self, request: JoinRequest, now: float) -> tuple[Grant, tuple[bytes, ...]]:
        """Judge a request; what was granted, and its certificate chain. Blocks for an fsync.

        Raises:
            Refused: it may not join; the text says why.
            Failed: the journal cannot be written; nothing was promised.
        """
        skew_s = request.sent_at - now
        if abs(skew_s) > MAX_SKEW_S:
            raise Refused(f"the clock of this machine is {describe_skew(skew_s)}: set it and join again")
        wanted = read_request(request.csr)
        with self._lock:
            earlier = self._register.judge(wanted, request.invite, request.secret, now)
            if earlier is not None:
                return earlier, self._sign(earlier)
            return self._grant(request.invite, wanted, Address(request.host, request.port), now)

    def renew(self, csr: bytes, asker: NodeId, now: float) -> tuple[bytes, ...]:
        """Certify a node for another 30 days; its chain. Blocks for an fsync.

        A certificate that is not due for renewal is given again instead: asking often costs nothing, and who did not
        hear the answer asks once more.

        Args:
            csr: PKCS #10 request, DER, for the asker's own key, name and site.
            asker: the node that the session's certificate proves.

        Raises:
            Refused: it may not be renewed; the text says why.
            Failed: the journal cannot be written; nothing was promised.
        """
        wanted = read_request(csr)
        with self._lock:
            held = self._register.judge_renewal(wanted, asker)
            # One that is not valid yet is what a wrong clock of this machine once granted: it must not be kept.
            if held.not_before <= now < renewal_due(held.not_before) - MAX_SKEW_S:
                return self._sign(held)
            grant = issuing.decide(held.public_key, held.name, held.site, now)
            self._write(register.renewal_record(grant, now))
            return self._sign(grant)

    def release(self, node: NodeId, now: float) -> bool:
        """Note that `node` has left: its name is free for others. False if it held none.

        Raises:
            Failed: the journal cannot be written.
        """
        with self._lock:
            if node not in self._register.granted():
                return False
            self._write(register.release_record(node, now))
            return True

    def granted(self) -> Mapping[NodeId, Grant]:
        """Who was certified and has not left."""
        with self._lock:
            return self._register.granted()

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _grant(
        self, invite: bytes | None, request: Request, address: Address, now: float
    ) -> tuple[Grant, tuple[bytes, ...]]:
        grant = issuing.decide(request.public_key, request.name, request.site, now)
        self._write(register.grant_record(invite, grant, str(address), now))
        return grant, self._sign(grant)

    def _sign(self, grant: Grant) -> tuple[bytes, ...]:
        return (issuing.issue(grant, self._mesh_id, self._issuer, self._key), *self._above)

    def _write(self, record: register.Record) -> None:
        try:
            self._journal.append(record)
        except OSError as error:
            raise Failed(f"{self._journal.path}: {error.strerror or error}") from None
        self._register.apply(record)
