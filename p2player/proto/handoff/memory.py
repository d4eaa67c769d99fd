"""What a node still answers about migrations that are over for it, or that it never knew.

A message may come after its migration was closed: repeated by a peer that did not hear the acknowledgement, or late.
What a closed end needs to remember for that is one line, an `Epitaph`.
"""

from dataclasses import dataclass
from enum import StrEnum

from p2player.proto.handoff import messages
from p2player.proto.handoff.messages import Message
from p2player.proto.handoff.table import End


class Fate(StrEnum):
    """How a migration ended for one end."""

    MOVED = "moved"
    KEPT = "kept"
    FORCED = "forced"


@dataclass(frozen=True, slots=True)
class Epitaph:
    """One closed migration. `epoch`: of the destination's ownership, or of the source's after a return by force."""

    end: End
    fate: Fate
    epoch: int


def answer(epitaph: Epitaph, message: Message) -> Message | None:
    """What to say to a message about a closed migration; None: nothing."""
    if epitaph.end is End.SOURCE:
        return _source_answer(epitaph, message)
    return _destination_answer(epitaph, message)


def answer_unknown(message: Message, owned_epoch: int = 0) -> Message | None:
    """What to say about a migration of which nothing is known here; None: nothing.

    An `Offer` and a `Grant` are not for this function: they make a new destination machine.

    Args:
        owned_epoch: at which this node owns the app; 0 when it does not, or nobody can tell which app it is.
    """
    match message:
        case messages.Restored(epoch) if owned_epoch > epoch:
            return messages.Supersede(owned_epoch)
        case messages.Restored():
            return messages.Commit()
        case messages.Commit() | messages.Abort() | messages.Supersede():
            return messages.Closed()
        case messages.Sync() | messages.Round():
            return messages.Failed("failed", "the destination knows nothing of this migration")
        case messages.Closed() | messages.Alive():
            return None
        case _:
            return messages.Abort("failed", "the source knows nothing of this migration")


def _source_answer(epitaph: Epitaph, message: Message) -> Message | None:
    if isinstance(message, messages.Closed):
        return None
    match epitaph.fate:
        case Fate.MOVED:
            return messages.Commit()
        case Fate.KEPT:
            return messages.Abort("failed", "the migration is over: the app stayed at the source")
        case Fate.FORCED:
            return messages.Supersede(epitaph.epoch)


def _destination_answer(epitaph: Epitaph, message: Message) -> Message | None:
    match message:
        case messages.Commit() | messages.Abort() | messages.Supersede():
            return messages.Closed()
        case messages.Grant() if epitaph.fate is Fate.MOVED:
            return messages.Restored(epitaph.epoch)
        case messages.Offer() | messages.Sync() | messages.Round() | messages.Grant():
            return messages.Failed("failed", "the migration is over: it was refused here")
        case _:
            return None
