"""The append-only journal: what it held is there again, whatever byte a crash stopped at."""

import os
from pathlib import Path
from typing import Any

import pytest

from p2player.errors import Integrity
from p2player.journal import MAX_RECORD_BYTES, Journal

RECORDS: list[dict[str, Any]] = [{"n": 1, "text": "ü\n"}, {"n": 2}, {"n": 3, "list": [1, 2, None]}]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    journal = Journal.open(path)
    for record in records:
        journal.append(record)
    journal.close()


def read(path: Path) -> list[dict[str, Any]]:
    journal = Journal.open(path)
    journal.close()
    return journal.records


def test_records_come_back(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert read(path) == []
    write(path, RECORDS[:2])
    write(path, RECORDS[2:])
    assert read(path) == RECORDS
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_cut_anywhere_loses_only_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, RECORDS)
    whole = path.read_bytes()
    before_last = whole.rindex(b"\n", 0, -1) + 1
    for length in range(before_last, len(whole)):
        path.write_bytes(whole[:length])
        assert read(path) == RECORDS[:2]
        assert path.stat().st_size == before_last
    write(path, RECORDS[2:])
    assert read(path) == RECORDS


def test_a_torn_line_does_not_spoil_the_next_append(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, RECORDS[:1])
    with path.open("ab") as file:
        file.write(b'12345678 {"n":')
    write(path, RECORDS[1:])
    assert read(path) == RECORDS


@pytest.mark.parametrize("offset", [0, 5, 12, 20])
def test_damage_before_the_end_is_told(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "journal"
    write(path, RECORDS)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(Integrity, match="line 1 is damaged"):
        Journal.open(path)


def test_a_failed_append_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    journal = Journal.open(path)
    journal.append(RECORDS[0])

    def broken(fd: int) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="no space"):
            journal.append(RECORDS[1])
    journal.append(RECORDS[2])
    journal.close()
    assert read(path) == [RECORDS[0], RECORDS[2]]


@pytest.mark.parametrize("record", [{"n": float("nan")}, {"text": "x" * MAX_RECORD_BYTES}])
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, record: dict[str, Any]) -> None:
    journal = Journal.open(tmp_path / "journal")
    with pytest.raises(ValueError):
        journal.append(record)
    journal.close()
    assert read(tmp_path / "journal") == []
