"""What a node remembers of the mesh over a restart: members and ledger, in STATE/gossip.

Losing it costs nothing but time: the mesh tells everything again. So a file that cannot be read is put aside and
reported, one that cannot be written is reported and tried again later, and neither stops a node.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack

from gossip.errors import GossipError
from gossip.ledger import Ledger
from p2player.log import Log
from p2player.statedir import write_atomic

MAX_BYTES = 64 << 20


class Remembered:
    """The files in `folder`, which is made if it is not there."""

    def __init__(self, folder: Path, log: Log) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._members = folder / "members.msgpack"
        self._ledger = folder / "ledger.msgpack"
        self._auto = folder / "warm-auto"
        self._log = log

    def members(self) -> Mapping[str, Any] | None:
        """What `GossipState.snapshot` gave, or None."""
        data = self._read(self._members)
        if data is None:
            return None
        try:
            body = msgpack.unpackb(data, raw=False)
        except (ValueError, msgpack.UnpackException, RecursionError) as error:
            self._put_aside(self._members, error)
            return None
        return body if isinstance(body, dict) else None

    def restore_ledger(self, ledger: Ledger) -> None:
        """Read the ledger's snapshot back into a fresh one."""
        data = self._read(self._ledger)
        if data is None:
            return
        try:
            ledger.restore(data, now=time.time())
        except GossipError as error:
            self._put_aside(self._ledger, error)

    def keep(self, members: Mapping[str, Any], ledger: bytes) -> None:
        """Replace both files; on a full disk, say, the old ones stay as they are."""
        try:
            write_atomic(self._members, msgpack.packb(members, use_bin_type=True))
            write_atomic(self._ledger, ledger)
        except OSError as error:
            self._log.warning("cannot keep what is known of the mesh", error=str(error))

    def warm_auto(self, default: bool) -> bool:
        """Whether automatic warming was switched on or off by hand; else `default`."""
        data = self._read(self._auto)
        return default if data is None else data.strip() == b"on"

    def keep_warm_auto(self, enabled: bool) -> None:
        """Keep the switch for the next start."""
        write_atomic(self._auto, b"on\n" if enabled else b"off\n")

    def put_members_aside(self, error: Exception) -> None:
        """The members' file was read and made no sense."""
        self._put_aside(self._members, error)

    def _read(self, path: Path) -> bytes | None:
        try:
            with path.open("rb") as file:
                return file.read(MAX_BYTES)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._log.warning("cannot read what was remembered", file=str(path), error=str(error))
            return None

    def _put_aside(self, path: Path, error: Exception) -> None:
        self._log.warning("what was remembered is damaged and put aside", file=str(path), error=str(error))
        try:
            path.replace(path.with_name(path.name + ".damaged"))
        except OSError as failure:
            self._log.warning("a damaged file could not be put aside", file=str(path), error=str(failure))
