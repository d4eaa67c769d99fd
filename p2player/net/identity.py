"""Who this node is: its key, its certificate, the mesh it belongs to, and where it listens.

    identity/  node.key      Ed25519 key (0600)
               node.pem      the node's certificate and what lies between it and the root, leaf first
               ca.pem        root certificates of the mesh; one in this version
               node.json     {"version": 1, "listen": "HOST:PORT", "advertise": "HOST:PORT" or null,
                              "authorities": [NODEID, ...]}: of the token that this node joined with
               keyring       gossip keys (see `keyring`)
               members.json  whom to gossip with first, as the authority told when the node joined
               authority/    on an authority only (see `authority`)

The folder appears by one rename when `init` or `join` has succeeded, so it is there whole or not at all. A renewal
replaces node.pem alone. Name, site and mesh are read from the certificates and stand nowhere else.
"""

import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gossip.errors import Malformed
from gossip.messages import NodeId, parse_node_id
from gossip.sealing import Keyring
from p2player.addresses import Address, parse_address, reachable_host
from p2player.errors import Integrity, Refused, Usage
from p2player.net import contexts, keyring
from p2player.net.authority import Authority
from p2player.net.certificates import (
    CertificateError,
    NodeCertificate,
    chain_pem,
    check_chain,
    read_chain,
    read_key,
    read_node,
    read_root,
    renewal_due,
)
from p2player.net.issuing import key_pem
from p2player.statedir import StateDir, write_atomic

VERSION: Final = 1
MAX_FILE_BYTES: Final = 1 << 20
MAX_AUTHORITIES: Final = 8


