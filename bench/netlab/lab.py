"""A lab from first to last: its hosts, the links between them, and that nothing of it stays behind."""

import itertools
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

from bench.netlab import leftovers, links, tools
from bench.netlab.hosts import Host
from bench.netlab.links import Access, Cable, Shape

NETWORK = "10.77.0"
MAX_HOSTS = 254
_LABS = itertools.count(1)


class Netlab:
    """Hosts and links, from entering the block to leaving it.

    Raises:
        NetlabUnavailable: on entering, if this machine or this user cannot have one; from any method, if a program
            that builds it fails.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self._prefix = f"{leftovers.prefix()}{next(_LABS)}-"
        self._namespaces: list[str] = []
        self._wires: list[subprocess.Popen[str]] = []
        self._switches = itertools.count()
        self._old_handler: Any = None

    def __enter__(self) -> Self:
        tools.check()
        leftovers.sweep()
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._old_handler = signal.signal(signal.SIGTERM, _leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def host(self, name: str) -> Host:
        """One more host. It has loopback and its address, and no link yet.

        Args:
            name: letters and digits; unique in this lab.
        """
        if name in self.hosts or not name.isalnum() or len(self.hosts) >= MAX_HOSTS:
            raise ValueError(f"cannot name one more host {name!r}")
        address = f"{NETWORK}.{len(self.hosts) + 1}"
        host = self.hosts[name] = Host(name, address, self._namespace(name))
        tools.run("ip", "-n", host.namespace, "address", "add", f"{address}/32", "dev", "lo")
        return host

    def link(self, a: Host, b: Host, shape: Shape, back: Shape | None = None) -> None:
        """Connect two hosts; `back` shapes the direction from `b` to `a` where that differs."""
        ends = (a.namespace, a.add_device()), (b.namespace, b.add_device())
        self._lay(Cable(*ends, shape, shape if back is None else back))
        _route(a, f"{b.address}/32")
        _route(b, f"{a.address}/32")

    def star(self, access: Mapping[Host, Access]) -> None:
        """Connect hosts to a switch of its own, each by its access link."""
        number = next(self._switches)
        switch = self._namespace(f"switch{number}")
        tools.run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        tools.run("ip", "-n", switch, "link", "set", "bridge", "up")
        ports = {host: f"port{at}" for at, host in enumerate(access)}
        self._lay(
            *(
                Cable((host.namespace, host.add_device()), (switch, ports[host]), shapes.up, shapes.down)
                for host, shapes in access.items()
            )
        )
        for host, port in ports.items():
            tools.run("ip", "-n", switch, "link", "set", port, "master", "bridge")
            for other in access:
                if other is not host:
                    _route(host, f"{other.address}/32")

    def wire_pids(self) -> list[int]:
        """The processes that delay packets here; their processor time is part of the price of a figure."""
        return [process.pid for process in self._wires]

    def close(self) -> None:
        """Delete it all. A second Ctrl-C, or SIGTERM, meanwhile is not heard."""
        with _undisturbed():
            for host in self.hosts.values():
                for process in host.processes:  # one that is only just started may be on its way in
                    process.kill()
            for namespace in self._namespaces:
                leftovers.remove(namespace)
            for wire in self._wires:
                links.cut(wire)
            self._namespaces.clear()
            self._wires.clear()
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)
            self._old_handler = None

    def _namespace(self, name: str) -> str:
        namespace = self._prefix + name
        self._namespaces.append(namespace)
        tools.run("ip", "netns", "add", namespace)
        tools.run("ip", "-n", namespace, "link", "set", "lo", "up")
        quiet = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"  # its announcements would be counted
        with suppress(tools.NetlabUnavailable):
            tools.run("nsenter", f"--net={leftovers.NAMESPACES / namespace}", "sh", "-c", quiet)
        return namespace

    def _lay(self, *cables: Cable) -> None:
        process = links.lay(cables)
        if process is not None:
            self._wires.append(process)


def _route(host: Host, network: str) -> None:
    device = host.devices[-1]
    tools.run("ip", "-n", host.namespace, "route", "add", network, "dev", device, "src", host.address)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore the signals that end a program, where this thread may decide that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
