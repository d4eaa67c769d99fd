"""One folder a test process for all that engines make; what of the machine refers to it, and ending that.

The folder is `/var/tmp/p2pe-PID-START-N`: the pid of the test process, when that was started in clock ticks since the
machine was, and a number. Everything that engine tests make lies below it, in folders named by application where it
belongs to one. So what a killed run left can be told from what an operator runs on the same machine:

    processes    the folder is in their command line or environment, they are in it, it is their root file system, or
                 they carry the id of one of its applications
    mounts       below the folder
    loop devices on files of the folder
    namespaces   of the network, and control groups: named after an application of the folder

/tmp will not do: it may lie in memory, and be of a kind that overlayfs does not take.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from backends import procfs

PARENT = Path("/var/tmp")
NETWORK_NAMESPACES = Path("/run/netns")
CONTROL_GROUPS = Path("/sys/fs/cgroup")
GONE_S = 10.0

_NAME = re.compile(r"p2pe-(\d+)-(\d+)-\d+")
_HOMES = itertools.count(1)
_APP_ID = re.compile(r"[0-9a-f]{32}")
_DEPTH = 6


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """A folder of this process while the block runs. It is swept even when this process is killed.

    Raises:
        AssertionError: on leaving, if anything was left; it is gone by then.
    """
    folder = PARENT / f"p2pe-{os.getpid()}-{_started(os.getpid())}-{next(_HOMES)}"
    folder.mkdir(mode=0o711)
    repository = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.support.contract.reaper"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=repository, start_new_session=True) as reaper:
        assert reaper.stdin is not None
        reaper.stdin.write(os.fsencode(folder) + b"\n")  # not as an argument: the reaper does not refer to it
        reaper.stdin.flush()
        try:
            yield folder
        finally:
            left = sweep(folder)
            reaper.stdin.close()
    assert not left, f"engines left: {'; '.join(left)}"


def sweep_dead() -> list[str]:
    """End what belongs to the folders of processes that are no more, and delete those folders."""
    swept = []
    for entry in PARENT.glob("p2pe-*"):
        match = _NAME.fullmatch(entry.name)
        if match and _started(int(match[1])) != int(match[2]):
            swept += sweep(entry)
    return swept


def sweep(folder: Path) -> list[str]:
    """End all that refers to `folder`, delete it, and say what was found."""
    apps = _applications(folder)
    found: dict[str, None] = {}
    deadline = time.monotonic() + GONE_S
    while (left := _find(folder, apps)) and time.monotonic() < deadline:
        found |= dict.fromkeys(left)
        _end(folder, apps)
        time.sleep(0.05)
    if not any(mount.is_relative_to(folder) for mount in _mounts(folder)):
        shutil.rmtree(folder, ignore_errors=True)
    return list(found)


def find(folder: Path) -> list[str]:
    """What refers to `folder`, each in a few words."""
    return _find(folder, _applications(folder))


def of_application(app_id: str) -> list[str]:
    """What there is of one application outside all folders: its processes, network namespace and control groups."""
    processes = [f"process {pid}" for pid in processes_of(app_id)]
    return processes + [str(path) for path in (*_namespaces({app_id}), *_groups({app_id}))]


def processes_of(app_id: str) -> list[int]:
    """Host pids of what executes of one application: it carries its id, or its engine's name for it."""
    mark = f"P2P_APP_ID={app_id}".encode()
    name = engine_name(app_id).encode()
    return [pid for pid in _others() if mark in _read(pid, "environ").split(b"\0") or name in _read(pid, "cmdline")]


def engine_name(app_id: str) -> str:
    """What engines call an application."""
    return f"p2p-{app_id[:12]}"


def _find(folder: Path, apps: set[str]) -> list[str]:
    processes = [f"process {pid}: {_words(pid)}" for pid in _processes(folder, apps)]
    places = (*_mounts(folder), *_namespaces(apps), *_groups(apps), *_loops(folder))
    return processes + [str(place) for place in places]


