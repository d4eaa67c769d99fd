"""Hosts and links of the benchmarks' lab: rates, delays, counters, and that nothing stays behind. Needs root."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.netlab import Access, Host, Netlab, NetlabUnavailable, Shape, leftovers, tools
from p2player.localmesh import LocalMesh
from tests.support.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.root]

ECHO = """
    import socket, sys
    with socket.create_server((sys.argv[1], 5000)) as server:
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            size = int(connection.recv(20))
            connection.sendall(bytes(size))
            connection.close()
"""
FETCH = """
    import socket, sys, time
    address, size = sys.argv[1], int(sys.argv[2])
    started = time.monotonic()
    with socket.create_connection((address, 5000)) as connection:
        joined = time.monotonic()
        connection.sendall(b"%d" % size)
        left = size
        while data := connection.recv(1 << 18):
            left -= len(data)
    print(joined - started, (size - left) * 8e-6 / (time.monotonic() - joined))
"""


@pytest.fixture
def lab() -> Iterator[Netlab]:
    try:
        made = Netlab()
        made.__enter__()
        made.host("probe")
    except NetlabUnavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


def script(host: Host, text: str, *arguments: str) -> list[str]:
    return host.command([sys.executable, "-c", textwrap.dedent(text), *arguments])


def serve(host: Host) -> None:
    process = subprocess.Popen(script(host, ECHO, host.address), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"


def fetch(client: Host, server: Host, size: int) -> tuple[float, float]:
    """Seconds until connected, and Mbit/s of payload."""
    said = subprocess.check_output(script(client, FETCH, server.address, str(size)), text=True).split()
    return float(said[0]), float(said[1])


def namespaces(lab: Netlab) -> set[str]:
    mine = leftovers.prefix()
    return {entry.name for entry in leftovers.NAMESPACES.iterdir() if entry.name.startswith(mine)}


@pytest.mark.parametrize(
    ("shape", "size"), [(Shape(mbit=40), 3_000_000), (Shape(mbit=40, delay_ms=10, jitter_ms=2), 3_000_000)]
)
def test_a_link_has_its_rate_and_its_delay(lab: Netlab, shape: Shape, size: int) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b, shape)
    serve(a)
    before = a.counters()
    connect_s, mbit = fetch(b, a, size)
    assert connect_s >= 2 * (shape.delay_ms - shape.jitter_ms) / 1000
    assert 0.6 * 40 <= mbit <= 1.1 * 40  # a slow start and a busy machine below, the bucket above
    counted = a.counters() - before
    assert 1.03 * size <= counted.tx_bytes <= 1.2 * size
    assert 0 < counted.rx_bytes < 0.1 * size
    assert counted.total == counted.rx_bytes + counted.tx_bytes


def test_a_fast_link_with_delay_carries_super_packets(lab: Netlab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b, Shape(mbit=1000, delay_ms=1))
    serve(a)
    _, mbit = fetch(b, a, 20_000_000)
    assert mbit >= 150


def test_hosts_of_a_star_have_access_links_of_their_own(lab: Netlab) -> None:
    a, b, c = (lab.host(name) for name in "abc")
    lab.star({a: Access(up=Shape(mbit=16)), b: Access(up=Shape(mbit=80, delay_ms=5)), c: Access()})
    serve(a)
    serve(b)
    assert fetch(c, a, 1_000_000)[1] <= 1.1 * 16
    connect_s, mbit = fetch(c, b, 4_000_000)
    assert connect_s >= 0.005
    assert 20 < mbit <= 1.1 * 80
    assert fetch(b, a, 200_000)[1] <= 1.4 * 16


def test_a_host_has_loopback_and_keeps_to_itself(lab: Netlab) -> None:
    (probe,) = lab.hosts.values()
    alone = lab.host("alone")
    serve(probe)
    assert fetch(probe, probe, 1000)[1] > 0
    done = alone.run([sys.executable, "-c", textwrap.dedent(FETCH), probe.address, "1"], capture_output=True, text=True)
    assert "unreachable" in done.stderr
    with pytest.raises(ValueError, match="probe"):
        lab.host("probe")


def test_nothing_stays_behind(lab: Netlab) -> None:
    inner = Netlab()
    with inner:
        a, b = inner.host("a"), inner.host("b")
        inner.link(a, b, Shape(delay_ms=1))
        sleeper = a.popen(["sleep", "1000"])
        (wire,) = inner.wire_pids()
        assert {a.namespace, b.namespace} <= namespaces(lab)
    assert sleeper.wait(5) == -signal.SIGKILL
    assert not Path(f"/proc/{wire}").exists()
    assert not {a.namespace, b.namespace} & namespaces(lab)


HOLDER = """
    import sys, time
    from bench.netlab import Netlab, Shape
    with Netlab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, b, Shape(delay_ms=1))
        a.popen(["sleep", "1000"], stdout=2, start_new_session=True)
        print(a.namespace, b.namespace, *lab.wire_pids(), flush=True)
        time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_nothing(lab: Netlab, number: signal.Signals) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLDER)]
    where = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True, cwd=where) as run:
        assert run.stdout is not None
        a, b, wire = run.stdout.readline().split()
        run.send_signal(number)
        run.wait(10)
    left = {a, b} & {entry.name for entry in leftovers.NAMESPACES.iterdir()}
    if number == signal.SIGKILL:
        assert left == {a, b}
        assert set(leftovers.sweep()) >= {a, b}
        left = {a, b} & {entry.name for entry in leftovers.NAMESPACES.iterdir()}
    assert left == set()
    eventually(lambda: not Path(f"/proc/{wire}").exists())
    assert leftovers.sweep() == []


def test_users_without_rights_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NetlabUnavailable, match="needs root"), Netlab():
        pass


def test_a_machine_without_tap_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tools, "PROGRAMS", ())
    monkeypatch.setattr(tools, "TUN", tmp_path / "tun")
    with pytest.raises(NetlabUnavailable, match="TAP"), Netlab():
        pass


def test_shapes_that_cannot_be_are_refused() -> None:
    for wrong in ((0.0, 0.0, 0.0), (1.0, -1.0, 0.0), (1.0, 1.0, 2.0)):
        with pytest.raises(ValueError, match="no link"):
            Shape(*wrong)


def test_nodes_live_in_hosts(lab: Netlab, tmp_path: Path) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b, Shape(mbit=100, delay_ms=1))
    (tmp_path / "tree").mkdir()
    (tmp_path / "mesh").mkdir()
    (tmp_path / "tree" / "file").write_bytes(os.urandom(1 << 20))
    with LocalMesh(tmp_path / "mesh") as mesh:
        one, two = (mesh.add(host.name, wrap=host.command, address=host.address) for host in (a, b))
        one.must("layer", "add", str(tmp_path / "tree"), "--name", "tree")
        before = b.counters()
        two.must("layer", "pull", "tree")
        assert 1 << 20 < (b.counters() - before).rx_bytes < 2 << 20
