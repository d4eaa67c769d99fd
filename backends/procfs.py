"""Processes, named safely: a pid together with its start time, for a pid alone is soon somebody else's.

Reads /proc and signals through pidfds. Standard library only, as the shim needs it.
"""

import contextlib
import os
import select
import signal
from collections.abc import Iterator
from typing import NamedTuple


class ProcessId(NamedTuple):
    """A process for as long as the machine runs: `start` is its start time in clock ticks since boot."""

    pid: int
    start: int


class Stat(NamedTuple):
    """What /proc/PID/stat says; `state` is one letter, Z for a zombie."""

    process: ProcessId
    parent: int
    session: int
    state: str


def boot_id() -> str:
    """A name of the present boot of this machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def stat(pid: int) -> Stat | None:
    """What the kernel knows of `pid`; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            raw = file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The second field is the command in parentheses, and may hold anything.
    fields = raw[raw.rindex(b")") + 2 :].split()
    return Stat(ProcessId(pid, int(fields[19])), int(fields[1]), int(fields[3]), fields[0].decode("ascii"))


def everyone() -> Iterator[Stat]:
    """All processes that are visible here."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (found := stat(int(name))) is not None:
            yield found


def alive(process: ProcessId) -> bool:
    """Whether that very process still executes; a zombie does not."""
    found = stat(process.pid)
    return found is not None and found.process == process and found.state not in "ZX"


def descendants(pid: int) -> list[ProcessId]:
    """Children of `pid`, their children and so on; zombies are left out."""
    children: dict[int, list[Stat]] = {}
    for found in everyone():
        children.setdefault(found.parent, []).append(found)
    result: list[ProcessId] = []
    heads = [pid]
    while heads:
        for child in children.get(heads.pop(), ()):
            heads.append(child.process.pid)
            if child.state not in "ZX":
                result.append(child.process)
    return result


def marked(variable: str, value: str) -> list[ProcessId]:
    """Processes that were started with `variable=value` in their environment, wherever they moved since."""
    mark = f"{variable}={value}".encode()
    result = []
    for found in everyone():
        try:
            with open(f"/proc/{found.process.pid}/environ", "rb") as file:
                environ = file.read()
        except OSError:  # gone, or another user's
            continue
        if mark in environ.split(b"\0") and found.state not in "ZX":
            result.append(found.process)
    return result


@contextlib.contextmanager
def _pidfd(process: ProcessId) -> Iterator[int | None]:
    """A handle on that very process; None when it is gone."""
    try:
        fd = os.pidfd_open(process.pid)
    except (ProcessLookupError, OSError):
        yield None
        return
    try:
        # The start time is read after the handle was taken: from here on the pid cannot be reused unnoticed.
        found = stat(process.pid)
        yield fd if found is not None and found.process == process else None
    finally:
        os.close(fd)


def send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal that very process. False when it is gone or not ours to signal."""
    with _pidfd(process) as fd:
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def wait_end(process: ProcessId, timeout_s: float) -> bool:
    """Block until that process ended (a zombie has) or `timeout_s` passed. True when it ended. Needs not be a child."""
    with _pidfd(process) as fd:
        if fd is None:
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))


def reap(process: ProcessId) -> None:
    """Take away the zombie of `process`, if it is a child of this one; for nodes that run as pid 1 or subreaper."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
