"""What each end of a migration writes to its journal, so that it knows what it did after a SIGKILL.

A record is fsynced before anything that follows from it is said or done. `table.STEPS` tells which record may follow
which. `at` is the writer's own clock, seconds since the Unix epoch; it is never compared with the other end's.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from p2player.proto.handoff import fields
from p2player.proto.handoff.fields import Flag, Maybe, Nested, Real, Text, Whole
from p2player.proto.handoff.messages import (
    MAX_ROW_CHARS,
    AppId,
    Bytes,
    Code,
    Epoch,
    Node,
    Offer,
    Pulled,
    Reason,
    Seconds,
    StepNumber,
)

MAX_JOURNALLED_ROW_BYTES = 48 << 10
"""Less than a journal takes as one record."""

Instant = Annotated[float, Real(0.0, 1e11)]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the plan said before anything moved."""

    total_s: Seconds
    freeze_s: Seconds
    transferred: Bytes


@dataclass(frozen=True, slots=True)
class Tally:
    """What a migration cost so far, as the source counts it.

    `instance` sums all images: its `total` is the size of the newest one, `deduplicated` what never had to be fetched
    of it.
    """

    started_at: Instant
    base: Annotated[Pulled, Nested(Pulled)] = field(default_factory=Pulled)
    app: Annotated[Pulled, Nested(Pulled)] = field(default_factory=Pulled)
    instance: Annotated[Pulled, Nested(Pulled)] = field(default_factory=Pulled)
    rounds: Annotated[int, Whole(0, 1024)] = 0
    freeze_s: Seconds = 0.0
    longest_freeze_s: Seconds = 0.0
    prediction: Annotated[Prediction | None, Maybe(Nested(Prediction))] = None


@dataclass(frozen=True, slots=True)
class Begun:
    """Source: a migration was asked for; the app runs on."""

    at: Instant
    offer: Annotated[Offer, Nested(Offer)]


@dataclass(frozen=True, slots=True)
class Suspending:
    """Source: the app is about to be suspended, or was."""

    at: Instant
    tally: Annotated[Tally, Nested(Tally)]


@dataclass(frozen=True, slots=True)
class Granted:
    """Source: `epoch` belongs to the destination unless it refuses; the app is never started here before that."""

    at: Instant
    epoch: Epoch
    tally: Annotated[Tally, Nested(Tally)]


@dataclass(frozen=True, slots=True)
class Committed:
    """Source: the destination has the app. `error` tells when it failed there after it was executed."""

    at: Instant
    epoch: Epoch
    tally: Annotated[Tally, Nested(Tally)]
    error: Reason = ""


@dataclass(frozen=True, slots=True)
class Aborted:
    """Source: called off before the grant; the app runs here at the epoch that it had."""

    at: Instant
    code: Code
    reason: Reason
    cancelled: Annotated[bool, Flag()] = False


@dataclass(frozen=True, slots=True)
class Returned:
    """Source: the destination refused the grant, its epoch is burnt; the app runs here at `epoch`, the one after."""

    at: Instant
    epoch: Epoch
    code: Code
    reason: Reason


@dataclass(frozen=True, slots=True)
class Forced:
    """Source: the operator took the app back without an answer; it runs here at `epoch`."""

    at: Instant
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Offered:
    """Destination: preflight passed; from here on content of this migration may be on the disk."""

    at: Instant
    offer: Annotated[Offer, Nested(Offer)]


@dataclass(frozen=True, slots=True)
class Asked:
    """Destination: a grant came for a migration of which nothing is known here."""

    at: Instant
    app_id: AppId
    epoch: Epoch
    source: Node
    destination: Node


@dataclass(frozen=True, slots=True)
class Ready:
    """Destination: all data is verified and durable; a grant will be accepted."""

    at: Instant
    step: StepNumber
    pulled: Annotated[Pulled, Nested(Pulled)]


@dataclass(frozen=True, slots=True)
class Accepted:
    """Destination: the app is owned here at `epoch`, and may have been executed here."""

    at: Instant
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Restored:
    """Destination: the engine runs it; or, not `healthy`, executed it and lost it."""

    at: Instant
    epoch: Epoch
    healthy: Annotated[bool, Flag()] = True
    error: Reason = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """Destination: the app was never executed here and `epoch` will never be accepted, however late the grant comes."""

    at: Instant
    epoch: Epoch
    code: Code
    reason: Reason


@dataclass(frozen=True, slots=True)
class Superseded:
    """Destination: the source took the app back at a higher `epoch`; any copy here stops."""

    at: Instant
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Settled:
    """Either end: its engine did what the ending asks (resumed, destroyed, discarded); an acknowledgement is open."""

    at: Instant
    tally: Annotated[Tally | None, Maybe(Nested(Tally))] = None


@dataclass(frozen=True, slots=True)
class Closed:
    """Either end: the other one knows the ending too. `row`: the source's final row as JSON, at the destination."""

    at: Instant
    row: Annotated[str, Text(MAX_ROW_CHARS)] = ""


def bounded_row(row: str) -> str:
    """A row as `Closed` keeps it: none where it would be too long once it is escaped as JSON.

    A row that `json.dumps` wrote grows by its quotes only, and stays far below; a peer may send any text.
    """
    return row if len(json.dumps(row)) <= MAX_JOURNALLED_ROW_BYTES else ""


SourceRecord = Begun | Suspending | Granted | Committed | Aborted | Returned | Forced | Settled | Closed
DestinationRecord = Offered | Asked | Ready | Accepted | Restored | Refused | Superseded | Settled | Closed
Record = SourceRecord | DestinationRecord

KINDS: Mapping[str, type[Record]] = {
    cls.__name__: cls
    for cls in (
        Begun,
        Suspending,
        Granted,
        Committed,
        Aborted,
        Returned,
        Forced,
        Offered,
        Asked,
        Ready,
        Accepted,
        Restored,
        Refused,
        Superseded,
        Settled,
        Closed,
    )
}


def dump(record: Record) -> dict[str, object]:
    """The JSON object that a journal keeps; `t` is the record's class name, bytes are `{"hex": digits}`."""
    return {name: _to_json(value) for name, value in fields.dump(record).items()}


def load(documents: Iterable[object]) -> list[Record]:
    """The records that a journal kept.

    Raises:
        Malformed: one of them is none.
    """
    return [fields.load(_from_json(document), KINDS) for document in documents]


def _to_json(value: object) -> object:
    match value:
        case bytes():
            return {"hex": value.hex()}
        case dict():
            return {name: _to_json(item) for name, item in value.items()}
        case list():
            return [_to_json(item) for item in value]
        case _:
            return value


def _from_json(value: object) -> object:
    match value:
        case {"hex": str(digits)}:
            try:
                return bytes.fromhex(digits)
            except ValueError:
                raise fields.Malformed("not hex digits") from None
        case dict():
            return {name: _from_json(item) for name, item in value.items()}
        case list():
            return [_from_json(item) for item in value]
        case _:
            return value
