"""What proves who a node is: the mesh's root, node certificates, requests for them, and chains, read and checked.

A mesh is named by its root key and a node by its own: MESHID and NODEID are the first 16 bytes of the BLAKE3 of the raw
Ed25519 public key, in hex. So an id cannot be claimed without its key, whoever signs what.

    root          self-signed, 20 years, path length 1: it may certify further authorities, and they only nodes
    node          30 days, backdated one hour for clocks that are behind; subject CN=name, OU=site, O=mesh name;
                  SAN URI p2player://MESHID/NODEID; for both ends of TLS

Chains are lists, leaf first, without the root. Everything here takes the time as seconds since the Unix epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from gossip.messages import NodeId, node_id
from p2player.errors import Refused
from p2player.net.names import is_name, is_site

SCHEME: Final = "p2player://"
NODE_VALIDITY_S: Final = 30 * 86400
BACKDATE_S: Final = 3600
RENEW_AFTER_S: Final = 10 * 86400
ROOT_VALIDITY_S: Final = 20 * 365 * 86400
MAX_CHAIN: Final = 3
MAX_CERTIFICATE_BYTES: Final = 4096

_MALFORMED: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What the parser raises for DER that is no certificate, or an odd one."""


class CertificateError(Refused):
    """A certificate, or a request for one, is not what it has to be."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What an authority decided to certify. The certificate is a function of it: signing again gives the same bytes."""

    public_key: bytes
    name: str
    site: str
    serial: int
    not_before: int
    not_after: int

    @property
    def node_id(self) -> NodeId:
        """The id of the certified key."""
        return node_id(self.public_key)


@dataclass(frozen=True, slots=True)
class NodeCertificate:
    """What a node certificate says; made by `read_node` only, from one whose parts agree with each other."""

    der: bytes
    node_id: NodeId
    mesh_id: str
    name: str
    site: str
    public_key: bytes
    serial: int
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class Request:
    """What a node asks to have certified; its signature proved possession of the key."""

    public_key: bytes
    name: str
    site: str


def renewal_due(not_before: float) -> float:
    """From when on a certificate valid from `not_before` is to be renewed."""
    return not_before + BACKDATE_S + RENEW_AFTER_S


