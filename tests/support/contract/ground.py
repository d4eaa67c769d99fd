"""Three hosts with a p2player node each, two of them with an engine, a network for apps, and a client in that.

    north ---+                north [br0] --+
    south ---+--- the mesh    south [br0] --+--- the apps' network, one Ethernet
    west  ---+                client -------+

An app has the same address wherever it runs, so a connection to it can live through a migration. `west` has no engine:
it is a second holder of the layers.
"""

import itertools
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

from backends.base import EngineSettings
from bench.netlab import Access, Host, Netlab, NetlabUnavailable
from bench.netlab.tools import run
from p2player.localmesh import COMMAND, LocalMesh, LocalNode
from tests.support.contract import services
from tests.support.contract.labs import Lab, make_lab
from tests.support.contract.rigs import Unavailable
from tests.support.waiting import eventually


class Ground:
    """See the module. A context manager.

    Args:
        engine: name of the backend.
        root: a folder for all of it.

    Raises:
        Unavailable: on entering, if this machine cannot have it.
    """

    def __init__(self, engine: str, root: Path) -> None:
        self.engine = engine
        self.root = root
        self._stack = ExitStack()
        self.labs: dict[str, Lab] = {}
        self._callers = itertools.count()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            try:
                self._enter(stack)
            except NetlabUnavailable as error:
                raise Unavailable(str(error)) from error
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _enter(self, stack: ExitStack) -> None:
        self.net = stack.enter_context(Netlab())
        hosts = {name: self.net.host(name) for name in ("north", "south", "west", "client", "lan")}
        self.net.star({hosts[name]: Access() for name in ("north", "south", "west")})
        self.client = hosts["client"]
        _lay_lan(hosts["lan"], [hosts["north"], hosts["south"]], self.client)
        for name in ("north", "south"):
            folder = self.root / "labs" / name
            folder.mkdir(parents=True)
            try:
                self.labs[name] = stack.enter_context(make_lab(self.engine, folder, name, hosts[name].path))
            except Exception as error:  # whatever kept its daemon from coming up is the reason of the skip
                raise Unavailable(f"its node does not start: {error}") from error
        (self.root / "mesh").mkdir()
        self.mesh = stack.enter_context(LocalMesh(self.root / "mesh", name="ground"))
        for name, host in hosts.items():
            if name in ("north", "south", "west"):
                self._add(host)
        self.north, self.south, self.west = (self.mesh.nodes[name] for name in ("north", "south", "west"))
        (probe,) = [row for row in self.north.json("backends") if row["name"] == self.engine]
        if not probe["available"]:
            raise Unavailable(probe["reason"])
        eventually(lambda: all(len(self._alive(node)) == 2 for node in self.mesh.nodes.values()), within_s=30)

    def _add(self, host: Host) -> None:
        lab = self.labs.get(host.name)
        wrap = host.command if lab is None else _wrapping(lab)
        node = self.mesh.add(host.name, host.name, run=False, wrap=wrap, address=host.address)
        self.configure(node)
        node.start()

    def configure(self, node: LocalNode, **changed: str) -> None:
        """Write a node's settings; `changed` are those of engines. It reads them when it starts."""
        lab = self.labs.get(node.name)
        settings = lab.settings if lab else EngineSettings()
        values = {name: getattr(settings, name) for name in ("criu", "lxd_socket", "lxd_pool", "libvirt_uri")} | changed
        lines = [f'{name} = "{value}"' for name, value in values.items() if value is not None]
        text = "\n".join(['gossip_preset = "local"', "[engines]", *lines, ""])
        (node.state / "config.toml").write_text(text)

    def restart(self, node: LocalNode, *, launcher: Sequence[str] = COMMAND, kill: bool = False) -> None:
        """Start a node anew; the others see it again before this returns."""
        node.kill() if kill else node.stop()
        node.launcher = tuple(launcher)
        node.start()
        node.launcher = COMMAND
        self.meet()

    def meet(self) -> None:
        """Wait until all that run see each other."""
        up = self.up()
        names = {node.name for node in up}
        eventually(lambda: all(self._alive(node) >= names - {node.name} for node in up), within_s=30)

    def up(self) -> list[LocalNode]:
        """The nodes that run."""
        return [node for node in self.mesh.nodes.values() if node.process is not None and node.process.poll() is None]

    def other(self, node: LocalNode) -> LocalNode:
        """The other one that has the engine."""
        return self.south if node is self.north else self.north

    def _alive(self, node: LocalNode) -> set[str]:
        return {row["name"] for row in node.json("peers") if row["state"] == "alive"}

    def home(self, app: str) -> LocalNode:
        """The node on which an app runs, as soon as all that are up say so."""

        def look() -> LocalNode | None:
            told = set()
            for node in self.up():
                if node is self.west:
                    continue  # which only hears of it
                told |= {(row["node"], row["state"]) for row in node.json("apps") if row["name"] == app}
            names = [name for name, state in told if state == "running"]
            return self.mesh.nodes[names[0]] if len(told) == len(names) == 1 else None

        return eventually(look, within_s=30)

    def tick(self, app: str, node: LocalNode) -> tuple[str, int]:
        """Token and count in the newest line of an app's log on a node."""
        return eventually(lambda: services.last_tick(node.cli("app", "logs", app).stdout), within_s=30)

    def caller(self, address: str = services.ADDRESS) -> "Caller":
        """A client with one connection to the app, opened as soon as it can be."""
        return Caller(self.client, address, self.root / f"caller-{next(self._callers)}")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: when it came, its number in the connection, and what the app had counted."""

    at: float
    number: int
    count: int


CALL = """
    import socket, sys, time
    deadline = time.monotonic() + 30
    while True:
        try:
            connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)
            break
        except OSError:
            if time.monotonic() > deadline: raise
            time.sleep(0.1)
    connection.settimeout(60)
    file = connection.makefile("rw")
    asked, counted = 0, 0
    while True:
        asked += 1
        file.write(f"{asked}\\n")
        file.flush()
        number, *count, line = file.readline().split()
        assert int(line) == asked
        if count:  # it is read from a file that is being written
            counted = count[0]
        print(time.monotonic(), number, counted, flush=True)
        time.sleep(0.03)
