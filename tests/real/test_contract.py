"""The command line's contract, on a mesh of two real nodes: every command, its fields, its exit codes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2player.localmesh import COMMAND, LocalMesh, LocalNode
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    root = tmp_path_factory.mktemp("contract")
    with LocalMesh(root, name="lab") as made:
        made.add("one", "north")
        made.add("two", "south")
        eventually(lambda: made.nodes["one"].json("status")["peers"]["alive"] == 1)
        yield made


@pytest.fixture(scope="module")
def one(mesh: LocalMesh) -> LocalNode:
    return mesh.nodes["one"]


@pytest.fixture(scope="module")
def two(mesh: LocalMesh) -> LocalNode:
    return mesh.nodes["two"]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trees")
    (root / "base").mkdir()
    (root / "base" / "note").write_text("a base\n")
    (root / "app").mkdir()
    (root / "app" / "run.sh").write_text("trap 'exit 0' TERM\necho up\nwhile :; do sleep 0.1 & wait $!; done\n")
    (root / "run.toml").write_text('command = ["/bin/sh", "{app}/run.sh"]\naddresses = ["127.0.0.1:1"]\n')
    return root


def fails(node: LocalNode, code: int, *arguments: str) -> str:
    """Run a command that has to fail in the agreed form; what it said."""
    done = node.cli(*arguments)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.startswith("p2player: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_status_and_peers(one: LocalNode) -> None:
    status = one.json("status")
    assert status.keys() == {"name", "id", "mesh", "site", "address", "version", "peers"}
    assert (status["name"], status["mesh"], status["site"]) == ("one", "lab", "north")
    assert status["peers"].keys() == {"alive", "suspect", "dead", "left"}
    (peer,) = one.json("peers")
    assert {"name", "site", "address", "state", "rtt_ms"} <= peer.keys()
    assert (peer["name"], peer["site"], peer["state"]) == ("two", "south", "alive")
    assert eventually(lambda: one.json("peers")[0]["rtt_ms"]) > 0


def test_layers(one: LocalNode, two: LocalNode, trees: Path, tmp_path: Path) -> None:
    added = one.json("layer", "add", str(trees / "app"), "--name", "program")
    assert added.keys() >= {"id", "name", "size", "chunks", "seconds"}
    assert one.must("layer", "add", str(trees / "app"), "--name", "program") == added["id"]
    row = eventually(lambda: [row for row in two.json("layers") if row["name"] == "program"])[0]
    assert row.keys() >= {"id", "name", "kind", "size", "chunks", "have_chunks", "holders", "partial"}
    assert (row["kind"], row["holders"], row["have_chunks"], row["partial"]) == ("app", ["one"], 0, {})
    pulled = two.json("layer", "pull", "program")
    assert pulled.keys() >= {"id", "name", "seconds", "bytes", "sources"}
    assert pulled["bytes"].keys() >= {"total", "deduplicated", "transferred"}
    two.must("layer", "pull", added["id"][:8])
    fails(two, 3, "layer", "pull", added["id"][:7])

    two.must("layer", "checkout", "program", str(tmp_path / "out"))
    assert (tmp_path / "out" / "run.sh").read_text().startswith("trap")
    fails(two, 5, "layer", "checkout", "program", str(tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    two.must("layer", "checkout", "program", str(tmp_path / "empty"))

    two.must("layer", "pin", "program")
    two.must("layer", "unpin", "program")
    assert "one" in fails(two, 5, "layer", "add", str(trees / "base"), "--name", "program")
    two.must("layer", "add", str(trees / "base"), "--name", "program", "--takeover")
    taken = eventually(lambda: [r for r in one.json("layers") if r["name"] == "program" and r["taken_from"]])[0]
    assert (taken["taken_from"], taken["owner"]) == ("one", "two")
    assert one.json("layer", "diff", added["id"], taken["id"])["added"] == ["note"]
    two.must("layer", "rm", "program")
    eventually(lambda: not [row for row in one.json("layers") if row["name"] == "program"])


def test_tar_files_make_the_same_layer_as_their_folder(one: LocalNode, trees: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"x" * 100_000)
    (tree / "link").symlink_to("file")
    with tarfile.open(tmp_path / "tree.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(tree, arcname=".")
    by_folder = one.json("layer", "add", str(tree), "--name", "by-folder")
    by_tar = one.json("layer", "add", str(tmp_path / "tree.tar"), "--name", "by-tar")
    assert by_tar["size"] == by_folder["size"]
    assert by_tar["chunks"] == by_folder["chunks"]


def test_paths_that_are_not_supported_yet_are_refused(one: LocalNode, tmp_path: Path) -> None:
    (tmp_path / "oci").mkdir()
    (tmp_path / "oci" / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (tmp_path / "disk.qcow2").write_bytes(b"QFI\xfb" + bytes(508))
    fails(one, 5, "layer", "add", str(tmp_path / "oci"), "--name", "oci")
    fails(one, 5, "layer", "add", str(tmp_path / "disk.qcow2"), "--name", "disk")
    fails(one, 3, "layer", "add", str(tmp_path / "absent"), "--name", "absent")


def test_apps(one: LocalNode, two: LocalNode, trees: Path) -> None:
    one.must("layer", "add", str(trees / "base"), "--name", "ground", "--kind", "base")
    one.must("layer", "add", str(trees / "app"), "--name", "service")
    create = ("--backend", "process", "--base", "ground", "--app", "service", "--config", str(trees / "run.toml"))
    one.must("app", "create", "web", *create)
    fails(one, 5, "app", "create", "web", *create)
    row = one.json("apps")[0]
    keys = {"name", "id", "backend", "node", "state", "epoch", "base", "app", "addresses"}
    assert keys <= row.keys()
    assert (row["state"], row["node"], row["epoch"]) == ("stopped", "one", 1)
    one.must("app", "start", "web")
    eventually(lambda: "up" in one.must("app", "logs", "web"))
    fails(one, 5, "layer", "rm", "service")
    fails(one, 5, "app", "rm", "web")
    fails(one, 5, "app", "recover", "web")
    assert eventually(lambda: [r for r in two.json("apps") if r["state"] == "running"])[0]["node"] == "one"

    plan = one.json("plan", "web", "--to", "two")
    assert plan.keys() >= {"app", "from", "to", "mode", "layers", "total_s", "freeze_s", "refusals"}
    assert plan["layers"].keys() == {"base", "app", "instance"}
    assert plan["refusals"] == []
    moved = two.json("migrate", "web", "--to", "two")
    fields = {"id", "app", "from", "to", "state", "total_s", "freeze_s", "longest_freeze_s", "bytes", "sources"}
    assert moved.keys() >= fields
    assert (moved["state"], moved["from"], moved["to"]) == ("done", "one", "two")
    assert eventually(lambda: [r for r in one.json("apps") if r["node"] == "two"])[0]["epoch"] == 2
    assert moved["id"] in {row["id"] for row in one.json("migrations")}
    one.must("app", "stop", "web")
    two.must("app", "rm", "web")
    eventually(lambda: one.json("apps") == [])


def test_the_rest_of_the_commands_exist(one: LocalNode, trees: Path) -> None:
    one.must("layer", "add", str(trees / "app"), "--name", "popular")
    assert {"name", "available", "version", "reason"} <= one.json("backends")[0].keys()
    assert next(row for row in one.json("backends") if row["name"] == "process")["available"] is True
    assert one.json("warm", "popular", "--to", "two")["nodes"] == ["two"]
    one.must("warm", "popular", "--site", "south")
    one.must("warm", "popular", "--copies", "2")
    one.must("warm", "--auto", "on")
    one.must("warm", "--auto", "off")
    assert one.json("store", "verify")["damaged"] == []
    assert one.json("store", "gc").keys() >= {"freed_bytes"}
    assert one.json("store", "stats")["layers"] >= 1
    for refused in (["node", "revoke", "two"], ["authority", "grant", "two"]):
        fails(one, 5, *refused)
    create = ["app", "create", "c", "--base", "popular", "--app", "popular", "--config", str(trees / "run.toml")]
    for row in one.json("backends"):
        if not row["available"]:
            fails(one, 5, *create, "--backend", row["name"])
    fails(one, 2, *create, "--backend", "nonsense")
    fails(one, 5, "app", "adopt", "c", "--backend", "process")
    fails(one, 3, "migrate", "nothing", "--to", "two")
    fails(one, 3, "migrations", "cancel", "0" * 32)
    for usage in (["layer", "pull"], ["nonsense"], ["warm", "popular"], ["migrate", "x"]):
        fails(one, 2, *usage)


def test_every_command_teaches(one: LocalNode) -> None:
    commands = """init|invite|join|run|leave|node revoke|authority grant|status|peers|layers|apps|migrations|backends
        |layer add|layer pull|layer checkout|layer rm|layer pin|layer unpin|layer diff|app create|app start|app stop
        |app rm|app logs|app recover|app adopt|plan|migrate|migrations cancel|warm|store stats|store verify|store gc
        |top|events|demo"""
    for command in commands.split("|"):
        done = one.cli(*command.split(), "--help")
        assert done.returncode == 0, command
        assert len(done.stdout.splitlines()) > 3, command


def curl(node: LocalNode, path: str, *options: str) -> tuple[int, Any]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-s", "-w", "\n%{http_code}", "--unix-socket", str(node.state / "control.sock"), *options]
    out = subprocess.run([*command, f"http://p2player{path}"], capture_output=True, text=True, check=True).stdout
    body, _, status = out.rpartition("\n")
    return int(status), json.loads(body) if body.startswith(("{", "[")) else body


def test_curl_is_a_first_class_client(one: LocalNode) -> None:
    assert curl(one, "/v1/status")[1]["name"] == "one"
    status, document = curl(one, "/openapi.json")
    assert (status, document["openapi"][:2]) == (200, "3.")
    assert "/v1/migrations" in document["paths"]
    assert curl(one, "/metrics")[1].startswith("# HELP p2player_peers")
    assert "<title>p2player</title>" in curl(one, "/")[1]
    status, refusal = curl(one, "/v1/migrations", "-d", '{"app": "nothing", "to": "two"}')
    assert (status, refusal["error"]["code"]) == (404, "not_found")
    assert curl(one, "/v1/migrations", "-d", "not json")[0] == 400
    assert curl(one, "/v1/migrations", "-d", '{"app": "x", "to": "two", "zzz": 1}')[0] == 400
    assert curl(one, "/v1/nowhere")[0] == 404
    assert curl(one, "/v1/status", "-X", "DELETE")[0] == 405


def test_events_stream(one: LocalNode, trees: Path) -> None:
    command = [*COMMAND, "--state-dir", str(one.state), "events", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as events:
        assert events.stdout is not None
        time.sleep(0.5)
        one.must("layer", "add", str(trees / "base"), "--name", "eventful")
        seen = ""
        while "layer.added" not in seen:
            seen = events.stdout.readline()
            assert seen
        assert json.loads(seen)["name"] == "eventful"
        events.send_signal(signal.SIGINT)
        assert events.wait(10) == 130


def test_a_deep_state_folder_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with LocalMesh(deep) as mesh:
        node = mesh.add("deep")
        assert len(str(node.state / "control.sock")) > 107
        assert node.json("status")["name"] == "deep"


def test_readiness_is_one_line_and_told_to_the_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with LocalMesh(tmp_path) as mesh:
            node = mesh.add("ready")
            assert b"READY=1" in manager.recv(4096)
            lines = [line for line in node.log_path.read_text().splitlines() if line.startswith("p2player: ready")]
            address = node.json("status")["address"]
            assert lines == [f"p2player: ready node=ready listen={address} socket={node.state}/control.sock"]
            mode = os.stat(node.state / "control.sock").st_mode & 0o777
            assert mode == 0o600
            assert os.stat(node.state).st_mode & 0o777 == 0o700
