"""Cables between namespaces: veth with `tc tbf` where there is no delay, else TAP devices with a wire between them."""

import json
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import wire
from bench.netlab import leftovers, tools

BURST_S = 0.004
BURST_MIN_BYTES = 8_000
READY_S = 20.0
STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a link.

    Attributes:
        mbit: rate in 10^6 bits of Ethernet frames a second; None: whatever the machine gives.
        delay_ms: one way, milliseconds.
        jitter_ms: by how much the delay varies at most, either way; order is kept.
    """

    mbit: float | None = None
    delay_ms: float = 0
    jitter_ms: float = 0

    def __post_init__(self) -> None:
        if (self.mbit is not None and self.mbit <= 0) or not 0 <= self.jitter_ms <= self.delay_ms:
            raise ValueError(f"no link can be like this: {self}")


@dataclass(frozen=True, slots=True)
class Access:
    """How a host is connected to a switch: from it (`up`) and to it (`down`)."""

    up: Shape = field(default_factory=Shape)
    down: Shape = field(default_factory=Shape)


@dataclass(frozen=True, slots=True)
class Cable:
    """Two ends, each a namespace and the name of a device in it, and the shapes there and back."""

    a: tuple[str, str]
    b: tuple[str, str]
    there: Shape
    back: Shape

    @property
    def delayed(self) -> bool:
        """Whether it takes a wire."""
        return bool(self.there.delay_ms or self.back.delay_ms)


def lay(cables: Sequence[Cable]) -> subprocess.Popen[str] | None:
    """Make the devices of all cables, and bring them up.

    Returns:
        The process that is the wire of those with delay, if any. Their devices are gone when it ends.
    """
    plain = [cable for cable in cables if not cable.delayed]
    delayed = [cable for cable in cables if cable.delayed]
    for cable in plain:
        _lay_veth(cable)
    process = _lay_wire(delayed) if delayed else None
    for cable in cables:
        for namespace, device in (cable.a, cable.b):
            tools.run("ip", "-n", namespace, "link", "set", device, "up")
    return process


def cut(process: subprocess.Popen[str]) -> None:
    """End a wire."""
    try:
        process.communicate(timeout=STOP_S)  # closes its standard input: it ends by itself
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _lay_veth(cable: Cable) -> None:
    (a, device_a), (b, device_b) = cable.a, cable.b
    peer = ("peer", "name", device_b, "netns", b)
    tools.run("ip", "link", "add", device_a, "netns", a, "type", "veth", *peer)
    for namespace, device, shape in ((a, device_a, cable.there), (b, device_b, cable.back)):
        if shape.mbit is None:
            continue
        burst = max(int(shape.mbit * 125_000 * BURST_S), BURST_MIN_BYTES)
        limit = wire.queue_bytes(shape.mbit, 0) + burst
        bucket = ("rate", f"{int(shape.mbit * 1_000_000)}bit", "burst", f"{burst}b", "limit", f"{limit}b")
        tools.run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", *bucket)
        _limit_super_packets(namespace, device, shape)


def _lay_wire(cables: Sequence[Cable]) -> subprocess.Popen[str]:
    document = {"seed": 1, "cables": [_describe(cable) for cable in cables]}
    process = subprocess.Popen(
        [sys.executable, "-m", wire.__name__, json.dumps(document)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for whoever holds the lab
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], READY_S)[0] or process.stdout.readline() != "ready\n":
        process.kill()
        raise tools.NetlabUnavailable(f"the wire did not start: {process.communicate()[1].strip()[-500:]}")
    for cable in cables:
        for (namespace, device), shape in ((cable.a, cable.there), (cable.b, cable.back)):
            _limit_super_packets(namespace, device, shape)
    return process


def _limit_super_packets(namespace: str, device: str, shape: Shape) -> None:
    size = wire.super_packet_bytes(shape.mbit)
    limit = ("gso_max_size", str(size)) if size else ("gso_max_segs", "1")
    tools.run("ip", "-n", namespace, "link", "set", device, *limit)


def _describe(cable: Cable) -> dict[str, object]:
    return {
        "ends": [(str(leftovers.NAMESPACES / namespace), device) for namespace, device in (cable.a, cable.b)],
        "lines": [(shape.mbit, shape.delay_ms / 1000, shape.jitter_ms / 1000) for shape in (cable.there, cable.back)],
    }
