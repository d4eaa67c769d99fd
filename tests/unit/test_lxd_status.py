"""What is made of LXD's word and the node's own note; and the words of a daemon that answers strangely."""

import contextlib
import json
import os
import socketserver
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from backends import config, procfs
from backends.base import AppLayout, EngineSettings, EngineState, Exit, Moment
from backends.errors import BackendUnavailable, StartFailed, StopFailed
from backends.lxd import failing, inside, instance, notes, predump, takeover
from backends.lxd.application import Application
from backends.lxd.backend import LxdBackend
from backends.lxd.daemon import Daemon, LxdError, Process, StillAtWork, find_socket
from backends.lxd.instance import Instance
from backends.lxd.notes import Note, Phase

BOOT = procfs.boot_id()
STARTED = Moment(1.5, 2.5)
NAME = "p2p-abababababab"


class FakeDaemon(Daemon):
    """One that knows at most one container."""

    def __init__(self, row: Mapping[str, Any] | None) -> None:
        super().__init__(EngineSettings(lxd_socket=Path("/nowhere")))
        self.row = row

    def get(self, *path: str, params: Mapping[str, Any] | None = None) -> Any:
        assert path == ("instances", NAME)
        if self.row is None:
            raise LxdError("Instance not found", 404)
        return self.row


def stopped(*, stateful: bool = False, used_at: str = "now") -> dict[str, Any]:
    return {"status_code": 102, "stateful": stateful, "last_used_at": used_at, "config": {}}


def layout(folder: Path, text: str = 'command = ["true"]') -> AppLayout:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "state" / "upper" / "rootfs" / inside.FOLDER).mkdir(parents=True, exist_ok=True)
    return AppLayout("ab" * 16, "box", folder, config.parse(text), base=folder, app=folder)


def state(folder: Path, note: Note | None, row: Mapping[str, Any] | None) -> EngineState:
    backend = LxdBackend()
    backend.__dict__["_daemon"] = FakeDaemon(row)
    app = layout(folder)
    notes.write(app, note)
    return backend.status(app).state


RAN = Note(Phase.RUNNING, BOOT, started=STARTED)
MEMORY = RAN.to(Phase.SUSPENDED)
SHELVED = RAN.to(Phase.SHELVED)


@pytest.mark.parametrize(
    ("note", "row", "expected"),
    [
        (None, None, EngineState.ABSENT),
        (None, stopped(), EngineState.ABSENT),
        (None, stopped(stateful=True), EngineState.ABSENT),
        (RAN, stopped(), EngineState.EXITED),
        (RAN, None, EngineState.LOST),
        (Note(Phase.RUNNING, "another boot"), stopped(), EngineState.LOST),
        (RAN.to(Phase.STOPPING), stopped(), EngineState.EXITED),
        (RAN.to(Phase.STOPPED, Exit(0, None)), stopped(), EngineState.EXITED),
        (Note(Phase.STOPPED, "another boot"), stopped(), EngineState.EXITED),
        (RAN.to(Phase.STOPPED, Exit(0, None)), None, EngineState.EXITED),
        (RAN.to(Phase.SUSPENDING), stopped(stateful=True), EngineState.SUSPENDED),
        (RAN.to(Phase.SUSPENDING), stopped(), EngineState.EXITED),
        (MEMORY, stopped(stateful=True), EngineState.SUSPENDED),
        (MEMORY, stopped(), EngineState.LOST),
        (MEMORY, None, EngineState.LOST),
        (Note(Phase.SUSPENDED, "another boot"), stopped(stateful=True), EngineState.SUSPENDED),
        (SHELVED, stopped(), EngineState.SUSPENDED),
        (SHELVED, None, EngineState.SUSPENDED),
        # A start that the node did not see the end of.
        (Note(Phase.STARTING, BOOT, used_at="now"), stopped(), EngineState.ABSENT),
        (Note(Phase.STARTING, BOOT, used_at="then"), stopped(), EngineState.EXITED),
        (Note(Phase.STARTING, BOOT, used_at="now", before=SHELVED), stopped(), EngineState.SUSPENDED),
        (Note(Phase.STARTING, BOOT, used_at="now", before=SHELVED), None, EngineState.SUSPENDED),
        (Note(Phase.STARTING, BOOT, used_at="now"), None, EngineState.ABSENT),
        (
            Note(Phase.STARTING, BOOT, used_at="then", memory=True, before=MEMORY),
            stopped(stateful=True),
            EngineState.SUSPENDED,
        ),
        (Note(Phase.STARTING, BOOT, used_at="then", memory=True, before=MEMORY), stopped(), EngineState.EXITED),
    ],
)
def test_what_the_note_and_lxd_say_together(
    tmp_path: Path, note: Note | None, row: Mapping[str, Any] | None, expected: EngineState
) -> None:
    assert state(tmp_path, note, row) is expected


