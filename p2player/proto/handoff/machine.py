"""What the machines of both ends have in common: outputs, tokens, timers, and a journal that may fail.

A machine's methods collect outputs while one event is handled. Its state moves ahead as if every record it emitted
were durable already; where the shell could not write one, it hands back that record with all outputs behind it, as
`Unwritten`. By default the machine then stands still, trying again until it is written: nothing that depends on the
record has been said or done. Messages that arrive meanwhile are dropped as if the network had lost them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from p2player.proto.handoff import events
from p2player.proto.handoff.events import Event, Output, Timer
from p2player.proto.handoff.messages import MAX_REASON_CHARS, Message
from p2player.proto.handoff.records import Record
from p2player.proto.handoff.table import End, Phase, may_follow


class JournalUnlawful(Exception):
    """A journal whose records do not follow from one another: it is damaged, or of another program."""


@dataclass(frozen=True, slots=True)
class HandoffConfig:
    """Patience and periods, in seconds.

    Attributes:
        retry_s, retry_max_s: a message without an answer is repeated after the first, then less and less often.
        offer_tries: a destination that an offer cannot be brought to so often in a row is given up.
        silence_s: before the grant, a destination that says nothing for so long is given up;
        frozen_silence_s: the same while the app is suspended.
        heartbeat_s: how often a working destination says so.
        idle_s: how often a waiting destination asks whether the source is still there.
        patience_s: a destination gives up a silent source after this, before it is ready.
        ready_patience_s: the same once it is ready; a grant may be on its way, so it refuses that for good first.
        commit_patience_s: the source reports the migration done without an acknowledgement after this.
        act_retry_s, act_retry_max_s: an engine action that must succeed in the end is tried again after the first.
        resume_tries: attempts to resume the app after a failure; then it is left to the operator.
        journal_retry_s: pause between attempts to write a record.
    """

    retry_s: float = 1.0
    retry_max_s: float = 15.0
    offer_tries: int = 3
    silence_s: float = 15.0
    frozen_silence_s: float = 5.0
    heartbeat_s: float = 1.0
    idle_s: float = 10.0
    patience_s: float = 120.0
    ready_patience_s: float = 3600.0
    commit_patience_s: float = 30.0
    act_retry_s: float = 1.0
    act_retry_max_s: float = 60.0
    resume_tries: int = 3
    journal_retry_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a migration ended for the operator; `code` and `reason` are empty when all went well."""

    phase: Phase
    code: str = ""
    reason: str = ""


def clip(reason: str) -> str:
    """One line that fits into a message."""
    return " ".join(reason.split())[:MAX_REASON_CHARS]


class Machine(ABC):
    """The common part; see the module."""

    end: End

    def __init__(self, config: HandoffConfig) -> None:
        self.config = config
        self._newest: Record | None = None
        self._now = 0.0
        self._out: list[Output] = []
        self._tokens = 0
        self._unwritten: tuple[Output, ...] = ()
        self._held: list[Event] = []

    def handle(self, event: Event, now: float) -> list[Output]:
        """Advance by one event.

        Args:
            now: seconds since the Unix epoch on this node's clock, which the caller keeps from going back.

        Returns:
            what to do, in order.
        """
        self._now, self._out = now, []
        if isinstance(event, events.Unwritten):
            self._on_unwritten(event.outputs)
        elif not self._unwritten:
            self._dispatch(event)
        elif event == events.Fired(Timer.JOURNAL):
            self._out, self._unwritten = list(self._unwritten), ()
            held, self._held = self._held, []
            for earlier in held:
                self._dispatch(earlier)
        elif not isinstance(event, events.Received | events.Undelivered | events.Rejected | events.Advanced):
            self._held.append(event)
        return self._out

    @abstractmethod
    def _dispatch(self, event: Event) -> None:
        """Advance by one event, which nothing that was not written stands in the way of."""

    def _on_unwritten(self, outputs: tuple[Output, ...]) -> None:
        self._unwritten = outputs
        self._out.append(events.SetTimer(Timer.JOURNAL, self._now + self.config.journal_retry_s))

    def _replay(self, entries: Sequence[Record]) -> None:
        for record in entries:
            if record == self._newest:
                continue  # its first write was believed to have failed
            if not may_follow(self.end, self._newest, record):
                raise JournalUnlawful(
                    f"{self.end} journal: {type(record).__name__} after {type(self._newest).__name__}"
                )
            self._newest = record

    def _journal(self, record: Record) -> None:
        assert may_follow(self.end, self._newest, record), (self.end, self._newest, record)
        self._newest = record
        self._out.append(events.Journal(record))

    def _send(self, message: Message) -> None:
        self._out.append(events.Send(message))

    def _act(self, action: events.Action) -> int:
        self._tokens += 1
        self._out.append(events.Act(self._tokens, action))
        return self._tokens

    def _stop(self, token: int | None) -> None:
        if token is not None:
            self._out.append(events.StopAct(token))

    def _set(self, timer: Timer, after_s: float) -> None:
        self._out.append(events.SetTimer(timer, self._now + after_s))

    def _clear(self, *timers: Timer) -> None:
        self._out.extend(events.ClearTimer(timer) for timer in timers)


def backoff(first_s: float, limit_s: float, attempt: int) -> float:
    """Pause before attempt number `attempt` (from 0): doubling from `first_s`, never above `limit_s`."""
    return min(first_s * 2.0 ** min(attempt, 30), limit_s)


def expect(value: Any, kind: type[Any]) -> Any:
    """`value`, which the shell promised to be of `kind`; a different one is a defect there."""
    if not isinstance(value, kind):
        raise TypeError(f"result {type(value).__name__} where {kind.__name__} was due")
    return value
