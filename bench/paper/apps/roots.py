"""The base layer's tree: a minimal Debian with a small Python, and the first process of the applications.

The same tree is the base of the containers, and the content of the disk of the virtual machines.
"""

import re
import shutil
import time
from pathlib import Path

from bench.data import contained, debs
from bench.data.pair import Unavailable
from bench.data.workshop import Workshop
from bench.paper.apps import packages
from bench.paper.apps.catalog import COMMAND

INCLUDE = "python3-minimal"
INSIDE = Path(__file__).parent / "inside"
PLACE = "opt/p2p"
"""Where the programs of `inside/` lie in an application."""
STATE = "var/lib/p2player"
"""What applications may write."""
_INIT = f"#!/bin/sh\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\nexec {' '.join(COMMAND)}\n"
_DAYS = 19675
"""Day of a fixed time, in days since 1970: when passwords were changed last."""


def build(workshop: Workshop, target: Path) -> None:
    """Make the tree at `target`, which does not exist yet."""
    began_s = time.time() - packages.CLOCK_S
    contained.need_root("debootstrap makes a root file system")
    contained.need("debootstrap")
    tool = contained.find("debootstrap")
    assert tool is not None
    log = workshop.path / "debootstrap.log"
    log.unlink(missing_ok=True)
    command = [tool, "--variant=minbase", f"--include={INCLUDE}", packages.SUITE, str(target), debs.mirror()]
    if contained.run(command, log) != 0:
        raise Unavailable(f"debootstrap failed: {contained.tail(log)}")
    for name in ("hostname", "resolv.conf"):
        # Debootstrap copies this machine's.
        (target / "etc" / name).unlink(missing_ok=True)
    (target / "etc/hostname").write_text("p2player\n")
    (target / "etc/resolv.conf").touch()
    shadow = target / "etc/shadow"
    shadow.write_text(re.sub(r"^(\w[^:]*:[^:]*):\d+:", rf"\1:{_DAYS}:", shadow.read_text(), flags=re.MULTILINE))
    (target / STATE).mkdir()
    place = target / PLACE
    place.mkdir()
    shutil.copyfile(INSIDE / "main.py", place / "main.py")
    init = target / "usr/sbin/init"
    init.write_text(_INIT)
    init.chmod(0o755)
    packages.settle(target, began_s)