class BusyDaemon(FakeDaemon):
    """One that is at work with a container; each operation ends when it was waited for so often."""

    def __init__(self, row: Mapping[str, Any], waits: Mapping[str, int]) -> None:
        super().__init__(row)
        self.waits = dict(waits)

    def get(self, *path: str, params: Mapping[str, Any] | None = None) -> Any:
        match path:
            case ("operations",):
                own = {"resources": {"instances": [f"/1.0/instances/{NAME}?project=default"]}}
                other = {"id": "other", "resources": {"instances": [f"/1.0/instances/{NAME}0"]}}
                mine = [{"id": name, **own} for name in self.waits]
                return {"running": [other, {"id": "token", "resources": None}, *mine], "success": []}
            case (_, _, "state"):
                return {"pid": 0}
        return super().get(*path, params=params)

    def wait(self, operation: str, timeout_s: float) -> Mapping[str, Any]:
        self.waits[operation] -= 1
        if self.waits[operation] > 0:
            raise StillAtWork("LXD: starting instance takes longer than 1 s")
        if self.waits[operation] == 0:
            raise LxdError("LXD: restoring failed", 400)
        return {}

    def process(self) -> Process:
        return Process(1, Path("/nowhere"), None, Path("/nowhere"))

    def pool(self) -> str:
        return "pool"


def starting() -> dict[str, Any]:
    return {**stopped(stateful=True), "status_code": 106}


def test_what_a_killed_node_began_is_waited_for() -> None:
    daemon, watched = BusyDaemon(stopped(), {"one": 2, "two": 0}), []
    Instance(daemon, NAME).await_idle(lambda: watched.append(1), 10)
    assert daemon.waits == {"one": 0, "two": -1}
    assert len(watched) == 1
    with pytest.raises(StillAtWork):
        Instance(BusyDaemon(stopped(), {"one": 2}), NAME).await_idle(lambda: None, 0)


