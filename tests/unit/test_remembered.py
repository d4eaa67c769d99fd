"""What is remembered of the mesh comes back, and no trouble with its files stops a node."""

import errno
import io
from pathlib import Path

import pytest

from p2player import remembered
from p2player.log import Log
from p2player.remembered import Remembered
from tests.support import ledgers


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    one = ledgers.ledger(1)
    one.publish_inventory(layers={}, free_bytes=5, load=0.5, labels={}, apps=(), now=ledgers.START_S)
    Remembered(tmp_path / "gossip", Log()).keep({"format": 1, "members": []}, one.snapshot())
    again, found = Remembered(tmp_path / "gossip", Log()), ledgers.ledger(1)
    again.restore_ledger(found)
    assert again.members() == {"format": 1, "members": []}
    assert found.inventories() == one.inventories()


def test_a_full_disk_is_told_of_and_the_old_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    kept = Remembered(tmp_path, Log(stream=said))
    kept.keep({"format": 1, "members": []}, b"")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remembered, "write_atomic", full)
    kept.keep({"format": 2}, b"")
    assert "No space left" in said.getvalue()
    assert kept.members() == {"format": 1, "members": []}


def test_a_damaged_file_is_put_aside_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    kept = Remembered(tmp_path, Log(stream=said))
    for name in ("members.msgpack", "ledger.msgpack"):
        (tmp_path / name).write_bytes(b"\xc1")
    assert kept.members() is None
    assert (tmp_path / "members.msgpack.damaged").exists()

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", read_only)
    kept.restore_ledger(ledgers.ledger(1))
    assert "Read-only" in said.getvalue()
