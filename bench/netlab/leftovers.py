"""Whose a namespace is, by its name; ending what is in one; sweeping up after a run that was killed.

A name is `p2lab-PID-START-HOST`: the pid of the process that made it, and when that was started, in clock ticks since
the machine was. So a pid that is in use again does not pass for the old one.
"""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

from bench.netlab import tools

NAMESPACES = Path("/run/netns")
GONE_S = 5.0
_NAME = re.compile(r"p2lab-(\d+)-(\d+)-.+")


def prefix() -> str:
    """What the names of this process's namespaces begin with."""
    return f"p2lab-{os.getpid()}-{_started(os.getpid())}-"


def remove(namespace: str) -> None:
    """Kill the processes in a namespace and delete it with its devices; one that is gone already is fine."""
    deadline = time.monotonic() + GONE_S
    while (inside := _processes(namespace)) and time.monotonic() < deadline:
        for pid in inside:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    with suppress(tools.NetlabUnavailable):
        tools.run("ip", "netns", "delete", namespace)


def sweep() -> list[str]:
    """Remove the namespaces of processes that are no more; their names."""
    if not NAMESPACES.exists():
        return []
    swept = []
    for name in sorted(entry.name for entry in NAMESPACES.iterdir()):
        match = _NAME.fullmatch(name)
        if match and _started(int(match[1])) != int(match[2]):
            remove(name)
            swept.append(name)
    return swept


def _processes(namespace: str) -> list[int]:
    try:
        return [int(word) for word in tools.run("ip", "netns", "pids", namespace).split()]
    except tools.NetlabUnavailable:
        return []


def _started(pid: int) -> int | None:
    """When a process was started, in clock ticks; None if there is none, or only what is left of it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
