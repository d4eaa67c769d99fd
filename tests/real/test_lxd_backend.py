"""The LXD backend with real containers: two daemons in namespaces of their own, joined by a bridge on each.

What every backend must do is in the contract suite; here is what is LXD's own.
"""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from backends import config, overlay
from backends.base import AppLayout, EngineSettings, EngineState
from backends.errors import BackendError, StartFailed, SuspendFailed
from backends.lxd import bridge, instance, notes, predump
from backends.lxd.backend import LxdBackend
from backends.lxd.daemon import Daemon, StillAtWork
from backends.lxd.notes import Phase
from bench.enginelab.lxd import LxdNode, LxdNodeFailed
from bench.netlab import leftovers as netlab
from tests.support.apps import eventually, toml
from tests.support.contract import leftovers, programs
from tests.support.rootfs import busybox_rootfs

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.engine,
    pytest.mark.xdist_group("lxd-backend"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

HEALTHY_AFTER_S = 0.2
ADDRESS = "10.88.0.5"
CLIENT = "10.88.0.9"
PORT = 7000
NETWORK = f"""
[lxd]
network = "bridge:br0"
ipv4 = "{ADDRESS}/24"
"""
ECHO = f"echo ready; exec nc -ll -p {PORT} -e cat"


@dataclass(frozen=True)
class Site:
    """A node with its layers and applications."""

    node: LxdNode
    folder: Path

    @property
    def backend(self) -> LxdBackend:
        """A new one each time: it must not need what it knew."""
        return LxdBackend(self.node.settings, healthy_after_s=HEALTHY_AFTER_S)

    def layout(self, app_id: str, program: str, *, tables: str = "", command: list[str] | None = None) -> AppLayout:
        base, app = self.folder / "base", self.folder / "layers" / app_id
        if not base.exists():
            busybox_rootfs(base / "rootfs")
        if not app.exists():
            (app / "rootfs").mkdir(parents=True)
            (app / "rootfs" / "main.sh").write_text(program)
        words = ["/bin/sh", "{app}/main.sh"] if command is None else command
        parsed = config.parse(toml(command=words or None, stop_timeout_s=1.0) + tables)
        folder = self.folder / "apps" / app_id
        folder.mkdir(parents=True, exist_ok=True)
        return AppLayout(app_id, "box", folder, parsed, base=base, app=app)


@dataclass(frozen=True)
class Sites:
    """Two nodes on one network, and a network namespace with a client's address on it."""

    a: Site
    b: Site
    client: str


@pytest.fixture(scope="module")
def sites(engine_home: Path) -> Iterator[Sites]:
    names = [f"{netlab.prefix()}lxd-{end}" for end in ("a", "b", "c")]
    home = engine_home / "lxd-backend"
    try:
        for name in names:
            ip("netns", "add", name)
        for name in names[:2]:
            ip("-n", name, "link", "add", "br0", "type", "bridge")
            ip("-n", name, "link", "set", "br0", "up")
        plug(names[0], "between", names[1], "between", up=True)
        ip("-n", names[1], "link", "set", "between", "master", "br0")
        plug(names[0], "client", names[2], "eth0", up=True)
        ip("-n", names[2], "address", "add", f"{CLIENT}/24", "dev", "eth0")
        with (
            LxdNode(made(home / "a"), "a", netns=f"/run/netns/{names[0]}") as a,
            LxdNode(made(home / "b"), "b", netns=f"/run/netns/{names[1]}") as b,
        ):
            for node in (a, b):
                probe = LxdBackend(node.settings).probe()
                if not probe.available:
                    pytest.skip(f"lxd: {probe.reason}")
            yield Sites(Site(a, home / "a"), Site(b, home / "b"), f"/run/netns/{names[2]}")
    except (LxdNodeFailed, FileNotFoundError) as error:
        pytest.skip(f"lxd: {error}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.fixture
def app_id(sites: Sites) -> Iterator[str]:
    """An id of its own; whatever ran under it is destroyed on both nodes."""
    drawn = os.urandom(16).hex()
    yield drawn
    for site in (sites.a, sites.b):
        if (site.folder / "apps" / drawn).exists():
            site.backend.destroy(site.layout(drawn, ""))
            assert list((site.folder / "apps" / drawn).iterdir()) == []
        assert instance.name_of(drawn) not in Path(f"/proc/{site.node.pid}/mountinfo").read_text()
        assert not any(instance.name_of(drawn) in path for path in site.node.request("GET", "/1.0/instances"))
    eventually(lambda: leftovers.of_application(drawn) == [])


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def plug(a: str, device_a: str, b: str, device_b: str, *, up: bool) -> None:
    """A cable from the bridge of namespace `a` to namespace `b`."""
    ip("link", "add", device_a, "netns", a, "type", "veth", "peer", "name", device_b, "netns", b)
    ip("-n", a, "link", "set", device_a, "master", "br0")
    for name, device in ((a, device_a), (b, device_b)):
        ip("-n", name, "link", "set", device, "up" if up else "down")


def move(source: AppLayout, destination: AppLayout) -> None:
    """As a migration does: the instance folder, and nothing else."""
    shutil.rmtree(destination.state_dir, ignore_errors=True)
    subprocess.run(["cp", "-a", source.state_dir, destination.state_dir], check=True)


def ticks(site: Site, layout: AppLayout) -> list[tuple[str, int]]:
    text = site.backend.logs(layout, 1 << 20).decode()
    return [(found[1], int(found[2])) for found in re.finditer(r"^tick (\S+) (\d+)$", text, re.MULTILINE)]


def counted(site: Site, layout: AppLayout, above: int = 3) -> tuple[str, int]:
    eventually(lambda: bool(ticks(site, layout)) and ticks(site, layout)[-1][1] > above)
    return ticks(site, layout)[-1]


def prints(site: Site, layout: AppLayout, text: str) -> bool:
    return text in site.backend.logs(layout, 1 << 20).decode()


def opened(namespace: str, make: Callable[[], socket.socket]) -> list[socket.socket]:
    """A socket of a network namespace; none when `make` fails."""
    result: list[socket.socket] = []

    def enter() -> None:
        with open(namespace, "rb") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), 0x40000000) == 0
        with contextlib.suppress(OSError):
            result.append(make())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return result


