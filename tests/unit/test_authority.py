"""What an authority grants and refuses, and that it forgets nothing of it, whenever it dies."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from gossip.messages import NodeId, node_id
from p2player.addresses import Address
from p2player.errors import Failed, Integrity, Refused, Usage
from p2player.journal import Journal
from p2player.net import issuing
from p2player.net.authority import MAX_SKEW_S, Authority
from p2player.net.certificates import (
    BACKDATE_S,
    NODE_VALIDITY_S,
    RENEW_AFTER_S,
    NodeCertificate,
    Request,
    check_chain,
    read_node,
    read_root,
)
from p2player.net.invites import Contact, Token
from p2player.proto.joining import JoinRequest
from tests.support.meshes import NOW

DAY_S = 86400.0
CONTACT = Contact(NodeId("ab" * 16), Address("10.0.0.1", 7420))


class Office:
    """An authority, its files, and machines that ask it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        key = Ed25519PrivateKey.generate()
        self.root = issuing.make_root(key, "coast", NOW).public_bytes(Encoding.DER)
        self.authority = Authority.create(folder, key, self.root, NOW)

    def restart(self) -> None:
        self.authority.close()
        self.authority = Authority.open(self.folder, self.root)

    def invite(self, *, ttl_s: float = 3600.0, uses: int = 1) -> Token:
        return self.authority.invite(CONTACT, ttl_s=ttl_s, uses=uses, now=NOW)

    def admit(
        self, token: Token, key: Ed25519PrivateKey, name: str, *, site: str = "", now: float = NOW, ahead_s: float = 0.0
    ) -> tuple[bytes, ...]:
        csr = issuing.make_request(key, name, site)
        request = JoinRequest(token.invite, token.secret, csr, "10.0.0.2", 7420, now + ahead_s)
        return self.authority.admit(request, now)[1]

    def renew(self, key: Ed25519PrivateKey, name: str, now: float, *, site: str = "") -> NodeCertificate:
        chain = self.authority.renew(issuing.make_request(key, name, site), id_of(key), now)
        check_chain(chain, self.root)
        return read_node(chain[0], read_root(self.root)[0])

    def journal_lines(self) -> int:
        return (self.folder / "journal").read_bytes().count(b"\n")


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "authority")
    yield office
    office.authority.close()


def new_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def id_of(key: Ed25519PrivateKey) -> NodeId:
    return node_id(key.public_key().public_bytes_raw())


def test_an_invited_machine_is_certified(office: Office) -> None:
    token, key = office.invite(), new_key()
    chain = office.admit(token, key, "south", site="bay")
    certificate = read_node(chain[0], token.mesh_id)
    assert (certificate.name, certificate.site, certificate.node_id) == ("south", "bay", id_of(key))
    check_chain(chain, token.root)
    assert list(office.authority.granted()) == [id_of(key)]


def test_a_use_is_used(office: Office) -> None:
    token = office.invite()
    office.admit(token, new_key(), "a")
    for _ in range(2):
        with pytest.raises(Refused, match="used already"):
            office.admit(token, new_key(), "b")
        office.restart()


def test_several_uses(office: Office) -> None:
    token = office.invite(uses=3)
    for name in "abc":
        office.admit(token, new_key(), name)
    with pytest.raises(Refused, match="used already"):
        office.admit(token, new_key(), "d")


def test_the_same_machine_gets_the_same_answer(office: Office) -> None:
    token, key = office.invite(), new_key()
    chain = office.admit(token, key, "a", site="s")
    assert office.admit(token, key, "a", site="s", now=NOW + 60) == chain
    office.restart()
    assert office.admit(token, key, "a", site="s", now=NOW + 10 * 3600) == chain  # even after the invite expired
    with pytest.raises(Refused, match="as a at site s"):
        office.admit(token, key, "b", site="s")
    with pytest.raises(Refused, match="expired"):
        office.admit(token, key, "a", site="s", now=NOW + NODE_VALIDITY_S)


def test_an_expired_invite(office: Office) -> None:
    token = office.invite(ttl_s=60)
    with pytest.raises(Refused, match=r"expired at 2027-01-15 08:01:00 UTC"):
        office.admit(token, new_key(), "a", now=NOW + 60)


@pytest.mark.parametrize("field", ["invite", "secret"])
def test_an_unknown_invite_and_a_wrong_secret_look_the_same(office: Office, field: str) -> None:
    token = office.invite()
    values = {"invite": token.invite, "secret": token.secret, field: b"x" * len(getattr(token, field))}
    csr = issuing.make_request(new_key(), "a", "")
    with pytest.raises(Refused, match="no such invite"):
        office.authority.admit(JoinRequest(values["invite"], values["secret"], csr, "h", 1, NOW), NOW)


def test_the_journal_keeps_no_secret(office: Office) -> None:
    token = office.invite()
    content = (office.folder / "journal").read_bytes()
    assert token.secret not in content
    assert token.secret.hex().encode() not in content


def test_a_taken_name_is_refused_and_the_use_is_kept(office: Office) -> None:
    token = office.invite(uses=2)
    office.admit(token, new_key(), "Edge")
    key = new_key()
    for name in ("Edge", "edge"):
        with pytest.raises(Refused, match=f"the name {name} is taken"):
            office.admit(token, key, name)
    office.restart()
    office.admit(token, key, "edge-2")


def test_a_key_may_come_again_with_a_new_invite(office: Office) -> None:
    key = new_key()
    office.admit(office.invite(), key, "a")
    office.admit(office.invite(), key, "a")
    office.admit(office.invite(), key, "b")
    office.admit(office.invite(), new_key(), "a")
    assert office.authority.granted()[id_of(key)].name == "b"


def test_a_node_that_left_frees_its_name(office: Office) -> None:
    token, key = office.invite(), new_key()
    office.admit(token, key, "a")
    assert office.authority.release(id_of(key), NOW)
    assert not office.authority.release(id_of(key), NOW)
    office.restart()
    assert not office.authority.granted()
    with pytest.raises(Refused, match="before it left"):
        office.admit(token, key, "a")
    office.admit(office.invite(), new_key(), "a")


def test_renewal(office: Office) -> None:
    token, key = office.invite(), new_key()
    first = read_node(office.admit(token, key, "a", site="s")[0], token.mesh_id)
    now = NOW + 11 * DAY_S
    renewed = office.renew(key, "a", now, site="s")
    assert (renewed.node_id, renewed.name, renewed.site) == (first.node_id, "a", "s")
    assert (renewed.not_before, renewed.not_after) == (now - BACKDATE_S, now + NODE_VALIDITY_S)
    assert renewed.serial != first.serial
    with pytest.raises(Refused, match="taken"):
        office.admit(office.invite(), new_key(), "a")


def test_asking_often_costs_nothing(office: Office) -> None:
    """A certificate that is not due is given again: the journal grows by one line in ten days."""
    token, key = office.invite(), new_key()
    first = office.admit(token, key, "a")[0]
    lines = office.journal_lines()
    early = NOW + RENEW_AFTER_S - MAX_SKEW_S
    assert office.renew(key, "a", early - 1).der == first
    assert office.journal_lines() == lines
    second = office.renew(key, "a", early)
    assert second.der != first
    office.restart()
    assert office.renew(key, "a", early + DAY_S) == second
    assert office.journal_lines() == lines + 1


def test_an_expired_certificate_is_renewed_for_the_same_key(office: Office) -> None:
    """An authority that was off for long renews itself, without an invite."""
    key = new_key()
    office.authority.found(Request(key.public_key().public_bytes_raw(), "first", ""), Address("h", 1), NOW)
    assert office.renew(key, "first", NOW + 100 * DAY_S).not_after == NOW + 130 * DAY_S


def test_a_grant_of_the_future_is_replaced(office: Office) -> None:
    """The authority's clock was ahead when it renewed: once it is right, nodes must not get that certificate again."""
    token, key = office.invite(), new_key()
    office.admit(token, key, "a")
    office.renew(key, "a", NOW + 1000 * DAY_S)
    assert office.renew(key, "a", NOW + 11 * DAY_S).not_before == NOW + 11 * DAY_S - BACKDATE_S


def test_the_request_must_be_the_askers_own(office: Office) -> None:
    mine, theirs, stranger = new_key(), new_key(), new_key()
    token = office.invite(uses=2)
    office.admit(token, mine, "a")
    office.admit(token, theirs, "b")
    now, lines = NOW + 11 * DAY_S, office.journal_lines()
    sound = issuing.make_request(mine, "a", "")
    for csr, asker, told in (
        (issuing.make_request(theirs, "b", ""), id_of(mine), "another node's key"),
        (sound, id_of(theirs), "another node's key"),
        (issuing.make_request(mine, "b", ""), id_of(mine), "same name and site: a, no site"),
        (issuing.make_request(mine, "a", "s"), id_of(mine), "same name and site"),
        (issuing.make_request(stranger, "a", ""), id_of(stranger), "knows no such node"),
        (sound[:-1] + bytes([sound[-1] ^ 1]), id_of(mine), "not signed by its own key"),
        (b"csr", id_of(mine), "malformed"),
        (bytes(5000), id_of(mine), "oversize"),
    ):
        with pytest.raises(Refused, match=told):
            office.authority.renew(csr, asker, now)
    assert office.journal_lines() == lines


