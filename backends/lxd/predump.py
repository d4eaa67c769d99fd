"""Memory images of a container that runs on, taken for pre-copy.

LXD's own way, a stateful snapshot, copies the whole volume and stops the application for seconds. So CRIU is run here,
as LXC runs it for a stateful stop (liblxc's criu.c) but with `--leave-running`, in the namespaces of the daemon. The
images only serve as the basis of a delta: the last ones are always LXD's own, and these are marked (`MARK`) so that
nobody restores them.
"""

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from backends import criu
from backends.base import Workspace
from backends.errors import BackendError
from backends.folders import remove_tree
from backends.lxd.daemon import Process
from backends.lxd.volume import STATE, Volume

MARK = "precopy"

_PAYLOAD = re.compile(r"^(.*?/lxc\.payload\.[^/]+)(?:/.*)?$")
_ENTRY = re.compile(r"^lxc\.mount\.entry\s*=\s*(\S+)\s+(\S+)\s+(\S+)\s+(\S+)", re.MULTILINE)
_OPTIONS = (
    *("--tcp-established", "--file-locks", "--link-remap", "--manage-cgroups=full", "--ext-mount-map", "auto"),
    *("--enable-external-sharing", "--enable-external-masters", "--enable-fs", "hugetlbfs", "--enable-fs", "tracefs"),
    *("--skip-in-flight", "--force-irmap", "--ghost-limit", "268435456", "--leave-running", "-v2"),
)


class DumpFailed(BackendError):
    """CRIU could not save the memory; the application runs on."""


def dump(process: Process, volume: Volume, workspace: Workspace, name: str, init: int, timeout_s: float) -> float:
    """Replace the images in the volume by new ones.

    Args:
        name: of the container.
        init: its first process.
        timeout_s: CRIU is killed when it takes longer.

    Returns:
        For how many seconds the application was stopped; rather too many where CRIU does not tell.

    Raises:
        DumpFailed: it could not be done; earlier images are untouched.
    """
    if process.criu is None:
        raise DumpFailed("LXD finds no criu")
    beside = f"{STATE}.new"
    volume.forget_memory(workspace, beside)
    (volume.seen / beside).mkdir(mode=0o700)
    log = workspace.run_dir / "predump.log"
    groups = cgroup_options(Path(f"/proc/{init}/cgroup").read_text())
    command = [
        *("nsenter", "--target", str(process.pid), "--mount", "--net", "--wd=/"),
        *(str(process.criu), "dump", "-D", str(volume.path / beside), "-o", str(log), "-t", str(init)),
        *_OPTIONS,
        *groups,
        *_mounts(process, name),
    ]
    problem, began = "", time.monotonic()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False, cwd="/"
        )
        problem = criu.why(log) if done.returncode != 0 else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        thaw(process, groups)
        volume.forget_memory(workspace, beside)
        raise DumpFailed(f"CRIU cannot save the memory: {problem}")
    took_s = time.monotonic() - began
    paused_s = criu.paused_s(volume.seen / beside / "stats-dump")
    (volume.seen / beside / MARK).touch()
    _swap(volume.seen)
    return took_s if paused_s is None else paused_s


def _swap(top: Path) -> None:
    old = top / f"{STATE}.old"
    remove_tree(old)
    with contextlib.suppress(FileNotFoundError):
        os.rename(top / STATE, old)
    os.rename(top / f"{STATE}.new", top / STATE)
    remove_tree(old)


def cgroup_options(text: str) -> list[str]:
    """CRIU's options for the control groups that LXC made for a container, from its /proc/PID/cgroup."""
    words: list[str] = []
    freezer = None
    rows = [line.split(":", 2) for line in text.splitlines()]
    unified = all(not controllers for _, controllers, _ in rows)
    for _, controllers, path in rows:
        match = _PAYLOAD.match(path)
        if match is None or (not controllers and not unified):
            continue
        words += ["--cgroup-root", f"{controllers}:{match[1]}" if controllers else match[1]]
        if unified or "freezer" in controllers.split(","):
            freezer = f"/sys/fs/cgroup{'' if unified else '/freezer'}{match[1]}"
    return words if freezer is None else [*words, "--freeze-cgroup", freezer]


def thaw(process: Process, options: Sequence[str]) -> None:
    """Let a container go on that was frozen by a CRIU which was killed.

    Args:
        options: see `cgroup_options`.
    """
    if "--freeze-cgroup" not in options:
        return
    group = process.outside(Path(options[options.index("--freeze-cgroup") + 1]))
    for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError), open(group / name, "r+") as file:
            file.write(word)


def _mounts(process: Process, name: str) -> list[str]:
    """Options for what LXC binds into every container, read from the configuration that LXD wrote for it."""
    path = process.outside(process.folder / "logs" / name / "lxc.conf")
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise DumpFailed(f"LXD left no configuration of the container: {error}") from error
    words: list[str] = []
    for match in _ENTRY.finditer(text):
        target, options = match[2], match[4].split(",")
        if "bind" in options or "rbind" in options:
            words += ["--ext-mount-map", f"/{target}:{target}"]
    return words
