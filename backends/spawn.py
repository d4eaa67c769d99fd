"""Start a shim and hear its report."""

import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from backends import procfs, shim

REPORT_TIMEOUT_S = 30.0

_ENVIRONMENT = ("LANG", "LC_ALL", "LC_CTYPE")  # decides how the shim spells file names
_PACKAGE_ROOT = str(Path(__file__).resolve().parent.parent)
_MAX_REPORT_BYTES = 64 << 10


class Report(NamedTuple):
    """How a start went: `problem` is None when the application was executed.

    `executed` is False only when it surely was not.
    """

    problem: str | None
    executed: bool


def spawn(spec: shim.Spec, *, timeout_s: float | None = None) -> Report:
    """Run a shim for `spec` until it reports; on success it stays, as a child of this process.

    The spec goes through a memory file and not a pipe, for then nothing here depends on a shim that reads.

    Raises:
        OSError: Python itself cannot be executed.
    """
    document = os.memfd_create("spec")
    output, output_write = os.pipe()
    try:
        with open(os.dup(document), "wb") as file:
            file.write(json.dumps(spec._asdict()).encode())
        os.lseek(document, 0, os.SEEK_SET)
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-S", "-c", shim.BOOT, _PACKAGE_ROOT],
            {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, document, 0),
                (os.POSIX_SPAWN_DUP2, output_write, 1),
                (os.POSIX_SPAWN_DUP2, output_write, 2),
            ],
        )
    except BaseException:
        os.close(output)
        raise
    finally:
        os.close(document)
        os.close(output_write)
    with open(output, "rb", buffering=0) as pipe:
        text = _read_to_end(pipe.fileno(), time.monotonic() + (timeout_s or REPORT_TIMEOUT_S))
    report = _parse(text)
    if report.problem is not None:
        _end(pid)
    return report


def _parse(text: bytes | None) -> Report:
    if text is None:
        return Report("its supervisor does not report", executed=True)
    try:
        document = json.loads(text)
        return Report(document["problem"], document["executed"])
    except (ValueError, KeyError, TypeError):
        lines = text.decode(errors="replace").split("\n")
        return Report(f"its supervisor failed: {' '.join(lines[-2:])}", executed=True)


def _read_to_end(fd: int, deadline: float) -> bytes | None:
    """All that comes until every writer closed; None when that takes too long."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        block = os.read(fd, _MAX_REPORT_BYTES)
        if not block or len(data) > _MAX_REPORT_BYTES:
            return data
        data += block
    return None


def _end(pid: int) -> None:
    """Make sure that a shim whose start failed is gone; the kernel ends its application with it."""
    found = procfs.stat(pid)
    if found is not None:
        if not procfs.wait_end(found.process, shim.LINGER_S):
            procfs.send(found.process, signal.SIGKILL)
            procfs.wait_end(found.process, shim.GIVE_UP_S)
        procfs.reap(found.process)
