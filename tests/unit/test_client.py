"""The client of the control API: sockets, errors, long work, events."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2player import client as client_module
from p2player import errors
from p2player.client import Client, path, raise_failure
from tests.support.fakenode import FakeNode, Reply, accepted, operation, problem


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with FakeNode(tmp_path) as running:
        yield running


def ignore(_row: object) -> None:
    """Watch nothing."""


def test_a_document_is_fetched(node: FakeNode) -> None:
    node.answers["GET /v1/status"] = Reply({"name": "north-1"})
    assert Client(node.state_dir).get("/v1/status") == {"name": "north-1"}


def test_a_body_is_sent_as_json(node: FakeNode) -> None:
    node.answers["POST /v1/leave"] = Reply(None, 200)
    Client(node.state_dir).request("POST", "/v1/leave", {"a": [1, "ü\udcff"]})
    assert node.requests[0].body == {"a": [1, "ü\udcff"]}
    assert node.requests[0].headers["Content-Type"] == "application/json"


def test_references_are_quoted() -> None:
    assert path("v1", "layers", "edge/base:1 %?#..", "pull") == "/v1/layers/edge%2Fbase%3A1%20%25%3F%23../pull"


def test_a_socket_deep_below_many_folders_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    with FakeNode(deep, {"GET /v1/status": Reply({"ok": True})}):
        assert Client(deep).get("/v1/status") == {"ok": True}


@pytest.mark.parametrize("deep", [False, True])
def test_no_node_is_told_with_what_to_do(tmp_path: Path, deep: bool) -> None:
    state = tmp_path / ("d" * 120) if deep else tmp_path / "state"
    with pytest.raises(errors.Unreachable, match="p2player init"):
        Client(state).get("/v1/status")
    (state / "identity").mkdir(parents=True)
    with pytest.raises(errors.Unreachable, match="start it with: p2player run"):
        Client(state).get("/v1/status")


def test_a_socket_that_nobody_serves_is_no_node(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control.sock"))
    with pytest.raises(errors.Unreachable, match="no node is running"):
        Client(tmp_path).get("/v1/status")


@pytest.mark.parametrize(
    ("code", "status", "kind"), [(cls.code, cls.http_status, cls) for cls in errors.BY_CODE.values()]
)
def test_errors_keep_their_meaning(node: FakeNode, code: str, status: int, kind: type[errors.P2PlayerError]) -> None:
    node.answers["GET /v1/layers"] = problem(status, code, "because")
    with pytest.raises(kind, match="because"):
        Client(node.state_dir).get("/v1/layers")
    node.answers["GET /v1/layers"] = Reply(raw=b"<html>", status=status)
    with pytest.raises(kind, match=f"HTTP {status}"):
        Client(node.state_dir).get("/v1/layers")


@pytest.mark.parametrize("raw", [b"", b"not json", b"[" * 100_000, b"\xff\xfe"])
def test_an_answer_that_is_no_json_is_an_error(node: FakeNode, raw: bytes) -> None:
    node.answers["GET /v1/status"] = Reply(raw=raw)
    with pytest.raises(errors.Failed, match="not JSON"):
        Client(node.state_dir).get("/v1/status")


def serve_once(state_dir: Path, say: bytes) -> threading.Thread:
    """A node that answers one connection with these bytes and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(state_dir / "control.sock"))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(say)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "say",
    [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", b"SSH-2.0-x\r\n\r\n"],
)
def test_a_node_that_goes_away_in_the_middle_is_unreachable(tmp_path: Path, say: bytes) -> None:
    thread = serve_once(tmp_path, say)
    with pytest.raises(errors.Unreachable, match="went away"):
        Client(tmp_path).get("/v1/status")
    thread.join()


def test_a_node_that_does_not_answer_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "ANSWER_S", 0.05)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "control.sock"))
        silent.listen()
        with pytest.raises(errors.Unreachable, match=r"did not answer in 0\.05 s"):
            Client(tmp_path).get("/v1/status")


def test_an_answer_without_end_is_cut(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "MAX_ANSWER_BYTES", 10)
    node.answers["GET /v1/layers"] = Reply(raw=b'"' + b"x" * 20 + b'"')
    with pytest.raises(errors.Failed, match="over 10 bytes"):
        Client(node.state_dir).get("/v1/layers")


