"""CRIU's packet filter around the connections of an application that was saved.

While an application is saved, CRIU has the packets of its open connections dropped, or the kernel would answer them
with resets; a restore takes the rules back. When the application moved away for good nobody does. In a network of the
application's own they go with that (`appnet`); in the node's, they must be found again: the rules that bear CRIU's mark
and were not there before the dump.
"""

import contextlib
import json
import shlex
import subprocess
from pathlib import Path

_MARK = "0xc114"  # SOCCR_MARK of CRIU
_TOOLS = ("iptables", "ip6tables")
_TIMEOUT_S = 10.0
_MAX_BYTES = 16 << 20


class PacketLock:
    """The rules of one application.

    Args:
        notes: a file that remembers them.
        netns: the node's network namespace, when not that of this process.
    """

    def __init__(self, notes: Path, netns: Path | None = None) -> None:
        self._notes = notes
        self._enter = [] if netns is None else ["nsenter", f"--net={netns}"]

    def rules(self) -> set[str]:
        """All rules of CRIU's that there are now, each as a command without its verb."""
        found: set[str] = set()
        for tool in _TOOLS:
            lines = self._run(f"{tool}-save", "-t", "filter").splitlines()
            found.update(
                f"{tool} {line.removeprefix('-A ')}" for line in lines if line.startswith("-A ") and _MARK in line
            )
        return found

    def remember(self, before: set[str]) -> None:
        """Note what came since `rules` gave `before`."""
        self._notes.write_text(json.dumps(sorted(self.rules() - before)))

    def forget(self) -> None:
        """A restore has taken the rules back."""
        self._notes.unlink(missing_ok=True)

    def release(self) -> None:
        """Take them back: the connections will not be restored here. Idempotent."""
        rules: list[str] = []
        with contextlib.suppress(OSError, ValueError):
            rules = list(map(str, json.loads(self._notes.read_bytes()[:_MAX_BYTES])))
        for rule in rules:
            tool, *words = shlex.split(rule)
            if tool in _TOOLS:
                self._run(tool, "--wait", "-D", *words)
        self.forget()

    def _run(self, *command: str) -> str:
        """What it prints; nothing when it fails, for there may be no rules, no filter and no such tool."""
        try:
            done = subprocess.run(
                [*self._enter, *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
                text=True,
                errors="replace",
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout
