"""When a node asks for its next certificate, whom it asks, and what it believes."""

import io
import random
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from gossip.messages import NodeId
from p2player import enrol, errors
from p2player.addresses import Address
from p2player.log import Log
from p2player.net import issuing
from p2player.net.authority import Authority
from p2player.net.certificates import BACKDATE_S, NODE_VALIDITY_S, RENEW_AFTER_S
from p2player.net.identity import Identity, write_identity
from p2player.net.invites import Contact
from p2player.net.renewing import AUTHORITY, accept_renewal, ask_authorities, request_renewal
from p2player.proto.joining import JoinRequest
from p2player.renewal import MAX_RETRY_S, RETRY_S, SETTLE_S, SPREAD_S, Renewal, next_try, renew_at_start
from p2player.statedir import StateDir
from tests.support.meshes import NOW

DAY_S = 86400.0
HERE = Address("127.0.0.1", 7420)
START, END = NOW - BACKDATE_S, NOW + NODE_VALIDITY_S
DUE = NOW + RENEW_AFTER_S

draws = st.floats(0, 1, exclude_max=True)


# When


@given(draws, st.floats(NOW, DUE))
def test_a_young_certificate_waits_for_its_day(draw: float, now: float) -> None:
    assert max(DUE, now) <= next_try(START, END, now, 0, draw) <= max(DUE + SPREAD_S, now + SETTLE_S)


@given(draws, st.floats(DUE + SPREAD_S, END + 10 * DAY_S))
def test_one_that_is_due_is_renewed_soon_after_the_start(draw: float, now: float) -> None:
    assert now <= next_try(START, END, now, 0, draw) <= now + SETTLE_S


@given(draws, st.floats(NOW, END + 10 * DAY_S), st.integers(1, 10_000))
def test_pauses_after_failures_are_bounded(draw: float, now: float, failures: int) -> None:
    pause = next_try(START, END, now, failures, draw) - now
    assert RETRY_S / 2 - 1 <= pause <= MAX_RETRY_S


def test_pauses_grow_and_shrink_again_before_expiry() -> None:
    pauses = [next_try(START, END, DUE, failures, 0.999) - DUE for failures in range(1, 12)]
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(RETRY_S, rel=0.01)
    assert pauses[-1] == pytest.approx(MAX_RETRY_S, rel=0.01)
    assert next_try(START, END, END - 3600, 100, 0.999) - (END - 3600) <= 3600 / 8


# Whom, and what is believed


class Office:
    """A mesh's first node, made at `NOW`, and one that joined it then, without a network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.first = enrol.init_mesh(
            folder / "north", mesh="coast", name="north-1", listen="127.0.0.1:7420", clock=lambda: NOW
        )
        self.authority = self.first.open_authority()
        key, state = Ed25519PrivateKey.generate(), StateDir.open(folder / "south")
        token = self.authority.invite(Contact(self.first.node_id, HERE), ttl_s=60, uses=1, now=NOW)
        csr = issuing.make_request(key, "south-1", "bay")
        chain = self.authority.admit(JoinRequest(token.invite, token.secret, csr, *HERE, NOW), NOW)[1]
        state.identity.mkdir()
        write_identity(
            state.identity,
            key=key,
            chain=chain,
            roots=[token.root],
            ring=self.first.keyring(),
            listen=HERE,
            advertise=None,
            members=[],
            authorities=[self.first.node_id],
        )
        self.second = self.on_disk()

    def on_disk(self) -> Identity:
        return Identity.load(StateDir(self.folder / "south"))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path)
    yield made
    made.authority.close()


Answer = Callable[[Mapping[str, Any]], dict[str, Any]]


class Peers:
    """Nodes that answer as they are told to; a node without an answer cannot be reached."""

    def __init__(self, answers: Mapping[tuple[NodeId, str], Answer]) -> None:
        self.answers = dict(answers)
        self.asked: list[tuple[float, NodeId, str]] = []

    async def call(
        self, node: NodeId, method: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0
    ) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self.asked.append((trio.current_time(), node, method))
        answer = self.answers.get((node, method))
        if answer is None:
            raise errors.Unreachable("nobody there")
        return answer(body or {})


def renewing(mesh: Office, clock: Callable[[], float] = lambda: NOW + 11 * DAY_S) -> Answer:
    return lambda body: {"chain": list(mesh.authority.renew(body["csr"], mesh.second.node_id, clock()))}


class Wall:
    """A wall clock that goes with trio's, from some day after `NOW` on."""

    def __init__(self, day: float) -> None:
        self._offset = NOW + day * DAY_S - trio.current_time()

    def __call__(self) -> float:
        return self._offset + trio.current_time()


