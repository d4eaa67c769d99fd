"""The programs that a lab is built with, and what is said where they, or the rights for them, are not there."""

import os
import shutil
import subprocess
from pathlib import Path

PROGRAMS = ("ip", "tc", "nsenter")
TUN = Path("/dev/net/tun")


class NetlabUnavailable(Exception):
    """This machine, or this user, cannot have network namespaces; the text says why."""


def check() -> None:
    """See that a lab can be built here.

    Raises:
        NetlabUnavailable: it cannot.
    """
    if os.geteuid() != 0:
        raise NetlabUnavailable("a netlab needs root: it makes network namespaces and devices")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise NetlabUnavailable(f"a netlab needs {', '.join(missing)} (packages iproute2 and util-linux)")
    if not TUN.exists():
        raise NetlabUnavailable(f"a netlab needs {TUN}: links with delay are made of TAP devices")


def run(*command: str) -> str:
    """Run one of the programs and return what it says.

    Raises:
        NetlabUnavailable: it failed, for instance because root has no rights over the network in this container.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetlabUnavailable(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout
