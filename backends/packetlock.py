"""CRIU's packet filter around the connections of an application that it saves.

While an application is saved, CRIU has the packets of its open connections dropped, or the kernel would answer them
with resets. It takes the rules back when the application goes on, and in a restore. Nobody does when the application
moved away for good, when a restore closes the connections, and when CRIU was killed in the middle of a dump.

In the node's network, CRIU makes two rules for each connection. Whose rule is whose stands in CRIU's own log of the
dump, which names each command before it is executed: so it is certain also for a dump that was killed anywhere, and
while others dump at the same time. In a network of the application's own it makes one chain for everything.
"""

import ipaddress
import itertools
import re
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

_MARK = 0xC114  # SOCCR_MARK of CRIU
_TOOLS = {"iptables": "iptables-save", "ip6tables": "ip6tables-save"}
_CHAIN = "CRIU"
_RUNNING = re.compile(r"Running iptables \[(\w+) (.*)\]", re.ASCII)
_WORDS = {
    "-A": "chain",
    "-I": "chain",
    "-s": "source",
    "--source": "source",
    "-d": "target",
    "--destination": "target",
    "--sport": "source_port",
    "--dport": "target_port",
    "--mark": "mark",
}
_TIMEOUT_S = 10.0


class Rule(NamedTuple):
    """One that drops the packets of a connection in one direction, at this end of it."""

    tool: str
    chain: str
    source: str
    source_port: int
    target: str
    target_port: int


def rules_of_dump(log: Path) -> set[Rule]:
    """All that CRIU asked for in the dump of this log, or was about to; it may have taken them back since."""
    found = set[Rule]()
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            for line in file:
                if (match := _RUNNING.search(line)) and (rule := _rule(match[1], match[2])):
                    found.add(rule)
    except OSError:
        pass
    return found


def _rule(tool: str, text: str) -> Rule | None:
    """Read a command of CRIU, or a line of `iptables-save`; None when it is none of CRIU's rules for connections."""
    try:
        words = shlex.split(text)
        said = {_WORDS[word]: value for word, value in itertools.pairwise(words) if word in _WORDS}
        source, target = (ipaddress.ip_interface(said[end]).ip for end in ("source", "target"))
        ports = int(said["source_port"]), int(said["target_port"])
        if tool not in _TOOLS or int(said["mark"].partition("/")[0], 0) != _MARK or words[-2:] != ["-j", "DROP"]:
            return None
        return Rule(tool, said["chain"], str(source), ports[0], str(target), ports[1])
    except (KeyError, ValueError):
        return None


class PacketLock:
    """The rules that keep the connections of one application silent.

    Args:
        log: where CRIU's log of the last dump is.
        node: the node's network namespace, when not that of this process.
        own: the file that keeps the application's own network namespace, where it has one.
    """

    def __init__(self, log: Path, node: Path | None, own: Path) -> None:
        self._log = log
        self._node = node
        self._own = own

    def release(self) -> None:
        """Take back what is left of them in the node's network: they are of no use any more. Idempotent."""
        asked = rules_of_dump(self._log)
        for tool in sorted({rule.tool for rule in asked}):
            for line in _run(self._node, _TOOLS[tool], "-t", "filter").splitlines():
                if _rule(tool, line) in asked:
                    _run(self._node, tool, "--wait", "-D", *shlex.split(line)[1:])

    def open(self) -> None:
        """Let packets through in the network of its own, where the application goes on. Idempotent."""
        for tool, save in _TOOLS.items() if self._own.exists() else ():
            if f":{_CHAIN} " in _run(self._own, save, "-t", "filter"):
                for words in (("-D", "INPUT", "-j"), ("-D", "OUTPUT", "-j"), ("-F",), ("-X",)):
                    _run(self._own, tool, "--wait", *words, _CHAIN)


def _run(namespace: Path | None, *command: str) -> str:
    """What it prints; nothing when it fails, for there may be no rules, no filter and no such tool."""
    enter = [] if namespace is None else ["nsenter", f"--net={namespace}"]
    try:
        done = subprocess.run(
            [*enter, *command],
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
