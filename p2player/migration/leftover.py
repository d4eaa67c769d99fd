"""Journals that are on the disk although no migration is open for them: damaged, or of one that broke off.

What such a journal held, others may have acted upon. A destination that cannot read it cannot tell whether it accepted
the grant and executed the app; to begin the migration anew could end in "never executed here" about an app that was.
So an offer or a grant of that migration is answered with an error, which leaves a source that granted in doubt: it
asks again, and the operator finds the file named in the log. The one exception is a journal in which a refusal of that
grant can still be read. It was durable before the damage, and voids the grant for good: the journal may be put aside.
"""

import os
from enum import Enum, auto
from pathlib import Path

from p2player.journal import Journal
from p2player.migration.driver import JOURNAL
from p2player.proto.handoff import records
from p2player.proto.handoff.fields import Malformed
from p2player.proto.handoff.messages import Grant, Offer
from p2player.statedir import sync_folder

ASIDE = f"{JOURNAL}.damaged"


class Left(Enum):
    """What lies in a migration's folder.

    NOTHING: no journal, or an empty one. VOID: the grant was refused for good. UNKNOWN: anything may have happened.
    """

    NOTHING = auto()
    VOID = auto()
    UNKNOWN = auto()


def look(folder: Path, message: Offer | Grant) -> Left:
    """What the journal in `folder` says of a message that would begin this migration anew. Blocking.

    Raises:
        OSError: it cannot be read.
    """
    path = folder / JOURNAL
    if not path.exists() or path.stat().st_size == 0:
        return Left.NOTHING
    sound = [record for document in Journal.salvage(path) for record in _read(document)]
    if isinstance(message, Grant) and _refused(message, sound):
        return Left.VOID
    return Left.UNKNOWN


def put_aside(folder: Path) -> Path:
    """Give the journal another name, which it has on the disk when this returns; that name."""
    aside = folder / ASIDE
    os.replace(folder / JOURNAL, aside)
    sync_folder(folder)
    return aside


def _refused(grant: Grant, sound: list[records.Record]) -> bool:
    refused = any(isinstance(record, records.Refused) and record.epoch == grant.epoch for record in sound)
    return refused and _is_of(grant, sound)


def _is_of(grant: Grant, sound: list[records.Record]) -> bool:
    """Whether the journal is of the migration that the grant tells of, and not only of its id."""
    match sound[:1]:
        case [records.Offered(_, offer)]:
            return (offer.app_id, offer.source) == (grant.app_id, grant.source)
        case [records.Asked(_, app_id, _, source)]:
            return (app_id, source) == (grant.app_id, grant.source)
        case _:
            return False


def _read(document: object) -> list[records.Record]:
    try:
        return records.load([document])
    except Malformed:
        return []
