"""Containers of real runc and CRIU: memory, connections, mounts and what is left after each kind of accident.

What holds for every backend is in `test_backend_contract`.
"""

import contextlib
import ctypes
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backends import config, criu, memory, overlay, procfs, runccli
from backends.base import AppLayout, EngineSettings, EngineState
from backends.command import RUN_MARK
from backends.container import Container
from backends.errors import ConfigError, StartFailed, SuspendFailed
from backends.runc import RuncBackend
from backends.rundir import RunDir
from bench.enginelab.runc import RuncNode
from bench.netlab import leftovers as netlab
from tests.support import apps
from tests.support.apps import eventually, executing, toml
from tests.support.contract import leftovers
from tests.support.rootfs import PYTHON, python_rootfs

APP_ID = os.environ.get("P2P_TEST_APP") or secrets.token_hex(16)
"""Another one each time: what runs of the test side by side leave must not be taken for this one's."""

PROBE = RuncBackend().probe()
pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.engine,
    pytest.mark.skipif(not PROBE.available, reason=f"runc: {PROBE.reason}"),
    pytest.mark.xdist_group("runc-backend"),
]

SERVER = """
import socket
# Counts the lines that it was sent, in memory only.
listener = socket.create_server(("0.0.0.0", 7000))
print("ready", flush=True)
count = 0
while True:
    client, _ = listener.accept()
    file = client.makefile("rwb")
    for line in file:
        count += 1
        file.write(b"%d %s" % (count, line))
        file.flush()
"""

WAITING_SERVER = SERVER.replace("import socket\n", "import select, socket\n").replace(
    "    for line in file:", "    while select.select([client], [], []) and (line := file.readline()):"
)
"""One that reads from a connection only when there is something to read."""

COUNTER = """
import os, signal, sys, time
count = 0
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
while True:
    time.sleep(0.01)
    count += 1
    with open("count", "w") as file: file.write(str(count))
    if count % 10 == 0: print("count", count, flush=True)
"""

BIG = "memory = bytearray(b'x') * (40 << 20)\n"

HOLDS_A_DEVICE = """
import os, signal, sys, time
device = os.open("/dev/fuse", os.O_RDWR)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
while True: time.sleep(0.01)
"""

HOLDS_A_SOCKET = """
import socket, time
held = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
print("ready", flush=True)
while True: time.sleep(0.01)
"""

HOLDS_MUCH = """
import mmap, os, select, socket, tempfile, threading, time
# Uses one of each kind of thing in every turn: a turn ends only when all still work.
nameless = tempfile.TemporaryFile(dir="/tmp")
nameless.write(b"x" * (3 << 20))
shared = mmap.mmap(-1, 4096)
memory = open("/dev/shm/note", "w+b", buffering=0)
near, far = socket.socketpair()
read, write = os.pipe()
event, poll = os.eventfd(0), select.epoll()
poll.register(event, select.EPOLLIN)
lock, turns = threading.Condition(), [0]
def helper():
    while True:
        with lock:
            lock.wait()
            turns[0] += 1
            lock.notify_all()
threading.Thread(target=helper, daemon=True).start()
if os.fork() == 0:
    while True:
        shared[:8] = far.recv(8)
        os.write(write, b"done")
time.sleep(0.2)
print("ready", flush=True)
count = 0
while True:
    time.sleep(0.01)
    count += 1
    text = b"%8d" % count
    nameless.seek(2 << 20); nameless.write(text); nameless.flush(); nameless.seek(2 << 20)
    memory.seek(0); memory.write(text); memory.seek(0)
    near.send(text)
    assert os.read(read, 4) == b"done" and shared[:8] == nameless.read(8) == memory.read(8) == text
    os.eventfd_write(event, 1)
    assert poll.poll(1) and os.eventfd_read(event) == 1
    with lock:
        lock.notify_all()
        while turns[0] < count: lock.wait()
    with open("count", "w") as file: file.write(str(count))
"""

