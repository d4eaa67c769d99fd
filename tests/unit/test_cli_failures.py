"""What the command line does when things go wrong: exit codes, one line on stderr, Ctrl-C, readers that go away."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2player.cli import execute, output
from tests.support.canned import LAYERS, OP, error_line
from tests.support.fakenode import FakeNode, Reply, Request, accepted, operation, problem


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    monkeypatch.setenv("P2PLAYER_STATE", str(tmp_path))
    with FakeNode(tmp_path) as running:
        yield running


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
    "app logs x", "app recover x", "app adopt x --backend p", "plan x --to y", "migrate x --to y",
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
