"""The contract of the command line: commands and flags, what they ask of the node and print, and their exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import pytest

import p2player
from p2player import client as client_module
from p2player.cli import cli, execute, output, watch
from tests.support.fakenode import FakeNode, Reply, Request, accepted, operation, problem

OP = "/v1/operations/op1"
LAYER = "ab" * 32
STATUS = {
    "name": "north-1",
    "id": "0" * 32,
    "mesh": "shops",
    "site": "north",
    "address": "10.0.0.1:7420",
    "version": "0.1.0",
    "peers": {"alive": 2, "suspect": 0, "dead": 1, "left": 0},
}
PEERS: list[dict[str, Any]] = [
    {"name": "south-1", "site": "south", "address": "10.0.1.1:7420", "state": "alive", "rtt_ms": 12.345},
    {"name": "west-1", "site": "", "address": "10.0.2.1:7420", "state": "dead", "rtt_ms": None},
]
LAYERS = [
    {
        "id": LAYER,
        "name": "game",
        "kind": "app",
        "size": 5_000_000,
        "chunks": 100,
        "have_chunks": 25,
        "holders": ["north-1", "south-1"],
        "partial": {"west-1": 25},
    }
]
APP = {
    "name": "game",
    "id": "cd" * 16,
    "backend": "process",
    "node": "north-1",
    "state": "running",
    "epoch": 3,
    "base": LAYER,
    "app": LAYER,
    "addresses": ["10.0.0.5:8000"],
}
PULLED = {
    "id": LAYER,
    "name": "game",
    "seconds": 1.5,
    "bytes": {"total": 5_000_000, "deduplicated": 4_000_000, "transferred": 1_000_100},
    "sources": {"south-1": 1_000_000},
}
ADDED = {"id": LAYER, "name": "game", "size": 5_000_000, "chunks": 100, "seconds": 0.5}
PLAN = {
    "app": "game",
    "from": "north-1",
    "to": "south-1",
    "mode": "live",
    "layers": {
        "base": {"total": 600_000_000, "transferred": 0},
        "app": {"total": 5_000_000, "transferred": 1_000_000},
        "instance": {"total": 4_000_000, "transferred": 4_000_000},
    },
    "total_s": 3.2,
    "freeze_s": 0.12,
    "refusals": [],
}
MIGRATION = {
    "id": "ef" * 16,
    "app": "game",
    "from": "north-1",
    "to": "south-1",
    "state": "done",
    "total_s": 3.3,
    "freeze_s": 0.13,
    "longest_freeze_s": 0.1,
    "bytes": {"total": 609_000_000, "deduplicated": 604_000_000, "transferred": 5_100_000},
    "sources": {"north-1": 5_000_000},
    "error": None,
}
BACKENDS = [
    {"name": "process", "available": True, "version": "1", "reason": ""},
    {"name": "lxd", "available": False, "version": "", "reason": "no LXD socket"},
]
STORE = {"chunks": 10, "layers": 2, "stored_bytes": 1 << 20, "free_bytes": 1 << 30}
VERIFIED = {"checked_bytes": 1 << 20, "damaged": [], "repaired": 0}
ENROLLED = SimpleNamespace(name="north-1", mesh_name="shops")
DAMAGE = [{"chunk": "11" * 32, "layers": [{"id": LAYER, "name": "game"}, {"id": "22" * 32, "name": None}]}]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    monkeypatch.setattr(client_module, "_PAUSE_S", 0.0)
    monkeypatch.setenv("P2PLAYER_STATE", str(tmp_path))
    with FakeNode(tmp_path) as running:
        yield running


@dataclass
class Case:
    """One command against a node: what it asks last but for polls, what it prints with `--json` and for people."""

    command: str
    asks: str
    replies: Reply
    body: Any = None
    ends: Any = None
    document: Any = None
    says: list[str] = field(default_factory=list)
    json_too: bool = True

    def arm(self, node: FakeNode) -> None:
        node.answers[self.asks] = accepted(OP) if self.ends is not None else self.replies
        node.answers[f"GET {OP}"] = [operation("running", done=1, total=2), operation("done", self.ends)]


def work(command: str, asks: str, result: Any, says: list[str], body: Any = None) -> Case:
    return Case(command, asks, Reply(), body=body, ends=result, document=result, says=says)


def read(command: str, asks: str, document: Any, says: list[str], **options: Any) -> Case:
    return Case(command, asks, Reply(document), document=document, says=says, **options)


CASES = [
    read("status", "GET /v1/status", STATUS, ["north-1", "shops", "10.0.0.1:7420", "2 alive, 1 dead"]),
    read("peers", "GET /v1/peers", PEERS, ["NAME", "south-1", "12.3 ms", "west-1", "dead"]),
    read("layers", "GET /v1/layers", LAYERS, ["game", LAYER[:12], "4.8 MiB", "25 %", "north-1, south-1", "west-1"]),
    read("apps", "GET /v1/apps", [APP], ["game", "process", "north-1", "running", "10.0.0.5:8000"]),
    read("migrations", "GET /v1/migrations", [MIGRATION], ["game", "done", "3.3 s", "0.130 s", "4.9 MiB", "north-1"]),
    read("backends", "GET /v1/backends", BACKENDS, ["process", "yes", "lxd", "no LXD socket"]),
    work(
        "layer add /data/game --name game --kind base --takeover",
        "POST /v1/layers",
        ADDED,
        [LAYER],
        {"path": "/data/game", "name": "game", "kind": "base", "takeover": True},
    ),
    work(
        "layer add relative --name game",
        "POST /v1/layers",
        ADDED,
        [LAYER],
        {"path": os.path.abspath("relative"), "name": "game", "kind": "app", "takeover": False},
    ),
    work("layer pull edge/game", "POST /v1/layers/edge%2Fgame/pull", PULLED, ["976.7 KiB", "south-1", "1.5 s"]),
    work(
        "layer checkout game out",
        "POST /v1/layers/game/checkout",
        {"files": 3, "bytes": 100, "skipped": {"owners": 3}, "id": LAYER, "name": "game", "seconds": 0.1},
        [f"{os.path.abspath('out')}: 3 files, 100 B, 0.100 s"],
        {"dir": os.path.abspath("out")},
    ),
    read("layer rm game", "DELETE /v1/layers/game", {}, ["removed game"], json_too=False),
    read("layer pin game", "PUT /v1/layers/game/pin", {}, ["pinned game"], json_too=False),
    read("layer unpin game", "DELETE /v1/layers/game/pin", {}, ["unpinned game"], json_too=False),
    read(
        "layer diff a b",
        "GET /v1/layers/a/diff/b",
        {"added": ["new"], "removed": ["old"], "changed": [{"path": "bin", "what": "mode"}, "etc"]},
        ["+ new", "- old", "~ bin (mode)", "~ etc"],
    ),
    Case(
        "app create game --backend process --base debian --app game",
        "POST /v1/apps",
        Reply(APP, 201),
        body={"name": "game", "backend": "process", "base": "debian", "app": "game", "config": None},
        document=APP,
        says=["created game", "cd" * 16],
    ),
    read("app start game", "POST /v1/apps/game/start", APP, ["game is running on north-1"]),
    read("app stop game", "POST /v1/apps/game/stop", {**APP, "state": "stopped"}, ["game is stopped on north-1"]),
    read("app rm game", "DELETE /v1/apps/game", {}, ["removed game"], json_too=False),
    read("app logs game", "GET /v1/apps/game/logs", {"text": "one\ntwo\n"}, ["one\ntwo\n"]),
    read("app recover game", "POST /v1/apps/game/recover", APP, ["game is running"], body={"force": False}),
    read("app recover game --force", "POST /v1/apps/game/recover", APP, ["game is running"], body={"force": True}),
    read(
        "plan game --to south-1",
        "POST /v1/plan",
        PLAN,
        ["north-1 -> south-1, live", "instance", "4.8 MiB", "about 3.2 s in all, 0.120 s of it suspended"],
        body={"app": "game", "to": "south-1"},
    ),
    read(
        "plan game --to south-1 --mode cold --max-freeze 300ms",
        "POST /v1/plan",
        PLAN,
        ["north-1"],
        body={"app": "game", "to": "south-1", "mode": "cold", "max_freeze_s": 0.3},
    ),
    read("migrations cancel ef", "DELETE /v1/migrations/ef", MIGRATION, ["efefefefefef is done"], json_too=False),
    work(
        "warm game --to south-1",
        "POST /v1/warm",
        {"nodes": ["south-1"], "seconds": 2.0, "bytes": {"transferred": 2048}},
        ["game is on south-1: 2.0 KiB transferred, 2.0 s"],
        {"target": "game", "to": "south-1"},
    ),
    work("warm game --site south", "POST /v1/warm", {}, ["game is warm"], {"target": "game", "site": "south"}),
    work("warm game --copies 3", "POST /v1/warm", {}, ["game is warm"], {"target": "game", "copies": 3}),
    read("warm --auto on", "PUT /v1/warm/auto", {"auto": True}, ["auto", "on"], body={"enabled": True}),
    read("warm --auto off", "PUT /v1/warm/auto", {"auto": False}, ["auto", "off"], body={"enabled": False}),
    read(
        "warm",
        "GET /v1/warm",
        {"auto": True, "budget_bytes": 1 << 30, "layers": [{"id": LAYER, "name": "game"}]},
        ["budget", "1.0 GiB", "game"],
    ),
    read("store stats", "GET /v1/store", STORE, ["stored", "1.0 MiB", "free", "1.0 GiB", "chunks", "10"]),
    work("store verify", "POST /v1/store/verify", VERIFIED, ["1.0 MiB checked, 0 chunks damaged"], {"repair": False}),
    work("store verify --repair", "POST /v1/store/verify", VERIFIED, ["0 chunks damaged"], {"repair": True}),
    work(
        "store gc",
        "POST /v1/store/gc",
        {"freed_bytes": 2048, "chunks": 3, "evicted": ["game"]},
        ["2.0 KiB freed, 3 chunks, evicted game"],
    ),
    read("leave", "POST /v1/leave", {"left": True}, ["left the mesh"], json_too=False),
    Case(
        "invite",
        "POST /v1/invites",
        Reply({"token": "T"}, 201),
        {"ttl_s": 3600.0, "uses": 1},
        says=["T\n"],
        json_too=False,
    ),
    Case(
        "invite --ttl 15m --uses 3",
        "POST /v1/invites",
        Reply({"token": "T"}, 201),
        {"ttl_s": 900.0, "uses": 3},
        says=["T\n"],
        json_too=False,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command)
def test_a_command_asks_the_node_and_prints_for_people(
    node: FakeNode, capsys: pytest.CaptureFixture[str], case: Case
) -> None:
    case.arm(node)
    assert execute(case.command.split()) == 0
    asked = node.requests[0]
    assert (f"{asked.method} {asked.path}", asked.body) == (case.asks, case.body)
    said = capsys.readouterr().out
    assert all(words in said for words in case.says), said
    assert "\x1b" not in said


@pytest.mark.parametrize("case", [case for case in CASES if case.json_too], ids=lambda case: case.command)
def test_json_is_one_document_and_nothing_else(node: FakeNode, capsys: pytest.CaptureFixture[str], case: Case) -> None:
    case.arm(node)
    assert execute([*case.command.split(), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == case.document
    assert said.err == ""


@pytest.mark.parametrize("command", ["layers", "peers", "apps", "migrations", "backends"])
def test_empty_lists_are_told_on_stderr_and_are_lists_in_json(
    node: FakeNode, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    node.answers[f"GET /v1/{command}"] = Reply([])
    assert execute([command]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("p2player: ")
    assert execute([command, "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_adding_a_layer_prints_its_id_alone_on_stdout(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["POST /v1/layers"] = accepted(OP)
    node.answers[f"GET {OP}"] = operation("done", {**ADDED, "note": "2 sockets left out"})
    assert execute(["layer", "add", "x", "--name", "game"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{LAYER}\n"
    assert said.err.splitlines() == ["p2player: 2 sockets left out", "p2player: game: 4.8 MiB, 100 chunks, 0.500 s"]


def test_what_checkout_leaves_out_is_one_line_on_stderr(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["POST /v1/layers/game/checkout"] = accepted(OP)
    node.answers[f"GET {OP}"] = operation("done", {"files": 1, "bytes": 2, "skipped": {"owners": 3, "devices": 0}})
    assert execute(["layer", "checkout", "game", "out"]) == 0
    assert capsys.readouterr().err == "p2player: left out for lack of privilege: 3 owners\n"


def test_a_settings_file_is_read_here_and_sent_as_text(node: FakeNode, tmp_path: Path) -> None:
    node.answers["POST /v1/apps"] = Reply(APP, 201)
    config = tmp_path / "game.toml"
    config.write_text('command = ["{app}/größe"]\n')
    made = ["--backend", "process", "--base", "b", "--app", "a", "--config", str(config)]
    assert execute(["app", "create", "game", *made]) == 0
    assert node.requests[0].body["config"] == 'command = ["{app}/größe"]\n'


@pytest.mark.parametrize(
    ("content", "code", "words"), [(None, 3, "no file"), (b"\xff", 2, "not UTF-8"), (b"#" * 300_000, 2, "larger than")]
)
def test_a_settings_file_that_cannot_be_used_is_refused(
    node: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, code: int, words: str
) -> None:
    config = tmp_path / "game.toml"
    if content is not None:
        config.write_bytes(content)
    made = ["--backend", "process", "--base", "b", "--app", "a", "--config", str(config)]
    assert execute(["app", "create", "game", *made]) == code
    assert words in error_line(capsys)
    assert node.requests == []


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which must be one line of the form of all errors; nothing may be on stdout."""
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"p2player: error: [^\n]+\n", said.err), said.err
    return said.err


