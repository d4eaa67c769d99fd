"""An append-only file of records that survives a crash at any byte.

Each record is one line: eight hex digits of the CRC-32 of the rest, a space, and the record as one JSON object. An
append is on the disk before it returns. A crash can only leave a torn *last* line, which was never acknowledged:
opening cuts it off. A damaged line with sound ones after it is something else - a bad disk, an editor - and is
refused: to go on without a record that others acted upon would be to guess.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from p2player.errors import Integrity
from p2player.statedir import sync_folder

MAX_RECORD_BYTES: Final = 64 << 10


class Journal:
    """One journal, open for appending; `records` is what it held when it was opened.

    Not thread-safe: its owner serialises appends.
    """

    def __init__(self, path: Path, fd: int, records: list[dict[str, Any]]) -> None:
        self.path = path
        self.records = records
        self._fd = fd

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the journal, made empty with mode 0600 if it is not there, and drop a torn last line.

        Raises:
            Integrity: a record before the last one is damaged.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            records, sound = _parse(path, os.pread(fd, os.fstat(fd).st_size, 0))
            if sound < os.fstat(fd).st_size:
                os.ftruncate(fd, sound)
            os.fsync(fd)
            sync_folder(path.parent)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, records)

    @staticmethod
    def salvage(path: Path) -> list[dict[str, Any]]:
        """What can still be read of a journal, damaged or not, in order; the file is left as it is.

        Raises:
            OSError: nothing can be read.
        """
        return [record for line in path.read_bytes().split(b"\n") if (record := _record(line)) is not None]

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record; it is durable when this returns.

        Raises:
            OSError: it could not be written; a part of it may remain, which the next opening cuts off.
            ValueError: it is not JSON, or longer than `MAX_RECORD_BYTES`.
        """
        line = _line(record)
        start = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, line) != len(line):
                raise OSError(f"{self.path}: short write")
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, start)
            raise

    def close(self) -> None:
        """Close the file; nothing is lost that `append` returned for."""
        os.close(self._fd)


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    if len(text) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {len(text)} bytes is over the cap")
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _parse(path: Path, data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The sound records, and how many bytes they take."""
    records: list[dict[str, Any]] = []
    sound = 0
    *ended, _torn = data.split(b"\n")
    for number, line in enumerate(ended, 1):
        record = _record(line)
        after = sound + len(line) + 1
        if record is None:
            if after < len(data):
                raise Integrity(f"{path}: line {number} is damaged")
            break
        records.append(record)
        sound = after
    return records, sound


def _record(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
