"""p2player as a contestant: two nodes in the two hosts of a stage, driven through the command line.

Theory of operation
-------------------
The states of the two nodes are made once a series, between unshaped hosts: the destination's node holds `old` as
version 1 of a name, with a checked-out tree, and the source's has `new` as version 2. The source's node then runs all
the time, as a publisher's does. The destination's state is kept as a template: before every run it is copied, the node
is started from the copy, and the bench waits until it knows of version 2 and both nodes are idle. So every run begins
with a node that never saw `new`, has no session to the source that it did not open by itself, and has learned nothing
about the link.

Timed are `layer pull` and `layer checkout`, one after the other, as whole commands. If only the destination holds
`old`, it was added there, and the source, which never had it, took the name over for version 2. If nothing changed,
timed are `layer add` of the same tree at the source and `layer pull` at the destination.
"""

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.netlab import Host
from bench.sync.measured import RunFailed, command, cpu_s
from bench.sync.plan import OURS_DONOR
from bench.sync.stage import Ground, Stage
from p2player.localmesh import COMMAND, LocalNode

LAYER = "tree"
PORT = 7420
SEEN_S = 60.0
IDLE_FOR_S = 0.3
IDLE_WITHIN_S = 10.0


class Node:
    """A node whose process lives in a host."""

    def __init__(self, root: Path, name: str, host: Host) -> None:
        self.host = host
        self.local = LocalNode(root, name, "bench", launcher=(*host.command(()), *COMMAND))

    @property
    def pid(self) -> int:
        """Of the running node."""
        assert self.local.process is not None
        return self.local.process.pid

    def join(self, token: str | None) -> None:
        """Make the mesh, or join it with a token."""
        place = ("--name", self.local.name, "--site", "bench", "--listen", f"{self.host.address}:{PORT}")
        how = ("init", "--mesh", "bench") if token is None else ("join", token)
        command(self.host.command([*COMMAND, "--state-dir", str(self.local.state), *how, *place]))

    def json(self, *arguments: str) -> Any:
        """What a command says with `--json`.

        Raises:
            RunFailed: it failed.
        """
        state = ("--state-dir", str(self.local.state))
        return json.loads(command(self.host.command([*COMMAND, *state, *arguments, "--json"])))

    def knows(self, layer: str, at: "Node") -> bool:
        """Whether it knows that the name stands for `layer`, and that `at` holds it."""
        rows = self.json("layers")
        return any(row["name"] == LAYER and row["id"] == layer and at.local.name in row["holders"] for row in rows)

    def wait_for(self, layer: str, at: "Node") -> None:
        """Return once it knows.

        Raises:
            RunFailed: not within `SEEN_S`.
        """
        deadline = time.monotonic() + SEEN_S
        while not self.knows(layer, at):
            if time.monotonic() > deadline:
                raise RunFailed(f"{self.local.name} did not hear of version 2 of the layer within {SEEN_S:g} s")
            time.sleep(0.1)


class P2player:
    """The pair of nodes.

    Args:
        name: of the contestant: both have held `old`, or only the destination has.
    """

    keeps_hard_links = True

    def __init__(self, ground: Ground, name: str) -> None:
        self.ground = ground
        self.name = name
        self.donor = name == OURS_DONOR
        self.room = ground.room(name)
        self.template = self.room / "destination.template"

    def _place(self, stage: Stage) -> None:
        hosts = stage.ours[self.name]
        self.source = Node(self.room, "source", hosts.source)
        self.node = Node(self.room, "destination", hosts.destination)

    @property
    def destination(self) -> Host:
        return self.node.host

    def prepare(self, stage: Stage) -> None:
        self._place(stage)
        source, node, old = self.source, self.node, self.ground.old
        with ExitStack() as stack:
            for one in (source, node):
                stack.callback(one.local.stop)
            source.join(None)
            source.local.start()
            node.join(source.local.must("invite"))
            node.local.start()
            if old is not None:
                self._hold_old(old)
            if not self.ground.case.noop:
                takeover = ("--takeover",) if self.donor else ()
                row = source.json("layer", "add", str(self.ground.new), "--name", LAYER, *takeover)
                self.layer = row["id"]
            for one in (source, node):
                one.local.stop()
        node.local.state.rename(self.template)

    def _hold_old(self, old: Path) -> None:
        """The destination comes to hold `old`, as a layer and as a checked-out tree."""
        if self.donor:
            self.layer = self.node.json("layer", "add", str(old), "--name", LAYER)["id"]
            self.source.wait_for(self.layer, self.node)
            return
        self.layer = self.source.json("layer", "add", str(old), "--name", LAYER)["id"]
        self.node.wait_for(self.layer, self.source)
        self.node.json("layer", "pull", LAYER)
        self.node.json("layer", "checkout", LAYER, str(self.room / "old"))

    def open(self, stage: Stage) -> None:
        self._place(stage)
        stage.keep(self.source.local.stop)
        self.source.local.start()

    def reset(self) -> None:
        self.ground.clear_result()
        command(["cp", "-a", str(self.template), str(self.node.local.state)])
        self.node.local.start()
        self.node.wait_for(self.layer, self.source)
        _wait_until_idle(self.source.pid, self.node.pid)

    def run(self) -> Mapping[str, float]:
        before = cpu_s(self.source.pid), cpu_s(self.node.pid)
        parts = self._renew() if self.ground.case.noop else self._fetch()
        return {
            **parts,
            "source_cpu_s": cpu_s(self.source.pid) - before[0],
            "destination_cpu_s": cpu_s(self.node.pid) - before[1],
        }

    def _renew(self) -> dict[str, float]:
        started = time.perf_counter()
        added = self.source.json("layer", "add", str(self.ground.new), "--name", LAYER)
        between = time.perf_counter()
        pulled = self.node.json("layer", "pull", LAYER)
        return {
            "add_s": between - started,
            "pull_s": time.perf_counter() - between,
            "api_s": added["seconds"] + pulled["seconds"],
        }

    def _fetch(self) -> dict[str, float]:
        started = time.perf_counter()
        pulled = self.node.json("layer", "pull", LAYER)
        between = time.perf_counter()
        written = self.node.json("layer", "checkout", LAYER, str(self.ground.result))
        return {
            "pull_s": between - started,
            "checkout_s": time.perf_counter() - between,
            "api_s": pulled["seconds"] + written["seconds"],
            "transferred_bytes": pulled["bytes"]["transferred"],
        }

    def finish(self) -> None:
        if self.ground.case.noop:
            self.node.json("layer", "checkout", LAYER, str(self.ground.result))

    def clear(self) -> None:
        self.node.local.stop()
        self.ground.clear_result()
        shutil.rmtree(self.node.local.state, ignore_errors=True)


def _wait_until_idle(*pids: int) -> None:
    """Return when none of the processes has worked for a while, or after `IDLE_WITHIN_S` all the same."""
    deadline = time.monotonic() + IDLE_WITHIN_S
    while time.monotonic() < deadline:
        before = [cpu_s(pid) for pid in pids]
        time.sleep(IDLE_FOR_S)
        if all(cpu_s(pid) - was < 0.02 for pid, was in zip(pids, before, strict=True)):
            return