def test_a_node_that_left_is_not_renewed(office: Office) -> None:
    token, key = office.invite(), new_key()
    office.admit(token, key, "a")
    office.authority.release(id_of(key), NOW)
    with pytest.raises(Refused, match="it has left"):
        office.renew(key, "a", NOW + 11 * DAY_S)


def test_no_renewal_that_is_not_on_disk(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    token, key = office.invite(), new_key()
    office.admit(token, key, "a")
    now = NOW + 11 * DAY_S

    def full(self: Journal, record: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        with pytest.raises(Failed, match="No space left"):
            office.renew(key, "a", now)

    def die(*arguments: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(issuing, "issue", die)
        with pytest.raises(KeyboardInterrupt):
            office.renew(key, "a", now)
    granted = office.authority.granted()[id_of(key)]
    office.restart()
    assert office.renew(key, "a", now + 60).serial == granted.serial


def test_a_repeated_join_after_a_renewal_gets_the_present_certificate(office: Office) -> None:
    token, key = office.invite(), new_key()
    office.admit(token, key, "a")
    renewed = office.renew(key, "a", NOW + 11 * DAY_S)
    assert office.admit(token, key, "a", now=NOW + 12 * DAY_S) == (renewed.der,)


@pytest.mark.parametrize("ahead_s", [-MAX_SKEW_S - 1, MAX_SKEW_S + 1, 30 * 86400.0])
def test_a_wrong_clock_is_told_and_costs_no_use(office: Office, ahead_s: float) -> None:
    token = office.invite()
    with pytest.raises(Refused, match=r"the clock of this machine is .* (ahead of|behind) the authority's"):
        office.admit(token, new_key(), "a", ahead_s=ahead_s)
    office.admit(token, new_key(), "a", ahead_s=MAX_SKEW_S if ahead_s > 0 else -MAX_SKEW_S)


def test_nothing_is_promised_that_is_not_on_disk(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    token, key = office.invite(), new_key()

    def full(self: Journal, record: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", full)
        with pytest.raises(Failed, match="No space left"):
            office.admit(token, key, "a")
        with pytest.raises(Failed, match="No space left"):
            office.invite()
    assert not office.authority.granted()
    office.admit(token, new_key(), "a")


def test_a_crash_after_the_journal_and_before_the_answer(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    token, key = office.invite(), new_key()

    def die(*arguments: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(issuing, "issue", die)
        with pytest.raises(KeyboardInterrupt):
            office.admit(token, key, "a")
    office.restart()
    with pytest.raises(Refused, match="used already"):
        office.admit(token, new_key(), "b")
    chain = office.admit(token, key, "a")
    assert read_node(chain[0], token.mesh_id).name == "a"


def test_the_first_node_needs_no_invite(office: Office) -> None:
    key = new_key()
    request = Request(key.public_key().public_bytes_raw(), "first", "")
    office.authority.found(request, Address("h", 1), NOW)
    office.restart()
    with pytest.raises(Refused, match="taken"):
        office.admit(office.invite(), new_key(), "first")


@pytest.mark.parametrize(("ttl_s", "uses"), [(0.5, 1), (31 * 86400.0, 1), (60, 0), (60, 1001), (float("nan"), 1)])
def test_bounds(office: Office, ttl_s: float, uses: int) -> None:
    with pytest.raises(Usage):
        office.invite(ttl_s=ttl_s, uses=uses)


def test_a_journal_of_another_mesh_is_refused(office: Office, tmp_path: Path) -> None:
    other = Office(tmp_path / "other")
    other.authority.close()
    (office.folder / "journal").write_bytes((tmp_path / "other" / "journal").read_bytes())
    with pytest.raises(Integrity, match="another mesh"):
        Authority.open(office.folder, office.root)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"kind": "later"},
        {"kind": "invite", "id": "zz"},
        {"kind": "grant"},
        {"kind": "renew", "key": "00"},
        {"kind": "begin", "version": 2},
    ],
)
def test_a_record_that_is_not_understood_is_refused(office: Office, record: dict[str, object]) -> None:
    journal = Journal.open(office.folder / "journal")
    journal.append(record)
    journal.close()
    with pytest.raises(Integrity, match="line 2 is not understood"):
        Authority.open(office.folder, office.root)


def test_damaged_files_are_told(office: Office) -> None:
    (office.folder / "ca.key").write_text("nothing")
    with pytest.raises(Integrity, match="private key"):
        Authority.open(office.folder, office.root)
    (office.folder / "ca.key").unlink()
    with pytest.raises(Failed, match=r"ca\.key"):
        Authority.open(office.folder, office.root)
