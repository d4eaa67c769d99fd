"""The demo's `save` hook: asks the running game to write its world, and waits until it has.

save_hook.py STATE_FOLDER
"""

import os
import signal
import sys
import time
from pathlib import Path

LIMIT_S = 5.0


def main(folder: Path) -> int:
    """Signal the game and wait for the new file; 1 if none came in time."""
    world = folder / "world.msgpack"
    before = world.stat().st_mtime_ns if world.exists() else 0
    os.kill(int((folder / "pid").read_text()), signal.SIGUSR1)
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if world.exists() and world.stat().st_mtime_ns != before:
            return 0
        time.sleep(0.005)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
