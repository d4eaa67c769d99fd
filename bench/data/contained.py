"""Commands whose processes, mounts and daemons end with them, however they end.

A command runs as the first process of a pid namespace, with mounts of its own: killing it makes the kernel kill
everything it started, daemons too, and drop its mounts and the loop devices under them. It also dies when this process
does.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.data.pair import Unavailable

_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
_NAMESPACES = ("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")


def need(*programs: str) -> None:
    """Make sure that programs are there.

    Raises:
        Unavailable: they are not.
    """
    absent = [name for name in programs if find(name) is None]
    if absent:
        raise Unavailable(f"needs {', '.join(absent)}: run scripts/bench-packages.sh as root")


def need_root(why: str) -> None:
    """Raise `Unavailable` unless this is root."""
    if os.geteuid() != 0:
        raise Unavailable(f"needs root: {why}")


def find(name: str) -> str | None:
    """Path of a program, also of those that only root's PATH names."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


@contextmanager
def running(command: Sequence[str], log: Path, *, network: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in namespaces of its own while the block runs; needs root.

    Args:
        log: receives what it prints.
        network: share the machine's network; else it has only a loopback device of its own, which is down.
    """
    need("setpriv", "unshare")
    namespaces = [*_NAMESPACES, *(() if network else ("--net",))]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*_DIE_WITH_PARENT, *namespaces, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process)


def run(command: Sequence[str], log: Path) -> int:
    """Run a command to its end in namespaces of its own; an interrupt ends all that it started.

    Returns:
        Its exit code.
    """
    with running(command, log) as process:
        return process.wait()


@contextmanager
def child(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process without any terminal or pipe while the block runs; it dies with this process."""
    need("setpriv")
    process = subprocess.Popen(
        [*_DIE_WITH_PARENT, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the namespaces' first process: `unshare` returns when the kernel has ended all the others."""
    if process.poll() is None:
        first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in first:
            os.kill(int(pid), signal.SIGKILL)
        if not first:
            process.kill()
    process.wait()


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a log, on one line, for an error's text."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return "no log"
    return " | ".join(text.strip().splitlines()[-lines:])
