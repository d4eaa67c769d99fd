"""A service that counts and answers on the network, as layers and a configuration for each engine.

It answers lines of TCP on `PORT` with `N COUNT LINE`: the number of that line in its connection, which is in the memory
of the process that serves it, and what the service has counted. `tick TOKEN COUNT` goes to its log; see `programs`.
"""

import os
import re
from pathlib import Path

from tests.support import guest
from tests.support.contract.programs import COUNTER
from tests.support.rootfs import busybox_rootfs

PORT = guest.PORT
ADDRESS = "10.88.0.5"
CLIENT = "10.88.0.1"
NETWORK = "bridge:br0"
MAC = "02:88:00:00:00:05"
BASE_BYTES, APP_BYTES = 12 << 20, 3 << 20

_ANSWER = """#!/bin/sh
n=0
while read -r line; do
    n=$((n + 1))
    read -r count </count
    echo "$n $count $line"
done
"""
_SERVE = f"nc -ll -p {PORT} -e /answer.sh &\n"
_MAIN = COUNTER.replace("\nread -r token", f"\n{_SERVE}read -r token").replace(
    '    echo "tick', '    echo $count >/count\n    echo "tick'
)
assert _MAIN.count("/answer.sh") == _MAIN.count(">/count") == 1

_TICK = re.compile(r"tick (\S+) (\d+)$|tick (\d+) boot=(\S+)\r?$")


def make_layers(engine: str, folder: Path) -> tuple[Path, Path]:
    """Base and app layer, in `folder`.

    Raises:
        GuestUnavailable: for libvirt, if the guest cannot be made here.
    """
    if engine == "libvirt":
        made = guest.layers(guest_cache())
        return made.base, made.app
    base, app = folder / "base", folder / "app"
    busybox_rootfs(base / "rootfs")
    (base / "rootfs" / "release").write_bytes(os.urandom(BASE_BYTES))
    (app / "rootfs").mkdir(parents=True)
    (app / "rootfs" / "data").write_bytes(os.urandom(APP_BYTES))
    for name, text in (("main.sh", _MAIN), ("answer.sh", _ANSWER)):
        (app / "rootfs" / name).write_text(text)
        (app / "rootfs" / name).chmod(0o755)
    return base, app


def guest_cache() -> Path:
    """Where the parts of guests are kept from one run to the next."""
    return Path("/var/tmp/p2player-tests/guest")


def config(engine: str, *, hooks: str = "", before: str = "", address: str = ADDRESS, mac: str = MAC) -> str:
    """The text of its configuration file; `before` is shell that a container runs first."""
    table = f'[{engine}]\nnetwork = "{NETWORK}"\nmac = "{mac}"\nipv4 = "{address}/24"\n'
    if engine == "libvirt":
        return f'{hooks}\n{table}memory_mb = {guest.LEAST_MEMORY_MB}\ncmdline = "console=ttyS0 quiet"\n'
    return f'command = ["/bin/sh", "-c", "{before} exec sh {{app}}/main.sh"]\n{hooks}\n{table}'


def last_tick(log: str) -> tuple[str, int] | None:
    """Token and count of the newest whole line of a log that has them."""
    for line in reversed(log.rpartition("\n")[0].splitlines()):
        if match := _TICK.match(line):
            return match[1] or match[4], int(match[2] or match[3])
    return None
