"""Small meshes of certificates on disk, for tests that shake hands."""

import ssl
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from gossip.messages import NodeId, node_id
from p2player.net import contexts, issuing
from p2player.net.certificates import chain_pem

NOW = 1_800_000_000.0


class Mesh:
    """A root and the nodes that it certified; files go below `folder`."""

    def __init__(self, folder: Path, name: str, now: float = NOW) -> None:
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.key = Ed25519PrivateKey.generate()
        self.certificate = issuing.make_root(self.key, name, now)
        self.root = self.certificate.public_bytes(Encoding.DER)
        self.mesh_id = node_id(self.key.public_key().public_bytes_raw())

    def node(self, name: str, now: float = NOW, site: str = "") -> "MeshNode":
        """Certify a new node at time `now`."""
        key = Ed25519PrivateKey.generate()
        grant = issuing.decide(key.public_key().public_bytes_raw(), name, site, now)
        der = issuing.issue(grant, self.mesh_id, self.certificate, self.key)
        (self.folder / f"{name}.key").write_bytes(issuing.key_pem(key))
        (self.folder / f"{name}.pem").write_bytes(chain_pem([der]))
        return MeshNode(self, name, grant.node_id, der)


class MeshNode:
    """One certified node and its TLS contexts."""

    def __init__(self, mesh: Mesh, name: str, node: NodeId, der: bytes) -> None:
        self.id = node
        self.der = der
        self.mesh = mesh
        self._files = (mesh.folder / f"{name}.pem", mesh.folder / f"{name}.key")

    def server(self) -> ssl.SSLContext:
        return contexts.server_context(*self._files, self.mesh.root)

    def client(self) -> ssl.SSLContext:
        return contexts.client_context(*self._files, self.mesh.root)
