"""A host: a network namespace with one address, in which commands run."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.netlab import leftovers, tools


@dataclass(frozen=True, slots=True)
class Counters:
    """Bytes of Ethernet frames that a host received and sent; subtract two to get those of the time between."""

    rx_bytes: int
    tx_bytes: int

    @property
    def total(self) -> int:
        """Both directions."""
        return self.rx_bytes + self.tx_bytes

    def __sub__(self, earlier: "Counters") -> "Counters":
        return Counters(self.rx_bytes - earlier.rx_bytes, self.tx_bytes - earlier.tx_bytes)


@dataclass(eq=False, slots=True)
class Host:
    """One host of a lab.

    Attributes:
        name: what the lab's user calls it.
        address: its IPv4 address, the same on all its links.
        namespace: the name of its network namespace, as `ip netns` knows it.
        devices: names of the devices inside, one a link.
        processes: those that `popen` started.
    """

    name: str
    address: str
    namespace: str
    devices: list[str] = field(default_factory=list)
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The file that stands for the namespace."""
        return str(leftovers.NAMESPACES / self.namespace)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """`arguments`, to be run inside. The process that is started becomes the command: same pid."""
        return ["nsenter", f"--net={self.path}", *arguments]

    def run(self, arguments: Sequence[str], *, check: bool = False, **options: Any) -> subprocess.CompletedProcess[Any]:
        """`subprocess.run` inside the host; `options` are its own."""
        return subprocess.run(self.command(arguments), check=check, **options)

    def popen(self, arguments: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` inside the host; `options` are its own. The lab kills it in the end if need be."""
        self.processes.append(subprocess.Popen(self.command(arguments), **options))
        return self.processes[-1]

    def counters(self) -> Counters:
        """What went through its links so far; TCP super-packets count as one frame, see `bench.wire`."""
        rows = json.loads(tools.run("ip", "-n", self.namespace, "-j", "-s", "link", "show"))
        links = [row["stats64"] for row in rows if row["ifname"] in self.devices]
        return Counters(sum(link["rx"]["bytes"] for link in links), sum(link["tx"]["bytes"] for link in links))

    def add_device(self) -> str:
        """The name for one more device of this host."""
        self.devices.append(f"eth{len(self.devices)}")
        return self.devices[-1]
