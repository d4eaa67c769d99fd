"""The contract of the command line: commands and flags, what they ask of the node, and what they print."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2player.cli import execute
from tests.support.canned import (
    ADDED,
    APP,
    BACKENDS,
    DAMAGE,
    LAYER,
    LAYERS,
    MIGRATION,
    OP,
    PEERS,
    PLAN,
    PULLED,
    STATUS,
    STORE,
    VERIFIED,
    WARMED,
    error_line,
)
from tests.support.fakenode import FakeNode, Reply, accepted, operation, problem


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
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
        "layer pull game --limit-in 8Mbit", "POST /v1/layers/game/pull", PULLED, ["south-1"], body={"limit_in": 1000000}
    ),
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
        WARMED,
        ["game is on south-1: 1 copies made, 2.0 KiB transferred"],
        {"target": "game", "to": "south-1"},
    ),
    work(
        "warm game --site south", "POST /v1/warm", WARMED, ["game is on south-1"], {"target": "game", "site": "south"}
    ),
    work("warm game --copies 3", "POST /v1/warm", WARMED, ["game is on south-1"], {"target": "game", "copies": 3}),
    read("warm --auto on", "PUT /v1/warm/auto", {"auto": True}, ["auto", "on"], body={"enabled": True}),
    read("warm --auto off", "PUT /v1/warm/auto", {"auto": False}, ["auto", "off"], body={"enabled": False}),
    read(
        "warm",
        "GET /v1/warm",
        {"auto": True, "budget_bytes": 1 << 30, "wanted": [LAYER], "last_error": None},
        ["budget", "1.0 GiB", LAYER[:12]],
    ),
    read("store stats", "GET /v1/store", STORE, ["stored", "1.0 MiB", "free", "1.0 GiB", "chunks", "10"]),
    work("store verify", "POST /v1/store/verify", VERIFIED, ["1.0 MiB checked, 0 chunks damaged"], {"repair": False}),
    work("store verify --repair", "POST /v1/store/verify", VERIFIED, ["0 chunks damaged"], {"repair": True}),
    work(
        "store gc",
        "POST /v1/store/gc",
        {"freed_bytes": 2048, "chunks": 3, "evicted": [{"id": "ab" * 32, "name": "game"}]},
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


def test_adopting_is_refused_with_the_reason(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers["POST /v1/apps/adopt"] = problem(409, "refused", "there is nothing to adopt")
    assert execute(["app", "adopt", "game", "--backend", "lxd", "--instance", "c1"]) == 5
    assert "nothing to adopt" in error_line(capsys)
    assert node.requests[0].body == {"name": "game", "backend": "lxd", "instance": "c1"}


def test_adopting_is_long_work_that_ends_with_the_apps_row(
    node: FakeNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "game.toml").write_text("[lxd]\n")
    row = {"name": "game", "id": "ab" * 16, "state": "stopped"}
    node.answers["POST /v1/apps/adopt"] = accepted("/v1/operations/op1")
    node.answers["GET /v1/operations/op1"] = operation("done", row)
    asked = ["--backend", "lxd", "--base", "debian", "--app-name", "g", "--config", str(tmp_path / "game.toml")]
    assert execute(["app", "adopt", "game", *asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == row
    body = {"name": "game", "backend": "lxd", "base": "debian", "app_name": "g", "config": "[lxd]\n"}
    assert node.requests[0].body == body
    assert execute(["app", "adopt", "game", *asked]) == 0
    assert capsys.readouterr().out == f"adopted game, id {'ab' * 16}\n"


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
    told = {"total_s": 2.5, "freeze_s": 0.2, "transferred": 2048}
    node.answers["GET /v1/migrations/m1"] = Reply({**MIGRATION, "prediction": told})
    assert execute(["migrate", "game", "--to", "south-1"]) == 0
    assert capsys.readouterr().err == "p2player: predicted were 2.5 s in all, 0.200 s suspended, 2.0 KiB\n"


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


# The other side


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command)
def test_the_node_serves_what_a_command_asks(case: Case) -> None:
    from p2player.control.application import ENDPOINTS

    method, path = case.asks.split()
    serving = [
        endpoint
        for endpoint in ENDPOINTS
        if endpoint.method == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", endpoint.path), path)
    ]
    assert len(serving) == 1
    known = {declared.name: declared for declared in serving[0].fields}
    for name, value in (case.body or {}).items():
        if value is not None:
            known[name].check(value)
    assert {name for name, declared in known.items() if declared.required} <= set(case.body or {})
