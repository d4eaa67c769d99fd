"""Certificates: made and read back, and everything that must not pass as one."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import example, given
from hypothesis import strategies as st

from gossip.messages import node_id
from p2player.net import certificates, issuing
from p2player.net.certificates import BACKDATE_S, NODE_VALIDITY_S, CertificateError, Grant
from tests.support.meshes import NOW, Mesh

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    return Mesh(tmp_path, "coast")


def issue(mesh: Mesh, grant: Grant, *, mesh_id: str | None = None) -> bytes:
    return issuing.issue(grant, mesh_id or mesh.mesh_id, mesh.certificate, mesh.key)


def test_a_root_tells_its_mesh(mesh: Mesh) -> None:
    assert certificates.read_root(mesh.root) == (mesh.mesh_id, "coast")
    constraints = mesh.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints.ca and constraints.path_length == 1


def test_a_node_certificate_tells_the_node(mesh: Mesh) -> None:
    grant = issuing.decide(PUBLIC, "north-1", "north", NOW)
    found = certificates.read_node(issue(mesh, grant), mesh.mesh_id)
    assert (found.name, found.site, found.mesh_id) == ("north-1", "north", mesh.mesh_id)
    assert found.node_id == grant.node_id == node_id(PUBLIC)
    assert found.public_key == PUBLIC
    assert found.serial == grant.serial
    assert found.not_before == NOW - BACKDATE_S
    assert found.not_after == NOW + NODE_VALIDITY_S
    certificates.check_chain([found.der], mesh.root)


def test_no_site_is_an_empty_site(mesh: Mesh) -> None:
    assert certificates.read_node(mesh.node("a").der, mesh.mesh_id).site == ""


def test_signing_a_grant_again_gives_the_same_certificate(mesh: Mesh) -> None:
    grant = issuing.decide(PUBLIC, "a", "", NOW)
    assert issue(mesh, grant) == issue(mesh, grant)
    assert issuing.decide(PUBLIC, "a", "", NOW).serial != grant.serial


def test_another_mesh_is_told(mesh: Mesh, tmp_path: Path) -> None:
    other = Mesh(tmp_path, "hills")
    with pytest.raises(CertificateError, match="another mesh"):
        certificates.read_node(other.node("a").der, mesh.mesh_id)
    with pytest.raises(CertificateError, match=r"not signed by its issuer|malformed"):
        certificates.check_chain([other.node("b").der], mesh.root)


def test_an_authority_is_no_node(mesh: Mesh) -> None:
    with pytest.raises(CertificateError, match="authority's certificate"):
        certificates.read_node(mesh.root, mesh.mesh_id)


def test_a_node_is_no_root(mesh: Mesh) -> None:
    with pytest.raises(CertificateError):
        certificates.read_root(mesh.node("a").der)


def leaf(
    mesh: Mesh,
    uri: str,
    *,
    name: str = "a",
    key: Ed25519PrivateKey = KEY,
    issuer: x509.Certificate | None = None,
    issuer_key: Ed25519PrivateKey | None = None,
    constraints: x509.BasicConstraints | None = None,
) -> bytes:
    """A certificate that a dishonest or careless authority could make."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name((issuer or mesh.certificate).subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.fromtimestamp(NOW, UTC))
        .not_valid_after(datetime.fromtimestamp(NOW + 60, UTC))
        .add_extension(constraints or x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
    )
    return builder.sign(issuer_key or mesh.key, None).public_bytes(Encoding.DER)


def test_an_id_that_is_not_the_keys_is_refused(mesh: Mesh) -> None:
    with pytest.raises(CertificateError, match="another node"):
        certificates.read_node(leaf(mesh, f"p2player://{mesh.mesh_id}/{'0' * 32}"), mesh.mesh_id)


def test_a_name_that_is_none_is_refused(mesh: Mesh) -> None:
    with pytest.raises(CertificateError, match="no valid node"):
        certificates.read_node(leaf(mesh, f"p2player://{mesh.mesh_id}/{node_id(PUBLIC)}", name="a/b"), mesh.mesh_id)


def test_chains_may_hold_one_authority_between(mesh: Mesh) -> None:
    middle_key, node_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    authority = x509.BasicConstraints(ca=True, path_length=0)
    middle = leaf(mesh, "p2player://x", name="middle", key=middle_key, constraints=authority)
    below = {"issuer": x509.load_der_x509_certificate(middle), "issuer_key": middle_key}
    node = leaf(mesh, "p2player://y", key=node_key, **below)  # type: ignore[arg-type]
    certificates.check_chain([node, middle], mesh.root)
    with pytest.raises(CertificateError):
        certificates.check_chain([node], mesh.root)
    with pytest.raises(CertificateError, match="chain of 4"):
        certificates.check_chain([node] * 4, mesh.root)
    with pytest.raises(CertificateError, match="chain of 0"):
        certificates.check_chain([], mesh.root)