LOOKS_AROUND = """
import json, os, socket, time
report = {
    "env": dict(os.environ), "cwd": os.getcwd(), "host": socket.gethostname(), "pid": os.getpid(),
    "interfaces": sorted(name for _, name in socket.if_nameindex()), "uid": os.getuid(),
    "root": sorted(os.listdir("/")), "fds": len(os.listdir("/proc/self/fd")), "devices": sorted(os.listdir("/dev")),
}
with open("report.new", "w") as file: json.dump(report, file)
os.rename("report.new", "report")
print("ready", flush=True)
while True: time.sleep(60)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return python_rootfs(tmp_path_factory.getbasetemp() / "rootfs")


class Room:
    """Two nodes on this machine, and applications that move between them."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.base = base
        self.here = RuncNode(folder / "here", "here")
        self.there = RuncNode(folder / "there", "there")
        self.made: list[tuple[RuncNode, AppLayout]] = []

    def layout(self, node: RuncNode, program: str, table: Mapping[str, object] | None = None) -> AppLayout:
        app = self.folder / "app"
        (app / "rootfs/opt").mkdir(parents=True, exist_ok=True)
        (app / "rootfs/opt/main.py").write_text(program)
        text = toml(command=[PYTHON, "-I", "-S", "{app}opt/main.py"], stop_timeout_s=0.5)
        if table:
            text += "[runc]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        made = AppLayout(APP_ID, "shop", node.root / "app", config.parse(text), base=self.base, app=app)
        node.backend.create(made)
        self.made.append((node, made))
        return made

    def carry(self, source: AppLayout, destination: AppLayout) -> None:
        """What a migration does with the instance layer."""
        destination.state_dir.rmdir()
        source.state_dir.rename(destination.state_dir)


@pytest.fixture
def room(base: Path) -> Iterator[Room]:
    with leftovers.home() as folder, apps.adopting_orphans():
        room = Room(folder, base)
        try:
            yield room
        finally:
            for node, layout in room.made:
                node.backend.destroy(layout)
                assert list(layout.folder.iterdir()) == []
        assert str(folder) not in Path("/proc/self/mountinfo").read_text()
        assert not list(Path("/sys/fs/cgroup").glob(f"*/p2player/p2p-{APP_ID[:12]}*"))


def log(node: RuncNode, layout: AppLayout) -> str:
    return node.backend.logs(layout, 1 << 20).decode()


def ready(node: RuncNode, layout: AppLayout) -> None:
    eventually(lambda: "ready" in log(node, layout))


def count(layout: AppLayout) -> int:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((layout.state_dir / "upper/var/lib/p2player/count").read_text())
    return 0


def at_once(condition: Callable[[], bool]) -> None:
    """As `eventually`, for what is soon over again."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.0005)


def root_of(layout: AppLayout) -> Path:
    return layout.run_dir / "bundle/rootfs"


def test_memory_moves_and_its_output_goes_on(room: Room) -> None:
    source, destination = room.layout(room.here, COUNTER), room.layout(room.there, COUNTER)
    first = room.here.backend.start(source)
    eventually(lambda: count(source) > 30)
    checkpoint = room.here.backend.checkpoint(source, leave_running=True)
    assert 0 < checkpoint.paused_s < 5
    assert (source.state_dir / "images/inventory.img").exists()
    assert room.here.backend.status(source).pid == first.pid

    room.here.backend.suspend(source)
    assert sorted(path.name for path in source.state_dir.iterdir()) == ["images", "upper"]
    assert not overlay.is_mounted(root_of(source))
    assert not executing(first.pid)
    before = count(source)
    room.carry(source, destination)
    started = room.there.backend.restore(destination)
    assert room.there.backend.status(destination).pid == started.pid
    eventually(lambda: count(destination) > before + 20)
    assert "ready" not in log(room.there, destination)
    eventually(lambda: "count" in log(room.there, destination))
    assert not (destination.state_dir / "images").exists()


def test_threads_children_and_files_without_a_name_move_too(room: Room) -> None:
    source, destination = room.layout(room.here, HOLDS_MUCH), room.layout(room.there, HOLDS_MUCH)
    room.here.backend.start(source)
    eventually(lambda: count(source) > 5)
    assert room.here.backend.obstacles(source) == []
    room.here.backend.checkpoint(source, leave_running=True)
    room.here.backend.suspend(source)
    before = count(source)
    room.carry(source, destination)
    room.there.backend.restore(destination)
    eventually(lambda: count(destination) > before + 5)
    assert log(room.there, destination) == ""


def test_what_it_sees(room: Room) -> None:
    layout = room.layout(room.here, LOOKS_AROUND, {"network": "none", "cwd": "/tmp", "user": "65534"})
    (room.folder / "app/rootfs/opt/main.py").write_text(LOOKS_AROUND.replace('"report', '"/tmp/report'))
    room.here.backend.start(layout)
    ready(room.here, layout)
    report = (layout.state_dir / "upper/tmp/report").read_text()
    for found in ('"pid": 1', '"cwd": "/tmp"', '"host": "shop"', '"interfaces": ["lo"]', '"uid": 65534', '"fds": 4'):
        assert found in report
    assert '"P2P_STATE": "/var/lib/p2player"' in report
    assert "opt" in report


def test_an_application_that_was_suspended_without_its_memory_starts_afresh(room: Room) -> None:
    layout = room.layout(room.here, COUNTER)
    backend = room.here.backend
    backend.start(layout)
    ready(room.here, layout)
    backend.checkpoint(layout, leave_running=True)
    backend.suspend(layout, memory=False)
    assert backend.status(layout).state is EngineState.SUSPENDED
    assert not (layout.state_dir / "images").exists()
    backend.resume(layout)
    eventually(lambda: log(room.here, layout).count("ready") == 2)


def test_images_of_an_earlier_round_are_never_restored_after_a_crash(room: Room) -> None:
    layout = room.layout(room.here, COUNTER)
    backend = room.here.backend
    pid = backend.start(layout).pid
    ready(room.here, layout)
    backend.checkpoint(layout, leave_running=True)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: backend.status(layout).state is EngineState.EXITED)
    backend.start(layout)
    assert not (layout.state_dir / "images").exists()
    eventually(lambda: log(room.here, layout).count("ready") == 2)


@pytest.mark.parametrize(
    ("program", "reason"), [(HOLDS_A_DEVICE, "/dev/fuse open"), (HOLDS_A_SOCKET, "a socket of the kind AF_VSOCK open")]
)
def test_what_cannot_be_saved_runs_on(room: Room, program: str, reason: str) -> None:
    layout = room.layout(room.here, program, {"devices": ["/dev/fuse"]})
    backend = room.here.backend
    pid = backend.start(layout).pid
    ready(room.here, layout)
    assert any(reason in obstacle and "python" in obstacle for obstacle in backend.obstacles(layout))
    for last in (False, True):
        with pytest.raises(SuspendFailed, match="could not be saved: CRIU: ") as caught:
            backend.suspend(layout) if last else backend.checkpoint(layout, leave_running=True)
        assert caught.value.running
        status = backend.status(layout)
        assert (status.state, status.pid) == (EngineState.RUNNING, pid)
        assert executing(pid)
        assert not (layout.state_dir / "images").exists()


def test_a_container_without_a_supervisor_is_lost_until_it_is_stopped(room: Room) -> None:
    layout = room.layout(room.here, COUNTER)
    backend = room.here.backend
    pid = backend.start(layout).pid
    found = procfs.stat(pid)
    assert found is not None
    os.kill(found.parent, signal.SIGKILL)
    eventually(lambda: backend.status(layout).state is EngineState.LOST)
    status = backend.status(layout)
    assert status.leftovers == (pid,)
    assert status.executing
    backend.stop(layout)
    assert not executing(pid)
    assert not overlay.is_mounted(root_of(layout))
    assert not backend.status(layout).executing
    backend.start(layout)


def test_a_container_that_a_killed_dump_left_frozen_can_be_stopped(room: Room) -> None:
    layout = room.layout(room.here, COUNTER)
    backend = room.here.backend
    pid = backend.start(layout).pid
    frozen = [*Path("/sys/fs/cgroup").glob(f"**/p2p-{APP_ID[:12]}*/freezer.state")]
    for path in frozen:
        path.write_text("FROZEN")
    for path in [*Path("/sys/fs/cgroup").glob(f"**/p2p-{APP_ID[:12]}*/cgroup.freeze")]:
        path.write_text("1")
    found = procfs.stat(pid)
    assert found is not None
    os.kill(found.parent, signal.SIGKILL)
    eventually(lambda: backend.status(layout).state is EngineState.LOST)
    backend.stop(layout)
    assert not executing(pid)


NODE = """
import json, sys
from bench.enginelab.runc import RuncNode
from tests.real.test_runc_backend import Room
from pathlib import Path
room = Room(Path(sys.argv[1]), Path(sys.argv[2]))
netns, table = json.loads(sys.argv[4])
room.here = RuncNode(room.folder / "here", "here", netns=netns)
layout = room.layout(room.here, sys.argv[3], table)
backend = room.here.backend
print(backend.start(layout).pid, flush=True)
sys.stdin.readline()
print(flush=True)
backend.suspend(layout)
"""


@contextlib.contextmanager
def another_node(
    room: Room, program: str, netns: str | None = None, table: Mapping[str, object] | None = None
) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    place = Path(__file__).parents[2]
    command = [sys.executable, "-c", NODE, str(room.folder), str(room.base), program, json.dumps([netns, table])]
    env = {**os.environ, "P2P_TEST_APP": APP_ID}
    with subprocess.Popen(command, stdin=-1, stdout=-1, cwd=place, env=env, text=True) as node:
        assert node.stdout is not None
        try:
            yield node, int(node.stdout.readline())
        finally:
            node.kill()


def test_a_dump_goes_on_when_the_node_is_killed_and_its_successor_takes_it(room: Room) -> None:
    layout = room.layout(room.here, BIG + COUNTER)
    with another_node(room, BIG + COUNTER) as (node, pid):
        assert node.stdin is not None
        assert node.stdout is not None
        eventually(lambda: count(layout) > 10)
        print(file=node.stdin, flush=True)
        node.stdout.readline()
        eventually((layout.run_dir / "images.new/descriptors.json").exists)
        node.kill()
    eventually(lambda: not executing(pid))
    backend = room.here.backend
    eventually(lambda: backend.status(layout).state is not EngineState.RUNNING)
    assert backend.status(layout).state is EngineState.SUSPENDED
    before = count(layout)
    backend.resume(layout)
    eventually(lambda: count(layout) > before)
    assert log(room.here, layout).count("ready") == 1


def said(layout: AppLayout, text: bytes) -> bool:
    """Whether CRIU has come so far in its dump."""
    with contextlib.suppress(FileNotFoundError):
        return text in (layout.run_dir / "criu/dump.log").read_bytes()
    return False


def dumping(layout: AppLayout) -> list[procfs.ProcessId]:
    """runc and CRIU, at work on a dump."""
    live = RunDir(str(layout.run_dir)).live()
    assert live is not None
    return procfs.marked(RUN_MARK, f"{live.run}.dump")


# Restores that fail


@pytest.fixture
def suspended(room: Room) -> AppLayout:
    layout = room.layout(room.here, BIG + COUNTER)
    room.here.backend.start(layout)
    eventually(lambda: count(layout) > 10)
    room.here.backend.suspend(layout)
    return layout


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "kept", "reason"),
    [
        ("files.img", 0.5, "CRIU: "),
        ("inventory.img", None, "CRIU: "),
        ("pagemap-1.img", 0.5, "CRIU: "),
        ("pages-1.img", 0.9, r"pages-1\.img is truncated: it has \d+ of \d+ bytes"),
        ("pages-1.img", None, r"pages-1\.img: No such file"),
        ("descriptors.json", None, r"open \S+/descriptors\.json: no such file"),
    ],
)
def test_a_restore_of_damaged_images_executes_nothing_and_can_be_done_again(
    room: Room, suspended: AppLayout, name: str, kept: float | None, reason: str
) -> None:
    backend, folder = room.here.backend, suspended.state_dir / "images"
    whole = (folder / name).read_bytes()
    if kept is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(whole[: int(len(whole) * kept)])
    found, before = contents(folder), count(suspended)
    for begin in (backend.resume, backend.restore):
        with pytest.raises(StartFailed, match=f"cannot restore shop: {reason}") as caught:
            begin(suspended)
        assert not caught.value.executed
        status = backend.status(suspended)
        assert (status.state, status.executing) == (EngineState.SUSPENDED, False)
        assert not overlay.is_mounted(root_of(suspended))
        assert contents(folder) == found
    (folder / name).write_bytes(whole)
    assert count(suspended) == before
    backend.resume(suspended)
    eventually(lambda: count(suspended) > before)
    assert log(room.here, suspended).count("ready") == 1


def test_a_criu_that_is_killed_in_a_restore_leaves_nothing_in_tmp(room: Room, suspended: AppLayout) -> None:
    backend, killed = room.here.backend, threading.Event()

    def kill() -> None:
        """As soon as it has made its folder."""
        at_once(lambda: any((suspended.run_dir / "tmp").glob(".criu.mntns.*")))
        mark = (suspended.run_dir / "restoring").read_text()
        while left := procfs.marked(RUN_MARK, mark):
            for process in left:
                procfs.send(process, signal.SIGKILL)
            killed.set()

    with ThreadPoolExecutor() as pool:
        done = pool.submit(kill)
        with pytest.raises(StartFailed) as caught:
            backend.resume(suspended)
        done.result()
    assert killed.is_set()
    assert not caught.value.executed
    made = re.search(r"/tmp/\.criu\.mntns\.\w+", (suspended.run_dir / "criu/restore.log").read_text())
    assert made is not None
    assert not Path(made[0]).exists()
    assert not (suspended.run_dir / "tmp").exists()
    backend.resume(suspended)


def test_a_missing_bridge_is_told(room: Room) -> None:
    layout = room.layout(room.here, COUNTER, {"network": "bridge:nosuch0"})
    with pytest.raises(StartFailed, match=r"nosuch0|exist") as caught:
        room.here.backend.start(layout)
    assert not caught.value.executed
    assert not overlay.is_mounted(root_of(layout))


def test_memory_can_be_limited(room: Room) -> None:
    layout = room.layout(room.here, COUNTER, {"memory_max": "64MiB"})
    room.here.backend.start(layout)
    limits = [*Path("/sys/fs/cgroup").glob(f"**/p2p-{APP_ID[:12]}*/memory.limit_in_bytes")]
    limits += Path("/sys/fs/cgroup").glob(f"**/p2p-{APP_ID[:12]}*/memory.max")
    assert str(64 << 20) in {path.read_text().strip() for path in limits}


# Connections


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def connect(netns: str, address: tuple[str, int]) -> socket.socket:
    """A connection from another network namespace; it stays there."""
    made: list[socket.socket | Exception] = []

    def body() -> None:
        with open(f"/run/netns/{netns}") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
        try:
            made.append(socket.create_connection(address, timeout=10))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if isinstance(made[0], Exception):
        raise made[0]
    return made[0]


@pytest.fixture
def lan() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a bridge `lan0` each, joined by a cable; 10.88.0.1 is at the first."""
    names = f"{netlab.prefix()}runc-a", f"{netlab.prefix()}runc-b"
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "add", "lan0", "type", "bridge")
            ip("-n", name, "link", "set", "lan0", "up")
        ip("-n", names[0], "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name in names:
            ip("-n", name, "link", "set", "cable", "master", "lan0", "up")
        ip("-n", names[0], "address", "add", "10.88.0.1/24", "dev", "lan0")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def test_an_open_connection_moves_with_its_application(room: Room, lan: tuple[str, str]) -> None:
    room.here, room.there = (
        RuncNode(room.folder / name, name, netns=f"/run/netns/{netns}")
        for name, netns in zip(("here", "there"), lan, strict=True)
    )
    table = {"network": "bridge:lan0", "mac": "02:00:00:88:00:05", "ipv4": "10.88.0.5/24", "gateway": "10.88.0.1"}
    source, destination = room.layout(room.here, SERVER, table), room.layout(room.there, SERVER, table)
    room.here.backend.start(source)
    ready(room.here, source)
    with connect(lan[0], ("10.88.0.5", 7000)) as client, client.makefile("rwb") as file:

        def ask() -> int:
            file.write(b"hello\n")
            file.flush()
            answer, _, rest = file.readline().partition(b" ")
            assert rest == b"hello\n"
            return int(answer)

        assert ask() == 1
        room.here.backend.checkpoint(source, leave_running=True)
        assert ask() == 2
        room.here.backend.suspend(source)
        file.write(b"while away\n")
        file.flush()
        room.carry(source, destination)
        room.there.backend.restore(destination)
        assert file.readline() == b"3 while away\n"
        asked = time.monotonic()
        assert ask() == 4
        assert time.monotonic() - asked < 1
        # And back home, where nothing is left that would stand in the way.
        room.there.backend.suspend(destination)
        source.state_dir.parent.mkdir(exist_ok=True)
        destination.state_dir.rename(source.state_dir)
        room.here.backend.restore(source)
        assert ask() == 5


def test_without_tcp_established_a_connection_is_an_obstacle(room: Room, lan: tuple[str, str]) -> None:
    room.here = RuncNode(room.folder / "here", "here", netns=f"/run/netns/{lan[0]}")
    table = {"network": "bridge:lan0", "ipv4": "10.88.0.5/24", "tcp_established": False}
    layout = room.layout(room.here, SERVER, table)
    room.here.backend.start(layout)
    ready(room.here, layout)
    assert room.here.backend.obstacles(layout) == []
    with connect(lan[0], ("10.88.0.5", 7000)) as client:
        client.sendall(b"x\n")
        client.recv(100)
        assert "TCP connection open" in room.here.backend.obstacles(layout)[0]
        with pytest.raises(SuspendFailed) as caught:
            room.here.backend.suspend(layout)
        assert caught.value.running
        client.sendall(b"y\n")
        assert client.recv(100) == b"2 y\n"


def filters(netns: str) -> str:
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/{netns}", "iptables-save"], capture_output=True, check=True, text=True
    ).stdout


