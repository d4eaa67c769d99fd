"""The end of a migration at its destination: refused, superseded, or closed.

A refusal is durable before it is said, and makes every later grant void. What was staged is thrown away meanwhile,
and `Failed` repeated until the source says `Abort`. `Closed` answers the source's last word once this end's own part
is done.
"""

from dataclasses import dataclass
from enum import StrEnum

from p2player.proto.handoff import events, messages, records
from p2player.proto.handoff.events import Timer
from p2player.proto.handoff.machine import HandoffConfig, Machine, Outcome, backoff, clip
from p2player.proto.handoff.memory import Epitaph, Fate
from p2player.proto.handoff.messages import Message, Offer
from p2player.proto.handoff.table import End, Phase


class At(StrEnum):
    """Where a destination stands; see `destination`."""

    CHECKING = "checking"
    WAITING = "waiting"
    WORKING = "working"
    READY = "ready"
    FINDING = "finding"
    RESTORING = "restoring"
    RESTORED = "restored"
    REFUSED = "refused"
    SUPERSEDED = "superseded"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Parties:
    """Who moves what: from an offer, or from a grant where nothing else is known. `epoch` is the source's, e."""

    app_id: str
    epoch: int
    source: str
    destination: str


class DestinationEnd(Machine):
    """A destination that may come to its end at any time."""

    end = End.DESTINATION

    def __init__(self, parties: Parties, offer: Offer | None, config: HandoffConfig) -> None:
        super().__init__(config)
        self.parties = parties
        self.offer = offer
        self.at = At.CHECKING
        self.outcome: Outcome | None = None
        self.row = ""
        self._token: int | None = None
        self._attempt = 0
        self._act_tries = 0
        self._refused: records.Refused | None = None
        self._restored: records.Restored | None = None
        self._superseded = False
        self._goodbye = False
        self._settled = False
        self._warning = ""

    @property
    def epoch(self) -> int:
        """The epoch that the grant says, e+1."""
        return self.parties.epoch + 1

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do on this node: another migration may bring the app here."""
        return self.at is At.OVER or self._settled

    @property
    def owns(self) -> bool:
        """Whether the app belongs to this node because of this migration."""
        return self.at in (At.FINDING, At.RESTORING, At.RESTORED)

    @property
    def epitaph(self) -> Epitaph:
        """What is to be remembered once it is over."""
        moved = self._restored is not None and not self._superseded
        return Epitaph(End.DESTINATION, Fate.MOVED if moved else Fate.KEPT, self.epoch)

    # -- the source's last words but Commit

    def _on_abort(self, message: messages.Abort) -> None:
        if self.owns:
            return  # what was accepted cannot be taken back, and no sound source tries
        self.row = records.bounded_row(message.row)
        self._take_leave()
        if self.at is not At.REFUSED:
            self._refuse(message.code, message.reason)
        elif self._settled:
            self._close()

    def _on_supersede(self, epoch: int) -> None:
        if epoch <= self.epoch or self.at is At.SUPERSEDED:
            return
        self._take_leave()
        if self.at is At.REFUSED:
            if self._settled:
                self._close()
        elif self._newest is None:
            self._quit(self._forced())
        else:
            self._superseded = True
            self._journal(records.Superseded(self._now, epoch))
            self._discard(At.SUPERSEDED)

    def _take_leave(self) -> None:
        self._goodbye = True
        self._clear(Timer.RETRY)

    # -- refusing

    def _refuse(self, code: str, reason: str) -> None:
        self._stop(self._token)
        self._token = None
        if self._newest is None:
            if not self._goodbye:
                self._send(messages.Failed(code, clip(reason)))
            self._quit(Outcome(Phase.FAILED, code, clip(reason)))
            return
        self._refused = records.Refused(self._now, self.epoch, code, clip(reason))
        self._journal(self._refused)
        self._restart_refused()

    def _restart_refused(self) -> None:
        self._discard(At.REFUSED)
        if not self._goodbye:
            self._say_failed()

    def _say_failed(self) -> None:
        self._attempt = 0
        self._repeat_failed()

    def _repeat_failed(self) -> None:
        self._send_failed()
        self._again()

    def _send_failed(self) -> None:
        assert self._refused is not None
        self._send(messages.Failed(self._refused.code, self._refused.reason))

    # -- settling and closing

    def _discard(self, at: At) -> None:
        self._stop(self._token)
        self._clear(Timer.RETRY, Timer.HEARTBEAT, Timer.PATIENCE, Timer.ACT)
        self.at = at
        self._act_tries = 0
        self._token = self._act(events.Discard(self.epoch))

    def _has_settled(self) -> None:
        self._settled = True
        self._journal(records.Settled(self._now))
        if self.at is At.REFUSED:
            self._tell_refused()
        if self._goodbye or self.at is At.SUPERSEDED:
            self._close()

    def _restart_settled(self) -> None:
        if self._refused is None:
            self.at = At.SUPERSEDED
            self._close()
        else:
            self.at = At.REFUSED
            self._tell_refused()
            self._say_failed()

    def _close(self) -> None:
        self._journal(records.Closed(self._now, self.row))
        self._send(messages.Closed(self._warning))
        self._restart_closed()

    def _restart_closed(self) -> None:
        if self._superseded:
            self._finish(self._forced())
        elif self._refused is not None:
            self._tell_refused()
        else:
            assert self._restored is not None
            error = self._restored.error
            self._finish(Outcome(Phase.DONE) if self._restored.healthy else Outcome(Phase.FAILED, "failed", error))
        self._over()

    def _quit(self, outcome: Outcome) -> None:
        """Leave without a trace: nothing was written, and a repeated offer is simply checked again."""
        self._finish(outcome)
        if self._goodbye:
            self._send(messages.Closed())
        self._over()

    def _over(self) -> None:
        self.at = At.OVER
        self._clear(Timer.RETRY, Timer.HEARTBEAT, Timer.PATIENCE, Timer.ACT)
        self._out.append(events.Forget())

    # -- what the operator is told

    def _tell_refused(self) -> None:
        assert self._refused is not None
        self._finish(Outcome(Phase.FAILED, self._refused.code, self._refused.reason))

    def _forced(self) -> Outcome:
        return Outcome(Phase.FAILED, "failed", "the source took the app back by force")

    def _finish(self, outcome: Outcome) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self._out.append(events.Finished())

    # -- repetition

    def _again(self) -> None:
        self._set(Timer.RETRY, backoff(self.config.retry_s, self.config.retry_max_s, self._attempt))
        self._attempt += 1

    def _retry_act(self) -> None:
        self._set(Timer.ACT, backoff(self.config.act_retry_s, self.config.act_retry_max_s, self._act_tries))
        self._act_tries += 1

    def _answer_of_the_past(self, message: Message) -> None:
        """A request or grant to an end that refused already."""
        if self.at is At.REFUSED and isinstance(
            message, messages.Offer | messages.Sync | messages.Round | messages.Grant
        ):
            self._send_failed()