def test_an_authority_under_an_authority_that_may_only_certify_nodes_is_refused(mesh: Mesh) -> None:
    keys = [Ed25519PrivateKey.generate() for _ in range(2)]
    authority = x509.BasicConstraints(ca=True, path_length=0)
    first = leaf(mesh, "p2player://x", name="first", key=keys[0], constraints=authority)
    issuer = x509.load_der_x509_certificate(first)
    second = leaf(
        mesh, "p2player://y", name="second", key=keys[1], issuer=issuer, issuer_key=keys[0], constraints=authority
    )
    issuer = x509.load_der_x509_certificate(second)
    node = leaf(mesh, "p2player://z", issuer=issuer, issuer_key=keys[1])
    with pytest.raises(CertificateError, match="may not issue"):
        certificates.check_chain([node, second, first], mesh.root)


def test_a_node_may_not_issue(mesh: Mesh) -> None:
    grant = issuing.decide(PUBLIC, "a", "", NOW)
    node = issue(mesh, grant)
    forged = leaf(mesh, "p2player://x", issuer=x509.load_der_x509_certificate(node), issuer_key=KEY)
    with pytest.raises(CertificateError, match="may not issue"):
        certificates.check_chain([forged, node], mesh.root)


def test_requests_prove_the_key() -> None:
    der = issuing.make_request(KEY, "north-1", "north")
    assert certificates.read_request(der) == certificates.Request(PUBLIC, "north-1", "north")
    assert certificates.read_request(issuing.make_request(KEY, "a", "")).site == ""
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    with pytest.raises(CertificateError, match="not signed by its own key"):
        certificates.read_request(der.replace(PUBLIC, other))


def test_requests_for_other_kinds_of_keys_are_refused() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    der = request.sign(generate_ec_key(SECP256R1()), SHA256()).public_bytes(Encoding.DER)
    with pytest.raises(CertificateError, match="not an Ed25519 key"):
        certificates.read_request(der)


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 64, "ä"])
def test_requests_name_valid_nodes(name: str) -> None:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes)).sign(KEY, None)
    with pytest.raises(CertificateError, match="no valid node"):
        certificates.read_request(request.public_bytes(Encoding.DER))


def test_keys_and_chains_survive_their_files(mesh: Mesh) -> None:
    assert certificates.read_key(issuing.key_pem(KEY)).private_bytes_raw() == KEY.private_bytes_raw()
    chain = (mesh.node("a").der, mesh.root)
    assert certificates.read_chain(certificates.chain_pem(chain)) == chain
    for pem in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(CertificateError):
            certificates.read_chain(pem)
    with pytest.raises(CertificateError, match="chain of 4"):
        certificates.read_chain(certificates.chain_pem(chain * 2))
    ec_key = generate_ec_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for pem in (b"", b"-----BEGIN PRIVATE KEY-----\n", ec_key):
        with pytest.raises(CertificateError, match="key"):
            certificates.read_key(pem)


def test_signatures() -> None:
    signature = KEY.sign(b"message")
    assert certificates.verify(PUBLIC, signature, b"message")
    assert not certificates.verify(PUBLIC, signature, b"massage")
    assert not certificates.verify(PUBLIC, b"short", b"message")
    assert not certificates.verify(b"short", signature, b"message")


SAMPLE_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
SAMPLE_ROOT = issuing.make_root(SAMPLE_KEY, "sample", NOW)
SAMPLE_ID = node_id(SAMPLE_KEY.public_key().public_bytes_raw())
SAMPLES = (
    SAMPLE_ROOT.public_bytes(Encoding.DER),
    issuing.issue(issuing.decide(PUBLIC, "a", "s", NOW), SAMPLE_ID, SAMPLE_ROOT, SAMPLE_KEY),
    issuing.make_request(KEY, "a", "s"),
)


@pytest.mark.filterwarnings("ignore")  # of cryptography, about odd but tolerated contents
@example(SAMPLES[1], SAMPLES[1].index(bytes.fromhex("a003020102")) + 4, b"\x26")
@example(SAMPLES[2], SAMPLES[2].index(bytes.fromhex("020100")) + 2, b"\x26")
@given(st.sampled_from(SAMPLES), st.integers(0, 2000), st.binary(min_size=1, max_size=4))
def test_damaged_der_raises_nothing_else(der: bytes, at: int, patch: bytes) -> None:
    at %= len(der)
    damaged = (der[:at] + patch + der[at + len(patch) :])[: len(der)]
    for read in (
        certificates.read_root,
        certificates.read_request,
        lambda data: certificates.read_node(data, SAMPLE_ID),
        lambda data: certificates.check_chain([data], SAMPLES[0]),
    ):
        try:
            read(damaged)
        except CertificateError:
            continue


@given(st.binary(max_size=100))
def test_random_bytes_are_no_certificate(data: bytes) -> None:
    for read in (certificates.read_root, certificates.read_request, certificates.read_chain, certificates.read_key):
        with pytest.raises(CertificateError):
            read(data)
    with pytest.raises(CertificateError):
        certificates.read_node(bytes(certificates.MAX_CERTIFICATE_BYTES + 1), SAMPLE_ID)
