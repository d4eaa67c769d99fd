"""Wait for the end of a test process, and sweep what its engines left: `python -m tests.support.contract.reaper`.

Reads the folder (`leftovers`) from standard input, which is a pipe from the test process: its end is the end of that.
"""

import sys
from pathlib import Path

from bench.netlab import leftovers as netlab
from tests.support.contract import leftovers

if __name__ == "__main__":
    folder = Path(sys.stdin.readline().rstrip("\n"))
    sys.stdin.read()
    leftovers.sweep(folder)
    netlab.sweep()
