"""The whole membership as one message body: what a push/pull carries, and what a restart reads back.

A body is msgpack-able: `{"format": 1, "members": [[record, state, age_s, coordinate], ...]}` with the record as
bytes, the state as a word, the seconds since the teller came to believe it, and bytes or None for the last known
coordinate. A snapshot adds `"incarnation"`, of the node that wrote it. Nothing in it is believed without the owner's
signature, except that a member is suspect.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from gossip.coordinates import Coordinate
from gossip.distances import Distances
from gossip.errors import Malformed
from gossip.messages import MemberState
from gossip.records import MAX_INCARNATION, Record, decode_record
from gossip.table import MemberTable

MAX_ROWS: Final = 8192
MAX_BODY_BYTES: Final = 960 << 10
"""About as long as an exchange may get: it has to fit into one frame of 1 MiB."""
_ROW_OVERHEAD_BYTES: Final = 64
_FORMAT: Final = 1
_STATES: Final = {state.value: state for state in MemberState}


@dataclass(frozen=True, slots=True)
class TableRow:
    """One member, as the teller of a body sees it."""

    record: Record
    state: MemberState
    age_s: float
    coordinate: Coordinate | None


def write_body(
    me: Record,
    table: MemberTable,
    distances: Distances,
    now: float,
    *,
    unheard: bool = False,
    limit_bytes: int = MAX_BODY_BYTES,
) -> dict[str, Any]:
    """This node and everyone it knows.

    What does not fit is left out: with thousands of members whose texts are long, the last ones are known from packets.

    Args:
        me: this node's record.
        table: everyone else.
        distances: their coordinates.
        now: the time, from which ages are told.
        unheard: also members of whom nothing was heard since the start; others are not to take our silence for a death.
        limit_bytes: about how long the body may be.
    """
    own = distances.coordinate(me.node)
    state = MemberState.LEFT if me.left else MemberState.ALIVE
    rows: list[list[Any]] = [[me.blob, state.value, 0.0, own.encode() if own else None]]
    for row in table:
        limit_bytes -= len(row.record.blob) + _ROW_OVERHEAD_BYTES
        if limit_bytes < 0:
            break
        if row.unheard and not unheard:
            continue
        there = distances.coordinate(row.record.node)
        age_s = max(0.0, now - row.since)
        rows.append([row.record.blob, row.state.value, age_s, there.encode() if there else None])
    return {"format": _FORMAT, "members": rows}


def read_body(body: object) -> list[TableRow]:
    """The rows of a body.

    Raises:
        Malformed: it is not what `write_body` makes, or breaks a limit; signatures are not checked here.
    """
    if not isinstance(body, Mapping) or body.get("format") != _FORMAT:
        raise Malformed("a membership of an unknown format")
    rows = body.get("members")
    if not isinstance(rows, (list, tuple)) or len(rows) > MAX_ROWS:
        raise Malformed("a membership that is not a list, or too long a one")
    return [_read_row(row) for row in rows]


def read_incarnation(snapshot: Mapping[str, Any]) -> int:
    """The incarnation that the writer of a snapshot had.

    Raises:
        Malformed: there is none.
    """
    incarnation = snapshot.get("incarnation")
    if not isinstance(incarnation, int) or not 0 <= incarnation < MAX_INCARNATION:
        raise Malformed("a snapshot without incarnation")
    return incarnation


def _read_row(row: object) -> TableRow:
    if not isinstance(row, (list, tuple)) or len(row) != 4:
        raise Malformed("a row of a membership that is no row")
    blob, state, age_s, coordinate = row
    if not isinstance(blob, bytes) or not isinstance(state, str) or state not in _STATES:
        raise Malformed("a row of a membership with a wrong type")
    if isinstance(age_s, bool) or not isinstance(age_s, (int, float)) or not isfinite(age_s) or age_s < 0:
        raise Malformed("a row of a membership with an impossible age")
    if coordinate is not None and not isinstance(coordinate, bytes):
        raise Malformed("a row of a membership with a wrong type")
    place = None if coordinate is None else Coordinate.decode(coordinate)
    return TableRow(decode_record(blob), _STATES[state], float(age_s), place)
