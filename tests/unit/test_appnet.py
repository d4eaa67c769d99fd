"""The network of an application: a namespace that comes and goes, on a bridge or alone. Needs root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.appnet import Namespace, Network, NetworkError, announce

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

ADDRESS = Network(False, "lan0", "02:00:00:88:00:05", "10.88.0.5/24", "10.88.0.1")


def ip(place: Path | str, *words: str) -> str:
    command = ["nsenter", f"--net={place}", "ip", *words]
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


@pytest.fixture
def node() -> Iterator[Path]:
    """A network with a bridge, of a process that does nothing else."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        place = Path(f"/proc/{process.pid}/ns/net")
        ip(place, "link", "add", "lan0", "type", "bridge")
        ip(place, "link", "set", "lan0", "up")
        yield place
        process.kill()


@pytest.fixture
def namespace(node: Path, tmp_path: Path) -> Iterator[Namespace]:
    made = Namespace(tmp_path / "netns", "p2ptest", node)
    yield made
    made.remove()
    made.remove()
    assert not made.place.exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_without_a_bridge_there_is_only_the_loopback(namespace: Namespace) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    namespace.create(Network())
    assert namespace.connecting(Network(), ["true"]) == ["true"]
    links = ip(namespace.place, "-o", "link")
    assert links.count("\n") == 1
    assert "LOOPBACK,UP" in links
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_on_a_bridge_it_is_silent_until_it_is_connected(namespace: Namespace, node: Path) -> None:
    namespace.create(ADDRESS)
    assert "10.88.0.5/24" in ip(namespace.place, "address", "show", "eth0")
    assert "02:00:00:88:00:05" in ip(namespace.place, "link", "show", "eth0")
    assert "default via 10.88.0.1" in ip(namespace.place, "route", "show")
    assert "state DOWN" in ip(node, "link", "show", "p2ptest")
    enter = ["nsenter", f"--net={node}"]
    assert subprocess.run([*enter, *namespace.connecting(ADDRESS, ["false"])], check=False).returncode == 1
    assert "state DOWN" in ip(node, "link", "show", "p2ptest")
    subprocess.run([*enter, *namespace.connecting(ADDRESS, ["test", "a b", "=", "a b"])], check=True)
    announce("10.88.0.5/24", namespace.place)
    assert "master lan0 state UP" in ip(node, "link", "show", "p2ptest")
    forwarding = subprocess.run(
        ["nsenter", f"--net={node}", "bridge", "fdb", "show", "br", "lan0"], capture_output=True, check=True, text=True
    )
    assert "02:00:00:88:00:05 dev p2ptest" in forwarding.stdout
    namespace.remove()
    assert "p2ptest" not in ip(node, "link")


def test_it_can_be_made_again_over_what_a_killed_node_left(namespace: Namespace, node: Path) -> None:
    namespace.create(ADDRESS)
    Namespace(namespace.place, "p2ptest", node).create(ADDRESS)
    assert ip(node, "-o", "link").count("p2ptest") == 1


def test_a_bridge_that_is_not_there_leaves_nothing(namespace: Namespace, node: Path) -> None:
    with pytest.raises(NetworkError, match="nosuch0"):
        namespace.create(Network(bridge="nosuch0"))
    assert "p2ptest" not in ip(node, "link")
    assert not namespace.place.exists()


def test_a_machine_without_ip_says_so(namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(NetworkError, match="cannot run ip"):
            namespace.create(Network())
    with contextlib.suppress(FileNotFoundError):
        assert os.stat(namespace.place).st_dev == os.stat(tmp_path).st_dev
