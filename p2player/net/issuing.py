"""Making certificates: the root of a mesh, node certificates, and requests for them.

What they look like is told in `p2player.net.certificates`, which reads and checks them. Times are whole seconds since
the Unix epoch.
"""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gossip.messages import node_id
from p2player.net.certificates import BACKDATE_S, NODE_VALIDITY_S, ROOT_VALIDITY_S, SCHEME, Grant, subject_word


def decide(public_key: bytes, name: str, site: str, now: float) -> Grant:
    """The grant of a fresh certificate: a random serial number, valid from an hour ago."""
    start = int(now) - BACKDATE_S
    return Grant(public_key, name, site, x509.random_serial_number(), start, int(now) + NODE_VALIDITY_S)


def key_pem(key: Ed25519PrivateKey) -> bytes:
    """The private key as PKCS #8, unencrypted: the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_root(key: Ed25519PrivateKey, mesh: str, now: float) -> x509.Certificate:
    """The self-signed certificate of a new mesh called `mesh`."""
    start = int(now) - BACKDATE_S
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, mesh)])
    builder = _builder(name, name, key.public_key(), x509.random_serial_number(), start, start + ROOT_VALIDITY_S)
    uri = SCHEME + node_id(key.public_key().public_bytes_raw())
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
    )
    return builder.sign(key, None)


def issue(grant: Grant, mesh_id: str, issuer: x509.Certificate, key: Ed25519PrivateKey) -> bytes:
    """Certify a node: DER. Equal arguments give equal bytes, since Ed25519 signatures hold no randomness.

    Args:
        issuer, key: the authority that signs, root or intermediate.
    """
    mesh = subject_word(issuer.subject, NameOID.ORGANIZATION_NAME)
    attributes = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, mesh),
        *([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, grant.site)] if grant.site else []),
        x509.NameAttribute(NameOID.COMMON_NAME, grant.name),
    ]
    public_key = Ed25519PublicKey.from_public_bytes(grant.public_key)
    builder = _builder(
        x509.Name(attributes), issuer.subject, public_key, grant.serial, grant.not_before, grant.not_after
    )
    uri = f"{SCHEME}{mesh_id}/{grant.node_id}"
    issuer_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_id), critical=False)
    )
    return builder.sign(key, None).public_bytes(Encoding.DER)


def make_request(key: Ed25519PrivateKey, name: str, site: str) -> bytes:
    """A PKCS #10 request, DER, signed with the key it is for."""
    attributes = [
        *([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, site)] if site else []),
        x509.NameAttribute(NameOID.COMMON_NAME, name),
    ]
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes)).sign(key, None)
    return request.public_bytes(Encoding.DER)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: Ed25519PublicKey, serial: int, start: int, end: int
) -> x509.CertificateBuilder:
    epoch = datetime.fromtimestamp(0, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(epoch + timedelta(seconds=start))
        .not_valid_after(epoch + timedelta(seconds=end))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
