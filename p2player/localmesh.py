"""Several nodes on one machine, each a process of its own: for the demo, the tests and the benchmarks.

Everything goes through the public command line, as a user's would: `init`, `invite`, `join`, `run`. Nodes are ended by
pid, and the folder of the mesh is the only place that is written to.

Nodes share the machine's loopback, unless each is put in a network namespace of its own: then `wrap` turns a command
into one that runs there, and `address` is what the node listens on.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from p2player import errors

READY = "p2player: ready "
START_S = 30.0
STOP_S = 20.0
COMMAND = (sys.executable, "-m", "p2player")
LOOPBACK = "127.0.0.1"

Wrap = Callable[[Sequence[str]], list[str]]
"""Makes of a command the one that runs it elsewhere; the process that is started must become the command."""


class LocalNode:
    """One node: its state folder, and its process while it runs.

    Args:
        launcher: the command that plays the part of `p2player`; tests put one in that kills itself at a given step.
        wrap: where the node and the commands against it run; here by default.
    """

    def __init__(
        self, root: Path, name: str, site: str, launcher: Sequence[str] = COMMAND, wrap: Wrap = list[str]
    ) -> None:
        self.name = name
        self.site = site
        self.state = root / name
        self.log_path = root / f"{name}.log"
        self.launcher = tuple(launcher)
        self.wrap = wrap
        self.process: subprocess.Popen[bytes] | None = None

    def cli(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Run one command against this node and return what it said, whatever its exit code."""
        command = self.wrap([*COMMAND, "--state-dir", str(self.state), *arguments])
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, cwd="/")

    def json(self, *arguments: str, timeout_s: float = 120) -> Any:
        """Run one command with `--json` and return its document.

        Raises:
            Failed: it exited with another code than 0; the text is what it said.
        """
        done = self.cli(*arguments, "--json", timeout_s=timeout_s)
        if done.returncode:
            raise errors.Failed(f"p2player {' '.join(arguments)}: exit {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def must(self, *arguments: str, timeout_s: float = 120) -> str:
        """Run one command that has to succeed and return its standard output."""
        done = self.cli(*arguments, timeout_s=timeout_s)
        if done.returncode:
            raise errors.Failed(f"p2player {' '.join(arguments)}: exit {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def start(self, *options: str) -> None:
        """Run the node and return once it says that it is ready.

        Raises:
            Failed: it ended, or said nothing within `START_S`; the text carries its last words.
        """
        with self.log_path.open("ab") as log:
            offset = log.tell()
            self.process = subprocess.Popen(
                self.wrap([*self.launcher, "--state-dir", str(self.state), "run", *options]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            said = self.log_path.read_bytes()[offset:].decode(errors="replace")
            if any(line.startswith(READY) for line in said.splitlines()):
                return
            if self.process.poll() is not None:
                raise errors.Failed(f"node {self.name} ended with {self.process.returncode}: {said[-2000:].strip()}")
            time.sleep(0.02)
        raise errors.Failed(f"node {self.name} was not ready within {START_S:g} s")

    def kill(self) -> None:
        """End the node as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def stop(self) -> int:
        """End the node in good order and return its exit code; -9 if it had to be killed."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.wait()


class LocalMesh:
    """A mesh on this machine in the folder `root`; leaving the block ends every node and every app of it.

    Args:
        root: an existing, empty folder.
    """

    def __init__(self, root: Path, *, name: str = "local") -> None:
        self.root = root
        self.name = name
        self.nodes: dict[str, LocalNode] = {}

    def add(
        self,
        name: str,
        site: str = "here",
        *options: str,
        run: bool = True,
        launcher: Sequence[str] = COMMAND,
        wrap: Wrap = list[str],
        address: str = LOOPBACK,
    ) -> LocalNode:
        """Make the mesh with its first node, or join one more; both listen on a free port.

        Args:
            options: of `p2player run`.
            run: whether to start it.
            launcher, wrap: as for `LocalNode`.
            address: what to listen on, where `wrap` leads.
        """
        node = LocalNode(self.root, name, site, launcher, wrap)
        place = ("--name", name, "--site", site, "--listen", f"{address}:0")
        if self.nodes:
            first = next(iter(self.nodes.values()))
            node.must("join", first.must("invite"), *place)
        else:
            node.must("init", "--mesh", self.name, *place)
        self.nodes[name] = node
        if run:
            node.start(*options)
        return node

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the apps, then the nodes."""
        for node in self.nodes.values():
            if node.process is not None and node.process.poll() is None:
                self._stop_apps(node)
        for node in self.nodes.values():
            if node.process is not None and node.process.poll() is None:
                node.process.terminate()
        for node in self.nodes.values():
            node.stop()
        self._end_orphans()

    def _stop_apps(self, node: LocalNode) -> None:
        listed = node.cli("apps", "--json", timeout_s=20)
        if listed.returncode:
            return
        for row in json.loads(listed.stdout):
            if row["node"] == node.name and row["state"] != "stopped":
                node.cli("app", "stop", row["id"], timeout_s=30)

    def _end_orphans(self) -> None:
        """Kill what still runs out of this mesh's folder: apps outlive their node on purpose, but not their mesh."""
        prefix = f"{self.root}{os.sep}".encode()
        own = os.getpid()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == own:
                continue
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            of_app = any(item.startswith(b"P2P_STATE=" + prefix) for item in environment)
            if of_app or any(word.startswith(prefix) for word in words[:1]):
                os.kill(int(entry.name), signal.SIGKILL)