def _end(folder: Path, apps: set[str]) -> None:
    for pid in _processes(folder, apps):
        _kill(pid)
    for mount in _mounts(folder):
        _run("umount", "--lazy", str(mount))
    for namespace in _namespaces(apps):
        _run("ip", "netns", "delete", namespace.name)
    for group in _groups(apps):
        thaw(group)
        with contextlib.suppress(OSError):
            for word in (group / "cgroup.procs").read_text().split():
                _kill(int(word))
            group.rmdir()
    for loop in _loops(folder):
        _run("losetup", "--detach", str(loop))


def thaw(group: Path) -> None:
    """Let the processes of a control group go on, of either version: frozen ones cannot even be killed."""
    for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):
            if (group / name).exists():
                (group / name).write_text(word)


def _processes(folder: Path, apps: set[str]) -> list[int]:
    path = os.fsencode(folder)
    marks = [f"P2P_APP_ID={app}".encode() for app in apps]
    names = [engine_name(app).encode() for app in apps]
    found = []
    for pid in _others():
        said = _read(pid, "cmdline") + b"\0" + _read(pid, "environ")
        mine = any(mark in said for mark in (path, *marks, *names))
        if mine or any(_inside(pid, link, folder) for link in ("cwd", "root")) or path in _root_mount(pid):
            found.append(pid)
    return found


def _others() -> list[int]:
    """All processes but zombies, this one and those from which it descends."""
    own = set()
    pid = os.getpid()
    while pid and (stat := procfs.stat(pid)) is not None:
        own.add(pid)
        pid = stat.parent
    return [
        found.process.pid for found in procfs.everyone() if found.state not in "ZX" and found.process.pid not in own
    ]


def _inside(pid: int, link: str, folder: Path) -> bool:
    try:
        return Path(os.readlink(f"/proc/{pid}/{link}")).is_relative_to(folder)
    except OSError:
        return False


def _root_mount(pid: int) -> bytes:
    """The line of what a process sees as its root file system; a namespace copies the other lines of its maker's."""
    return b"".join(line for line in _read(pid, "mountinfo").splitlines() if line.split()[4] == b"/")


def _mounts(folder: Path) -> list[Path]:
    """Mounts below the folder, the last one first."""
    points = [line.split()[4] for line in _read(os.getpid(), "mountinfo").splitlines()]
    paths = [Path(os.fsdecode(point.decode("unicode_escape").encode("latin-1"))) for point in points]
    return [path for path in reversed(paths) if path.is_relative_to(folder)]


def _namespaces(apps: set[str]) -> list[Path]:
    return [path for app in apps if (path := NETWORK_NAMESPACES / engine_name(app)).exists()]


def _groups(apps: set[str]) -> list[Path]:
    """Control groups, inner ones first."""
    names = [engine_name(app) for app in apps]
    found = []
    for place, folders, _ in os.walk(CONTROL_GROUPS, topdown=False) if names else ():
        found += [Path(place, inner) for inner in folders if any(name in f"{place}/{inner}" for name in names)]
    return found


def _loops(folder: Path) -> list[Path]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if Path(path.read_text().strip()).is_relative_to(folder):
                found.append(Path("/dev") / path.parts[3])
    return found


def _applications(folder: Path) -> set[str]:
    """Ids of the applications that have folders below."""
    found = set()
    top = len(folder.parts)
    for place, folders, _ in os.walk(folder):
        found |= {name for name in folders if _APP_ID.fullmatch(name)}
        deep = len(Path(place).parts) - top >= _DEPTH
        folders[:] = () if deep else [name for name in folders if not _APP_ID.fullmatch(name)]
    return found


def _words(pid: int) -> str:
    return _read(pid, "cmdline").replace(b"\0", b" ").decode(errors="replace")[:120].strip()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # gone, or another user's
        return b""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _run(*command: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _started(pid: int) -> int | None:
    stat = procfs.stat(pid)
    return None if stat is None or stat.state in "ZX" else stat.process.start
