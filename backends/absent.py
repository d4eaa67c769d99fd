"""Engines that p2player knows by name and cannot drive in this version.

They have a row in `p2player backends`, with the version of the engine where one is installed, so that an operator reads
why an application cannot be created on them. Every other call is refused.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NoReturn

from backends.base import AppLayout, Capabilities, Probe, Workspace
from backends.errors import BackendUnavailable

_PROBE_TIMEOUT_S = 3.0
_VERSION = re.compile(r"\d+(\.\d+)+\S*")


class AbsentBackend:
    """See `backends.base.Backend`; only `probe` answers.

    Args:
        commands: version commands of the engine, tried in turn.
    """

    def __init__(self, name: str, capabilities: Capabilities, commands: Sequence[tuple[str, ...]]) -> None:
        self.name = name
        self.capabilities = capabilities
        self._commands = commands

    def probe(self) -> Probe:
        """Never available; tells whether the engine is installed."""
        for command in self._commands:
            if shutil.which(command[0]) is not None:
                version = _version(command)
                found = f"{command[0]} {version or 'of unknown version'} is installed"
                return Probe(self.name, False, version, f"not built into this version yet; {found}")
        names = " or ".join(command[0] for command in self._commands)
        return Probe(self.name, False, None, f"not built into this version yet; {names} is not installed")

    def _refuse(self) -> NoReturn:
        raise BackendUnavailable(f"backend {self.name}: not built into this version yet")

    def create(self, layout: AppLayout) -> NoReturn:
        self._refuse()

    def start(self, layout: AppLayout) -> NoReturn:
        self._refuse()

    def stop(self, workspace: Workspace) -> NoReturn:
        self._refuse()

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> NoReturn:
        self._refuse()

    def obstacles(self, layout: AppLayout) -> NoReturn:
        self._refuse()

    def facts(self, layout: AppLayout) -> NoReturn:
        self._refuse()

    def mismatches(self, facts: Mapping[str, str]) -> NoReturn:
        self._refuse()

    def suspend(self, layout: AppLayout, *, memory: bool = True) -> NoReturn:
        self._refuse()

    def resume(self, layout: AppLayout) -> NoReturn:
        self._refuse()

    def restore(self, layout: AppLayout) -> NoReturn:
        self._refuse()

    def destroy(self, workspace: Workspace) -> NoReturn:
        self._refuse()

    def logs(self, workspace: Workspace, max_bytes: int) -> NoReturn:
        self._refuse()

    def status(self, workspace: Workspace) -> NoReturn:
        self._refuse()


def _version(command: tuple[str, ...]) -> str | None:
    """The first thing like a version number that `command` prints; None when it fails or hangs."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(done.stdout.decode(errors="replace"))
    return match.group() if match else None