def test_a_connection_to_the_node_itself_ends_where_its_address_is_not(room: Room, lan: tuple[str, str]) -> None:
    room.here, room.there = (
        RuncNode(room.folder / name, name, netns=f"/run/netns/{netns}")
        for name, netns in zip(("here", "there"), lan, strict=True)
    )
    source, destination = room.layout(room.here, SERVER), room.layout(room.there, SERVER)
    room.here.backend.start(source)
    ready(room.here, source)
    with connect(lan[0], ("10.88.0.1", 7000)) as client:
        client.sendall(b"x\n")
        assert client.recv(100) == b"1 x\n"
        room.here.backend.suspend(source)
        room.here.backend.resume(source)
        assert "DROP" not in filters(lan[0])
        client.sendall(b"y\n")
        assert client.recv(100) == b"2 y\n"
        room.here.backend.suspend(source)
        assert "DROP" in filters(lan[0])
        room.carry(source, destination)
        room.there.backend.restore(destination)
        room.here.backend.destroy(source)
        assert "DROP" not in filters(lan[0])
    with connect(lan[1], ("127.0.0.1", 7000)) as client:
        client.sendall(b"z\n")
        assert client.recv(100) == b"3 z\n"


def test_a_dump_that_takes_too_long_is_ended_with_criu(
    room: Room, lan: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRIU would go on without runc, and end the application after it was reported to run."""
    room.here = RuncNode(room.folder / "here", "here", netns=f"/run/netns/{lan[0]}")
    layout = room.layout(room.here, BIG + SERVER)
    backend = room.here.backend
    pid = backend.start(layout).pid
    ready(room.here, layout)

    def when_locked(_: object) -> int:
        """Asked when the usual time has passed."""
        at_once(lambda: said(layout, b"Locked"))
        for process in dumping(layout):
            procfs.send(process, signal.SIGSTOP)
        return 0

    with connect(lan[0], ("10.88.0.1", 7000)) as client:
        client.settimeout(5)
        for number, leave_running in enumerate((True, False), start=1):
            client.sendall(b"x\n")
            assert client.recv(100) == b"%d x\n" % number
            with monkeypatch.context() as patch:
                patch.setattr(runccli, "TIMEOUT_S", 0.02)
                patch.setattr(memory, "anonymous_bytes", when_locked)
                with pytest.raises(SuspendFailed, match=r"runc checkpoint did not end within 0\.02 s") as caught:
                    backend.checkpoint(layout, leave_running=leave_running)
            assert caught.value.running
            assert dumping(layout) == []
            assert "DROP" not in filters(lan[0])
            assert backend.status(layout).pid == pid
        backend.suspend(layout)
        backend.resume(layout)
        client.sendall(b"x\n")
        assert client.recv(100) == b"3 x\n"


@pytest.mark.parametrize("network", ["host", "bridge:lan0"])
def test_an_application_goes_on_whose_dump_was_killed_with_its_node(
    room: Room, lan: tuple[str, str], network: str
) -> None:
    """It is neither frozen, nor are its connections: not in repair, and their packets not filtered.

    One that is in the middle of reading from a connection is refused by the kernel at once, so this one is not.
    """
    netns = f"/run/netns/{lan[0]}"
    room.here = RuncNode(room.folder / "here", "here", netns=netns)
    table = {"network": network} | ({} if network == "host" else {"ipv4": "10.88.0.5/24"})
    layout = room.layout(room.here, BIG + WAITING_SERVER, table)
    with another_node(room, BIG + WAITING_SERVER, netns, table) as (node, pid):
        assert node.stdin is not None
        assert node.stdout is not None
        ready(room.here, layout)
        with connect(lan[0], ("10.88.0.1" if network == "host" else "10.88.0.5", 7000)) as client:
            client.sendall(b"x\n")
            assert client.recv(100) == b"1 x\n"
            print(file=node.stdin, flush=True)
            node.stdout.readline()
            locked = b"Locked" if network == "host" else b"Running network-lock"
            at_once(lambda: said(layout, locked))
            node.kill()
            node.wait()
            while left := dumping(layout):
                for process in left:
                    procfs.send(process, signal.SIGKILL)
            status = room.here.backend.status(layout)
            assert (status.state, status.pid) == (EngineState.RUNNING, pid)
            client.sendall(b"y\n")
            assert client.recv(100) == b"2 y\n"
            assert "DROP" not in filters(lan[0])
            room.here.backend.suspend(layout)
            room.here.backend.resume(layout)
            client.sendall(b"z\n")
            assert client.recv(100) == b"3 z\n"


def test_the_next_node_announces_the_address_of_one_whose_node_was_killed_in_a_restore(
    room: Room, lan: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    room.here = RuncNode(room.folder / "here", "here", netns=f"/run/netns/{lan[0]}")
    backend = room.here.backend
    layout = room.layout(room.here, SERVER, {"network": "bridge:lan0", "ipv4": "10.88.0.5/24"})
    backend.start(layout)
    ready(room.here, layout)
    backend.suspend(layout)
    with monkeypatch.context() as patch:
        patch.setattr(Container, "announce", lambda _: None)  # it was killed before
        backend.resume(layout)
    with heard(lan[0], "lan0") as link:
        backend.status(layout)
        assert link.recv(100)[28:32] == socket.inet_aton("10.88.0.5")  # the sender's address
        link.recv(100)
        backend.status(layout)
        link.settimeout(0.2)
        with pytest.raises(TimeoutError):
            link.recv(100)


@contextlib.contextmanager
def heard(netns: str, device: str) -> Iterator[socket.socket]:
    """What ARP tells at a device of another network namespace."""
    made: list[socket.socket] = []

    def body() -> None:
        with open(f"/run/netns/{netns}") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
        made.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    with made[0] as link:
        link.bind((device, 0x0806))
        link.settimeout(5)
        yield link


# Around it


def test_a_criu_that_does_not_work_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "criu"
    broken.write_text(
        "#!/bin/sh\n[ $1 = --version ] && echo Version: 3.1 && exit\necho 'Error (x.c:1): no kernel'; exit 1\n"
    )
    broken.chmod(0o755)
    probe = RuncBackend(EngineSettings(criu=broken)).probe()
    assert not probe.available
    assert probe.reason is not None
    assert probe.reason.startswith("CRIU 3.1 does not work on this kernel: no kernel; as root: sh scripts/")


def test_facts_match_the_machine_that_they_are_of(room: Room) -> None:
    layout = room.layout(room.here, COUNTER)
    backend = room.here.backend
    facts = backend.facts(layout)
    assert backend.mismatches(facts) == []
    assert criu.find(EngineSettings()) is not None


def test_a_configuration_that_makes_no_sense_is_refused_at_once(room: Room) -> None:
    with pytest.raises(ConfigError, match=r"runc\.netwrok: unknown key"):
        room.layout(room.here, COUNTER, {"netwrok": "host"})