"""


class Caller:
    """A connection that asks all the time, while the block runs; never opened again.

    Args:
        path: a new file, for what it says.
    """

    def __init__(self, host: Host, address: str, path: Path) -> None:
        self._host = host
        self._path = path
        self._words = [sys.executable, "-c", textwrap.dedent(CALL), address, str(services.PORT)]

    def __enter__(self) -> Self:
        with self._path.open("xb") as out:
            self._process = self._host.popen(
                self._words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        eventually(lambda: len(self.replies()) > 2, within_s=40)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def replies(self) -> list[Reply]:
        """All answers so far.

        Raises:
            AssertionError: the connection is no more.
        """
        ended = self._process.poll() is not None
        lines = self._path.read_text().rpartition("\n")[0].splitlines()
        assert not ended, f"the connection ended: {lines[-1:]}"
        found = [line.split() for line in lines]
        return [Reply(float(at), int(number), int(count)) for at, number, count in found]

    def goes_on(self, within_s: float = 20.0) -> Reply:
        """One more answer than there is now, and all are in order: the connection and the app's memory are the same."""
        asked_at = time.monotonic()
        eventually(lambda: self.replies()[-1].at > asked_at, within_s=within_s)
        replies = self.replies()
        assert [reply.number for reply in replies] == list(range(1, len(replies) + 1))
        assert all(a.count <= b.count for a, b in pairwise(replies))
        return replies[-1]

    def longest_gap_s(self, since: float = 0.0) -> float:
        """The longest time between two answers after a moment of the monotonic clock."""
        times = [reply.at for reply in self.replies() if reply.at >= since]
        return max((b - a for a, b in pairwise(times)), default=0.0)


def _wrapping(lab: Lab) -> Callable[[Sequence[str]], list[str]]:
    """Runs commands in a lab's namespaces, with what it adds to the environment."""
    changed = [f"{name}={value}" for name, value in lab.environment.items() if os.environ.get(name) != value]
    return lambda words: lab.command(["env", *changed, *words])


def _lay_lan(switch: Host, sites: Sequence[Host], client: Host) -> None:
    """The apps' network: a bridge in `switch`, one in each site, and the client with its address."""
    _bridge(switch, "br0")
    for number, host in enumerate((*sites, client)):
        port = f"port{number}"
        peer = ("peer", "name", port, "netns", switch.namespace)
        run("ip", "link", "add", "lan0", "netns", host.namespace, "type", "veth", *peer)
        run("ip", "-n", switch.namespace, "link", "set", port, "master", "br0", "up")
        if host is not client:
            _bridge(host, "br0")
            run("ip", "-n", host.namespace, "link", "set", "lan0", "master", "br0")
        run("ip", "-n", host.namespace, "link", "set", "lan0", "up")
    run("ip", "-n", client.namespace, "address", "add", f"{services.CLIENT}/24", "dev", "lan0")


def _bridge(host: Host, name: str) -> None:
    run("ip", "-n", host.namespace, "link", "add", name, "type", "bridge")
    run("ip", "-n", host.namespace, "link", "set", name, "up")