def read_key(pem: bytes) -> Ed25519PrivateKey:
    """Read what `key_pem` wrote.

    Raises:
        CertificateError: it is no unencrypted Ed25519 key.
    """
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError("not a private key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CertificateError("not an Ed25519 key")
    return key


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The raw public key, 32 bytes."""
    return key.public_key().public_bytes_raw()


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is that key's Ed25519 signature of `message`; never raises for a bad key or signature."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def read_root(der: bytes) -> tuple[str, str]:
    """The (mesh id, mesh name) of a root certificate.

    Raises:
        CertificateError: it is none, or not signed by itself.
    """
    certificate = _parse(der)
    try:
        certificate.verify_directly_issued_by(certificate)
        if not _is_authority(certificate):
            raise CertificateError("not the certificate of a mesh authority")
        mesh_id, mesh = node_id(_public_key(certificate)), subject_word(certificate.subject, NameOID.ORGANIZATION_NAME)
        if _uri(certificate) != SCHEME + mesh_id or not is_name(mesh):
            raise CertificateError("not the certificate of a mesh authority")
    except InvalidSignature:
        raise CertificateError("the mesh authority's certificate is not signed by itself") from None
    except _MALFORMED:
        raise CertificateError("malformed certificate of a mesh authority") from None
    return mesh_id, mesh


def read_node(der: bytes, mesh_id: str) -> NodeCertificate:
    """Read a node certificate and check that it is one of that mesh and that its parts agree; not who signed it.

    Raises:
        CertificateError: it is not.
    """
    certificate = _parse(der)
    try:
        if _is_authority(certificate):
            raise CertificateError("an authority's certificate stands where a node's belongs")
        public_key = _public_key(certificate)
        claimed = node_id(public_key)
        uri = _uri(certificate)
        name = subject_word(certificate.subject, NameOID.COMMON_NAME)
        site = subject_word(certificate.subject, NameOID.ORGANIZATIONAL_UNIT_NAME)
    except _MALFORMED:
        raise CertificateError("malformed node certificate") from None
    if not uri.startswith(f"{SCHEME}{mesh_id}/"):
        raise CertificateError("the certificate belongs to another mesh")
    if uri != f"{SCHEME}{mesh_id}/{claimed}":
        raise CertificateError("the certificate names another node than its key does")
    if not is_name(name) or not is_site(site):
        raise CertificateError("the certificate names no valid node or site")
    return NodeCertificate(
        der=der,
        node_id=claimed,
        mesh_id=mesh_id,
        name=name,
        site=site,
        public_key=public_key,
        serial=certificate.serial_number,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
    )


def check_chain(chain: Sequence[bytes], root: bytes) -> None:
    """Check the signatures from a node certificate up to the root, and that each issuer may issue; not the times.

    TLS does this for sessions, times included; here it is for what arrives by another way.

    Raises:
        CertificateError: a link is broken.
    """
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise CertificateError(f"a chain of {len(chain)} certificates")
    certificates = [_parse(der) for der in (*chain, root)]
    try:
        for depth, (subject, issuer) in enumerate(pairwise(certificates)):
            subject.verify_directly_issued_by(issuer)
            constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
            # `depth` authorities lie between this issuer and the leaf.
            if not constraints.ca or (constraints.path_length is not None and constraints.path_length < depth):
                raise CertificateError("a certificate of the chain was issued by one that may not issue it")
    except InvalidSignature:
        raise CertificateError("a certificate of the chain is not signed by its issuer") from None
    except _MALFORMED:
        raise CertificateError("malformed certificate in a chain") from None


def read_request(der: bytes) -> Request:
    """Read a request and check that its sender holds the key.

    Raises:
        CertificateError: it is malformed, for another kind of key, not signed by its key, or names no valid node.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise CertificateError("oversize certificate request")
    try:
        request = x509.load_der_x509_csr(der)
        public_key = _public_key(request)
        signed = request.is_signature_valid
        name = subject_word(request.subject, NameOID.COMMON_NAME)
        site = subject_word(request.subject, NameOID.ORGANIZATIONAL_UNIT_NAME)
    except _MALFORMED:
        raise CertificateError("malformed certificate request") from None
    if not signed:
        raise CertificateError("the certificate request is not signed by its own key")
    if not is_name(name) or not is_site(site):
        raise CertificateError("the certificate request names no valid node or site")
    return Request(public_key, name, site)


def chain_pem(chain: Sequence[bytes]) -> bytes:
    """A chain as concatenated PEM, as TLS libraries read it."""
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in chain)


def read_chain(pem: bytes) -> tuple[bytes, ...]:
    """The DER certificates of concatenated PEM.

    Raises:
        CertificateError: there is none, or too many, or one is malformed.
    """
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except _MALFORMED:
        raise CertificateError("not a list of certificates") from None
    if not 1 <= len(certificates) <= MAX_CHAIN:
        raise CertificateError(f"a chain of {len(certificates)} certificates")
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)


def _parse(der: bytes) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise CertificateError("oversize certificate")
    try:
        return x509.load_der_x509_certificate(der)
    except _MALFORMED:
        raise CertificateError("malformed certificate") from None


def _is_authority(certificate: x509.Certificate) -> bool:
    return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def _public_key(source: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    key = source.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise CertificateError("the key is not an Ed25519 key")
    return key.public_bytes_raw()


def _uri(certificate: x509.Certificate) -> str:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if len(uris) == 1 else ""


def subject_word(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    """The one value of that attribute; empty where there is none, or several."""
    values = [attribute.value for attribute in name.get_attributes_for_oid(oid)]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else ""
