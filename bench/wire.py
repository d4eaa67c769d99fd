"""A wire between network namespaces in user space: rate, delay and jitter, for kernels without netem.

    python -m bench.wire JSON      started by `bench.netlab`; see `main`

How it works
------------
A cable is two TAP devices, each made inside the namespace of its end, and this process between them. What the kernel
sends into one comes out of the other, later. Each direction is a `Line`:

 - *rate*: a packet departs when those before it have, and takes wire bytes / rate. A line that was idle may be up to
   `BURST_S` behind, as a token bucket of that depth would: it makes up for this process waking up late.
 - *queue*: what has not departed is bounded by `queue_bytes`; a packet that does not fit is dropped (tail drop).
 - *delay*: a departed packet arrives `delay_s` later, plus or minus at most `jitter_s`, and never before the one in
   front of it. So each line is a plain FIFO, and no heap is needed.

The devices speak virtio-net headers, which are carried over as they are: checksums stay unfinished, and on lines of
50 Mbit/s and more TCP passes in super-packets of up to 1 ms of the line (64 KB at most). That is what makes 1000 Mbit/s
possible here. The rate counts the bytes that the packets would have on Ethernet, the headers of every segment included.
Interface counters count a super-packet as it is, so they miss the headers of all its segments but the first (66 bytes
a segment of 1,514, at most 4.4 %); below 50 Mbit/s there are none, and counters are exact.

Devices and wire end together: when standard input ends, because whoever started this closed it or died.
"""

import ctypes
import fcntl
import gc
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

BURST_S: Final = 0.002
SUPER_PACKET_S: Final = 0.001
SUPER_PACKET_MIN_BYTES: Final = 6_000
SUPER_PACKET_MAX_BYTES: Final = 65_536
QUEUE_MIN_BYTES: Final = 256_000
QUEUE_S: Final = 0.02
NO_RATE_MBIT: Final = 10_000.0
READS_A_TURN: Final = 64

_VNET: Final = struct.Struct("=BBHHHH")  # flags, gso type, header length (a hint), gso size, checksum start and offset
_MAX_PACKET_BYTES: Final = _VNET.size + 18 + 65_536
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_TIMERSLACK: Final = 29
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_IFF_TAP_NO_PI_VNET_HDR: Final = 0x0002 | 0x1000 | 0x4000
_TUN_F_CSUM: Final = 0x01
_TUN_F_TSO4: Final = 0x02
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class LineShape:
    """One direction of a cable: `mbit` per second (None: as fast as it goes), and times in seconds."""

    mbit: float | None
    delay_s: float
    jitter_s: float


def queue_bytes(mbit: float, delay_s: float) -> int:
    """How much may wait for its departure: one round trip of the line, or 20 ms of it, or 256 KB."""
    return max(int(mbit * 125_000 * max(2 * delay_s, QUEUE_S)), QUEUE_MIN_BYTES)


def super_packet_bytes(mbit: float | None) -> int:
    """How large a TCP packet may enter a line uncut; 0: none larger than the MTU."""
    size = min(int((mbit or NO_RATE_MBIT) * 125_000 * SUPER_PACKET_S), SUPER_PACKET_MAX_BYTES)
    return size if size >= SUPER_PACKET_MIN_BYTES else 0


