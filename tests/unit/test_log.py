"""One line an event, whatever is in it."""

import io
import json

import pytest

from p2player.log import Log


def test_text_quotes_what_would_break_the_line() -> None:
    out = io.StringIO()
    Log(stream=out).bind(migration="m1").info("layer pulled", name="two words", text="a\nb", seconds=1.23456, empty="")
    (line,) = out.getvalue().splitlines()
    assert line.endswith('info layer pulled migration=m1 name="two words" text="a\\nb" seconds=1.235 empty=""')


def test_json_is_one_document_a_line() -> None:
    out = io.StringIO()
    Log("json", stream=out).warning("odd", value={1, 2}.__class__)
    document = json.loads(out.getvalue())
    assert (document["level"], document["event"]) == ("warning", "odd")


def test_levels_are_kept_apart() -> None:
    out = io.StringIO()
    log = Log(level="warning", stream=out)
    log.info("no")
    log.error("yes")
    assert "yes" in out.getvalue()
    assert "no" not in out.getvalue().replace("not", "")


def test_a_failure_names_its_place() -> None:
    out = io.StringIO()
    try:
        raise ZeroDivisionError("oops")
    except ZeroDivisionError as error:
        Log(stream=out).failure("broke", error)
    assert "ZeroDivisionError: oops" in out.getvalue()
    assert "test_log.py" in out.getvalue()


def test_a_closed_stream_stops_nobody() -> None:
    out = io.StringIO()
    out.close()
    Log(stream=out).error("into the void")
    with pytest.raises(ValueError, match="closed"):
        out.getvalue()


def test_the_trace_of_a_failure_is_told_at_level_debug() -> None:
    out = io.StringIO()
    try:
        raise ZeroDivisionError("oops")
    except ZeroDivisionError as error:
        Log(level="debug", stream=out).bind(part="x").failure("broke", error)
    told, trace = out.getvalue().splitlines()
    assert "broke" in told
    assert "debug trace part=x" in trace and "Traceback" in trace
