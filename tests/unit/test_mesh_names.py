"""What a certificate said of a peer's name and site counts, whatever its record claims."""

from pathlib import Path

import pytest

from gossip.messages import Member, MemberState, NodeId
from p2player import enrol, errors
from p2player.mesh import Mesh
from p2player.net.certificates import NodeCertificate, read_node
from p2player.net.identity import Identity
from tests.support.meshes import Mesh as Certificates


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return enrol.init_mesh(tmp_path_factory.mktemp("names") / "state", mesh="coast", name="me", listen="127.0.0.1:1")


class Nodes:
    """A mesh whose members claim what the test says."""

    def __init__(self, identity: Identity, folder: Path) -> None:
        self._certificates = Certificates(folder, "coast")
        self.members: list[Member] = []
        self.mesh = Mesh(identity, ("127.0.0.1", 1), lambda: self.members, None, self._depart)

    async def _depart(self) -> None:
        raise AssertionError("nobody leaves")

    def add(self, certified: str, claims: str, state: MemberState = MemberState.ALIVE) -> NodeCertificate:
        """A member with a certificate for one name and a record of another, at site `SITE-` and the name."""
        der = self._certificates.node(certified, site=f"site-{certified}").der
        certificate = read_node(der, self._certificates.mesh_id)
        member = Member(certificate.node_id, claims, f"site-{claims}", "10.0.0.1", 1, state, 1, None, "1")
        self.members.append(member)
        return certificate


@pytest.fixture
def nodes(identity: Identity, tmp_path: Path) -> Nodes:
    return Nodes(identity, tmp_path)


def test_a_record_counts_until_a_certificate_contradicts_it(nodes: Nodes) -> None:
    impostor = nodes.add("evil", claims="south")
    mesh, node = nodes.mesh, impostor.node_id
    assert mesh.find("south") == node
    assert mesh.learn(impostor) == nodes.members[0]
    assert mesh.learn(impostor) is None  # told once
    with pytest.raises(errors.NotFound):
        mesh.find("south")
    assert mesh.find("evil") == mesh.find(node) == node
    assert (mesh.name_of(node), mesh.site_of(node)) == ("evil", "site-evil")
    assert [(row["name"], row["site"]) for row in mesh.peers()] == [("evil", "site-evil")]


def test_the_proved_bearer_of_a_name_is_found_before_one_that_only_claims_it(nodes: Nodes) -> None:
    nodes.add("evil", claims="south")
    honest = nodes.add("south", claims="south")
    nodes.add("worse", claims="south")
    assert nodes.mesh.learn(honest) is None
    assert nodes.mesh.find("south") == honest.node_id


def test_a_living_node_is_found_before_a_dead_one(nodes: Nodes) -> None:
    """The name of a node that left may be another's now."""
    before = nodes.add("south", claims="south", state=MemberState.LEFT)
    nodes.mesh.learn(before)
    after = nodes.add("south-2", claims="south")
    assert nodes.mesh.find("south") == after.node_id


def test_a_certificate_before_the_record(nodes: Nodes) -> None:
    certificate = nodes.add("south", claims="other")
    record = nodes.members.pop()
    assert nodes.mesh.learn(certificate) is None
    nodes.members.append(record)
    assert nodes.mesh.name_of(certificate.node_id) == "south"
    nodes.mesh.forget(certificate.node_id)
    assert nodes.mesh.name_of(certificate.node_id) == "other"
    assert nodes.mesh.name_of(NodeId("ab" * 16)) == "ab" * 6
