"""`init`, `join` and `invite` without a node: what they write, what they refuse, and that a failure can be repeated."""

import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from p2player import enrol
from p2player.errors import Refused, Unreachable, Usage
from p2player.net.identity import Identity
from p2player.net.invites import read_token
from p2player.net.joining import JoinDesk
from p2player.proto.joining import JoinRequest
from p2player.statedir import StateDir, locked, write_atomic
from tests.support.offices import office

HERE = "127.0.0.1:7420"
DAY_S = 86400.0


def init(root: Path, **changes: str | None) -> Identity:
    options = {"mesh": "coast", "name": "north-1", "site": "north", "listen": HERE}
    return enrol.init_mesh(root, **{**options, **changes})  # type: ignore[arg-type]


async def join(root: Path, token: str, name: str = "south-1", listen: str = HERE) -> Identity:
    """`enrol.join_mesh` as the command line runs it, beside the authority's loop."""
    return await trio.to_thread.run_sync(partial(enrol.join_mesh, root, token, name=name, listen=listen))


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in sorted(folder.rglob("*"))}


def test_init_writes_an_authority(tmp_path: Path) -> None:
    identity = init(tmp_path / "state")
    assert (identity.name, identity.site, identity.mesh_name) == ("north-1", "north", "coast")
    assert identity.is_authority
    assert modes(identity.folder) == {
        "authority": 0o700,
        "authority/ca.key": 0o600,
        "authority/ca.pem": 0o644,
        "authority/journal": 0o600,
        "ca.pem": 0o644,
        "keyring": 0o600,
        "members.json": 0o644,
        "node.json": 0o644,
        "node.key": 0o600,
        "node.pem": 0o644,
    }
    assert sorted(os.listdir(tmp_path / "state")) == ["format", "identity", "lock"]


def test_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "edge7.example.org")
    identity = enrol.init_mesh(tmp_path / "state", mesh="coast")
    assert (identity.name, identity.site) == ("edge7", "")
    assert identity.listen == ("0.0.0.0", 7420)
    assert identity.reached_at().port == 7420
    monkeypatch.setattr(socket, "gethostname", lambda: "_odd host_")
    with pytest.raises(Usage, match="--name"):
        enrol.init_mesh(tmp_path / "other", mesh="coast")


def test_port_0_is_chosen_once(tmp_path: Path) -> None:
    identity = init(tmp_path / "state", listen="127.0.0.1:0")
    assert identity.listen.port > 0
    assert Identity.load(StateDir(tmp_path / "state")).listen == identity.listen


def test_ipv6(tmp_path: Path) -> None:
    assert init(tmp_path / "state", listen="[::1]:7420").reached_at() == ("::1", 7420)


def test_a_second_identity_is_refused(tmp_path: Path) -> None:
    first = init(tmp_path / "state")
    with pytest.raises(Refused, match="already node north-1 of mesh coast"):
        init(tmp_path / "state", name="other")
    token = enrol.make_token(tmp_path / "state")
    with pytest.raises(Refused, match="already node north-1"):
        enrol.join_mesh(tmp_path / "state", token, name="x")
    assert Identity.load(StateDir(tmp_path / "state")) == first


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": "a mesh"},
        {"mesh": ""},
        {"name": "-x"},
        {"name": "x" * 64},
        {"site": "a/b"},
        {"listen": "7420"},
        {"advertise": "0.0.0.0:7420"},
        {"advertise": "10.0.0.1:0"},
        {"advertise": "nowhere"},
    ],
)
def test_malformed_names_and_addresses(tmp_path: Path, changes: dict[str, str]) -> None:
    with pytest.raises(Usage):
        init(tmp_path / "state", **changes)
    assert not (tmp_path / "state" / "identity").exists()


