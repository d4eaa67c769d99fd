"""A holder that lies: a real node that changes a byte of whatever chunks it serves.

    python bench/liar.py --state-dir DIR run [OPTION...]

It plays the part of `p2player run` for `LocalMesh`; options are not heard. The product has no such switch.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2player.daemon import run_node
from p2player.net.connection import Incoming
from p2player.proto.frames import Buffer

_honest = Incoming.send_part


async def _lie(self: Incoming, header: Mapping[str, Any], payload: Buffer) -> None:
    if self.method.startswith("chunks."):
        changed = bytearray(payload)
        changed[len(changed) // 2] ^= 1
        payload = bytes(changed)
    await _honest(self, header, payload)


def main() -> int:
    """Run the node; see the module."""
    option, state_dir, command = sys.argv[1:4]
    assert (option, command) == ("--state-dir", "run")
    Incoming.send_part = _lie  # type: ignore[method-assign]
    return run_node(Path(state_dir))


if __name__ == "__main__":
    sys.exit(main())
