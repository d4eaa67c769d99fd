"""The source of a migration: it has the app and gives it away, or keeps it.

Theory of operation
-------------------
Before the grant the source asks, one request at a time, and anything that goes wrong ends in `_abort`: the app is
resumed and the other end told to throw away what it has. A restart of the node before the grant is such a failure
too.

    OFFERED -> PLANNING -> SYNCING -> [IMAGING -> SENDING]* -> SUSPENDING -> FINAL_IMAGE -> FINAL_SENT -> GRANTED
        \\___________________________ failure: Aborted, resume ________________________/          |
                                                          Restored: Committed, destroy <---------+
                                                          Failed: Returned, resume at e+2 <------+
                                                          operator: Forced, resume at e+2 <------+

An image takes time: its dump, and reading it. Where another round is to be expected, the next image is taken while the
last of this one is on its way (`_look_ahead`), so that the link does not wait for it. What is taken ahead is sent.

This module is the first line; `source_grant` is what follows the grant, `source_end` the four endings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from p2player.proto.handoff import events, messages, records
from p2player.proto.handoff.events import AppState, Event, Output, Timer
from p2player.proto.handoff.machine import HandoffConfig, JournalUnlawful, clip, expect
from p2player.proto.handoff.messages import Message, Mode, Offer, Pulled
from p2player.proto.handoff.records import Record, Tally
from p2player.proto.handoff.source_end import At, Ending
from p2player.proto.handoff.source_grant import IN_DOUBT, SourceGrant
from p2player.proto.handoff.table import Phase
from p2player.proto.rounds import RoundPolicy, Verdict

_PHASES = {
    At.OFFERED: Phase.PREFLIGHT,
    At.PLANNING: Phase.PLAN,
    At.SYNCING: Phase.SYNC,
    At.IMAGING: Phase.PRECOPY,
    At.SENDING: Phase.PRECOPY,
    At.SUSPENDING: Phase.SUSPEND,
    At.FINAL_IMAGE: Phase.FINAL,
    At.FINAL_SENT: Phase.FINAL,
}


_LOOK_AHEAD_S = 1.5
"""Beyond the time that an image takes: progress is told every second, and counts what has come as a whole."""


@dataclass(slots=True)
class _Doomed:
    """An abort that waits for the engine to finish suspending."""

    code: str
    reason: str
    cancelled: bool


@dataclass(slots=True)
class _Ahead:
    """The next image, taken while the one before is on its way: being taken, or there, or neither.

    `failed_in`: the step in which it could not be taken; it is not tried again in that one.
    """

    taken_at: float = 0.0
    token: int | None = None
    imaged: events.Imaged | None = None
    failed_in: int = 0


class SourceMachine(SourceGrant):
    """One migration, seen from the node that gives the app away.

    Args:
        offer: what is to move; its `epoch` is the one this node owns the app at.
        key: of the instance content.
        policy: when pre-copy stops.

    Attributes:
        outcome: how it ended; None while it has not. `ended_at`: when that was decided.
        warning: of the after_restore hook at the destination.
        progress: bytes (done, total) of the request that the destination works on.
        final_s: seconds that the final transfer took; None while, or where, that was not seen.
        health_s: seconds that the destination watched the started app; likewise.
    """

    def __init__(self, offer: Offer, key: bytes, config: HandoffConfig, policy: RoundPolicy) -> None:
        super().__init__(offer, config)
        self.key = key
        self.policy = policy
        self.progress = (0, 0)
        self.final_s: float | None = None
        self._asked_at = 0.0
        self._step = 0
        self._request: Message | None = None
        self._heard = 0.0
        self._silent = False
        self._undelivered = 0
        self._taken_at = 0.0
        self._imaging_s = 0.0
        self._ahead = _Ahead()
        self._doomed: _Doomed | None = None

    @classmethod
    def replay(cls, entries: Sequence[Record], config: HandoffConfig, policy: RoundPolicy) -> "SourceMachine":
        """The machine of a journal that was found; call `restart` next.

        Raises:
            JournalUnlawful: the records do not follow from one another.
        """
        if not entries or not isinstance(entries[0], records.Begun):
            raise JournalUnlawful("source journal without its first record")
        machine = cls(entries[0].offer, b"", config, policy)
        machine._replay(entries)
        machine.tally = Tally(started_at=entries[0].at)
        for record in entries:
            if isinstance(record, records.Suspending | records.Granted | records.Committed):
                machine.tally = record.tally
            if isinstance(record, records.Suspending) and machine.offer.running:
                machine._frozen_at = record.at
            if isinstance(record, Ending):
                machine._ending = record
                machine.ended_at = record.at
            if isinstance(record, records.Settled):
                machine._settled = True
                machine._frozen_at = None
                machine.tally = record.tally or machine.tally
        return machine

    # -- what others may read

    @property
    def app_id(self) -> str:
        return self.offer.app_id

    @property
    def peer(self) -> str:
        """NodeId of the other end."""
        return self.offer.destination

    @property
    def phase(self) -> Phase:
        if self.outcome is not None:
            return self.outcome.phase
        if self._ending is not None:  # the app does not run again yet, or is not destroyed
            return Phase.COMMIT if isinstance(self._ending, records.Committed) else self._last_phase
        if self.at in IN_DOUBT:
            return Phase.RESTORE if self.restoring else Phase.GRANT
        return _PHASES[self.at]

    @property
    def round(self) -> int:
        """The round of pre-copy that is under way, from 1; 0 in other phases."""
        return self.tally.rounds + (self.at is At.IMAGING) if self.phase is Phase.PRECOPY else 0

    @property
    def cancellable(self) -> bool:
        """Whether `Cancel` would still be heeded."""
        return self.at in _PHASES and self._doomed is None

    @property
    def froze(self) -> bool:
        """Whether the app may be suspended here although it was not granted."""
        suspended = self._frozen_at is not None and self.at in _PHASES
        return suspended or (isinstance(self._ending, records.Aborted) and not self._settled)

    @property
    def holds(self) -> bool:
        """Whether nobody but this migration may start, stop or remove the app here."""
        return not self.settled

    # -- beginnings

    def begin(self, now: float) -> list[Output]:
        """Start the migration."""
        self._now, self._out = now, []
        self.tally = Tally(started_at=now)
        self._journal(records.Begun(now, messages.for_journal(self.offer)))
        self._out.append(events.Mark(AppState.MIGRATING))
        self._ask(replace(self.offer, step=self._next_step()))
        return self._out

    def restart(self, now: float) -> list[Output]:
        """Go on after a restart of the node."""
        self._now, self._out = now, []
        match self._newest:
            case records.Begun() | records.Suspending():
                self._abort("failed", "the source node was restarted")
            case records.Granted():
                self._restart_granted()
            case records.Closed():
                self._finish()
                self._over()
            case _:
                self._restart_ending()
        return self._out

    # -- events

    def _dispatch(self, event: Event) -> None:
        match event:
            case events.Received(message):
                self._heard = self._now
                self._silent = False
                self._undelivered = 0
                self._on_message(message)
            case events.Done(token, result) if token == self._token:
                self._token = None
                self._on_done(result)
            case events.Done(token, result) if token == self._ahead.token:
                self._imaging_s = self._now - self._ahead.taken_at
                self._ahead = _Ahead(self._ahead.taken_at, imaged=expect(result, events.Imaged))
            case events.Broke(token) if token == self._token:
                self._token = None
                self._on_broke(event)
            case events.Broke(token) if token == self._ahead.token:
                self._ahead = _Ahead(failed_in=self._step)  # the next one will fail likewise, or not
            case events.Advanced(done, total):
                self.progress = (done, total)
            case events.Fired(timer):
                self._on_timer(timer)
            case events.Undelivered(reason) if self.at is At.OFFERED:
                self._undelivered += 1
                if self._undelivered >= self.config.offer_tries:
                    self._abort("unreachable", reason)
            case events.Rejected(code, reason) if self.cancellable:
                self._abort(code, reason)
            case events.Cancel(reason) if self.cancellable:
                self._abort("failed", reason, cancelled=True)
            case events.Ask() if self.at is At.GRANTED:
                self._ask_now()
            case events.Force() if self.in_doubt:
                self._force()
            case _:
                pass  # the result of a stopped action, or a wish that comes too late

    def _on_message(self, message: Message) -> None:
        if self.at in _PHASES:
            self._on_message_before_grant(message)
        elif self.in_doubt:
            self._on_message_in_doubt(message)
        elif isinstance(message, messages.Closed):
            if self.at is At.ENDING:
                self._on_acknowledged(message.warning)
        else:
            self._repeat_last_word()

    def _on_message_before_grant(self, message: Message) -> None:
        match message:
            case messages.Failed(code, reason):
                self._abort(code, reason)
            case messages.Progress(step, done, total, True) if step == self._step:
                self.progress = (done, total)
                self._look_ahead()
            case messages.Progress(working=False):
                self._send(messages.Alive())
            case messages.Welcome(step) if self._answers(At.OFFERED, step):
                self._plan(message)
            case messages.Synced(step) if self._answers(At.SYNCING, step):
                self._synced(message)
            case messages.Rounded(step, pulled) if self._answers(At.SENDING, step):
                self._rounded(pulled)
            case messages.Ready(step, pulled) if self._answers(At.FINAL_SENT, step):
                self._clear(Timer.FREEZE)
                self.final_s = self._now - self._asked_at
                self._grant(pulled)
            case _:
                pass  # late, or repeated

    def _on_message_in_doubt(self, message: Message) -> None:
        match message:
            case messages.Failed(code, reason):
                self._on_voided(code, reason)
            case messages.Restored():
                self._on_restored(message)
            case messages.Ready() if self.at is At.GRANTED:
                self._repeat_grant()  # it did not hear it
            case messages.Progress():
                self._on_granted_progress(message)
            case _:
                pass

    def _answers(self, at: At, step: int) -> bool:
        if self.at is not at or step != self._step:
            return False
        self._request = None
        self._clear(Timer.RETRY)
        return True

    def _on_done(self, result: events.Result) -> None:
        match self.at:
            case At.PLANNING:
                self._planned(expect(result, events.Planned))
            case At.IMAGING:
                self._imaging_s = self._now - self._taken_at
                self._imaged(expect(result, events.Imaged))
            case At.FINAL_IMAGE:
                self._imaged(expect(result, events.Imaged))
            case At.SUSPENDING if self._doomed is not None:
                self._abort_doomed()
            case At.SUSPENDING:
                self.at = At.FINAL_IMAGE
                self._token = self._act(events.TakeImage(self.tally.rounds + 1, final=True))
            case At.CHECKING:
                self._has_granted()
            case At.ENDING:
                self._on_settle_done(result)
            case _:
                pass

    def _on_broke(self, event: events.Broke) -> None:
        match self.at:
            case At.SUSPENDING if self._doomed is not None:
                self._abort_doomed()
            case At.IMAGING if self.policy.stuck() is Verdict.SUSPEND and event.code != "refused":
                self._suspend()  # a tree that changes under the import cannot be pre-copied: the final image can
            case At.CHECKING:
                self._retry_act()
            case At.ENDING:
                self._on_settle_broke(event)
            case _:
                self._abort(event.code, event.reason)

    def _on_timer(self, timer: Timer) -> None:
        match timer:
            case _ if self.at is At.ENDING:
                self._on_end_timer(timer)
            case Timer.RETRY if self.at is At.GRANTED:
                self._repeat_grant()
            case Timer.RETRY:
                self._on_retry()
            case Timer.FREEZE if self.at is At.FINAL_SENT:
                bound = self.policy.config.max_freeze_s or 0.0
                self._abort("refused", f"the final transfer took longer than the bound of {bound:.3g} s")
            case Timer.ACT if self.at is At.CHECKING:
                self._check()
            case _:
                pass

    # -- phases before the grant

    def _plan(self, welcome: messages.Welcome) -> None:
        self.at = At.PLANNING
        self._token = self._act(events.MakePlan(welcome.base, welcome.app, welcome.basis_bytes))

    def _planned(self, plan: events.Planned) -> None:
        self.tally = replace(self.tally, prediction=plan.prediction)
        if plan.refusals:
            self._abort("refused", "; ".join(plan.refusals))
            return
        self.at = At.SYNCING
        self._ask(messages.Sync(self._next_step(), self.key))

    def _synced(self, message: messages.Synced) -> None:
        self.tally = replace(self.tally, base=message.base, app=message.app)
        for pulled in (message.base, message.app):
            if pulled.sources.keys() == {self.offer.source}:
                self.policy.synced(pulled.fetched, pulled.seconds)
        if self.offer.mode is Mode.COLD:
            self._suspend()
        else:
            self._follow(self.policy.begin(self.offer.instance_bytes))

    def _rounded(self, pulled: Pulled) -> None:
        self._count(pulled)
        verdict = self.policy.moved(pulled.fetched, pulled.seconds, self._now, self._imaging_s)
        ahead, self._ahead = self._ahead, _Ahead()
        if ahead.token is None and ahead.imaged is None:
            self._follow(verdict)
            return
        self.at, self._taken_at, self._token = At.IMAGING, ahead.taken_at, ahead.token
        if ahead.imaged is not None:
            self._imaged(ahead.imaged)

    def _look_ahead(self) -> None:
        """Take the next image now, if the end of this one's transfer is near and another round will surely follow."""
        done, total = self.progress
        ahead = self._ahead
        if ahead.token is not None or ahead.imaged is not None or ahead.failed_in == self._step:
            return
        if self.at is not At.SENDING or not 0 < done < total:
            return
        passed_s = self._now - self._asked_at
        left_s = passed_s * (total - done) / done
        if left_s <= self._imaging_s + _LOOK_AHEAD_S <= passed_s and self.policy.expects_round(self._now + left_s):
            self._ahead = _Ahead(self._now, self._act(events.TakeImage(self.tally.rounds + 1, final=False)))

    def _follow(self, verdict: Verdict) -> None:
        match verdict:
            case Verdict.ROUND:
                self.at = At.IMAGING
                self._taken_at = self._now
                self._token = self._act(events.TakeImage(self.tally.rounds + 1, final=False))
            case Verdict.SUSPEND:
                self._suspend()
            case Verdict.REFUSE:
                bound = self.policy.config.max_freeze_s or 0.0
                expected = self.policy.final_s(self._now)
                self._abort(
                    "refused",
                    f"the final transfer would take about {expected:.3g} s, over the bound of {bound:.3g} s",
                )

    def _suspend(self) -> None:
        self.at = At.SUSPENDING
        self._frozen_at = self._now if self.offer.running else None
        self._journal(records.Suspending(self._now, self.tally))
        self._token = self._act(events.Suspend(self.offer.mode))

    def _imaged(self, imaged: events.Imaged) -> None:
        final = self.at is At.FINAL_IMAGE
        self._as_delta = imaged.as_delta
        if not final:
            self.policy.imaged(imaged.delta_bytes, self._taken_at, imaged.as_delta)
            self._count_pause(imaged)
        self.tally = replace(self.tally, rounds=self.tally.rounds + 1)
        self.at = At.FINAL_SENT if final else At.SENDING
        self._ask(messages.Round(self._next_step(), self.tally.rounds, imaged.image, final))
        if final and self.policy.config.max_freeze_s is not None:
            self._set(Timer.FREEZE, self.policy.config.max_freeze_s)

    def _count_pause(self, imaged: events.Imaged) -> None:
        """An image of pre-copy was taken."""
        self._count_freeze(imaged.pause_s)
        self.pauses = (self.pauses[0] + 1, self.pauses[1] + imaged.pause_s)

    def _abort(self, code: str, reason: str, *, cancelled: bool = False) -> None:
        if self.at is At.SUSPENDING and self._token is not None:
            self._doomed = _Doomed(code, reason, cancelled)
            return
        self._stop(self._ahead.token)
        if self._ahead.imaged is not None:  # it is not sent, but the app paused for it
            self._count_pause(self._ahead.imaged)
        self._ahead = _Ahead()
        self._end(records.Aborted(self._now, code, clip(reason), cancelled))

    def _abort_doomed(self) -> None:
        doomed, self._doomed = self._doomed, None
        assert doomed is not None
        self._abort(doomed.code, doomed.reason, cancelled=doomed.cancelled)

    # -- requests

    def _next_step(self) -> int:
        self._step += 1
        return self._step

    def _ask(self, message: Message) -> None:
        self._request = message
        self._asked_at = self._heard = self._now
        self._silent = True
        self.progress = (0, 0)
        self._send(message)
        self._set(Timer.RETRY, self.config.retry_s)

    def _on_retry(self) -> None:
        if self._request is None:
            return
        patience_s = self.config.silence_s if self._frozen_at is None else self.config.frozen_silence_s
        if self._now - self._heard >= patience_s:
            self._abort("unreachable", f"the destination did not answer for {patience_s:g} s")
            return
        if self._silent:
            self._send(self._request)
        self._silent = True
        self._set(Timer.RETRY, self.config.retry_s)

    # -- a journal that cannot be written

    def _on_unwritten(self, outputs: tuple[Output, ...]) -> None:
        match outputs[0]:
            case events.Journal(records.Begun()):
                self._newest, self._mute, self._token = None, True, None
                self._acked = True  # the other end heard nothing
                self._end(records.Aborted(self._now, "failed", "the journal cannot be written"))
            case events.Journal(records.Suspending()):
                self._newest = records.Begun(self._now, self.offer)
                self._token = self._frozen_at = None  # nothing was suspended
                self._end(records.Aborted(self._now, "failed", "the journal cannot be written"))
            case events.Journal(records.Granted() as granted):
                self._on_grant_unwritten(granted)
            case events.Journal(records.Aborted()):
                self._on_abort_unwritten(outputs)
            case _:
                super()._on_unwritten(outputs)
