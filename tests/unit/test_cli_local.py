"""Commands that need no running node: init, join, invite, run, demo; and where STATE is."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import p2player
from p2player.cli import execute
from tests.support.canned import ENROLLED, error_line


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
    called.module(monkeypatch, "daemon", run_node=5)
    assert execute(["--state-dir", str(tmp_path), "run"]) == 5
    options = "--limit-in 100Mbit --limit-out 1.5MB/s --log-format json"
    assert execute(["--state-dir", str(tmp_path), "run", *options.split()]) == 5
    assert [(args, kwargs) for _, args, kwargs in called.calls] == [
        ((tmp_path,), {"limit_in": None, "limit_out": None, "log_format": None}),
        ((tmp_path,), {"limit_in": 12_500_000, "limit_out": 1_500_000, "log_format": "json"}),
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
    called.module(monkeypatch, "daemon", run_node=0)
    assert execute(["run"]) == 0
    assert execute(["--state-dir", "rel", "run"]) == 0
    assert [args[0] for _, args, _ in called.calls] == [Path(expected), Path("rel").absolute()]
