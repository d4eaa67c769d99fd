"""A star of hosts with a node each, a layer that some of them hold, and timed copies of it."""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.netlab import Access, Counters, Netlab
from p2player.localmesh import COMMAND, LocalMesh, LocalNode

FILE_BYTES = 4_000_000
NOTICED_S = 30.0


@dataclass(frozen=True, slots=True)
class Copy:
    """One pull of the layer.

    Attributes:
        seconds: of the whole command.
        node_s: what the node says of it.
        wire: what went through the host's access link meanwhile.
        cpu_s: processor time of the node meanwhile.
        sources: bytes of content by holder.
    """

    seconds: float
    node_s: float
    wire: Counters
    cpu_s: float
    sources: Mapping[str, int]


class Starfield:
    """Hosts around a switch, and a mesh of nodes on them.

    Args:
        root: an empty folder.
        access: the hosts by name.
        size_bytes: of the layer: files that do not compress.
    """

    def __init__(self, root: Path, access: Mapping[str, Access], size_bytes: int) -> None:
        self._root = root
        self._access = access
        self._tree = root / "tree"
        self._lab = Netlab()
        self._mesh = LocalMesh(root / "mesh", name="swarm")
        self._homes: dict[str, str] = {}
        self.size_bytes = size_bytes
        self.layer = ""

    def __enter__(self) -> Self:
        (self._root / "mesh").mkdir()
        self._tree.mkdir()
        for at, start in enumerate(range(0, self.size_bytes, FILE_BYTES)):
            (self._tree / f"file-{at:04}").write_bytes(os.urandom(min(FILE_BYTES, self.size_bytes - start)))
        self._lab.__enter__()
        try:
            self._lab.star({self._lab.host(name): access for name, access in self._access.items()})
        except BaseException:  # Ctrl-C too must not leave namespaces behind
            self._lab.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._mesh.close()
        finally:
            self._lab.close()

    def node(self, name: str, home: str | None = None, launcher: Sequence[str] = COMMAND) -> LocalNode:
        """Run one more node, on the host `home` or on that of its own name."""
        host = self._lab.hosts[home or name]
        self._homes[name] = host.name
        return self._mesh.add(name, host.name, launcher=launcher, wrap=host.command, address=host.address)

    def hold(self, *nodes: LocalNode) -> None:
        """Let nodes import the layer from the machine's disk, each under a name of its own."""
        for node in nodes:
            self.layer = node.json("layer", "add", str(self._tree), "--name", f"tree-{node.name}")["id"]

    def drop(self, *nodes: LocalNode) -> None:
        """Let nodes go, with their state."""
        for node in nodes:
            node.must("leave")
            node.stop()
            del self._mesh.nodes[node.name]
            shutil.rmtree(node.state, ignore_errors=True)

    def counters(self, node: LocalNode) -> Counters:
        """What went through the access link of a node's host."""
        return self._lab.hosts[self._homes[node.name]].counters()

    def sees(self, node: LocalNode, *holders: LocalNode) -> None:
        """Wait until a node knows exactly these holders of the layer.

        Raises:
            TimeoutError: it does not come to that.
        """
        wanted = {holder.name for holder in holders}
        deadline = time.monotonic() + NOTICED_S
        while True:
            rows: list[dict[str, Any]] = node.json("layers")
            seen = {name for row in rows if row["id"] == self.layer for name in row["holders"]}
            if seen == wanted:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{node.name} sees {sorted(seen)} as holders, not {sorted(wanted)}")
            time.sleep(0.1)

    def copy(self, node: LocalNode, meanwhile: Callable[[], None] | None = None) -> Copy:
        """Pull the layer to a node, and call something while that runs."""
        return self.copies([node], meanwhile)[0]

    def copies(self, nodes: Sequence[LocalNode], meanwhile: Callable[[], None] | None = None) -> list[Copy]:
        """Pull the layer to several nodes at the same time; each one's seconds count from the common start.

        Raises:
            Failed: a pull failed.
        """
        before = {node.name: (self.counters(node), _cpu_s(node)) for node in nodes}
        started = time.perf_counter()

        def pull(node: LocalNode) -> Copy:
            row = node.json("layer", "pull", self.layer[:16])
            seconds = time.perf_counter() - started
            wire, cpu_s = before[node.name]
            return Copy(seconds, row["seconds"], self.counters(node) - wire, _cpu_s(node) - cpu_s, row["sources"])

        with ThreadPoolExecutor(len(nodes)) as pool:
            pulls = [pool.submit(pull, node) for node in nodes]
            if meanwhile is not None:
                meanwhile()
            return [running.result() for running in pulls]


def _cpu_s(node: LocalNode) -> float:
    """Processor time of a node so far, all its threads, user and system."""
    assert node.process is not None
    fields = Path(f"/proc/{node.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