def test_adopting_is_refused_with_the_reason(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["POST /v1/apps/adopt"] = problem(409, "refused", "there is nothing to adopt")
    made = ["--backend", "lxd", "--base", "b", "--app", "a", "--instance", "c1"]
    assert execute(["app", "adopt", "game", *made]) == 5
    assert "nothing to adopt" in error_line(capsys)
    assert node.requests[0].body["instance"] == "c1"


@pytest.mark.parametrize(
    ("command", "asks"),
    [
        ("node revoke south-1", "POST /v1/nodes/south-1/revoke"),
        ("authority grant south-1", "POST /v1/authorities/south-1"),
    ],
)
def test_what_this_version_refuses_exits_5(
    node: FakeNode, capsys: pytest.CaptureFixture[str], command: str, asks: str
) -> None:
    node.answers[asks] = problem(409, "refused", "not in this version")
    assert execute(command.split()) == 5
    assert "not in this version" in error_line(capsys)


# Migrations


def test_a_migration_is_awaited_and_its_row_printed(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["POST /v1/migrations"] = Reply({**MIGRATION, "state": "plan"}, 202, "/v1/migrations/m1")
    node.answers["GET /v1/migrations/m1"] = [
        Reply({**MIGRATION, "state": "pre-copy", "progress": {"done": 1, "total": 2}}),
        Reply(MIGRATION),
    ]
    assert execute(["migrate", "game", "--to", "south-1", "--max-freeze", "2s", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == MIGRATION
    assert said.err == ""
    assert node.requests[0].body == {"app": "game", "to": "south-1", "max_freeze_s": 2.0}
    node.answers["GET /v1/migrations/m1"] = Reply(MIGRATION)
    assert execute(["migrate", "game", "--to", "south-1", "--mode", "cold"]) == 0
    assert "0.130 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ({"state": "failed", "error": {"code": "unreachable", "message": "south-1 is gone"}}, 4, "south-1 is gone"),
        ({"state": "failed", "error": {"code": "refused", "message": "no room"}}, 5, "no room"),
        ({"state": "cancelled"}, 1, "cancelled"),
    ],
)
def test_a_migration_that_fails_prints_its_row_and_exits_with_its_code(
    node: FakeNode, capsys: pytest.CaptureFixture[str], row: dict[str, Any], code: int, words: str
) -> None:
    node.answers["POST /v1/migrations"] = Reply({**MIGRATION, "state": "plan"}, 202, "/v1/migrations/m1")
    node.answers["GET /v1/migrations/m1"] = Reply({**MIGRATION, **row})
    assert execute(["migrate", "game", "--to", "south-1", "--json"]) == code
    said = capsys.readouterr()
    assert json.loads(said.out)["state"] == row["state"]
    assert said.err.startswith("p2player: error: ")
    assert words in said.err


def test_a_plan_with_refusals_exits_5_after_it_was_printed(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    refused = {**PLAN, "refusals": ["kernel 5.4 is too old", "no room"]}
    node.answers["POST /v1/plan"] = Reply(refused)
    assert execute(["plan", "game", "--to", "south-1", "--json"]) == 5
    said = capsys.readouterr()
    assert json.loads(said.out) == refused
    assert said.err == "p2player: error: kernel 5.4 is too old; no room\n"


# Verifying


def verify(node: FakeNode, repaired: int, *options: str) -> int:
    node.answers["POST /v1/store/verify"] = accepted(OP)
    result = {"checked_bytes": 5, "damaged": DAMAGE, "repaired": repaired}
    node.answers[f"GET {OP}"] = operation("done", result)
    return execute(["store", "verify", *options])


def test_damage_exits_6_and_names_the_layers(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(node, 0) == 6
    said = capsys.readouterr()
    assert "game, 222222222222" in said.out
    assert re.fullmatch(r"p2player: error: 1 chunks are damaged, in game, 222222222222; .*--repair.*\n", said.err)
    assert verify(node, 0, "--repair", "--json") == 6
    said = capsys.readouterr()
    assert json.loads(said.out)["damaged"] == DAMAGE
    assert "game" in said.err


def test_damage_that_was_mended_exits_0(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(node, 1, "--repair") == 0
    assert "1 chunks damaged, 1 mended" in capsys.readouterr().out


# Failures


@pytest.mark.parametrize(
    ("code", "status", "exit_code"),
    [
        ("failed", 500, 1),
        ("usage", 400, 2),
        ("not_found", 404, 3),
        ("unreachable", 503, 4),
        ("refused", 409, 5),
        ("integrity", 422, 6),
    ],
)
def test_every_error_of_the_node_has_its_exit_code(
    node: FakeNode, capsys: pytest.CaptureFixture[str], code: str, status: int, exit_code: int
) -> None:
    node.answers["GET /v1/layers"] = problem(status, code, "several\nlines \x1b[31mhere")
    assert execute(["layers", "--json"]) == exit_code
    assert error_line(capsys) == "p2player: error: several lines ?[31mhere\n"
    node.answers["POST /v1/layers/x/pull"] = accepted(OP)
    node.answers[f"GET {OP}"] = operation("failed", error={"code": code, "message": "bad"})
    assert execute(["layer", "pull", "x"]) == exit_code
    assert error_line(capsys) == "p2player: error: bad\n"


NEED_A_NODE = [
    "status", "peers", "layers", "apps", "migrations", "backends", "leave", "node revoke x", "authority grant x",
    "layer add x --name x", "layer pull x", "layer checkout x y", "layer rm x", "layer pin x", "layer unpin x",
    "layer diff a b", "app create x --backend p --base b --app a", "app start x", "app stop x", "app rm x",
    "app logs x", "app recover x", "app adopt x --backend p --base b --app a", "plan x --to y", "migrate x --to y",
    "migrations cancel x", "warm x --to y", "warm --auto on", "store stats", "store verify", "store gc", "top",
    "events", "invite",
]  # fmt: skip


@pytest.mark.parametrize("command", NEED_A_NODE)
def test_without_a_node_every_command_exits_4_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert execute(["--state-dir", str(tmp_path / "nowhere"), *command.split()]) == 4
    assert "no node is running" in error_line(capsys)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("frobnicate", "no such command 'frobnicate' (see: p2player --help)"),
        ("layer", "missing command (see: p2player layer --help)"),
        ("layer frob", "no such command 'frob' (see: p2player layer --help)"),
        ("layer add", "missing argument 'PATH' (see: p2player layer add --help)"),
        ("layer add x", "missing option '--name' (see: p2player layer add --help)"),
        ("layer add x --name y --kind z", "'z' is not one of 'base', 'app'"),
        ("layer checkout game", "missing argument 'DIR'"),
        ("status --yaml", "--yaml"),
        ("status extra", "extra"),
        ("init", "missing option '--mesh'"),
        ("init --mesh m --listen nonsense", "'nonsense' is not an address"),
        ("init --mesh m --listen 1.2.3.4:99999", "out of bounds"),
        ("invite --ttl soon", "'soon' is not a duration"),
        ("invite --ttl 0s", "'0s' is not between"),
        ("invite --ttl 9999d", "'9999d' is not between"),
        ("invite --uses 0", "0 is not in the range"),
        ("run --limit-in fast", "'fast' is not a rate"),
        ("run --limit-in 10", "less than 1 kB/s"),
        ("migrate game", "missing option '--to'"),
        ("migrate game --to x --max-freeze 0s", "'0s' is not between"),
        ("migrate game --to x --mode warm", "'warm' is not one of 'live', 'cold'"),
        ("warm game", "say exactly one of"),
        ("warm game --to a --site b", "say exactly one of"),
        ("warm game --copies 0", "0 is not in the range"),
        ("warm --to a", "which APP or LAYER"),
        ("warm game --auto on", "--auto stands alone"),
        ("--state-dir", "requires an argument"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], command: str, words: str) -> None:
    assert execute(command.split()) == 2
    assert words in error_line(capsys)


def test_a_defect_is_one_line_too(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.answers["GET /v1/layers"] = Reply([])
    monkeypatch.setattr(output, "document", lambda _value: 1 / 0)
    assert execute(["layers", "--json"]) == 1
    assert error_line(capsys) == "p2player: error: internal error: ZeroDivisionError: division by zero\n"


# Commands that need no node


@dataclass
class Called:
    """Stands in for a module: records what was called with which arguments."""

    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def module(self, monkeypatch: pytest.MonkeyPatch, name: str, **results: Any) -> None:
        module = ModuleType(f"p2player.{name}")
        for function, result in results.items():
            setattr(module, function, self._recorder(function, result))
        monkeypatch.setitem(sys.modules, f"p2player.{name}", module)
        monkeypatch.setattr(p2player, name, module, raising=False)

    def _recorder(self, function: str, result: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((function, args, kwargs))
            return result

        return call


@pytest.fixture
def called() -> Called:
    return Called()


def test_init_makes_a_mesh(
    called: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called.module(monkeypatch, "enrol", init_mesh=ENROLLED)
    options = "--mesh shops --name north-1 --site north --listen [::]:0 --advertise edge.example:7420"
    assert execute(["--state-dir", str(tmp_path), "init", *options.split()]) == 0
    told = {
        "mesh": "shops",
        "name": "north-1",
        "site": "north",
        "listen": "[::]:0",
        "advertise": "edge.example:7420",
    }
    assert called.calls == [("init_mesh", (tmp_path,), told)]
    assert capsys.readouterr().out == "mesh shops made; node north-1 is its authority\n"


def test_join_leaves_to_enrolling_what_was_not_said(
    called: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called.module(monkeypatch, "enrol", join_mesh=ENROLLED)
    assert execute(["--state-dir", str(tmp_path), "join", "TOKEN"]) == 0
    told = {"name": None, "site": None, "listen": None, "advertise": None}
    assert called.calls == [("join_mesh", (tmp_path, "TOKEN"), told)]


def test_a_token_may_come_from_standard_input(
    called: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called.module(monkeypatch, "enrol", join_mesh=ENROLLED)
    with (tmp_path / "token").open("w+") as stream:
        stream.write(" TOKEN \n")
        stream.seek(0)
        monkeypatch.setattr(sys, "stdin", stream)
        assert execute(["--state-dir", str(tmp_path), "join", "-"]) == 0
        assert called.calls[0][1] == (tmp_path, "TOKEN")
        capsys.readouterr()
        assert execute(["--state-dir", str(tmp_path), "join", "-"]) == 2
    assert "the token is empty" in error_line(capsys)


def test_inviting_needs_no_running_node(
    called: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    called.module(monkeypatch, "enrol", make_token="TOKEN")
    (tmp_path / "identity").mkdir()
    assert execute(["--state-dir", str(tmp_path), "invite", "--ttl", "2d", "--uses", "5"]) == 0
    assert capsys.readouterr().out == "TOKEN\n"
    assert called.calls == [("make_token", (tmp_path, 172800.0, 5), {})]


def test_run_runs_the_node_and_exits_with_its_code(
    called: Called, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    called.module(monkeypatch, "node", run_node=5)
    assert execute(["--state-dir", str(tmp_path), "run"]) == 5
    options = "--limit-in 100Mbit --limit-out 1.5MB/s --log-format json"
    assert execute(["--state-dir", str(tmp_path), "run", *options.split()]) == 5
    assert [args for _, args, _ in called.calls] == [
        (tmp_path, None, None, None),
        (tmp_path, 12_500_000, 1_500_000, "json"),
    ]


def test_the_demo_exits_with_its_code(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    called.module(monkeypatch, "demo", run_demo=1)
    assert execute(["demo"]) == 1
    assert execute(["demo", "--keep", "here"]) == 1
    assert [kwargs for _, _, kwargs in called.calls] == [{"keep": None}, {"keep": Path("here").absolute()}]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"P2PLAYER_STATE": "/given"}, "/given"),
        ({"XDG_STATE_HOME": "/xdg"}, "/xdg/p2player"),
        ({"HOME": "/home/ada"}, "/home/ada/.local/state/p2player"),
    ],
)
def test_the_state_folder_has_a_default(
    called: Called, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: str
) -> None:
    for name in ("P2PLAYER_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    called.module(monkeypatch, "node", run_node=0)
    assert execute(["run"]) == 0
    assert execute(["--state-dir", "rel", "run"]) == 0
    assert [args[0] for _, args, _ in called.calls] == [Path(expected), Path("rel").absolute()]


class _Terminal:
    """A stream that says that it is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


# Watching


def test_events_are_a_line_each(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    stream = b'event: layer.pulled\ndata: {"at": 0, "id": "ab", "note": "two words", "n": 5}\n\n'
    node.answers["GET /v1/events"] = Reply(raw=stream, content_type="text/event-stream")
    assert execute(["events"]) == 4
    said = capsys.readouterr()
    assert re.fullmatch(r'\d\d:\d\d:\d\d layer\.pulled id=ab note="two words" n=5\n', said.out)
    assert "stopped" in said.err
    assert execute(["events", "--json"]) == 4
    assert json.loads(capsys.readouterr().out) == {
        "event": "layer.pulled", "at": 0, "id": "ab", "note": "two words", "n": 5
    }  # fmt: skip


def arm_top(node: FakeNode) -> None:
    moving = {**MIGRATION, "state": "pre-copy", "id": "aa" * 16}
    node.answers = {
        "GET /v1/status": Reply(STATUS),
        "GET /v1/peers": Reply(PEERS),
        "GET /v1/apps": Reply([APP]),
        "GET /v1/migrations": Reply([*[MIGRATION] * 20, moving]),
    }


def test_top_prints_one_look_where_there_is_no_terminal(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    arm_top(node)
    assert execute(["top"]) == 0
    said = capsys.readouterr().out
    assert "north-1 of mesh shops, 2 peers alive" in said
    assert said.count("efefefefefef") == 5
    assert said.index("aaaaaaaaaaaa") < said.index("efefefefefef")


def test_top_looks_again_on_a_terminal_until_ctrl_c(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    arm_top(node)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    terminal = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=nap, strftime=time.strftime))
    assert execute(["top", "--interval", "2s"]) == 130
    assert naps == [2.0, 2.0, 2.0]
    assert node.seen().count("GET /v1/status") == 3
    assert "north-1 of mesh shops" in terminal.text


# Output


def test_wide_tables_are_not_wrapped_and_hostile_names_do_no_harm(
    node: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = {**PEERS[0], "name": "\x1b[2J[bold]x\nnext", "site": "s" * 300}
    node.answers["GET /v1/peers"] = Reply([hostile])
    assert execute(["peers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("?[2J[bold]x?next")
    assert "s" * 300 in lines[1]


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 30, "1.0 GiB"), (1 << 50, "1024.0 TiB"), (None, "-")],
)
def test_sizes_are_humane(count: int | None, words: str) -> None:
    assert output.size(count) == words


@pytest.mark.parametrize(
    ("time_s", "words"),
    [(0.0431, "0.043 s"), (5, "5.0 s"), (99.94, "99.9 s"), (200, "3 min 20 s"), (7260, "2 h 1 min"), (None, "-")],
)
def test_times_are_humane(time_s: float | None, words: str) -> None:
    assert output.seconds(time_s) == words


def test_long_work_says_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 101.0, 106.0, 107.0, 112.0, 118.0])
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with output.progress("pulling game") as tell:
        tell({"progress": {"done": 1, "total": 2048}})
        tell({"progress": {"done": 1024, "total": 2048}})
        tell({"progress": {"done": 1030, "total": 2048}})
        tell({"progress": {"done": 2048, "total": 2048, "message": "writing"}})
        tell({"phase": "suspend"})
    assert capsys.readouterr().err.splitlines() == [
        "p2player: pulling game: 1.0 KiB of 2.0 KiB",
        "p2player: pulling game: writing: 2.0 KiB of 2.0 KiB",
        "p2player: pulling game: suspend",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with output.progress("pulling game") as tell:
        tell({"progress": {"done": 1024, "total": 2048, "message": "from \x1b[2Jsouth"}})
    assert "1.0/2.0 KiB" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.text)
    assert "\x1b[2J" not in terminal.text


# Help


def _commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from _commands(command, (*prefix, name))


@pytest.mark.parametrize("command", [(), *_commands(cli)], ids=" ".join)
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    assert execute([*command, "--help"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"Usage: {' '.join(['p2player', *command])} ")
    assert said.err == ""
    assert all(len(line) <= 100 for line in said.out.splitlines())


def test_the_help_lists_commands_in_the_order_of_a_days_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([]) == 0
    said = capsys.readouterr().out
    order = ["init", "invite", "join", "run", "layers", "layer", "apps", "app", "plan", "migrate", "store", "demo"]
    places = [re.search(rf"^  {name} +[A-Z]", said, re.MULTILINE) for name in order]
    starts = [place.start() for place in places if place is not None]
    assert len(starts) == len(order)
    assert starts == sorted(starts)
    assert set(cli.commands) == {name for names in cli.sections.values() for name in names}


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out == f"p2player {p2player.__version__}\n"


# As processes


COMMAND = [sys.executable, "-m", "p2player"]


def test_help_starts_without_the_weight_of_a_node() -> None:
    script = "import sys; from p2player.cli import execute; execute(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"trio", "rich", "http.client", "cryptography", "msgpack", "chunkstore", "gossip", "ssl"}


def wait_for(node: FakeNode, request: str) -> None:
    deadline = time.monotonic() + 20
    while request not in node.seen():
        assert time.monotonic() < deadline, node.seen()
        time.sleep(0.005)


def held(request: Request) -> Reply:
    """Long work that goes on; the poll waits a little, as a node's would."""
    time.sleep(0.02)
    return Reply({"id": "m1", "state": "running", "progress": {"done": 0, "total": 0}})


def interrupted(node: FakeNode, *arguments: str) -> tuple[int, str, str]:
    """Run a command, press Ctrl-C while it waits; exit code, stdout, stderr."""
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(node, next(seen for seen in node.answers if seen.startswith("GET ")))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def test_ctrl_c_cancels_long_work_without_a_word(node: FakeNode) -> None:
    node.answers.update({"POST /v1/layers/x/pull": accepted(OP), f"GET {OP}": held, f"DELETE {OP}": held})
    assert interrupted(node, "layer", "pull", "x") == (130, "", "")
    assert node.seen()[-1] == f"DELETE {OP}"


def test_ctrl_c_detaches_from_a_migration(node: FakeNode) -> None:
    node.answers["POST /v1/migrations"] = Reply({"id": "m1", "state": "plan"}, 202, "/v1/migrations/m1")
    node.answers["GET /v1/migrations/m1"] = held
    code, out, err = interrupted(node, "migrate", "game", "--to", "south-1")
    assert (code, out) == (130, "")
    assert err == "p2player: migration m1 goes on; follow it with: p2player migrations\n"
    assert not any(seen.startswith("DELETE") for seen in node.seen())


def test_a_reader_that_goes_away_is_no_failure_to_talk_about(node: FakeNode) -> None:
    node.answers["GET /v1/layers"] = Reply(LAYERS * 5000)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [*COMMAND, "layers", "--json"], env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(timeout=20) == 141
        assert process.stderr.read() == b""
