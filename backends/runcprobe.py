"""Whether runc can be used on this machine."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from backends import criu
from backends.base import EngineSettings, Probe

_VERSION = re.compile(r"runc version (\S+)")
_PROBE_TIMEOUT_S = 3.0
_TOOLS = ("runc", "ip", "nsenter", "unshare")


def probe(name: str, settings: EngineSettings) -> Probe:
    """Needs root, runc, overlayfs and a CRIU that fits the kernel."""
    version = _runc_version()
    problem = None
    for tool in _TOOLS:
        if shutil.which(tool) is None:
            problem = problem or f"{tool} is not installed; {criu.HOW_TO_GET}"
    if problem is None and version is None:
        problem = "runc --version does not answer"
    if problem is None and os.geteuid() != 0:
        problem = "needs root: run the node as root"
    if problem is None and not _has_overlay():
        problem = "the kernel has no overlayfs: modprobe overlay"
    if problem is None:
        found = criu.find(settings)
        checked = criu.check(found) if found else criu.Checked(None, f"criu is not installed; {criu.HOW_TO_GET}")
        version, problem = f"{version}, CRIU {checked.version}", checked.problem
    return Probe(name, problem is None, version, problem)


def _runc_version() -> str | None:
    try:
        done = subprocess.run(
            ["runc", "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(done.stdout.decode(errors="replace"))
    return match[1] if match else None


def _has_overlay() -> bool:
    """Whether the kernel knows overlayfs, or has it as a module that a mount would load."""
    try:
        if "\toverlay\n" in Path("/proc/filesystems").read_text():
            return True
        names = Path(f"/lib/modules/{os.uname().release}/modules.dep").read_text()
    except OSError:
        return False
    return "/overlay.ko" in names