class Run:
    """One service, run until it has told as many identities as are wanted, or for some time in which it tells none.

    (A mock clock jumps to the next deadline while a worker thread writes the certificate, so there must be none then.)
    """

    def __init__(self, identity: Identity, authority: Authority | None, peers: Peers, wall: Wall) -> None:
        self.told: list[Identity] = []
        self.failures: list[OSError] = []
        self.alive: list[NodeId] = []
        self._stream = io.StringIO()
        self._scope = trio.CancelScope()
        self._wanted = 1
        self._service = Renewal(
            identity,
            authority,
            peers,
            lambda: self.alive,
            self._renewed,
            Log(stream=self._stream),
            clock=wall,
            rng=random.Random(1),
        )

    @property
    def log(self) -> str:
        return self._stream.getvalue()

    def _renewed(self, identity: Identity) -> None:
        if self.failures:
            raise self.failures.pop()
        self.told.append(identity)
        if len(self.told) == self._wanted:
            self._scope.cancel()

    async def until_told(self, wanted: int = 1) -> None:
        self._wanted = wanted
        with self._scope:
            await self._service.run()

    async def in_vain(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._service.run()
        assert self.told == []


async def test_a_node_renews_at_its_day_and_goes_on(mesh: Office, autojump_clock: MockClock) -> None:
    wall, started = Wall(0), trio.current_time()
    peers = Peers({(mesh.first.node_id, "identity.renew"): renewing(mesh, wall)})
    run = Run(mesh.second, None, peers, wall)
    await run.until_told(2)
    first, second = ((when - started) / DAY_S for when, _, _ in peers.asked)
    assert 10 <= first <= 10.5
    assert 10 <= second - first <= 10.5
    assert mesh.on_disk() == run.told[-1]
    assert run.told[-1].certificate.not_after == pytest.approx(wall() + 30 * DAY_S, abs=1)
    assert run.log.count("info certificate renewed") == 2


async def test_an_authority_that_is_away_is_asked_again(mesh: Office, autojump_clock: MockClock) -> None:
    wall, peers = Wall(11), Peers({})
    run = Run(mesh.second, None, peers, wall)
    await run.in_vain(2 * DAY_S)
    assert 10 < len(peers.asked) < 40
    assert "warning certificate not renewed" in run.log
    assert "nobody there" in run.log
    peers.answers[mesh.first.node_id, "identity.renew"] = renewing(mesh, wall)
    await run.until_told()


async def test_an_expired_node_asks_nobody_and_says_why(mesh: Office, autojump_clock: MockClock) -> None:
    wall, peers = Wall(29.9), Peers({})
    run = Run(mesh.second, None, peers, wall)
    await run.in_vain(0.2 * DAY_S)
    assert len(peers.asked) >= 8
    assert "error certificate not renewed" in run.log
    later = Run(mesh.second, None, Peers({}), wall)
    await later.in_vain(DAY_S)
    assert "enrolled again with `p2player join TOKEN`" in later.log
    assert "no authority has renewed it: none" not in later.log


async def test_peers_tell_who_the_authority_is(mesh: Office, autojump_clock: MockClock) -> None:
    """The one that was noted is gone for good; a peer knows another."""
    other, peer, liar = NodeId("cd" * 16), NodeId("ef" * 16), NodeId("01" * 16)
    me = mesh.second.node_id
    peers = Peers(
        {
            (peer, AUTHORITY): lambda body: {"authorities": [other, me]},
            (liar, AUTHORITY): lambda body: {"authorities": [liar] * 100},
            (other, "identity.renew"): renewing(mesh),
        }
    )
    run = Run(mesh.second, None, peers, Wall(11))
    run.alive = [peer, liar]
    await run.until_told()
    asked = [node for _, node, method in peers.asked if method == "identity.renew"]
    assert asked == [mesh.first.node_id, other]


async def test_what_cannot_be_used_is_tried_again(mesh: Office, autojump_clock: MockClock) -> None:
    peers = Peers({(mesh.first.node_id, "identity.renew"): renewing(mesh)})
    run = Run(mesh.second, None, peers, Wall(11))
    run.failures = [ssl.SSLError("no memory"), OSError(24, "Too many open files")]
    await run.until_told()
    assert run.log.count("certificate not renewed") == 2
    assert mesh.on_disk() == run.told[0]


@pytest.mark.parametrize("answer", [{}, {"chain": None}, {"chain": "x"}, {"chain": [5]}, {"chain": []}])
async def test_malformed_answers(mesh: Office, answer: dict[str, Any]) -> None:
    peers = Peers({(mesh.first.node_id, "identity.renew"): lambda body: answer})
    with pytest.raises(errors.Integrity):
        await request_renewal(mesh.second, peers, mesh.first.node_id, NOW)
    peers = Peers({(mesh.first.node_id, AUTHORITY): lambda body: {"authorities": answer.get("chain")}})
    if answer != {"chain": []}:
        with pytest.raises(errors.Integrity):
            await ask_authorities(peers, mesh.first.node_id)


def test_only_the_next_certificate_of_this_very_node_is_believed(mesh: Office, tmp_path: Path) -> None:
    me, now = mesh.second, NOW + 11 * DAY_S
    impostor = enrol.init_mesh(tmp_path / "other", mesh="coast", name="south-1", site="bay", listen="127.0.0.1:1")
    mine = me.certificate
    key = issuing.make_request(me.key, me.name, me.site)
    good = mesh.authority.renew(key, me.node_id, now)

    def issued(name: str, site: str) -> list[bytes]:
        grant = issuing.decide(me.public_key, name, site, now)
        return [issuing.issue(grant, me.mesh_id, mesh.authority._issuer, mesh.authority._key)]

    for chain, told in (
        (impostor.chain, "not signed by its issuer|wrong answer"),
        (mesh.first.chain, "another node's certificate"),
        (issued("south-2", "bay"), "another node's certificate"),
        (issued("south-1", ""), "another node's certificate"),
        ([good[0][:-1] + bytes([good[0][-1] ^ 1])], "not signed by its issuer"),
        ([good[0]] * 4, "a chain of 4"),
        ([b"x"], "malformed"),
    ):
        with pytest.raises(errors.Integrity, match=told):
            accept_renewal(me, chain, now)
    with pytest.raises(errors.Refused, match="no newer"):
        accept_renewal(me, [mine.der], now)
    with pytest.raises(errors.Refused, match="clock of this machine is behind"):
        accept_renewal(me, good, now - DAY_S)
    assert mesh.on_disk() == me
    assert accept_renewal(me, good, now) == mesh.on_disk() != me


# The authority itself


async def test_an_authority_renews_itself(mesh: Office, autojump_clock: MockClock) -> None:
    run = Run(mesh.first, mesh.authority, Peers({}), Wall(11))
    await run.until_told()
    assert run.told[0].certificate.not_after > NOW + 40 * DAY_S
    assert Identity.load(StateDir(mesh.folder / "north")) == run.told[0]


def test_an_expired_authority_renews_itself_at_start(mesh: Office) -> None:
    now, log = NOW + 100 * DAY_S, Log(stream=io.StringIO())
    assert renew_at_start(mesh.first, log, NOW + 11 * DAY_S) is mesh.first  # the service will
    renewed = renew_at_start(mesh.first, log, now)
    renewed.check_valid(now)
    assert Identity.load(StateDir(mesh.folder / "north")) == renewed
    with pytest.raises(errors.Refused, match="expired"):
        renew_at_start(mesh.second, log, now).check_valid(now)
