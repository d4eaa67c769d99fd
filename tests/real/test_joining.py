"""Who gets into a mesh, and who does not: real nodes, real sockets."""

import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from p2player import errors
from p2player.localmesh import LocalMesh, LocalNode
from tests.support.waiting import eventually

pytestmark = pytest.mark.real

REFUSED, UNREACHABLE = errors.Refused.exit_code, errors.Unreachable.exit_code


def join(mesh: LocalMesh, name: str, token: str) -> subprocess.CompletedProcess[str]:
    node = LocalNode(mesh.root, name, "here")
    return node.cli("join", token, "--name", name, "--listen", "127.0.0.1:0")


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == REFUSED, done
    assert done.stdout == ""
    assert done.stderr.startswith("p2player: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_token_serves_once(mesh: LocalMesh) -> None:
    one = mesh.add("one")
    token = one.must("invite")
    assert join(mesh, "two", token).returncode == 0
    assert "used" in refused(join(mesh, "three", token))


def test_a_token_for_two_serves_twice(mesh: LocalMesh) -> None:
    one = mesh.add("one")
    token = one.must("invite", "--uses", "2")
    assert [join(mesh, name, token).returncode for name in ("two", "three")] == [0, 0]
    refused(join(mesh, "four", token))


def test_expired_mistyped_and_foreign_tokens_are_refused(mesh: LocalMesh, tmp_path: Path) -> None:
    one = mesh.add("one")
    token = one.must("invite", "--ttl", "1s")

    def expired() -> bool:
        return "expired" in join(mesh, "two", token).stderr

    good = one.must("invite")
    refused(join(mesh, "three", good[:-6] + ("A" if good[-6] != "A" else "B") + good[-5:]))
    refused(join(mesh, "three", "nonsense"))
    eventually(expired, within_s=5, every_s=0.3)
    assert not (mesh.root / "three" / "identity").exists()


def test_a_taken_name_and_a_second_identity_are_refused(mesh: LocalMesh) -> None:
    one = mesh.add("one")
    two = mesh.add("two")
    spare = LocalNode(mesh.root, "spare", "here")
    done = spare.cli("join", one.must("invite"), "--name", "two", "--listen", "127.0.0.1:0")
    assert "two" in refused(done)
    refused(two.cli("join", one.must("invite"), "--name", "other", "--listen", "127.0.0.1:0"))
    refused(one.cli("init", "--mesh", "again"))
    refused(two.cli("run"))


def test_without_a_running_authority_there_is_no_join(mesh: LocalMesh) -> None:
    one = mesh.add("one")
    token = one.must("invite")
    one.stop()
    assert join(mesh, "two", token).returncode == UNREACHABLE


def test_an_invitation_can_be_made_before_the_node_runs(mesh: LocalMesh) -> None:
    one = mesh.add("one", run=False)
    token = one.must("invite")
    one.start()
    assert join(mesh, "two", token).returncode == 0


def address(node: LocalNode) -> tuple[str, int]:
    host, port = node.json("status")["address"].rsplit(":", 1)
    return host, int(port)


def test_plain_tcp_and_strangers_get_no_further_than_the_handshake(mesh: LocalMesh) -> None:
    one = mesh.add("one")
    with socket.create_connection(address(one), timeout=15) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in plain.recv(4096)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["p2player/1"])
    with socket.create_connection(address(one), timeout=15) as raw, context.wrap_socket(raw) as stranger:
        stranger.settimeout(15)
        with suppress(ssl.SSLError, ConnectionError):
            assert stranger.recv(4096) == b""
    assert one.json("status")["name"] == "one"


def test_two_meshes_on_one_machine_do_not_mix(mesh: LocalMesh, tmp_path: Path) -> None:
    one = mesh.add("one")
    (tmp_path / "other").mkdir()
    with LocalMesh(tmp_path / "other", name="other") as second:
        stranger = second.add("stranger")
        mesh.add("two")
        assert [row["name"] for row in eventually(lambda: one.json("peers"))] == ["two"]
        assert stranger.json("peers") == []


def test_leaving_is_seen_and_frees_the_name(mesh: LocalMesh) -> None:
    one, two = mesh.add("one"), mesh.add("two")
    eventually(lambda: one.json("status")["peers"]["alive"] == 1)
    two.must("leave")
    assert two.process is not None
    assert two.process.wait(20) == 0
    eventually(lambda: one.json("status")["peers"]["left"] == 1)
    assert not (two.state / "identity").exists()
    assert join(mesh, "two", one.must("invite")).returncode == 0


@pytest.mark.parametrize("command", [["status"], ["peers"], ["layers"], ["apps"], ["migrations"], ["store", "stats"]])
def test_without_a_node_commands_say_so(tmp_path: Path, command: list[str]) -> None:
    done = LocalNode(tmp_path, "nobody", "here").cli(*command, "--json")
    assert done.returncode == UNREACHABLE
    assert done.stdout == ""
    assert done.stderr.startswith("p2player: error: ")
    assert done.stderr.count("\n") == 1
