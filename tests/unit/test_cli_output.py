"""How the command line looks: views, tables, progress, help."""

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

import p2player
from p2player.cli import cli, execute, output, watch
from tests.support.canned import APP, MIGRATION, PEERS, STATUS
from tests.support.fakenode import FakeNode, Reply


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNode]:
    monkeypatch.setenv("P2PLAYER_STATE", str(tmp_path))
    with FakeNode(tmp_path) as running:
        yield running


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


def test_a_migration_is_told_in_a_short_line(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    progress = {"done": 5, "total": 10, "message": "precopy, round 2"}
    row = {
        **MIGRATION,
        "state": "precopy",
        "progress": progress,
        "layers": {"base": {}},
        "freeze_s": 0.2,
        "error": None,
    }
    stream = f"event: migration.changed\ndata: {json.dumps(row)}\n\n".encode()
    node.answers["GET /v1/events"] = Reply(raw=stream, content_type="text/event-stream")
    execute(["events"])
    said = capsys.readouterr().out
    assert f"id={row['id']} app=game" in said
    assert "freeze_s=0.2" in said and said.endswith('phase="precopy, round 2" done=5 total=10\n')
    assert "layers" not in said


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
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
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
    assert set(cli.list_commands(click.Context(cli))) == {name for names in cli.sections.values() for name in names}


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out == f"p2player {p2player.__version__}\n"
