"""Who a node is: loading it, its promises about peers and time, and every way in which its files can be wrong."""

import json
import shutil
import time
from pathlib import Path

import pytest

from gossip.sealing import Keyring
from p2player import enrol
from p2player.addresses import Address
from p2player.errors import Integrity, Refused
from p2player.net import certificates, issuing
from p2player.net.certificates import BACKDATE_S, CertificateError
from p2player.net.identity import Identity
from p2player.net.keyring import new_keyring, read_keyring, write_keyring
from p2player.statedir import StateDir
from tests.support.meshes import Mesh

DAY_S = 86400.0
STARTED = time.time()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("identity") / "state"
    enrol.init_mesh(root, mesh="coast", name="north-1", site="north", listen="127.0.0.1:7420")
    return root


@pytest.fixture
def identity(template: Path, tmp_path: Path) -> Identity:
    shutil.copytree(template, tmp_path / "state")
    return Identity.load(StateDir(tmp_path / "state"))


def load(identity: Identity) -> Identity:
    return Identity.load(StateDir(identity.folder.parent))


def test_what_it_tells(identity: Identity) -> None:
    assert (identity.name, identity.site, identity.mesh_name) == ("north-1", "north", "coast")
    assert identity.node_id == identity.certificate.node_id
    assert identity.mesh_id == certificates.read_root(identity.roots[0])[0]
    assert identity.listen == ("127.0.0.1", 7420)
    assert identity.advertise is None
    assert identity.reached_at() == ("127.0.0.1", 7420)
    assert "key=" not in repr(identity).replace("public_key=", "")


def test_it_signs(identity: Identity) -> None:
    assert certificates.verify(identity.public_key, identity.sign(b"message"), b"message")


def test_it_knows_peers_of_its_mesh_only(identity: Identity, tmp_path: Path) -> None:
    assert identity.peer_node_id(identity.chain[0]) == identity.node_id
    assert identity.peer(identity.chain[0]).name == "north-1"
    with pytest.raises(CertificateError, match="another mesh"):
        identity.peer_node_id(Mesh(tmp_path, "hills").node("a").der)
    with pytest.raises(CertificateError, match="malformed"):
        identity.peer_node_id(b"")


def test_its_certificate_has_a_life(identity: Identity) -> None:
    issued = identity.certificate.not_before + BACKDATE_S
    assert not identity.needs_renewal(issued + 9.9 * DAY_S)
    assert identity.needs_renewal(issued + 10.1 * DAY_S)
    identity.check_valid(issued)
    identity.check_valid(issued - 3500)
    identity.check_valid(issued + 29.9 * DAY_S)
    with pytest.raises(Refused, match=r"expired at .* UTC and no authority has renewed it"):
        identity.check_valid(issued + 30.1 * DAY_S)
    with pytest.raises(Refused, match="clock of this machine is behind"):
        identity.check_valid(issued - 2 * 3600)


def test_no_identity_is_a_refusal_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="p2player init"):
        Identity.load(StateDir.open(tmp_path / "state"))


def test_the_keyring_can_be_replaced(identity: Identity) -> None:
    old = identity.keyring()
    identity.save_keyring(old.with_first(b"k" * 32))
    assert load(identity).keyring() == Keyring((b"k" * 32, *old.keys))


@pytest.mark.parametrize("name", ["node.key", "node.pem", "ca.pem", "node.json", "members.json"])
@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b"{", b"[1]", b"[" * 5000])
def test_damaged_files_are_told(identity: Identity, name: str, content: bytes | None) -> None:
    path = identity.folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(Integrity, match="is damaged"):
        load(identity)


def test_parts_of_another_node_are_told(identity: Identity, tmp_path: Path) -> None:
    other = enrol.init_mesh(tmp_path / "other", mesh="coast", name="b", listen="127.0.0.1:7420")
    for name, told in (("node.key", "not the key"), ("node.pem", "issuer|malformed"), ("ca.pem", "issuer|malformed")):
        mine = (identity.folder / name).read_bytes()
        (identity.folder / name).write_bytes((other.folder / name).read_bytes())
        with pytest.raises(Integrity, match=told):
            load(identity)
        (identity.folder / name).write_bytes(mine)
    load(identity)


def test_a_later_version_is_refused(identity: Identity) -> None:
    path = identity.folder / "node.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(Integrity, match="version 2"):
        load(identity)


@pytest.mark.parametrize("authorities", [5, ["x"], [5], ["ab" * 16] * 9])
def test_odd_authorities_are_told(identity: Identity, authorities: object) -> None:
    path = identity.folder / "node.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "authorities": authorities}))
    with pytest.raises(Integrity, match="is damaged"):
        load(identity)


def test_a_node_that_joined_before_authorities_were_noted(identity: Identity) -> None:
    path = identity.folder / "node.json"
    place = json.loads(path.read_text())
    del place["authorities"]
    path.write_text(json.dumps(place))
    assert load(identity).authorities == ()


def test_a_wildcard_is_reached_where_the_members_are(identity: Identity) -> None:
    (identity.folder / "node.json").write_text('{"version": 1, "listen": "0.0.0.0:7420", "advertise": null}')
    (identity.folder / "members.json").write_text('[{"id": "x"}, {"host": 5}, {"host": "127.0.0.1", "port": 7420}]')
    assert load(identity).reached_at() == ("127.0.0.1", 7420)
    (identity.folder / "node.json").write_text('{"version": 1, "listen": "0.0.0.0:7420", "advertise": "edge.org:1"}')
    assert load(identity).reached_at() == Address("edge.org", 1)


def test_the_authority_is_there_on_the_first_node_only(identity: Identity) -> None:
    assert identity.is_authority
    authority = identity.open_authority()
    assert list(authority.granted()) == [identity.node_id]
    authority.close()
    (identity.folder / "authority").rename(identity.folder / "gone")
    with pytest.raises(Refused, match="no authority of mesh coast"):
        identity.open_authority()


def test_keyrings_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "keyring"
    ring = new_keyring().with_first(b"k" * 32)
    write_keyring(path, ring)
    assert read_keyring(path) == ring
    assert path.stat().st_mode & 0o777 == 0o600
    sound = path.read_text()
    for damaged in (
        "",
        "[]",
        '{"version": 1, "keys": []}',
        '{"version": 2, "keys": []}',
        sound.replace("6b6b", "6b6c", 1),
        sound.replace('"key": "', '"key": "zz', 1),
        sound[: len(sound) // 2],
    ):
        path.write_text(damaged)
        with pytest.raises(Integrity, match="keyring"):
            read_keyring(path)


def test_tls_contexts_trust_the_mesh_only(identity: Identity) -> None:
    for context in (identity.server_context(), identity.client_context()):
        assert context.get_ca_certs(binary_form=True) == [identity.roots[0]]
        assert not context.check_hostname
        assert context.minimum_version.name == "TLSv1_3"
    assert identity.server_context().num_tickets == 0


def test_a_node_key_is_a_plain_key(identity: Identity) -> None:
    key = certificates.read_key((identity.folder / "node.key").read_bytes())
    assert issuing.key_pem(key) == issuing.key_pem(identity.key)
    assert (identity.folder / "node.key").stat().st_mode & 0o777 == 0o600
