"""Two edge nodes, a link between them, a client beside them, and holders of layers.

    a ======== link, shaped ======== b        migrations, and what nodes say to each other
    |                                |
    p2papps ------- bridge ------- p2papps    the applications' own network, unshaped: 10.88.0.0/24
                      |
                      c  10.88.0.1            clients

The application has one address and one MAC wherever it runs; the bridges learn where that is. Clients' packets never
cross the link that is shaped and counted. With several holders of the application layer, the link is a switch instead:
`a` and each of the others behind an access link of the rate, `b` behind one that is not shaped, so that the rates of
holders add up.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from bench import ssh
from bench.netlab import Access, Counters, Host, Netlab, Shape
from bench.netlab import tools as ip

BRIDGE: Final = "p2papps"
"""Of the applications' network, in every edge node's namespace."""
APP_ADDRESS: Final = "10.88.0.5"
APP_MAC: Final = "02:50:32:50:00:05"
CLIENT_ADDRESS: Final = "10.88.0.1"
PREFIX_BITS: Final = 24


class Stage:
    """Hosts and links, from entering the block to leaving it; needs root.

    Args:
        folder: an existing one, for the ssh server's files.
        holders: how many nodes hold the application layer, `a` among them.

    Attributes:
        a, b, c: source, destination, client.
        others: the further holders.

    Raises:
        NetlabUnavailable: on entering, if this machine cannot have one.
    """

    def __init__(self, folder: Path, mbit: float, delay_ms: float = 0.0, holders: int = 1) -> None:
        self.folder = folder
        self._shape = Shape(mbit=mbit, delay_ms=delay_ms)
        self._holders = holders
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            lab = stack.enter_context(Netlab())
            self.a, self.b, self.c = lab.host("a"), lab.host("b"), lab.host("c")
            self.others = [lab.host(f"h{number}") for number in range(1, self._holders)]
            if self.others:
                shaped = Access(self._shape, self._shape)
                lab.star({self.b: Access(), **dict.fromkeys((self.a, *self.others), shaped)})
            else:
                lab.link(self.a, self.b, self._shape)
            _lay_bridge(self.c, f"{CLIENT_ADDRESS}/{PREFIX_BITS}")
            for number, host in enumerate((self.a, self.b)):
                _lay_bridge(host)
                _uplink(host, self.c, f"edge{number}")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def enter(self, context: Any) -> Any:
        """Enter something that is to end with the stage, before its hosts do."""
        return self._stack.enter_context(context)

    def keep(self, end: Callable[[], object]) -> None:
        """Have something called when the stage ends, before its hosts do."""
        self._stack.callback(end)

    def moved(self) -> Counters:
        """What the destination's interface of the link received and sent so far."""
        return self.b.counters()

    @cached_property
    def ssh(self) -> ssh.SshServer:
        """An ssh server on the destination: the published method pushes."""
        room = self.folder / "ssh"
        room.mkdir()
        server: ssh.SshServer = self.enter(ssh.server(room, address=self.b.address, inside=self.b.command))
        return server


def _lay_bridge(host: Host, address: str | None = None) -> None:
    ip.run("ip", "-n", host.namespace, "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
    if address is not None:
        ip.run("ip", "-n", host.namespace, "address", "add", address, "dev", BRIDGE)
    ip.run("ip", "-n", host.namespace, "link", "set", BRIDGE, "up")


def _uplink(host: Host, middle: Host, port: str) -> None:
    """Connect a host's bridge with the one in the middle."""
    peer = ("peer", "name", port, "netns", middle.namespace)
    ip.run("ip", "link", "add", "uplink", "netns", host.namespace, "type", "veth", *peer)
    for namespace, device in ((host.namespace, "uplink"), (middle.namespace, port)):
        ip.run("ip", "-n", namespace, "link", "set", device, "master", BRIDGE)
        ip.run("ip", "-n", namespace, "link", "set", device, "up")
