"""Whatever a peer says, what a node writes of it fits a journal and can be read back."""

import json
from pathlib import Path

import pytest

from p2player.journal import MAX_RECORD_BYTES, Journal
from p2player.migration import rows
from p2player.proto.handoff import events, messages, records
from p2player.proto.handoff.destination import DestinationMachine
from p2player.proto.handoff.fields import MAX_INT, MAX_REAL
from p2player.proto.handoff.machine import HandoffConfig
from p2player.proto.handoff.messages import MAX_ROW_CHARS, MAX_SOURCES, Grant, Pulled
from p2player.proto.handoff.records import Record, Tally
from p2player.proto.handoff.source_end import add_image

A, B, APP = "a" * 32, "b" * 32, "0" * 32
NASTY_ROWS = ['"' * MAX_ROW_CHARS, "\x00" * MAX_ROW_CHARS, "\N{GRINNING FACE}" * MAX_ROW_CHARS]


def written(folder: Path, record: Record) -> Record:
    journal = Journal.open(folder / "journal")
    journal.append(records.dump(record))
    journal.close()
    again = Journal.open(folder / "journal")
    again.close()
    (read,) = records.load(again.records)
    return read


def restored() -> DestinationMachine:
    machine = DestinationMachine.asked(Grant(APP, 2, A, B), HandoffConfig())
    machine.begin(1.0)
    machine.handle(events.Done(1, events.Found(owned=True, running=True)), 2.0)
    return machine


@pytest.mark.parametrize("row", NASTY_ROWS)
def test_the_row_of_a_commit_fits_the_journal(tmp_path: Path, row: str) -> None:
    outputs = restored().handle(events.Received(messages.Commit(row)), 3.0)
    (closed,) = [output.record for output in outputs if isinstance(output, events.Journal)]
    assert written(tmp_path, closed) == records.Closed(3.0, "")


def test_a_sound_row_is_kept(tmp_path: Path) -> None:
    row = json.dumps({"text": "x" * (MAX_ROW_CHARS - 100)})
    outputs = restored().handle(events.Received(messages.Commit(row)), 3.0)
    (closed,) = [output.record for output in outputs if isinstance(output, events.Journal)]
    assert written(tmp_path, closed) == records.Closed(3.0, row)


def test_what_rounds_cost_fits_the_journal(tmp_path: Path) -> None:
    total = Pulled()
    for number in range(40):
        sources = {f"{number:08x}{n:024x}": MAX_INT - n for n in range(MAX_SOURCES)}
        total = add_image(total, Pulled(MAX_INT, 0, MAX_INT, sources, MAX_REAL))
    assert len(total.sources) == MAX_SOURCES
    worst = records.Committed(1.0, 2, Tally(0.0, total, total, total), "\N{GRINNING FACE}" * 1024)
    assert written(tmp_path, worst) == worst


def test_the_nodes_that_gave_most_are_counted() -> None:
    many = Pulled(sources={f"{n:032x}": n for n in range(MAX_SOURCES)})
    more = add_image(many, Pulled(sources={A: 1000, B: 0}))
    assert more.sources[A] == 1000
    assert B not in more.sources
    assert f"{0:032x}" not in more.sources


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e9999"])
def test_a_row_that_cannot_be_written_anew_is_none(number: str) -> None:
    assert rows.read_row(_row("1.0"), "m") is not None
    assert rows.read_row(_row(number), "m") is None
    assert rows.read_row(_row("[" + ",".join(["1E15"] * 5000) + "]"), "m") is None


def _row(prediction: str) -> str:
    counts = {"total": 0, "deduplicated": 0, "transferred": 0}
    row = {
        "id": "m",
        **dict.fromkeys(("app", "app_id", "from", "to", "mode", "warning"), ""),
        **dict.fromkeys(("started_at", "total_s", "freeze_s", "longest_freeze_s", "rounds"), 0),
        "state": "done",
        "bytes": counts,
        "sources": {},
        "layers": {"base": counts, "app": counts, "instance": counts},
        "progress": {"done": 0, "total": 0, "message": ""},
        "prediction": {"x": 0},
        "error": None,
    }
    text = json.dumps(row).replace('{"x": 0}', f'{{"x": {prediction}}}')
    assert len(text) < MAX_ROW_CHARS < MAX_RECORD_BYTES
    return text
