"""One whole command: that it went well, its seconds, and what crossed the destination's interfaces meanwhile."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.netlab import Counters, Host

LIMIT_S = 300.0
TICKS = os.sysconf("SC_CLK_TCK")


class RunFailed(Exception):
    """A command failed or took too long, or its result is not what it should be; the text says what it said."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run's figures; `parts` are those that the contestant gave."""

    seconds: float
    wire: Counters
    parts: Mapping[str, float]


def measure(host: Host, action: Callable[[], Mapping[str, float]]) -> Measured:
    """Do `action` and tell how long it took and what `host` received and sent in that time.

    The counters are read outside the seconds.
    """
    before = host.counters()
    started = time.perf_counter()
    parts = action()
    seconds = time.perf_counter() - started
    return Measured(seconds, host.counters() - before, parts)


def command(arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, limit_s: float = LIMIT_S) -> str:
    """Run a program to its end and return its standard output.

    Raises:
        RunFailed: it ended with another code than 0, or not within `limit_s` seconds.
    """
    variables = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            arguments,
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            env=variables,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise RunFailed(f"{arguments[0]}: not done within {limit_s:g} s") from None
    if done.returncode:
        raise RunFailed(f"{' '.join(arguments)[:300]}: exit {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def cpu_s(pid: int) -> float:
    """Processor seconds, user and system, that a process has used so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident so far (VmHWM)."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
