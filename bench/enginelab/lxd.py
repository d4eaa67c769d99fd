"""An LXD node for tests and benchmarks: one daemon in namespaces of its own, of which one machine can hold several.

Every node sees its daemon's folder at the same path, `MOUNT_POINT`, as real machines do. The daemon's processes,
mounts and control groups end with the node, also when the process that made it is killed (`lxd_keeper`).
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from backends.base import EngineSettings
from backends.lxd.backend import LxdBackend

MOUNT_POINT = "/var/lib/lxd"
POOL = "p2player"
CRIU = Path("/usr/local/lib/p2player/criu/sbin/criu")

_KEEPER = Path(__file__).with_name("lxd_keeper.py")
_READY_S = 30.0
_END_S = 15.0


class LxdNodeFailed(Exception):
    """A daemon did not come up; the text tells why."""


class LxdNode:
    """One daemon, from entering the block to leaving it; needs root.

    Args:
        root: a folder for all its files.
        name: what messages call it.
        netns: path of a network namespace that exists; None makes an anonymous one, in which only the daemon and its
            containers are, as two daemons with the same paths cannot share one.

    Attributes:
        settings: where the backend finds this daemon, from inside the node and from outside alike.
        environment: variables that a process of this node should have.
    """

    def __init__(self, root: Path, name: str, *, netns: str | None = None) -> None:
        self.name = name
        self._netns = netns
        self._folder = root / "lxd"
        self._template = root / "lxc-tpl"
        self._root = root
        self._keeper: subprocess.Popen[str] | None = None
        self.settings = EngineSettings(criu=CRIU, lxd_socket=self._folder / "unix.socket", lxd_pool=POOL)
        self.environment = {**os.environ, "PATH": f"{CRIU.parent}:{os.environ['PATH']}", "LXD_DIR": MOUNT_POINT}

    def __enter__(self) -> Self:
        extra = self._template / "common.conf.d"
        extra.mkdir(parents=True, exist_ok=True)
        (extra / "00-criu.conf").write_text("lxc.console.path = none\n")  # LXC restores no container with a console
        self._keeper = self._start()
        try:
            self._wait_until_ready()
            self._set_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def backend(self) -> LxdBackend:
        """A fresh one, as a node that has just started has."""
        return LxdBackend(self.settings)

    @property
    def pid(self) -> int:
        """A process inside the node for as long as it is there."""
        assert self._keeper is not None
        return self._keeper.pid

    def command(self, argv: Sequence[str]) -> list[str]:
        """`argv`, to be run inside: it sees the daemon's mounts, and the network namespace if one was named."""
        network = [] if self._netns is None else [f"--net=/proc/{self.pid}/ns/net"]
        return ["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *network, f"--wd={os.getcwd()}", *argv]

    def close(self) -> None:
        """End it with all its containers. Idempotent."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None
        keeper.stdin.close()
        try:
            keeper.wait(_END_S)
        finally:
            keeper.kill()
            keeper.wait()

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """One call of LXD's API; waits for an operation to end. Returns the metadata.

        Raises:
            LxdNodeFailed: LXD refused.
        """
        connection = _Connection(self._folder / "unix.socket")
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        if answer["type"] == "async":
            answer = self.request("GET", f"{answer['operation']}/wait?timeout=30")
            if answer["status_code"] != http.HTTPStatus.OK:
                raise LxdNodeFailed(f"LXD on {self.name}: {method} {path}: {answer['err'] or answer['status']}")
            return answer
        if answer["type"] == "error":
            raise LxdNodeFailed(f"LXD on {self.name}: {method} {path}: {answer['error']}")
        return answer["metadata"]

    def _start(self) -> subprocess.Popen[str]:
        enter = ["unshare", "--net"] if self._netns is None else ["nsenter", f"--net={self._netns}"]
        spec = {
            "folder": str(self._folder),
            "mount_point": MOUNT_POINT,
            "environment": {**self.environment, "LXD_LXC_TEMPLATE_CONFIG": str(self._template)},
        }
        keeper = [sys.executable, "-I", str(_KEEPER)]
        with (self._root / "keeper.log").open("ab") as log:
            process = subprocess.Popen(
                [*enter, "unshare", "--mount", "--propagation=private", *keeper],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps(spec) + "\n")
        process.stdin.flush()
        return process

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                self.request("GET", "/internal/ready")
                return
            except (OSError, LxdNodeFailed, http.client.HTTPException):
                assert self._keeper is not None
                if self._keeper.poll() is not None or time.monotonic() > deadline:
                    log = (self._root / "keeper.log").read_text(errors="replace")[-500:]
                    raise LxdNodeFailed(f"LXD on {self.name} does not come up: {log}") from None
                time.sleep(0.03)

    def _set_up(self) -> None:
        """A pool, and a profile that has nothing but a root disk."""
        if any(path.endswith(f"/{POOL}") for path in self.request("GET", "/1.0/storage-pools")):
            return
        self.request("PATCH", "/1.0", {"config": {"images.auto_update_interval": "0"}})
        self.request("POST", "/1.0/storage-pools", {"name": POOL, "driver": "dir"})
        root = {"type": "disk", "path": "/", "pool": POOL}
        self.request("PATCH", "/1.0/profiles/default", {"devices": {"root": root}})


class _Connection(http.client.HTTPConnection):
    """HTTP to a unix socket, of a path of any length."""

    def __init__(self, path: Path) -> None:
        super().__init__("lxd", timeout=_READY_S)
        self._path = path

    def connect(self) -> None:
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)
