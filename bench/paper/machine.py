"""What the figures were taken on: machine, kernel, and the versions of all that takes part."""

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bench.data.contained import find

CRIU: Final = "/usr/local/lib/p2player/criu/sbin/criu"
PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "rsync": ("rsync", "--version"),
    "ssh": ("ssh", "-V"),
    "criu": (CRIU if Path(CRIU).exists() else "criu", "--version"),
    "runc": ("runc", "--version"),
    "lxd": ("lxd", "--version"),
    "libvirt": ("libvirtd", "--version"),
    "qemu": ("qemu-system-x86_64", "--version"),
}


def notes() -> dict[str, str]:
    """Texts by name; a program that is not here is left out."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = {
        "machine": f"{os.cpu_count()} cores ({_processor()}), {memory / 2**30:.0f} GiB",
        "kernel": f"Linux {platform.release()}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "python": platform.python_version(),
    }
    for name, command in PROGRAMS.items():
        said = _said(command)
        if said:
            told[name] = said
    return told


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _said(command: tuple[str, ...]) -> str:
    """The first line of what a program tells of its version."""
    program = find(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *command[1:]], check=False, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0].strip() if lines and done.returncode == 0 else ""