@dataclass(frozen=True, slots=True)
class Identity:
    """This node, as loaded from STATE; `load` makes it.

    Attributes:
        folder: STATE/identity.
        listen: where the node listens, TCP and UDP.
        advertise: where others reach it, if the operator said so; see `reached_at`.
        certificate: the node's own.
        chain: that and what lies between it and the root, DER.
        roots: the mesh's root certificates, DER.
        members: rows of plain values, whom to gossip with first.
        authorities: who let this node in, and may renew its certificate; empty on the mesh's first node.
    """

    folder: Path
    mesh_id: str
    mesh_name: str
    listen: Address
    advertise: Address | None
    certificate: NodeCertificate
    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    members: tuple[Mapping[str, Any], ...]
    authorities: tuple[NodeId, ...]
    key: Ed25519PrivateKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, state: StateDir) -> "Identity":
        """Read the identity and check that its parts belong together.

        Raises:
            Refused: this node has none.
            Integrity: a file is damaged, missing, or of a version that this one does not know.
        """
        folder = state.identity
        if not folder.is_dir():
            raise Refused(f"{state.root} holds no identity: run `p2player init` or `p2player join` first")
        try:
            return cls._read(folder)
        except (CertificateError, Malformed, Usage, ValueError, KeyError, TypeError, RecursionError) as error:
            raise Integrity(f"the identity in {folder} is damaged: {error}") from None
        except OSError as error:
            raise Integrity(f"the identity in {folder} is damaged: {error.filename}: {error.strerror}") from None

    @classmethod
    def _read(cls, folder: Path) -> "Identity":
        roots = read_chain(_bytes(folder / "ca.pem"))
        mesh_id, mesh_name = read_root(roots[0])
        chain = read_chain(_bytes(folder / "node.pem"))
        check_chain(chain, roots[0])
        certificate = read_node(chain[0], mesh_id)
        key = read_key(_bytes(folder / "node.key"))
        if key.public_key().public_bytes_raw() != certificate.public_key:
            raise CertificateError("node.key is not the key of node.pem")
        place = json.loads(_bytes(folder / "node.json"))
        if place["version"] != VERSION:
            raise CertificateError(f"node.json has version {place['version']!r}; {VERSION} is known")
        members = json.loads(_bytes(folder / "members.json"))
        if not isinstance(members, list) or not all(isinstance(row, dict) for row in members):
            raise CertificateError("members.json is no list of tables")
        authorities = place.get("authorities", [])
        if not isinstance(authorities, list) or len(authorities) > MAX_AUTHORITIES:
            raise CertificateError("node.json names no list of authorities")
        return cls(
            folder=folder,
            mesh_id=mesh_id,
            mesh_name=mesh_name,
            listen=parse_address(place["listen"]),
            advertise=parse_address(place["advertise"]) if place["advertise"] is not None else None,
            certificate=certificate,
            chain=chain,
            roots=roots,
            members=tuple(members),
            authorities=tuple(parse_node_id(each) for each in authorities),
            key=key,
        )

    @property
    def node_id(self) -> NodeId:
        """The id of this node's key."""
        return self.certificate.node_id

    @property
    def name(self) -> str:
        """The node's name in the mesh."""
        return self.certificate.name

    @property
    def site(self) -> str:
        """The node's site; empty where none was given."""
        return self.certificate.site

    @property
    def public_key(self) -> bytes:
        """The raw Ed25519 public key, 32 bytes."""
        return self.certificate.public_key

    def sign(self, message: bytes) -> bytes:
        """This node's Ed25519 signature, 64 bytes; checked with `certificates.verify`."""
        return self.key.sign(message)

    def server_context(self) -> ssl.SSLContext:
        """TLS settings of the listener; to be made anew when the certificate was renewed."""
        return contexts.server_context(self.folder / "node.pem", self.folder / "node.key", self.roots[0])

    def client_context(self) -> ssl.SSLContext:
        """TLS settings for dialling peers; likewise."""
        return contexts.client_context(self.folder / "node.pem", self.folder / "node.key", self.roots[0])

    def peer(self, certificate_der: bytes) -> NodeCertificate:
        """Whom a certificate that TLS has verified proves.

        Raises:
            CertificateError: it is of another mesh, or its parts do not agree.
        """
        return read_node(certificate_der, self.mesh_id)

    def peer_node_id(self, certificate_der: bytes) -> NodeId:
        """The node id that a certificate proves; raises as `peer`."""
        return self.peer(certificate_der).node_id

    def needs_renewal(self, now: float) -> bool:
        """Whether the certificate is in its last 20 days."""
        return now >= renewal_due(self.certificate.not_before)

    def is_expired(self, now: float) -> bool:
        """Whether the certificate's time is over."""
        return now > self.certificate.not_after

    def check_valid(self, now: float) -> None:
        """Check that this node may open sessions.

        Raises:
            Refused: its certificate has expired, or is not valid yet by this machine's clock.
        """
        if self.is_expired(now):
            when = datetime.fromtimestamp(self.certificate.not_after, UTC)
            raise Refused(
                f"the certificate of this node expired at {when:%Y-%m-%d %H:%M} UTC and no authority has renewed it: "
                "no new sessions until it is enrolled again with `p2player join TOKEN`"
            )
        if now < self.certificate.not_before:
            when = datetime.fromtimestamp(self.certificate.not_before, UTC)
            raise Refused(
                f"the certificate of this node is valid from {when:%Y-%m-%d %H:%M} UTC: "
                "the clock of this machine is behind"
            )

    def reached_at(self) -> Address:
        """Where others reach this node: as advertised; else where it listens, if that is a specific address; else the
        local address that leads to the first known member, or out of this machine. Asks the routing table, and the
        resolver for members that are known by name.
        """
        hosts = [row["host"] for row in self.members if isinstance(row.get("host"), str)]
        return self.advertise or Address(reachable_host(self.listen.host, hosts), self.listen.port)

    def keyring(self) -> Keyring:
        """The gossip keys as they are on disk now; raises as `keyring.read_keyring`."""
        return keyring.read_keyring(self.folder / "keyring")

    def save_keyring(self, ring: Keyring) -> None:
        """Replace the gossip keys on disk."""
        keyring.write_keyring(self.folder / "keyring", ring)

    @property
    def is_authority(self) -> bool:
        """Whether this node lets others in."""
        return (self.folder / "authority").is_dir()

    def open_authority(self) -> Authority:
        """This node's authority; STATE's lock must be held.

        Raises:
            Refused: this node is none.
            Integrity: its files are damaged.
        """
        if not self.is_authority:
            raise Refused(f"node {self.name} is no authority of mesh {self.mesh_name}")
        return Authority.open(self.folder / "authority", self.roots[0])


def write_identity(
    folder: Path,
    *,
    key: Ed25519PrivateKey,
    chain: Sequence[bytes],
    roots: Sequence[bytes],
    ring: Keyring,
    listen: Address,
    advertise: Address | None,
    members: Sequence[Mapping[str, Any]],
    authorities: Sequence[NodeId],
) -> None:
    """Write all files of an identity into an existing folder, durably; the certificate last, so that an identity of the
    same key that lies there is whole after a crash at any point.
    """
    place = {
        "version": VERSION,
        "listen": str(listen),
        "advertise": str(advertise) if advertise else None,
        "authorities": list(authorities),
    }
    write_atomic(folder / "node.key", key_pem(key))
    write_atomic(folder / "ca.pem", chain_pem(roots), 0o644)
    write_atomic(folder / "node.json", json.dumps(place, indent=1).encode() + b"\n", 0o644)
    write_atomic(folder / "members.json", json.dumps(list(members), indent=1).encode() + b"\n", 0o644)
    keyring.write_keyring(folder / "keyring", ring)
    write_atomic(folder / "node.pem", chain_pem(chain), 0o644)


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_FILE_BYTES)