@pytest.mark.parametrize("begin", ["start", "restore", "resume"])
def test_nothing_is_begun_while_a_restore_of_a_killed_node_goes_on(
    tmp_path: Path, begin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be begun twice, or without the memory that is just being read."""
    monkeypatch.setattr(instance, "MEMORY_FLOOR_S", 0)
    backend, app = LxdBackend(), layout(tmp_path)
    daemon = backend.__dict__["_daemon"] = BusyDaemon(starting(), {"one": 9})
    notes.write(app, Note(Phase.STARTING, BOOT, used_at="now", memory=True, before=MEMORY))
    assert backend.status(app).state is EngineState.SUSPENDED
    with pytest.raises(StartFailed) as caught:
        getattr(backend, begin)(app)
    assert caught.value.executed
    assert daemon.waits == {"one": 8}


def test_what_may_be_started_yet_has_not_been_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "OP_TIMEOUT_S", 0)
    backend, app = LxdBackend(), layout(tmp_path)
    backend.__dict__["_daemon"] = BusyDaemon(stopped(stateful=True), {"one": 9})
    notes.write(app, Note(Phase.STARTING, BOOT, used_at="now", memory=True, before=MEMORY))
    with pytest.raises(StopFailed, match="cannot be ended"):
        backend.stop(app)


@pytest.mark.parametrize(
    ("phase", "owner", "expected"),
    [
        (Phase.STARTING, "dead", True),
        (Phase.STARTING, None, True),
        (Phase.SUSPENDING, "dead", True),
        (Phase.SUSPENDING, "alive", False),
        (Phase.RUNNING, "dead", False),
    ],
)
def test_what_nobody_is_about_to_finish_may_be_finished(phase: Phase, owner: str | None, expected: bool) -> None:
    me = procfs.stat(os.getpid())
    assert me is not None
    owners = {"alive": me.process, "dead": me.process._replace(start=1), None: None}
    assert takeover.pending(Note(phase, BOOT, owner=owners[owner])) is expected
    assert not takeover.pending(None)


def test_what_was_begun_meanwhile_is_left_alone(tmp_path: Path) -> None:
    """A look at an application may be slow, and overlap with what is done to it."""
    workspace = layout(tmp_path)
    saving = RAN.to(Phase.SUSPENDING)
    app = Application(FakeDaemon(stopped()), workspace)  # which would complain
    app.begun(saving)
    begun = notes.read(workspace)
    assert begun is not None
    assert begun.owner is not None
    takeover.finish(app, saving)
    assert notes.read(workspace) == begun


def test_time_for_memory_grows_with_it() -> None:
    assert instance.memory_timeout_s(0) >= 60
    assert instance.memory_timeout_s(64 << 30) > 4 * 3600


class SlowDaemon(FakeDaemon):
    """One whose every operation takes too long, until it has been helped."""

    helped = False

    def put(self, *path: str, body: Mapping[str, Any]) -> str:
        return "operation"

    def wait(self, operation: str, timeout_s: float) -> Mapping[str, Any]:
        raise LxdError("LXD: restoring failed", 400) if self.helped else StillAtWork("LXD: restoring takes longer")


def test_a_restore_that_takes_too_long_is_brought_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = SlowDaemon(stopped(stateful=True))

    def help_it() -> None:
        daemon.helped = True

    with pytest.raises(LxdError, match="failed"):
        Instance(daemon, NAME).restore(lambda: None, help_it, 0)
    daemon.helped = False
    monkeypatch.setattr(instance, "OP_TIMEOUT_S", 0)
    with pytest.raises(StillAtWork):
        Instance(daemon, NAME).restore(lambda: None, lambda: None, 0)


def test_an_exit_that_the_script_told(tmp_path: Path) -> None:
    app = layout(tmp_path)
    (app.state_dir / "upper" / "rootfs" / inside.FOLDER / "exit").write_text("7\n")
    notes.write(app, RAN)
    backend = LxdBackend()
    backend.__dict__["_daemon"] = FakeDaemon(stopped())
    assert backend.status(app).exit == Exit(7, None)
    assert backend.status(app).started == STARTED


def test_notes_are_read_as_they_were_written(tmp_path: Path) -> None:
    app = layout(tmp_path)
    me = procfs.stat(1)
    assert me is not None
    before = RAN.to(Phase.STOPPED, Exit(None, 9, asked=True, forced=True))
    note = Note(Phase.STARTING, BOOT, me.process, me.process, STARTED, "then", True, before, owner=me.process)
    notes.write(app, note)
    assert notes.read(app) == note
    (app.run_dir / "lxd.json").write_text("{")
    assert notes.read(app) is None
    notes.write(app, None)
    assert notes.read(app) is None


def test_the_socket_is_that_of_the_settings_or_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LXD_DIR", "/srv/lxd")
    assert find_socket(EngineSettings()) == Path("/srv/lxd/unix.socket")
    assert find_socket(EngineSettings(lxd_socket=Path("/x"))) == Path("/x")


# Dumps past LXD


@pytest.mark.parametrize(("name", "word"), [("freezer.state", "THAWED"), ("cgroup.freeze", "0")])
def test_what_a_killed_dump_left_frozen_goes_on(tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / name).touch()
    process = Process(os.getpid(), Path("/nowhere"), None, Path("/nowhere"))
    predump.thaw(process, ["--cgroup-root", "/x", "--freeze-cgroup", str(tmp_path)])
    predump.thaw(process, ["--cgroup-root", "/x"])
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, word)]


def test_what_lxc_binds_into_a_container_is_told_to_criu(tmp_path: Path) -> None:
    conf = tmp_path / "logs" / NAME / "lxc.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(
        "lxc.mount.entry = mqueue dev/mqueue mqueue rw,create=dir,optional 0 0\n"
        "lxc.mount.entry = /dev/fuse dev/fuse none bind,create=file,optional 0 0\n"
        "lxc.mount.entry = /sys/kernel/debug sys/kernel/debug none rbind,create=dir,optional 0 0\n"
    )
    process = Process(pid=1, folder=tmp_path, criu=None, templates=tmp_path)
    here = type("Here", (), {"folder": tmp_path, "outside": staticmethod(lambda path: path)})
    assert process.outside(Path("/a/b")) == Path("/proc/1/root/a/b")
    assert predump._mounts(here, NAME) == [  # type: ignore[arg-type]
        *("--ext-mount-map", "/dev/fuse:dev/fuse"),
        *("--ext-mount-map", "/sys/kernel/debug:sys/kernel/debug"),
    ]


def test_the_control_groups_of_a_container_are_those_that_lxc_made() -> None:
    old = f"3:freezer:/lxc.payload.{NAME}\n2:cpu,cpuacct:/a/lxc.payload.{NAME}/x\n1:name=systemd:/other\n0::/y\n"
    assert predump.cgroup_options(old) == [
        *("--cgroup-root", f"freezer:/lxc.payload.{NAME}", "--cgroup-root", f"cpu,cpuacct:/a/lxc.payload.{NAME}"),
        *("--freeze-cgroup", f"/sys/fs/cgroup/freezer/lxc.payload.{NAME}"),
    ]
    assert predump.cgroup_options(f"0::/lxc.payload.{NAME}/init.scope\n") == [
        *("--cgroup-root", f"/lxc.payload.{NAME}"),
        *("--freeze-cgroup", f"/sys/fs/cgroup/lxc.payload.{NAME}"),
    ]


def test_a_restore_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    assert failing.end(tmp_path / "absent", "no-such-container") is None
    log = tmp_path / "restore.log"
    log.write_text("(00.1) Advanced iov 0 bytes\n" * 3)
    assert failing.end(log, "no-such-container") is None
    log.write_text("(00.1) Error (x): Restoring FAILED.\n")
    assert failing.end(log, "no-such-container") is None
    log.write_text("(00.1) Advanced iov 0 bytes\n" * 10_000)
    assert failing.end(log, "no-such-container") == "its images have fewer pages than they should"


# Answers


class Answers(BaseHTTPRequestHandler):
    """An LXD in few words."""

    rows: Mapping[str, tuple[int, object]] = {}

    def do_GET(self) -> None:
        code, body = self.rows.get(self.path.partition("?")[0], (404, {"type": "error", "error": "not found"}))
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    pytest.importorskip("pylxd")
    folder = tmp_path / ("long" * 30)
    with answering(folder):
        yield Daemon(EngineSettings(lxd_socket=folder / "socket"))


@contextlib.contextmanager
def answering(folder: Path) -> Iterator[None]:
    """An LXD whose folder is made for it."""
    folder.mkdir()
    short = folder.parent / "s"
    with socketserver.ThreadingUnixStreamServer(str(short), Answers) as server:
        short.rename(folder / "socket")
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield
        server.shutdown()
        thread.join()


def sync(metadata: object) -> tuple[int, object]:
    return 200, {"type": "sync", "metadata": metadata}


def test_a_daemon_behind_a_long_path_is_asked(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Answers,
        "rows",
        {
            "/1.0": sync({"auth": "trusted", "environment": {"server_version": "5.0.2"}}),
            "/1.0/storage-pools": sync([{"name": "fast", "driver": "zfs"}, {"name": "plain", "driver": "dir"}]),
            "/1.0/operations/a/wait": sync({"status_code": 200, "err": ""}),
            "/1.0/operations/b/wait": sync({"status_code": 400, "err": "it\nbroke"}),
            "/1.0/operations/c/wait": sync({"status_code": 103, "err": "", "description": "Starting"}),
            "/1.0/odd": (200, b"[]"),
        },
    )
    assert daemon.version() == "5.0.2"
    assert daemon.pool() == "plain"
    assert daemon.wait("a", 1)["err"] == ""
    with pytest.raises(LxdError, match="LXD: it broke"):
        daemon.wait("b", 1)
    with pytest.raises(StillAtWork, match="starting takes longer"):
        daemon.wait("c", 1)
    with pytest.raises(LxdError, match="makes no sense"):
        daemon.get("odd")
    with pytest.raises(LxdError) as caught:
        daemon.get("absent")
    assert caught.value.status == 404


def test_a_daemon_whose_folder_was_replaced_is_found_again(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(version: str) -> dict[str, object]:
        body = {"auth": "trusted", "environment": {"server_version": version}}
        return {"/1.0": sync(body)}

    monkeypatch.setattr(Answers, "rows", rows("5.0.2"))
    assert daemon.version() == "5.0.2"
    folder = daemon.socket.parent
    folder.rename(folder.parent / "old")
    (folder.parent / "old" / "socket").unlink()
    with pytest.raises(BackendUnavailable, match="LXD is not here"):
        daemon.version()
    monkeypatch.setattr(Answers, "rows", rows("5.0.3"))
    with answering(folder):
        assert daemon.version() == "5.0.3"
        assert daemon.process().pid == os.getpid()


def test_a_daemon_that_does_not_trust_us_is_not_used(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "rows", {"/1.0": sync({"auth": "untrusted"})})
    with pytest.raises(BackendUnavailable, match="does not trust"):
        daemon.server()


def test_a_probe_without_lxd_takes_no_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    probe = LxdBackend(EngineSettings(lxd_socket=tmp_path / "absent")).probe()
    assert not probe.available
    assert probe.reason is not None
    assert time.monotonic() - begun < 5
