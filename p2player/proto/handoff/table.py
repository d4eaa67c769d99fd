"""The steps of a migration, in one table: who writes what to its journal, after what, and what may go out then.

    preflight -> plan -> sync -> precopy -> suspend -> final -> ready -> grant -> restore -> commit -> done

Rows with a record are the points at which a kill could tear the two ends apart. The machines ask `may_follow` before
they write and when they replay, so that code and table cannot drift; tests take `kill_points()` from here, and so
does the launcher that kills real nodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from p2player.proto.handoff import messages, records


class End(StrEnum):
    """The two ends of a migration."""

    SOURCE = "source"
    DESTINATION = "destination"


class Phase(StrEnum):
    """Where a migration stands: the `state` of its row."""

    PREFLIGHT = "preflight"
    PLAN = "plan"
    SYNC = "sync"
    PRECOPY = "precopy"
    SUSPEND = "suspend"
    FINAL = "final"
    READY = "ready"
    GRANT = "grant"
    RESTORE = "restore"
    COMMIT = "commit"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OVER = frozenset({Phase.DONE, Phase.FAILED, Phase.CANCELLED})

Before = type[records.Record] | None
"""The record on which a step builds; None: an empty journal."""


@dataclass(frozen=True, slots=True)
class Step:
    """One row.

    Attributes:
        record: fsynced first; None where a step leaves no trace in the journal.
        after: the newest records of this end on which the step may build.
        then: the message that goes out after the record is durable, if any.
        means: what happens, in words.
    """

    phase: Phase
    end: End
    record: type[records.Record] | None
    after: tuple[Before, ...]
    then: type[messages.Message] | None
    means: str


_S, _D = End.SOURCE, End.DESTINATION

STEPS: tuple[Step, ...] = (
    Step(Phase.PREFLIGHT, _S, records.Begun, (None,), messages.Offer, "ask whether the app can be taken"),
    Step(Phase.PREFLIGHT, _D, records.Offered, (None,), messages.Welcome, "check, and tell what is missing"),
    Step(Phase.PLAN, _S, None, (records.Begun,), None, "predict bytes, seconds and freeze, or refuse"),
    Step(Phase.SYNC, _S, None, (records.Begun,), messages.Sync, "hand over the key of the instance content"),
    Step(Phase.SYNC, _D, None, (records.Offered,), messages.Synced, "pull base and app, stage the app"),
    Step(Phase.PRECOPY, _S, None, (records.Begun,), messages.Round, "save and import while the app runs"),
    Step(Phase.PRECOPY, _D, None, (records.Offered,), messages.Rounded, "pull what changed"),
    Step(Phase.SUSPEND, _S, records.Suspending, (records.Begun,), None, "suspend the app"),
    Step(Phase.FINAL, _S, None, (records.Suspending,), messages.Round, "import the last changes"),
    Step(Phase.READY, _D, records.Ready, (records.Offered,), messages.Ready, "all is verified and durable"),
    Step(Phase.GRANT, _S, records.Granted, (records.Suspending,), messages.Grant, "give epoch+1 away"),
    Step(Phase.GRANT, _D, records.Accepted, (records.Ready,), None, "own epoch+1; restore"),
    Step(Phase.RESTORE, _D, records.Restored, (records.Accepted, records.Asked), messages.Restored, "it runs here"),
    Step(Phase.COMMIT, _S, records.Committed, (records.Granted,), messages.Commit, "destroy the copy here"),
    Step(
        Phase.COMMIT,
        _S,
        records.Settled,
        (records.Committed, records.Aborted, records.Returned, records.Forced),
        None,
        "the copy is destroyed; or it runs again",
    ),
    Step(
        Phase.COMMIT,
        _D,
        records.Closed,
        (records.Restored, records.Settled),
        messages.Closed,
        "acknowledge the ending",
    ),
    Step(Phase.COMMIT, _S, records.Closed, (records.Settled,), None, "forget"),
    # The ways back.
    Step(
        Phase.FAILED,
        _S,
        records.Aborted,
        (records.Begun, records.Suspending),
        messages.Abort,
        "before the grant: resume as if nothing had happened",
    ),
    Step(Phase.GRANT, _D, records.Asked, (None,), None, "granted a migration that is unknown here: find a copy"),
    Step(
        Phase.FAILED,
        _D,
        records.Refused,
        (records.Offered, records.Ready, records.Accepted, records.Asked),
        messages.Failed,
        "never executed here, and a late grant is void",
    ),
    Step(
        Phase.FAILED,
        _S,
        records.Returned,
        (records.Suspending, records.Granted),
        messages.Abort,
        "the grant was refused: resume at epoch+2",
    ),
    Step(
        Phase.FAILED,
        _S,
        records.Forced,
        (records.Suspending, records.Granted),
        messages.Supersede,
        "taken back by the operator: resume at epoch+2",
    ),
    Step(
        Phase.FAILED,
        _D,
        records.Superseded,
        (records.Offered, records.Asked, records.Ready, records.Accepted, records.Restored),
        None,
        "a higher epoch exists: stop and discard the copy",
    ),
    Step(Phase.FAILED, _D, records.Settled, (records.Refused, records.Superseded), None, "what was staged is gone"),
)

_FOLLOWS: dict[tuple[End, type[records.Record]], frozenset[Before]] = {}
for _step in STEPS:
    if _step.record is not None:
        _key = (_step.end, _step.record)
        _FOLLOWS[_key] = _FOLLOWS.get(_key, frozenset()) | frozenset(_step.after)


def may_follow(end: End, newest: records.Record | None, record: records.Record) -> bool:
    """Whether `record` is a lawful next entry of a journal of that end."""
    before = None if newest is None else type(newest)
    return before in _FOLLOWS.get((end, type(record)), frozenset())


@dataclass(frozen=True, slots=True)
class KillPoint:
    """Where to kill `end`: just before or just after `record` is durable."""

    end: End
    record: type[records.Record]
    when: Literal["before", "after"]

    def __str__(self) -> str:
        return f"{self.end}:{self.record.__name__}:{self.when}"


def kill_points() -> Iterator[KillPoint]:
    """Every one that the table knows, in table order."""
    seen: set[tuple[End, type[records.Record]]] = set()
    for step in STEPS:
        if step.record is None or (step.end, step.record) in seen:
            continue
        seen.add((step.end, step.record))
        yield KillPoint(step.end, step.record, "before")
        yield KillPoint(step.end, step.record, "after")