def test_long_work_is_followed_to_its_result(node: FakeNode) -> None:
    node.answers["POST /v1/layers"] = accepted("/v1/operations/op1")
    node.answers["GET /v1/operations/op1"] = [
        operation("running", done=1, total=3),
        operation("running", done=2, total=3),
        operation("done", {"id": "abc"}),
    ]
    seen: list[int] = []
    result = Client(node.state_dir).work(
        "POST", "/v1/layers", {"name": "x"}, lambda row: seen.append(row["progress"]["done"])
    )
    assert result == {"id": "abc"}
    assert seen == [1, 2]
    assert node.requests[-1].query == "wait=20&every=0.1"


def test_work_that_is_done_at_once_needs_no_following(node: FakeNode) -> None:
    node.answers["POST /v1/layers"] = Reply({"id": "abc"}, 201)
    assert Client(node.state_dir).work("POST", "/v1/layers", None, ignore) == {"id": "abc"}


@pytest.mark.parametrize(
    ("row", "kind", "text"),
    [
        (operation("failed", error={"code": "integrity", "message": "bad chunk"}), errors.Integrity, "bad chunk"),
        (operation("failed", error={"code": "new", "message": "odd"}), errors.Failed, "odd"),
        (operation("failed"), errors.Failed, "ended as failed"),
        (operation("cancelled"), errors.Failed, "cancelled"),
        (operation("done", None), errors.Failed, "another form"),
        (Reply([1]), errors.Failed, "another form"),
        (problem(404, "not_found", "no operation op1"), errors.NotFound, "no operation"),
    ],
)
def test_failed_work_raises_what_it_failed_with(
    node: FakeNode, row: Reply, kind: type[errors.P2PlayerError], text: str
) -> None:
    node.answers["POST /v1/store/gc"] = accepted("/v1/operations/op1")
    node.answers["GET /v1/operations/op1"] = row
    with pytest.raises(kind, match=text):
        Client(node.state_dir).work("POST", "/v1/store/gc", None, ignore)


def interrupt(_row: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_cancels_the_work(node: FakeNode) -> None:
    node.answers["POST /v1/layers"] = accepted("/v1/operations/op1")
    node.answers["GET /v1/operations/op1"] = operation("running")
    node.answers["DELETE /v1/operations/op1"] = operation("running")
    with pytest.raises(KeyboardInterrupt):
        Client(node.state_dir).work("POST", "/v1/layers", {}, interrupt)
    assert node.seen()[-1] == "DELETE /v1/operations/op1"


def test_an_interrupt_stays_one_though_the_work_has_ended(node: FakeNode) -> None:
    node.answers["POST /v1/layers"] = accepted("/v1/operations/op1")
    node.answers["GET /v1/operations/op1"] = operation("running")
    with pytest.raises(KeyboardInterrupt):
        Client(node.state_dir).work("POST", "/v1/layers", {}, interrupt)


def test_following_leaves_the_work_alone_when_interrupted(node: FakeNode) -> None:
    node.answers["GET /v1/migrations/m1"] = operation("running")
    with pytest.raises(KeyboardInterrupt):
        Client(node.state_dir).follow("/v1/migrations/m1", interrupt)
    assert node.seen() == ["GET /v1/migrations/m1"]


def test_success_is_no_failure() -> None:
    raise_failure({"state": "done"})
    with pytest.raises(errors.Refused, match="no room"):
        raise_failure({"state": "failed", "error": {"code": "refused", "message": "no room"}})


def test_events_come_with_type_and_data_until_the_node_stops(node: FakeNode) -> None:
    stream = (
        b": hello\n\n"
        b'event: layer.added\ndata: {"name": "x"}\n\n'
        b": still here\n\n"
        b'event: app.started\r\ndata: {"a":\r\ndata: 1}\r\n\r\n'
        b'data: {"b": 2}\n\n'
        b'event: cut\ndata: {"c"'
    )
    node.answers["GET /v1/events"] = Reply(raw=stream, content_type="text/event-stream")
    got: list[Any] = []
    with pytest.raises(errors.Unreachable, match="stopped"):
        got.extend(Client(node.state_dir).events())
    events = Client(node.state_dir).events()
    assert [next(events) for _ in range(3)] == [
        ("layer.added", {"name": "x"}),
        ("app.started", {"a": 1}),
        ("message", {"b": 2}),
    ]
    events.close()  # type: ignore[attr-defined]
    assert node.requests[0].headers["Accept"] == "text/event-stream"


def test_refused_events_are_an_error(node: FakeNode) -> None:
    with pytest.raises(errors.NotFound):
        next(Client(node.state_dir).events())