def wire_bytes(packet: bytes) -> int:
    """Bytes of a packet with its virtio header on Ethernet, cut into segments."""
    size = len(packet) - _VNET.size
    gso_type: int
    gso_size: int
    transport: int
    _, gso_type, _, gso_size, transport, _ = _VNET.unpack_from(packet)
    if not gso_type or not gso_size:
        return size
    header = transport + (packet[_VNET.size + transport + 12] >> 4) * 4
    segments = -(-(size - header) // gso_size)
    return size + (segments - 1) * header


class Line:
    """What is on its way in one direction. Times are seconds on any one monotonic clock."""

    def __init__(self, shape: LineShape, rng: random.Random) -> None:
        mbit = shape.mbit or NO_RATE_MBIT
        self._rate = mbit * 125_000
        self._longest_s = queue_bytes(mbit, shape.delay_s) / self._rate
        self._delay_s = shape.delay_s
        self._jitter_s = shape.jitter_s
        self._rng = rng
        self._free_at = 0.0
        self._last_at = 0.0
        self.packets: deque[tuple[float, bytes]] = deque()
        self.dropped = 0

    def accept(self, packet: bytes, size: int, now: float) -> None:
        """Take one packet of `size` wire bytes, or drop it."""
        free_at = max(self._free_at, now - BURST_S)
        if free_at - now + size / self._rate > self._longest_s:
            self.dropped += 1
            return
        self._free_at = free_at + size / self._rate
        at = max(self._free_at, now) + self._delay_s
        if self._jitter_s:
            at += self._rng.uniform(-self._jitter_s, self._jitter_s)
        self._last_at = max(at, self._last_at)
        self.packets.append((self._last_at, packet))

    def arrived(self, now: float) -> list[bytes]:
        """Take out what has arrived by now, in order."""
        packets, out = self.packets, []
        while packets and packets[0][0] <= now:
            out.append(packets.popleft()[1])
        return out


def open_tap(namespace: str, device: str, offload: bool) -> int:
    """Make a TAP device in a namespace, which this thread is in from now on; a descriptor that does not block.

    Raises:
        OSError: no such namespace, no rights, or no TAP in this kernel.
    """
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _LIBC.setns(fd, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    finally:
        os.close(fd)
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP_NO_PI_VNET_HDR))
    fcntl.ioctl(tap, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 if offload else _TUN_F_CSUM)
    return tap


def relay(ways: dict[int, tuple[int, Line]], until: int) -> None:
    """Carry packets until the descriptor `until` can be read.

    Args:
        ways: descriptor of a TAP device -> that of the other end, and the line to it.
    """
    sources = [until, *ways]
    lines = [(line, target) for target, line in ways.values()]
    while True:
        next_at = min((line.packets[0][0] for line, _ in lines if line.packets), default=None)
        wait_s = None if next_at is None else max(next_at - time.monotonic(), 0)
        readable = select.select(sources, (), (), wait_s)[0]
        now = time.monotonic()
        for source in readable:
            if source == until:
                return
            line = ways[source][1]
            with suppress(BlockingIOError):
                for _ in range(READS_A_TURN):
                    packet = os.read(source, _MAX_PACKET_BYTES)
                    line.accept(packet, wire_bytes(packet), now)
        for line, target in lines:
            if line.packets and line.packets[0][0] <= now:
                for packet in line.arrived(now):
                    with suppress(OSError):  # the device is down, or its socket full: a wire loses packets
                        os.write(target, packet)


def main() -> None:
    """Run the cables described by the JSON in the one argument, and say `ready` once their devices exist.

    The document: {"seed": number, "cables": [{"ends": [[namespace path, device], ...], "lines": [[mbit, delay_s,
    jitter_s], ...]}, ...]}; the first line leads from the first end to the second.
    """
    document = json.loads(sys.argv[1])
    rng = random.Random(document["seed"])
    ways: dict[int, tuple[int, Line]] = {}
    for cable in document["cables"]:
        shapes = [LineShape(*line) for line in cable["lines"]]
        taps = [
            open_tap(namespace, device, bool(super_packet_bytes(shape.mbit)))
            for (namespace, device), shape in zip(cable["ends"], shapes, strict=True)
        ]
        for source, target, shape in zip(taps, reversed(taps), shapes, strict=True):
            ways[source] = (target, Line(shape, rng))
    _LIBC.prctl(_PR_SET_TIMERSLACK, 1_000, 0, 0, 0)
    with suppress(OSError):
        os.nice(-10)
    gc.disable()
    print("ready", flush=True)
    relay(ways, sys.stdin.fileno())


if __name__ == "__main__":
    main()
