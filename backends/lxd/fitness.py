"""Whether LXD here can run containers, and restore those of another machine."""

import contextlib
import os
from collections.abc import Mapping

from backends import criu
from backends.errors import BackendUnavailable
from backends.lxd.daemon import HOW_TO_GET, Daemon, Process

_MAX_FACT = 100


def check(daemon: Daemon) -> None:
    """Make sure that containers can be started, saved and restored.

    Raises:
        BackendUnavailable: they cannot; the text tells what to do.
    """
    if os.geteuid() != 0:
        raise BackendUnavailable("needs root: file systems are mounted for the containers")
    daemon.pool()
    process = daemon.process()
    if process.criu is None:
        raise BackendUnavailable(f"LXD finds no criu in its PATH; {HOW_TO_GET}")
    problem = criu.check(process.criu).problem
    if problem is not None:
        raise BackendUnavailable(f"{problem}; LXD must find a criu that works first in its PATH")
    if not _without_console(process):
        raise BackendUnavailable(
            "containers have a console, with which LXC restores none: start LXD with LXD_LXC_TEMPLATE_CONFIG "
            "naming a folder whose common.conf.d/ has a file that says lxc.console.path = none"
        )


def facts(daemon: Daemon) -> dict[str, str]:
    """What a machine that restores our containers must match. Images name files below the daemon's folder."""
    process = daemon.process()
    return {**criu.facts(process.criu), "lxd": daemon.version(), "lxd_dir": str(process.folder)}


def mismatches(daemon: Daemon, facts: Mapping[str, str]) -> list[str]:
    """Why containers of a machine of those facts cannot be restored here, one sentence each."""
    process, version = daemon.process(), daemon.version()
    reasons = criu.mismatches(process.criu, facts)
    theirs, folder = (_fact(facts, name) for name in ("lxd", "lxd_dir"))
    if theirs and _series(theirs) != _series(version):
        reasons.append(f"LXD {version} does not restore what LXD {theirs} saved: both must be of one series")
    if folder and folder != str(process.folder):
        reasons.append(f"LXD's folder is {process.folder} here and {folder} at the source; memory images name it")
    return reasons


def _without_console(process: Process) -> bool:
    """Whether LXC's own configuration takes the console away from every container."""
    folder = process.outside(process.templates / "common.conf.d")
    for path in sorted(folder.glob("*.conf")):
        with contextlib.suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            if any(line.replace(" ", "") == "lxc.console.path=none" for line in lines):
                return True
    return False


def _fact(facts: Mapping[str, str], name: str) -> str:
    value: object = facts.get(name)
    return value[:_MAX_FACT] if isinstance(value, str) and value.isprintable() else ""


def _series(version: str) -> tuple[str, ...]:
    """Major and minor: the same in all of LXD that restores each other's containers."""
    return tuple(version.split(".")[:2])