def test_an_address_of_another_machine_is_refused_for_port_0(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot listen"):
        init(tmp_path / "state", listen="192.0.2.1:0")


def test_nothing_is_done_beside_a_running_node(tmp_path: Path) -> None:
    init(tmp_path / "north")
    token = enrol.make_token(tmp_path / "north")
    root = tmp_path / "state"
    for command in (init, enrol.make_token, partial(enrol.join_mesh, token=token, name="x")):
        with locked(StateDir.open(root)), pytest.raises(Refused, match="already running on"):
            command(root)


def test_a_crashed_init_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", die)
        with pytest.raises(KeyboardInterrupt):
            init(tmp_path / "state")
    with pytest.raises(Refused, match="holds no identity"):
        Identity.load(StateDir(tmp_path / "state"))
    assert init(tmp_path / "state", name="again").name == "again"
    assert not (tmp_path / "state" / "identity.new").exists()


def test_tokens_are_for_this_authority(tmp_path: Path) -> None:
    identity = init(tmp_path / "state", advertise="edge.example:7420")
    token = read_token(enrol.make_token(tmp_path / "state", 60, 3))
    assert (token.mesh, token.mesh_id) == ("coast", identity.mesh_id)
    assert [(each.node, str(each.address)) for each in token.contacts] == [(identity.node_id, "edge.example:7420")]
    with pytest.raises(Usage, match="1 to 1000 uses"):
        enrol.make_token(tmp_path / "state", uses=0)
    with pytest.raises(Refused, match="holds no identity"):
        enrol.make_token(tmp_path / "empty")


async def test_joining(tmp_path: Path) -> None:
    first = init(tmp_path / "north")
    async with office(first) as at:
        second = await join(tmp_path / "south", str(at.token()), listen="127.0.0.1:0")
    assert (second.name, second.site, second.mesh_name, second.mesh_id) == ("south-1", "", "coast", first.mesh_id)
    assert not second.is_authority
    assert second.keyring() == first.keyring()
    assert second.peer_node_id(first.chain[0]) == first.node_id
    assert first.peer_node_id(second.chain[0]) == second.node_id
    rows = {(row["host"], row["port"]) for row in second.members}
    assert rows == {("10.0.0.1", 7420), tuple(at.address)}
    assert sorted(os.listdir(tmp_path / "south")) == ["format", "identity", "lock"]
    assert modes(second.folder)["node.key"] == 0o600
    with pytest.raises(Refused, match="no authority of mesh coast"):
        enrol.make_token(tmp_path / "south")


async def test_a_failed_join_leaves_no_identity_and_can_be_repeated(tmp_path: Path) -> None:
    first, root = init(tmp_path / "north"), tmp_path / "south"
    async with office(first) as at:
        token = str(at.token())
        with pytest.raises(Refused, match="taken"):
            await join(root, token, name="north-1")
        with pytest.raises(Refused, match="damaged"):
            await join(root, token[:-3])
        assert not (root / "identity").exists()
        assert (await join(root, token)).name == "south-1"


async def test_no_authority(tmp_path: Path) -> None:
    init(tmp_path / "north", listen="127.0.0.1:1")
    with pytest.raises(Unreachable, match=r"tried 127\.0\.0\.1:1 \(connection refused\)"):
        await join(tmp_path / "south", enrol.make_token(tmp_path / "north"))
    assert not (tmp_path / "south" / "identity").exists()


async def test_a_lost_answer_is_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authority journalled the only use, and the newcomer never heard of it."""
    first, root = init(tmp_path / "north"), tmp_path / "south"
    async with office(first) as at:
        token, admit = str(at.token()), at.authority.admit

        def admit_and_die(request: JoinRequest, now: float) -> None:
            admit(request, now)
            raise OSError("the answer is lost")

        monkeypatch.setattr(at.authority, "admit", admit_and_die)
        monkeypatch.setattr(JoinDesk, "serve", lossy(JoinDesk.serve))
        with pytest.raises(Unreachable, match="no valid answer"):
            await join(root, token)
        monkeypatch.undo()
        assert not (root / "identity").exists()
        with pytest.raises(Refused, match="as south-1"):
            await join(root, token, name="other")
        second = await join(root, token)
        assert at.authority.granted()[second.node_id].name == "south-1"
        with pytest.raises(Refused, match="used already"):
            await join(tmp_path / "east", token)


def lossy(serve: Callable[..., object]) -> Callable[..., object]:
    """A desk that closes the connection where it would crash."""

    async def wrapped(*arguments: object) -> None:
        try:
            await serve(*arguments)  # type: ignore[misc]
        except OSError:
            return

    return wrapped


async def test_a_node_that_left_may_come_back(tmp_path: Path) -> None:
    first, root = init(tmp_path / "north"), tmp_path / "south"
    async with office(first) as at:
        before = await join(root, str(at.token()))
        state = StateDir.open(root)
        with locked(state):
            enrol.forget_identity(state)
            enrol.forget_identity(state)
        assert sorted(os.listdir(root)) == ["format", "lock"]
        with pytest.raises(Refused, match="taken"):
            await join(root, str(at.token()))
        at.authority.release(before.node_id, 0.0)
        after = await join(root, str(at.token()))
    assert after.name == before.name
    assert after.node_id != before.node_id


def long_ago() -> float:
    """A clock at which a certificate is made that has expired today."""
    return time.time() - 31 * DAY_S


async def expired_node(root: Path, first: Identity) -> Identity:
    """A node that joined 31 days ago, at a site, and was never renewed."""
    async with office(first, clock=long_ago) as at:
        token = str(at.token(now=long_ago()))
        make = partial(enrol.join_mesh, root, token, name="south-1", site="south", listen=HERE, clock=long_ago)
        return await trio.to_thread.run_sync(make)


async def test_an_expired_node_is_enrolled_again(tmp_path: Path) -> None:
    first, root = init(tmp_path / "north"), tmp_path / "south"
    before = await expired_node(root, first)
    with pytest.raises(Refused, match=r"expired .* enrolled again with `p2player join TOKEN`"):
        before.check_valid(time.time())
    async with office(first) as at:
        token = str(at.token())
        for name, site in (("other", None), (None, "north"), ("SOUTH-1", "south")):
            with pytest.raises(Refused, match="this node is south-1 at site south"):
                await trio.to_thread.run_sync(partial(enrol.join_mesh, root, token, name=name, site=site))
        after = await trio.to_thread.run_sync(enrol.join_mesh, root, token)
        with pytest.raises(Refused, match="already node south-1"):
            await trio.to_thread.run_sync(enrol.join_mesh, root, token)
        assert at.authority.granted()[after.node_id].not_after == after.certificate.not_after
    after.check_valid(time.time())
    assert after == Identity.load(StateDir(root))
    assert (after.node_id, after.name, after.site) == (before.node_id, "south-1", "south")
    assert (after.listen, after.advertise) == (before.listen, None)
    assert after.authorities == before.authorities == (first.node_id,)
    assert sorted(os.listdir(root)) == ["format", "identity", "lock"]


async def test_enrolling_again_can_be_repeated_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash before the certificate, the last file, leaves the expired identity whole; the same token still does."""
    first, root = init(tmp_path / "north"), tmp_path / "south"
    before = await expired_node(root, first)

    def die_before_certificate(path: Path, data: bytes, mode: int = 0o600) -> None:
        if path.name == "node.pem":
            raise KeyboardInterrupt
        write_atomic(path, data, mode)

    async with office(first) as at:
        token = str(at.token())
        with monkeypatch.context() as patch:
            patch.setattr("p2player.net.identity.write_atomic", die_before_certificate)
            with pytest.raises(KeyboardInterrupt):
                await trio.to_thread.run_sync(enrol.join_mesh, root, token)
        assert Identity.load(StateDir(root)).certificate == before.certificate
        assert (await trio.to_thread.run_sync(enrol.join_mesh, root, token)).node_id == before.node_id


async def test_who_is_not_enrolled_again(tmp_path: Path) -> None:
    first = init(tmp_path / "north")
    await expired_node(tmp_path / "south", first)
    other = enrol.init_mesh(tmp_path / "other", mesh="hills", name="o", listen=HERE)
    enrol.init_mesh(tmp_path / "old", mesh="coast", name="old", listen=HERE, clock=long_ago)
    with pytest.raises(Refused, match="already node south-1 of mesh coast"):
        enrol.join_mesh(tmp_path / "south", enrol.make_token(tmp_path / "other"))
    with pytest.raises(Refused, match="renews its own certificate when it is started"):
        enrol.join_mesh(tmp_path / "old", enrol.make_token(tmp_path / "old"))
    assert other.authorities == ()
