"""Keep one LXD daemon in namespaces of its own, and end all that it started when the maker of the node goes away.

    python -I lxd_keeper.py     with a line of JSON on standard input, a pipe that the maker then holds open

Containers outlive their daemon, as they should; here that would leave them behind. The keeper is their *subreaper*:
whatever the daemon starts descends from the keeper, however it detaches. When standard input ends, because the maker
closed it or died, the keeper kills its descendants, deletes their control groups, and ends itself: with the last
process the mount and network namespaces go, and with these the overlays, bridges and the daemon's own mounts.

It runs in its mount and network namespace already (`unshare`, `nsenter`), and first makes the mounts of a node:

    /sys             of this network namespace, for LXD looks for bridges there; the control groups stay the machine's
    SPEC.mount_point the daemon's folder, at a path that is the same on every node: CRIU images name files below it
    /run/lxc         locks of this node's own
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_END_TIMEOUT_S = 10.0
_CGROUPS = Path("/sys/fs/cgroup")


def main() -> None:
    """Entry point."""
    spec = json.loads(_line())
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # and not ignored: the daemon would inherit that
    folder = Path(spec["folder"])
    _mount(folder, spec["mount_point"])
    subprocess.Popen(
        ["lxd", "--group", "root", f"--logfile={folder.parent / 'lxd.log'}"],
        stdin=subprocess.DEVNULL,
        env=spec["environment"],
    )
    try:
        _wait_for_the_end()
    finally:
        names = os.listdir(folder / "containers") if (folder / "containers").is_dir() else []
        _end_descendants(names)
        for top in _cgroups(names):
            _remove(top)


def _line() -> bytes:
    """A line of standard input, and not a byte more."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            raise SystemExit("no specification")
        line += byte
    return line


def _mount(folder: Path, mount_point: str) -> None:
    keep = folder.parent / "cgroups"
    for path in (keep, folder, Path("/run/lxc")):
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
    _run("ip", "link", "set", "lo", "up")  # without it CRIU cannot try out TCP
    _run("mount", "--rbind", str(_CGROUPS), str(keep))
    _run("mount", "-t", "sysfs", "sysfs", "/sys")
    _run("mount", "--rbind", str(keep), str(_CGROUPS))
    _run("umount", "-l", str(keep))
    _run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/run/lxc")
    _run("mount", "--bind", str(folder), mount_point)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def _wait_for_the_end() -> None:
    """Reap what was orphaned until standard input ends."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while not poll.poll(1000):
        _reap()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _end_descendants(names: list[str]) -> None:
    """SIGKILL until there are none: killing one may orphan others, which then become children of this process.

    A container that was being saved is frozen, and does not even hear of a SIGKILL before it is thawed.
    """
    deadline = time.monotonic() + _END_TIMEOUT_S
    while (left := _descendants()) and time.monotonic() < deadline:
        for top in _cgroups(names):
            _thaw(top)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        _reap()


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{name}/stat").read_bytes()
                fields = text[text.rindex(b")") + 2 :].split()
                children.setdefault(int(fields[1]), []).append(int(name))
    result, heads = [], [os.getpid()]
    while heads:
        found = children.get(heads.pop(), [])
        result += found
        heads += found
    return result


def _cgroups(names: list[str]) -> list[Path]:
    """The control groups of these containers, which LXC leaves when it is killed."""
    return [
        top
        for hierarchy in [_CGROUPS, *_CGROUPS.iterdir()]
        for name in names
        for top in [*hierarchy.glob(f"lxc.*.{name}"), *hierarchy.glob(f"lxc.*.{name}-*")]
    ]


def _thaw(top: Path) -> None:
    for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):
            if (top / name).exists():
                (top / name).write_text(word)


def _remove(top: Path) -> None:
    for place, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(place)


if __name__ == "__main__":
    main()
