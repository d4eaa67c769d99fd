"""The connection of a container to its bridge.

LXD makes the pair of virtual interfaces, and would put its outer end on the bridge before the container starts. A
packet of an open connection that arrives before CRIU has restored that connection would be answered with a reset. So
LXD is asked for a pair that leads nowhere (`nictype: p2p`), and the outer end goes onto the bridge when the memory is
back; then an unasked ARP answer tells the neighbours where the address is now.

CRIU's packet filter keeps the saved connections silent for as long as the network namespace lives. When that is taken
down, the kernel unhooks the filter first and takes the interfaces away after it, and answers with a reset whatever
arrives in between. LXC keeps the namespace of a container that it started until LXD has taken the interface out of it,
but not that of one that it restored. So whoever saves a container keeps its namespace (`kept`) until the pair is gone.
"""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from backends import appnet
from backends.errors import BackendError
from backends.lxd.daemon import Process
from backends.lxd.settings import LxdSettings

_TIMEOUT_S = 10.0


def devices(settings: LxdSettings) -> dict[str, dict[str, str]]:
    """LXD's devices for the network: none without a bridge."""
    if settings.bridge is None:
        return {}
    return {appnet.INSIDE: {"type": "nic", "nictype": "p2p", "name": appnet.INSIDE, "hwaddr": settings.mac}}


def check(process: Process, settings: LxdSettings) -> None:
    """Make sure that the bridge is there.

    Raises:
        BackendError: it is not.
    """
    if settings.bridge is not None:
        _ip(process, "link", "show", "dev", settings.bridge, "type", "bridge")


def connect(process: Process, settings: LxdSettings, outer: str, init: int) -> None:
    """Let packets through, and tell the neighbours of the address.

    Args:
        outer: what LXD calls the outer end.
        init: the container's first process.

    Raises:
        BackendError: the kernel refused.
    """
    if settings.bridge is None:
        return
    _ip(process, "link", "set", outer, "master", settings.bridge, "up")
    if settings.ipv4 is not None:
        with contextlib.suppress(appnet.NetworkError):  # they learn it a little later by themselves
            appnet.announce(settings.ipv4, Path(f"/proc/{init}/ns/net"))


def disconnect(process: Process, settings: LxdSettings, outer: str) -> None:
    """Let no packets through any more. The pair itself stays up: a route is not saved that has lost its carrier.

    Raises:
        BackendError: the kernel refused.
    """
    if settings.bridge is not None:
        _ip(process, "link", "set", outer, "nomaster")


@contextlib.contextmanager
def kept(settings: LxdSettings, init: int) -> Iterator[None]:
    """Keep the network namespace of a container, whose first process this is, though the container ends."""
    if settings.bridge is None:
        yield
        return
    with open(f"/proc/{init}/ns/net", "rb"):
        yield


def remove(process: Process, settings: LxdSettings, outer: str) -> None:
    """Delete the pair of a container that has ended, if LXD has not done so."""
    if settings.bridge is not None:
        with contextlib.suppress(BackendError):
            _ip(process, "link", "delete", outer)


def remove_spare(process: Process, settings: LxdSettings) -> None:
    """Delete the pair that nobody uses: LXD 5.0 makes two at a stateful start, and forgets the first.

    Its inner end never went into the container, so it is found here by its address.
    """
    if settings.bridge is None:
        return
    with contextlib.suppress(BackendError, ValueError):
        for row in json.loads(_ip(process, "-json", "link", "show")):
            if row.get("address") == settings.mac:
                _ip(process, "link", "delete", row["ifname"])


def _ip(process: Process, *words: str) -> str:
    """Run ip(8) in the network of the daemon; what it prints."""
    command = ["nsenter", f"--net=/proc/{process.pid}/ns/net", "ip", *words]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"cannot run ip: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise BackendError(f"ip {' '.join(words)}: {lines[-1]}")
    return done.stdout
