"""One pair of trees between two hosts: where everything lies, and the servers that rivals need.

Everything is below one folder, on tmpfs unless told otherwise:

    old/ new/       the pair; `new` is what the source has, `old` what the destination starts from (if nothing
                    changed, `new` is both)
    KIND/           whatever one kind of contestant keeps, such as a chunk store or the states of nodes
    result/         the destination's tree; made anew before every run
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench import ssh
from bench.netlab import Host, Netlab, Shape
from bench.sync.measured import RunFailed, command
from bench.sync.plan import OURS, OURS_DONOR, Case, Link

DAEMON_PORT = 8873
LOOPBACK_MTU = "65535"
"""Of the bare pair of interfaces: that of `lo`, as far as veth goes; with Ethernet's, an rsync daemon is slower."""
DAEMON_START_S = 10.0


@dataclass(frozen=True, slots=True)
class Ground:
    """The pair on its place, and how large `new` is."""

    case: Case
    folder: Path
    old: Path | None
    new: Path
    size_bytes: int
    files: int

    @property
    def result(self) -> Path:
        """Where the destination's tree is to be."""
        return self.folder / "result"

    def room(self, kind: str) -> Path:
        """A folder for one kind of contestant."""
        path = self.folder / kind
        path.mkdir(exist_ok=True)
        return path

    def reset_result(self) -> None:
        """Lay out what a contestant that updates in place starts from: a copy of `old`, or nothing."""
        self.clear_result()
        if self.old is not None:
            command(["cp", "-a", str(self.old), str(self.result)])

    def clear_result(self) -> None:
        """Remove what the last run made."""
        shutil.rmtree(self.result, ignore_errors=True)

    def verify(self, *, hard_links: bool = True) -> None:
        """Compare the result with `new`: content, owners, modes, times, attributes, and which files are one file.

        Raises:
            RunFailed: something differs.
        """
        options = "-aHAXnc" if hard_links else "-aAXnc"
        compare = ["rsync", options, "--delete", "--itemize-changes", f"{self.new}/", f"{self.result}/"]
        difference = command(compare)
        if difference:
            raise RunFailed(f"the result differs from the source: {difference[:300]}")


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two hosts and nothing between them but the link."""

    source: Host
    destination: Host


class Stage:
    """The hosts of one link, while the block runs.

    There are three pairings on links that are alike: nodes of p2player gossip all the time, and what they say is not to
    be counted as somebody else's. Addresses are the same on every stage, so states of nodes move along.

    Attributes:
        rivals: where rsync and casync run.
        ours: where p2player does, by the name of the contestant.
    """

    def __init__(self, ground: Ground, link: Link) -> None:
        self.ground = ground
        self.link = link
        self._stack = ExitStack()

    def __enter__(self) -> "Stage":
        self._lab = self._stack.enter_context(Netlab())
        try:
            self.rivals = self._pairing("rival")
            self.ours = {OURS: self._pairing("node"), OURS_DONOR: self._pairing("donor")}
        except BaseException:  # Ctrl-C too must not leave nodes and namespaces behind
            self._stack.close()
            raise
        return self

    def _pairing(self, name: str) -> Pairing:
        made = Pairing(self._lab.host(f"{name}source"), self._lab.host(f"{name}destination"))
        self._lab.link(made.source, made.destination, Shape(mbit=self.link.mbit, delay_ms=self.link.delay_ms))
        if self.link.mbit is None:
            for host in (made.source, made.destination):
                host.run(["ip", "link", "set", host.devices[-1], "mtu", LOOPBACK_MTU], check=True)
        return made

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep(self, end: Callable[[], object]) -> None:
        """Have something end with the stage, before its hosts do."""
        self._stack.callback(end)

    @cached_property
    def ssh(self) -> ssh.SshServer:
        """An ssh server on the rivals' source."""
        host = self.rivals.source
        return self._stack.enter_context(ssh.server(self.ground.room("ssh"), address=host.address, inside=host.command))

    @cached_property
    def daemon(self) -> str:
        """The URL of an rsync daemon that offers `new`."""
        return self._stack.enter_context(_daemon(self.rivals.source, self.ground))


@contextmanager
def _daemon(host: Host, ground: Ground) -> Iterator[str]:
    folder = ground.room("rsyncd")
    config = folder / "rsyncd.conf"
    user = f"uid = {os.getuid()}\ngid = {os.getgid()}\n"
    config.write_text(
        f"use chroot = no\nreverse lookup = no\n{user}log file = {folder / 'log'}\n"
        f"[new]\npath = {ground.new}\nread only = yes\n"
    )
    options = ("--no-detach", f"--config={config}", f"--address={host.address}", f"--port={DAEMON_PORT}")
    process = host.popen(["rsync", "--daemon", *options], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"rsync://{host.address}:{DAEMON_PORT}/new"
    try:
        deadline = time.monotonic() + DAEMON_START_S
        while host.run(["rsync", f"{url}/"], capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RunFailed("the rsync daemon did not start")
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()
