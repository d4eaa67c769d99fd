"""Small real applications for tests of backends: Python programs that an app layer holds.

Each program prints `ready` once it can take signals. `make_layout` writes one into an app layer of its own and gives
the layout that starts it.
"""

import contextlib
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from backends import config, procfs
from backends.base import AppLayout

HEALTHY_AFTER_S = 0.05
"""Instead of one second, for programs that do not end."""

SURELY_UNHEALTHY_AFTER_S = 10.0
"""For programs that end at once, however busy the machine is: only their end is waited for."""

PYTHON = [sys.executable, "-I", "-S"]

COUNTER = """
import os, signal, sys, time
# Counts in memory; writes the count when told to end or to save.
path = os.path.join(os.environ["P2P_STATE"], "count")
count = int(open(path).read()) if os.path.exists(path) else 0
def save(*_):
    with open(path + ".new", "w") as file: file.write(str(count))
    os.replace(path + ".new", path)
def end(*_):
    save()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, save)
print("ready", count, flush=True)
while True:
    time.sleep(0.005)
    count += 1
"""

IGNORES_SIGTERM = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True: time.sleep(60)
"""

EXITS_3 = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("ready", flush=True)
while True: time.sleep(60)
"""

SLOW_TO_END = """
import os, signal, sys, time
def end(*_):
    while not os.path.exists("end"): time.sleep(0.005)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True: time.sleep(60)
"""

DIES_YOUNG = """
import sys
print("cannot open the database", flush=True)
sys.exit(4)
"""

DIES_LATER = """
import sys, time
print("ready", flush=True)
time.sleep(0.3)
sys.exit(7)
"""

FAMILY = """
import os, signal, sys, time
# Leaves a child in its session, and a grandchild that fled into a session of its own and was orphaned.
def linger(name):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with open(os.path.join(os.environ["P2P_STATE"], name + ".new"), "w") as file: file.write(str(os.getpid()))
    os.rename(os.path.join(os.environ["P2P_STATE"], name + ".new"), os.path.join(os.environ["P2P_STATE"], name))
    while True: time.sleep(60)
if os.fork() == 0: linger("child")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: linger("grandchild")
    os._exit(0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while not all(os.path.exists(os.path.join(os.environ["P2P_STATE"], name)) for name in ("child", "grandchild")):
    time.sleep(0.005)
print("ready", flush=True)
while True: time.sleep(60)
"""

STUBBORN_FAMILY = FAMILY.replace("SIG_DFL", "SIG_IGN")

TALKATIVE = """
import sys, time
line = b"x" * 1023 + b"\\n"
for _ in range(10 * 1024): sys.stdout.buffer.write(line)
sys.stdout.buffer.write(b"the end\\n")
sys.stdout.buffer.flush()
while True: time.sleep(60)
"""

SURROUNDINGS = """
import json, os, signal, sys, time
# Writes down what it finds around itself.
report = {
    "argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(),
    "fds": {fd: os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd")
            if os.path.lexists("/proc/self/fd/" + fd)},
    "sid": os.getsid(0), "pid": os.getpid(), "umask": os.umask(0),
}
with open("report.new", "w") as file: json.dump(report, file)
os.rename("report.new", "report")
print("ready", flush=True)
while True: time.sleep(60)
"""


def toml(*, command: list[str] | None = None, hooks: Mapping[str, object] | None = None, **values: object) -> str:
    """A configuration file; JSON's strings, numbers and lists are TOML's."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    if command is not None:
        lines.insert(0, f"command = {json.dumps(command)}")
    if hooks:
        lines += ["[hooks]", *(f"{name} = {json.dumps(words)}" for name, words in hooks.items())]
    return "\n".join(lines) + "\n"


def make_layout(
    root: Path,
    program: str,
    *,
    stop_timeout_s: float = 5.0,
    hooks: Mapping[str, object] | None = None,
    arguments: list[str] | None = None,
    command: list[str] | None = None,
    name: str = "app",
) -> AppLayout:
    """Write `program` as main.py of an app layer below `root`, and lay out an application that runs it."""
    base, app, folder = root / "base", root / f"layer-{name}", root / name
    for path in (base, app, folder):
        path.mkdir(parents=True, exist_ok=True)
    (app / "main.py").write_text(program)
    words = command or [*PYTHON, "{app}/main.py", *(arguments or [])]
    parsed = config.parse(toml(command=words, stop_timeout_s=stop_timeout_s, hooks=hooks))
    return AppLayout("ab" * 16, name, folder, parsed, base=base, app=app)


def executing(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    found = procfs.stat(pid)
    return found is not None and found.state not in "ZX"


def eventually(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Wait for another process to bring `condition` about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


_PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Be the parent of what a killed node leaves, and reap it: not every pid 1 does."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