def connect(namespace: str, address: tuple[str, int]) -> socket.socket:
    """A connection out of a network namespace."""
    result: list[socket.socket] = []

    def attempt() -> bool:
        result.extend(opened(namespace, lambda: socket.create_connection(address, timeout=10)))
        return bool(result)

    eventually(attempt)  # until somebody listens
    return result[0]


class Insistence:
    """A client that sends the last packet of its connection again and again, and counts how that is answered.

    Attributes:
        answers: packets of the connection that came back.
        resets: those of them that end it.
    """

    _PAUSE_S = 0.0005
    _RESET = 0x04

    def __init__(self, namespace: str, connection: socket.socket) -> None:
        self.answers = self.resets = 0
        self._ends = connection.getsockname()[1], connection.getpeername()[1]
        self._links = [opened(namespace, self._link)[0] for _ in range(2)]
        self._packet = b""
        self._over = threading.Event()
        self._threads = [threading.Thread(target=act) for act in (self._listen, self._insist)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for link in self._links:
            link.close()

    @staticmethod
    def _link() -> socket.socket:
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        link.bind(("eth0", 0x0003))
        link.settimeout(0.1)
        return link

    def _listen(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                frame = self._links[0].recv(2048)
                if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
                    continue
                source, target = struct.unpack("!HH", frame[34:38])
                if (source, target) == self._ends and len(frame) > 34 + (frame[46] >> 4) * 4:  # it carries data
                    self._packet = with_checksum(frame)
                elif (target, source) == self._ends:
                    self.answers += 1
                    self.resets += bool(frame[47] & self._RESET)

    def _insist(self) -> None:
        while not self._over.wait(self._PAUSE_S):
            if self._packet:
                self._links[1].send(self._packet)


def with_checksum(frame: bytes) -> bytes:
    """A frame with a TCP segment in IPv4 without options, whose checksum the kernel had left to the device."""
    segment = bytearray(frame[34 : 14 + int.from_bytes(frame[16:18])])
    segment[16:18] = b"\0\0"
    summed = frame[26:34] + struct.pack("!HH", socket.IPPROTO_TCP, len(segment)) + segment + b"\0" * (len(segment) % 2)
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    segment[16:18] = struct.pack("!H", ~total & 0xFFFF)
    return frame[:34] + segment


def test_memory_goes_there_and_back_again(sites: Sites, app_id: str) -> None:
    here, there = (site.layout(app_id, programs.COUNTER) for site in (sites.a, sites.b))
    sites.a.backend.start(here)
    token, count = counted(sites.a, here)
    assert sites.b.backend.mismatches(sites.a.backend.facts(here)) == []
    for source, target, old, new in ((sites.a, sites.b, here, there), (sites.b, sites.a, there, here)):
        source.backend.suspend(old)
        assert {entry.name for entry in (old.state_dir / "upper").iterdir()} == {"rootfs", "state"}
        move(old, new)
        source.backend.destroy(old)
        target.backend.restore(new)
        after = counted(target, new, above=count)
        assert after[0] == token
        count = after[1]
        assert not (new.state_dir / "upper" / "state").exists()


def test_a_dump_for_pre_copy_is_short_and_never_restored(sites: Sites, app_id: str) -> None:
    layout = sites.a.layout(app_id, programs.COUNTER)
    sites.a.backend.start(layout)
    token, _ = counted(sites.a, layout)
    pauses = [sites.a.backend.checkpoint(layout, leave_running=True).paused_s for _ in range(2)]
    assert all(0 < paused_s < 2 for paused_s in pauses)
    images = layout.state_dir / "upper" / "state"
    assert {predump.MARK, "inventory.img", "pages-1.img"} <= {entry.name for entry in images.iterdir()}
    assert not [entry for entry in images.parent.iterdir() if entry.name.startswith("state.")]
    assert counted(sites.a, layout, above=ticks(sites.a, layout)[-1][1])[0] == token

    there = sites.b.layout(app_id, programs.COUNTER)
    move(layout, there)
    with pytest.raises(StartFailed, match="pre-copy") as caught:
        sites.b.backend.restore(there)
    assert not caught.value.executed

    pid = sites.a.backend.status(layout).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: sites.a.backend.status(layout).state is EngineState.EXITED)
    found = sites.a.backend.status(layout).exit
    assert found is not None
    assert (found.signal, found.asked) == (signal.SIGKILL, False)
    sites.a.backend.start(layout)
    eventually(lambda: ticks(sites.a, layout)[-1][0] != token)
    assert not images.exists()


def test_what_was_dumped_for_pre_copy_is_replaced_by_the_final_images(sites: Sites, app_id: str) -> None:
    layout = sites.a.layout(app_id, programs.COUNTER)
    sites.a.backend.start(layout)
    token, _ = counted(sites.a, layout)
    sites.a.backend.checkpoint(layout, leave_running=True)
    sites.a.backend.suspend(layout)
    count = ticks(sites.a, layout)[-1][1]
    assert not (layout.state_dir / "upper" / "state" / predump.MARK).exists()
    sites.a.backend.resume(layout)
    assert counted(sites.a, layout, above=count)[0] == token


def test_an_open_connection_moves_along(sites: Sites, app_id: str) -> None:
    here, there = (site.layout(app_id, ECHO, tables=NETWORK) for site in (sites.a, sites.b))
    sites.a.backend.start(here)
    with connect(sites.client, (ADDRESS, PORT)) as connection:
        assert echoed(connection, b"before")
        sites.a.backend.checkpoint(here, leave_running=True)
        assert echoed(connection, b"meanwhile")
        sites.a.backend.suspend(here)
        connection.sendall(b"into the dark")
        move(here, there)
        sites.b.backend.restore(there)
        assert connection.recv(100) == b"into the dark"
        assert echoed(connection, b"after")
        links = subprocess.run(sites.b.node.command(["ip", "-o", "link"]), capture_output=True, text=True, check=True)
        assert links.stdout.count("veth") == 1
    with connect(sites.client, (ADDRESS, PORT)) as connection:
        assert echoed(connection, b"a new one")


def test_nobody_answers_for_a_connection_that_is_away(sites: Sites, app_id: str) -> None:
    """Neither what is left of the saved container nor what is there of the one to be restored."""
    layout = sites.a.layout(app_id, ECHO, tables=NETWORK)
    sites.a.backend.start(layout)
    with connect(sites.client, (ADDRESS, PORT)) as connection, Insistence(sites.client, connection) as client:
        for turn in range(6):
            answered = client.answers
            assert echoed(connection, b"turn %d" % turn)
            eventually(lambda before=answered: client.answers > before + 20)  # type: ignore[misc]
            if turn == 1:
                sites.a.backend.checkpoint(layout, leave_running=True)
            sites.a.backend.suspend(layout)
            sites.a.backend.resume(layout)
            assert client.resets == 0
        assert echoed(connection, b"after")


def echoed(connection: socket.socket, data: bytes) -> bool:
    connection.sendall(data)
    return connection.recv(100) == data


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")
def test_what_cannot_be_saved_is_told_and_runs_on(sites: Sites, app_id: str) -> None:
    layout = sites.a.layout(app_id, f"exec 3<>/dev/fuse\n{programs.COUNTER}")
    sites.a.backend.start(layout)
    token, count = counted(sites.a, layout)
    assert any("/dev/fuse" in reason for reason in sites.a.backend.obstacles(layout))
    with pytest.raises(SuspendFailed, match="10:229") as caught:
        sites.a.backend.suspend(layout)
    assert caught.value.running
    with pytest.raises(BackendError, match="10:229"):
        sites.a.backend.checkpoint(layout, leave_running=True)
    assert sites.a.backend.status(layout).state is EngineState.RUNNING
    assert {entry.name for entry in (layout.state_dir / "upper").iterdir()} <= {"rootfs", "backup.yaml"}
    assert counted(sites.a, layout, above=count)[0] == token
    sites.a.backend.stop(layout)


def killed_at(owner: object, step: str, act: Callable[[], object]) -> None:
    """Do something in a process that is killed when it comes to a step."""
    child = os.fork()
    if child == 0:
        try:
            setattr(owner, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            act()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize("begin", ["start", "resume"])
def test_what_a_node_started_that_was_killed_then_is_connected(sites: Sites, app_id: str, begin: str) -> None:
    layout = sites.a.layout(app_id, ECHO, tables=NETWORK)
    if begin == "resume":
        sites.a.backend.start(layout)
        sites.a.backend.suspend(layout)
    killed_at(bridge, "connect", lambda: getattr(sites.a.backend, begin)(layout))
    eventually(lambda: sites.a.backend.status(layout).state is EngineState.RUNNING)
    with connect(sites.client, (ADDRESS, PORT)) as connection:
        assert echoed(connection, b"hello")
    found = notes.read(layout)
    assert found is not None
    assert found.phase is Phase.RUNNING


def test_what_a_node_suspended_that_was_killed_then_is_suspended(sites: Sites, app_id: str) -> None:
    layout = sites.a.layout(app_id, programs.COUNTER)
    sites.a.backend.start(layout)
    token, _ = counted(sites.a, layout)
    killed_at(Daemon, "wait", lambda: sites.a.backend.suspend(layout))
    sites.a.backend.suspend(layout)
    assert sites.a.backend.status(layout).state is EngineState.SUSPENDED
    assert {entry.name for entry in (layout.state_dir / "upper").iterdir()} == {"rootfs", "state"}
    count = ticks(sites.a, layout)[-1][1]
    sites.a.backend.resume(layout)
    assert counted(sites.a, layout, above=count)[0] == token


def test_a_save_that_takes_too_long_is_seen_to_its_end(
    sites: Sites, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = sites.a.layout(app_id, programs.COUNTER)
    sites.a.backend.start(layout)
    token, _ = counted(sites.a, layout)
    with monkeypatch.context() as patch:
        patch.setattr(Daemon, "wait", lambda daemon, operation, _: unfinished(operation))
        with pytest.raises(SuspendFailed, match="not saved yet") as caught:
            sites.a.backend.suspend(layout)
    assert caught.value.running
    eventually(lambda: sites.a.backend.status(layout).state is EngineState.SUSPENDED)
    count = ticks(sites.a, layout)[-1][1]
    sites.a.backend.resume(layout)
    assert counted(sites.a, layout, above=count)[0] == token


def unfinished(operation: str) -> None:
    raise StillAtWork(f"{operation} takes longer")


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")
def test_what_a_killed_node_could_not_save_is_connected_again(sites: Sites, app_id: str) -> None:
    layout = sites.a.layout(app_id, f"exec 3<>/dev/fuse\n{ECHO}", tables=NETWORK)
    sites.a.backend.start(layout)
    with connect(sites.client, (ADDRESS, PORT)) as connection:
        assert echoed(connection, b"before")
        killed_at(Daemon, "wait", lambda: sites.a.backend.suspend(layout))

        def noted() -> Phase | None:
            assert sites.a.backend.status(layout).state is EngineState.RUNNING
            found = notes.read(layout)
            return None if found is None else found.phase

        eventually(lambda: noted() is Phase.RUNNING)
        assert echoed(connection, b"after")
        assert not (layout.state_dir / "upper" / "state").exists()


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse")
def test_connections_of_what_cannot_be_saved_go_on(sites: Sites, app_id: str) -> None:
    layout = sites.a.layout(app_id, f"exec 3<>/dev/fuse\n{ECHO}", tables=NETWORK)
    sites.a.backend.start(layout)
    with connect(sites.client, (ADDRESS, PORT)) as connection:
        assert echoed(connection, b"before")
        with pytest.raises(SuspendFailed, match="10:229"):
            sites.a.backend.suspend(layout)
        assert echoed(connection, b"after")


def test_a_restore_that_fails_says_why_and_can_be_tried_again(sites: Sites, app_id: str) -> None:
    layout = sites.a.layout(app_id, programs.COUNTER)
    sites.a.backend.start(layout)
    token, _ = counted(sites.a, layout)
    sites.a.backend.suspend(layout)
    image = next((layout.state_dir / "upper" / "state").glob("core-1.img"))
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    begun = time.monotonic()
    with pytest.raises(StartFailed, match="core-1") as caught:
        sites.a.backend.resume(layout)
    assert not caught.value.executed
    assert time.monotonic() - begun < 15
    assert sites.a.backend.status(layout).state is EngineState.SUSPENDED
    image.write_bytes(whole)
    sites.a.backend.resume(layout)
    assert counted(sites.a, layout, above=ticks(sites.a, layout)[-1][1])[0] == token


def test_the_image_of_a_page_too_few_does_not_hang(sites: Sites, app_id: str) -> None:
    layout = sites.a.layout(app_id, programs.COUNTER)
    sites.a.backend.start(layout)
    counted(sites.a, layout)
    sites.a.backend.suspend(layout)
    for image in (layout.state_dir / "upper" / "state").glob("pages-*.img"):
        os.truncate(image, image.stat().st_size // 2)
    with pytest.raises(StartFailed, match="fewer pages") as caught:
        sites.a.backend.resume(layout)
    assert not caught.value.executed


def test_without_a_bridge_it_does_not_start(sites: Sites, app_id: str) -> None:
    layout = sites.a.layout(app_id, ECHO, tables='\n[lxd]\nnetwork = "bridge:nowhere"\n')
    with pytest.raises(StartFailed, match="nowhere") as caught:
        sites.a.backend.start(layout)
    assert not caught.value.executed
    assert sites.a.backend.status(layout).state is EngineState.ABSENT


def test_the_own_init_of_the_layers_runs_without_a_command(sites: Sites, app_id: str) -> None:
    tables = 'env = { COLOUR = "blue sky" }\n\n[lxd]\nhalt_signal = "SIGTERM"\n'
    layout = sites.a.layout(app_id, "", tables=tables, command=[])
    init = layout.app / "rootfs" / "sbin" / "init"
    init.parent.mkdir()
    init.write_text('#!/bin/sh\ntrap "exit 0" TERM\necho "$COLOUR" >/colour\nwhile :; do sleep 0.1; done\n')
    init.chmod(0o755)
    sites.a.backend.create(layout)
    started = sites.a.backend.start(layout)
    colour = layout.state_dir / "upper" / "rootfs" / "colour"
    eventually(colour.exists)
    eventually(lambda: colour.read_text() == "blue sky\n")
    sites.a.backend.suspend(layout)
    sites.a.backend.resume(layout)
    assert sites.a.backend.status(layout).pid != started.pid
    sites.a.backend.stop(layout)
    found = sites.a.backend.status(layout).exit
    assert found is not None
    assert (found.asked, found.forced, found.code) == (True, False, None)


def test_the_log_is_bounded_while_nobody_looks(sites: Sites, app_id: str) -> None:
    layout = sites.a.layout(app_id, "head -c 20000000 /dev/zero; echo the end; while :; do sleep 1; done")
    sites.a.backend.start(layout)
    eventually(lambda: prints(sites.a, layout, "the end"), timeout_s=30)
    inner = layout.state_dir / "upper" / "rootfs" / ".p2player"
    assert sum(path.stat().st_size for path in inner.iterdir() if path.is_file()) < 17 << 20


def test_a_hostile_application_cannot_make_the_node_follow_its_links(sites: Sites, app_id: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("secret")
    program = f"rm -rf /.p2player; ln -s {tmp_path} /.p2player; while :; do sleep 0.1; done"
    layout = sites.a.layout(app_id, program)
    sites.a.backend.start(layout)
    eventually((layout.state_dir / "upper" / "rootfs" / ".p2player").is_symlink)
    assert b"secret" not in sites.a.backend.logs(layout, 1000)
    sites.a.backend.stop(layout)
    sites.a.backend.start(layout)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]
    assert (tmp_path / "log").read_text() == "secret"


def test_a_node_that_was_killed_finds_its_containers(sites: Sites, app_id: str) -> None:
    """The note alone is lost: a crash of the machine may tear it."""
    layout = sites.a.layout(app_id, programs.COUNTER)
    started = sites.a.backend.start(layout)
    (layout.run_dir / "lxd.json").unlink()
    status = sites.a.backend.status(layout)
    assert (status.state, status.pid) == (EngineState.RUNNING, started.pid)
    assert status.started is not None
    assert abs(status.started.wall_s - started.at.wall_s) < 2
    sites.a.backend.stop(layout)
    assert sites.a.backend.status(layout).state is EngineState.EXITED


def test_a_probe_says_what_is_missing(sites: Sites, tmp_path: Path) -> None:
    def reason(settings: EngineSettings) -> str:
        probe = LxdBackend(settings).probe()
        assert not probe.available
        assert probe.reason is not None
        return probe.reason

    good = sites.a.node.settings
    assert "lxd_socket" in reason(EngineSettings(lxd_socket=tmp_path / "absent"))
    assert "no storage pool other of driver dir" in reason(EngineSettings(lxd_socket=good.lxd_socket, lxd_pool="other"))
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "mute"))
        assert "does not answer" in reason(EngineSettings(lxd_socket=tmp_path / "mute"))


# Taking apart


@pytest.fixture(scope="module")
def image(sites: Sites, engine_home: Path) -> str:
    """An image in LXD of node a; its alias."""
    folder = made(engine_home / "lxd-image")
    busybox_rootfs(folder / "rootfs")
    (folder / "rootfs" / "sbin").mkdir(exist_ok=True)
    init = folder / "rootfs" / "sbin" / "init"
    init.write_text("#!/bin/sh\nwhile :; do date +%N >>/count; sleep 0.1; done\n")
    init.chmod(0o755)
    (folder / "rootfs" / "etc" / "gone").write_text("x")
    (folder / "metadata.yaml").write_text(f"architecture: {os.uname().machine}\ncreation_date: 1\nproperties: {{}}\n")
    with tarfile.open(folder / "image.tar", "w") as archive:
        for name in ("metadata.yaml", "rootfs"):
            archive.add(folder / name, name)
    lxc(sites.a, "image", "import", str(folder / "image.tar"), "--alias", "box")
    return "box"


def lxc(site: Site, *words: str) -> str:
    environment = {**site.node.environment, "LXD_CONF": str(site.folder)}
    done = subprocess.run(
        site.node.command(["lxc", *words]), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown(layers: list[Path], at: Path) -> dict[str, str]:
    """The files of an overlay of these layers, with their text."""
    for name in ("upper", "work", "merged"):
        made(at / name)
    overlay.mount([overlay.lower_of(layer) for layer in layers], at / "upper", at / "work", at / "merged")
    try:
        found = {}
        for place, _, files in os.walk(at / "merged"):
            for name in files:
                path = Path(place, name)
                found[str(path.relative_to(at / "merged"))] = (
                    os.readlink(path) if path.is_symlink() else path.read_bytes()[:1000].decode(errors="replace")
                )
        return found
    finally:
        overlay.unmount(at / "merged")


def test_an_image_becomes_a_base(sites: Sites, image: str, app_id: str, engine_home: Path) -> None:
    into = made(engine_home / app_id)
    adopted = sites.a.backend.adopt(f"image:{image}", into / "made", None)
    assert adopted.base is not None
    assert {entry.name for entry in adopted.base.iterdir()} == {"metadata.yaml", "rootfs"}
    assert list((adopted.app / "rootfs").iterdir()) == []
    folder = made(sites.a.folder / "apps" / app_id)
    layout = AppLayout(
        app_id, "box", folder, config.parse(f"stop_timeout_s = 1\n{adopted.config}"), base=adopted.base, app=adopted.app
    )
    sites.a.backend.create(layout)
    sites.a.backend.start(layout)
    eventually((layout.state_dir / "upper" / "rootfs" / "count").exists)
    sites.a.backend.destroy(layout)
    with pytest.raises(BackendError, match="no image nothing"):
        sites.a.backend.adopt("image:nothing", into / "other", None)


def test_an_instance_becomes_a_base_and_what_it_has_beside(sites: Sites, image: str, engine_home: Path) -> None:
    into = made(engine_home / os.urandom(8).hex())
    lxc(sites.a, "init", image, "old", "-c", "security.privileged=true", "-c", "limits.memory=128MiB")
    try:
        root = Path(f"/proc/{sites.a.node.pid}/root/var/lib/lxd/storage-pools/p2player/containers/old/rootfs")
        (root / "etc" / "gone").unlink()
        (root / "etc" / "new").write_text("new")
        adopted = sites.a.backend.adopt("old", into / "made", None)
        assert adopted.base is not None
        assert (adopted.app / "rootfs" / "etc" / "new").read_text() == "new"
        assert not (adopted.app / "rootfs" / "bin").exists()
        assert config.parse(adopted.config).engines["lxd"]["config"] == {"limits.memory": "128MiB"}
        files = shown([adopted.app, adopted.base], made(into / "first"))
        assert files["etc/new"] == "new"
        assert "etc/gone" not in files

        again = sites.a.backend.adopt("old", into / "again", adopted.base)
        assert again.base is None
        assert shown([again.app, adopted.base], made(into / "second")) == files
        with pytest.raises(BackendError, match="no instance nobody"):
            sites.a.backend.adopt("nobody", into / "none", None)
    finally:
        lxc(sites.a, "delete", "--force", "old")


def test_the_owners_of_an_unprivileged_instance_are_moved_back(sites: Sites, image: str, engine_home: Path) -> None:
    into = made(engine_home / os.urandom(8).hex())
    lxc(sites.a, "init", image, "plain", "-c", "security.privileged=true")
    try:
        root = Path(f"/proc/{sites.a.node.pid}/root/var/lib/lxd/storage-pools/p2player/containers/plain/rootfs")
        for path in (root, *root.rglob("*")):
            os.chown(path, 1_000_000, 1_000_007, follow_symlinks=False)
        rows = '[{"Isuid":true,"Isgid":true,"Hostid":1000000,"Nsid":0,"Maprange":65536}]'
        lxc(sites.a, "config", "set", "plain", f"volatile.last_state.idmap={rows}")
        adopted = sites.a.backend.adopt("plain", into / "made", None)
        found = (adopted.app / "rootfs" / "etc" / "passwd").stat()
        assert (found.st_uid, found.st_gid) == (0, 7)
    finally:
        lxc(sites.a, "delete", "--force", "plain")
    assert not [entry for entry in (into / "made").iterdir() if entry.name not in ("base", "app")]


def test_nothing_of_a_node_stays_when_its_maker_is_killed(sites: Sites, engine_home: Path) -> None:
    folder = made(engine_home / "killed")
    program = (
        "import sys, time; from pathlib import Path; from bench.enginelab.lxd import LxdNode\n"
        "with LxdNode(Path(sys.argv[1]), 'killed') as node:\n"
        "    print(node.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as maker:
        assert maker.stdout is not None
        keeper = int(maker.stdout.readline())
        assert str(folder).encode() in b"".join(cmdlines())
        maker.kill()
    eventually(lambda: not os.path.exists(f"/proc/{keeper}"))
    assert str(folder).encode() not in b"".join(cmdlines())


def cmdlines() -> Iterator[bytes]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                yield Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
