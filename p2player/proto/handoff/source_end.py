"""The last part of a migration at its source: say the last word until it is heard, and settle with the engine.

    Committed -> Commit, destroy    Aborted, Returned -> Abort, resume    Forced -> Supersede, resume

Each is repeated until it succeeds. A commit is said at once, the others when the app runs again. The operator is told
(`Finished`) then, too; of a commit, when the destination acknowledged it, since its after_restore hook runs before
that. When both are done the journal may go (`Forget`).
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from enum import StrEnum

from p2player.proto.handoff import events, messages, records
from p2player.proto.handoff.events import Timer
from p2player.proto.handoff.fields import MAX_INT, MAX_REAL
from p2player.proto.handoff.machine import HandoffConfig, Machine, Outcome, backoff
from p2player.proto.handoff.memory import Epitaph, Fate
from p2player.proto.handoff.messages import Message, Offer, Pulled, largest_sources
from p2player.proto.handoff.records import Tally
from p2player.proto.handoff.table import End, Phase

Ending = records.Committed | records.Aborted | records.Returned | records.Forced


class At(StrEnum):
    """Where a source stands; see `source`."""

    OFFERED = "offered"
    PLANNING = "planning"
    SYNCING = "syncing"
    IMAGING = "imaging"
    SENDING = "sending"
    SUSPENDING = "suspending"
    FINAL_IMAGE = "final_image"
    FINAL_SENT = "final_sent"
    CHECKING = "checking"
    GRANTED = "granted"
    ENDING = "ending"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Weighed:
    """What images cost that came in the same way: content that had to be fetched, and the wire's bytes for it."""

    content_bytes: int = 0
    wire_bytes: int = 0

    def add(self, pulled: Pulled) -> "Weighed":
        """One more."""
        return Weighed(self.content_bytes + pulled.fetched, self.wire_bytes + pulled.transferred)

    def ratio(self, telling_bytes: int) -> float | None:
        """Wire bytes for a byte of content; None where there was less content than that."""
        return self.wire_bytes / self.content_bytes if self.content_bytes >= telling_bytes else None


class SourceEnd(Machine):
    """A source that may come to its end at any time.

    Attributes:
        tally: what it cost so far.
        plain, deltas: what images cost that came as they are, or as deltas; in this run of the node.
        pauses: how often, and for how many seconds in all, the app did not run for an image of pre-copy; likewise.
    """

    end = End.SOURCE

    def __init__(self, offer: Offer, config: HandoffConfig) -> None:
        super().__init__(config)
        self.offer = offer
        self.at = At.OFFERED
        self.tally = Tally(started_at=0.0)
        self.outcome: Outcome | None = None
        self.warning = ""
        self.ended_at: float | None = None
        self.plain = self.deltas = Weighed()
        self.pauses = (0, 0.0)
        self._as_delta = False
        self._token: int | None = None
        self._attempt = 0
        self._frozen_at: float | None = None
        self._ending: Ending | None = None
        self._last_phase = Phase.SUSPEND
        self._settled = self._acked = self._mute = False
        self._act_tries = 0

    @property
    @abstractmethod
    def phase(self) -> Phase:
        """The state of the row."""

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do on this node: another migration of the app may begin."""
        return self.at is At.OVER or self._settled

    @property
    def epitaph(self) -> Epitaph:
        """What is to be remembered once it is over."""
        match self._ending:
            case records.Committed(epoch=epoch):
                return Epitaph(End.SOURCE, Fate.MOVED, epoch)
            case records.Forced(epoch=epoch):
                return Epitaph(End.SOURCE, Fate.FORCED, epoch)
            case _:
                return Epitaph(End.SOURCE, Fate.KEPT, self.offer.epoch)

    # -- the ending

    def _end(self, ending: Ending) -> None:
        self._stop(self._token)
        self._act_tries = 0
        self._clear(Timer.RETRY, Timer.FREEZE, Timer.ACT)
        self._last_phase = self.phase
        self._ending = ending
        self.ended_at = self._now
        self.at = At.ENDING
        if self._newest is not None:
            self._journal(ending)
        self._settle()
        if isinstance(ending, records.Committed):
            self._last_word()

    def _restart_ending(self) -> None:
        """The node was restarted after the ending was written."""
        self.at = At.ENDING
        if not self._settled:
            self._settle()
        elif not isinstance(self._ending, records.Committed):
            self._finish()
        if self._may_speak:
            self._last_word()

    def _settle(self) -> None:
        action: events.Action
        match self._ending:
            case records.Committed(epoch=epoch):
                action = events.Destroy(epoch - 1)
            case records.Returned(epoch=epoch) | records.Forced(epoch=epoch):
                action = events.Resume(epoch)
            case _ if self._frozen_at is None:
                action = events.Release()
            case _:
                action = events.Resume(self.offer.epoch)
        self._token = self._act(action)

    def _on_settle_done(self, result: events.Result) -> None:
        if isinstance(result, events.Resumed):
            self._thaw(result.since_start_s)
        self._has_settled()

    def _on_settle_broke(self, event: events.Broke) -> None:
        if isinstance(self._ending, records.Committed) or self._act_tries + 1 < self.config.resume_tries:
            self._retry_act()
            return
        self._thaw(0.0)
        self._has_settled(f"it could not be resumed: {event.reason}")

    def _has_settled(self, trouble: str = "") -> None:
        self._settled = True
        if not self._mute:
            self._journal(records.Settled(self._now, self.tally))
        if not isinstance(self._ending, records.Committed):
            self._finish(trouble)
            self._last_word()
        self._close_if_possible()

    @property
    def _may_speak(self) -> bool:
        """A commit is said at once; that the app stays, when it runs again and the row is final."""
        return self._settled or isinstance(self._ending, records.Committed)

    def _last_word(self) -> None:
        self._attempt = 0
        self._repeat_last_word()
        self._again()
        if isinstance(self._ending, records.Committed):
            self._set(Timer.PATIENCE, self.config.commit_patience_s)

    def _repeat_last_word(self) -> None:
        word = self._word()
        if word is not None and self._may_speak:
            self._send(word)

    def _word(self) -> Message | None:
        match self._ending:
            case records.Committed():
                return messages.Commit()
            case records.Aborted(code=code, reason=reason) | records.Returned(code=code, reason=reason):
                return messages.Abort(code, reason)
            case records.Forced(epoch=epoch):
                return messages.Supersede(epoch)
            case None:
                return None

    def _on_acknowledged(self, warning: str) -> None:
        self._acked = True
        self.warning = warning
        self._clear(Timer.RETRY)
        if isinstance(self._ending, records.Committed):
            self._finish()
        self._close_if_possible()

    def _on_end_timer(self, timer: Timer) -> None:
        match timer:
            case Timer.RETRY if not self._acked:
                self._repeat_last_word()
                self._again()
            case Timer.ACT if not self._settled and self._token is None:
                self._settle()
            case Timer.PATIENCE:
                self._finish()
            case _:
                pass

    # -- what the operator is told

    @property
    def expected_outcome(self) -> Outcome | None:
        """The outcome, also where only acknowledgements are open; None while it is undecided."""
        if self.outcome is not None or self._ending is None:
            return self.outcome
        return self._told(self._ending, "")

    def _finish(self, trouble: str = "") -> None:
        if self.outcome is not None or self._ending is None:
            return
        self.outcome = self._told(self._ending, trouble)
        self._clear(Timer.PATIENCE)
        self._out.append(events.Finished())

    def _told(self, ending: Ending, trouble: str) -> Outcome:
        match ending:
            case records.Committed(error=""):
                return Outcome(Phase.DONE)
            case records.Committed(error=error):
                return Outcome(Phase.FAILED, "failed", f"the app is at the destination now, but {error}")
            case records.Aborted(cancelled=True, code=code, reason=reason):
                phase = Phase.CANCELLED
            case records.Aborted(code=code, reason=reason) | records.Returned(code=code, reason=reason):
                phase = Phase.FAILED
            case records.Forced(epoch=epoch):
                phase, code, reason = Phase.FAILED, "failed", f"taken back by force at epoch {epoch}"
        return Outcome(phase, code, f"{reason}; {trouble}" if trouble else reason)

    def _close_if_possible(self) -> None:
        if not (self._acked and self._settled):
            return
        if not self._mute:
            self._journal(records.Closed(self._now))
        self._over()

    def _over(self) -> None:
        self.at = At.OVER
        self._clear(Timer.RETRY, Timer.ACT, Timer.PATIENCE)
        self._out.append(events.Forget())

    # -- repetition and counting

    def _again(self) -> None:
        self._set(Timer.RETRY, backoff(self.config.retry_s, self.config.retry_max_s, self._attempt))
        self._attempt += 1

    def _retry_act(self) -> None:
        self._set(Timer.ACT, backoff(self.config.act_retry_s, self.config.act_retry_max_s, self._act_tries))
        self._act_tries += 1

    def _count(self, pulled: Pulled) -> None:
        self.tally = replace(self.tally, instance=add_image(self.tally.instance, pulled))
        if self._as_delta:
            self.deltas = self.deltas.add(pulled)
        else:
            self.plain = self.plain.add(pulled)

    def _count_freeze(self, seconds: float) -> None:
        self.tally = replace(
            self.tally,
            freeze_s=self.tally.freeze_s + seconds,
            longest_freeze_s=max(self.tally.longest_freeze_s, seconds),
        )

    def _thaw(self, since_start_s: float) -> None:
        """The app runs again, since `since_start_s` ago. Only durations come from the other node's clock."""
        if self._frozen_at is not None:
            self._count_freeze(max(self._now - since_start_s - self._frozen_at, 0.0))
            self._frozen_at = None


def add_image(sum_: Pulled, pulled: Pulled) -> Pulled:
    """What all images cost together: `total` is of the newest, `deduplicated` what of it never had to be fetched.

    A sum stays within what a record may hold, whatever a peer says of each image.
    """
    sources = dict(sum_.sources)
    for node, count in pulled.sources.items():
        sources[node] = min(sources.get(node, 0) + count, MAX_INT)
    return Pulled(
        total=pulled.total,
        deduplicated=max(pulled.total - sum_.fetched - pulled.fetched, 0),
        transferred=min(sum_.transferred + pulled.transferred, MAX_INT),
        sources=largest_sources(sources),
        seconds=min(sum_.seconds + pulled.seconds, MAX_REAL),
    )
