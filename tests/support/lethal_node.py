"""A real node that ends as by SIGKILL at one step of a migration's journal.

    python tests/support/lethal_node.py source:Granted:after --state-dir DIR run

The step is written as `KillPoint` writes itself. The product has no such switch: this is a launcher of its own.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Literal

from p2player.daemon import run_node
from p2player.proto.handoff.records import Record
from p2player.proto.handoff.table import End, KillPoint


def main() -> int:
    """Run the node; see the module."""
    point, option, state_dir, command = sys.argv[1:5]
    assert (option, command) == ("--state-dir", "run")

    def on_record(end: End, record: Record, when: Literal["before", "after"]) -> None:
        if str(KillPoint(end, type(record), when)) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return run_node(Path(state_dir), on_record=on_record)


if __name__ == "__main__":
    sys.exit(main())
