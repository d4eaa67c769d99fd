"""The destination of a migration: it takes the app, or refuses it for good.

Theory of operation
-------------------
The destination never moves on by itself before the grant: it answers requests, one at a time, and repeats an answer
when the request comes again. While it works it says so; while it waits it asks now and then whether the source is
still there.

    CHECKING -> WAITING <-> WORKING -> READY -> RESTORING -> RESTORED -> OVER
                    \\________________/  |        |  the engine failed and the app never executed
                            Refused <---+--------+

Until `Ready` is durable a restart of the node refuses the migration; afterwards it waits for the grant as before, and
accepts it in READY only.

This module is what comes before the grant; `destination_owner` what follows it, `destination_end` the endings.
"""

from collections.abc import Sequence

from p2player.proto.handoff import events, messages, records
from p2player.proto.handoff.destination_end import At, Parties
from p2player.proto.handoff.destination_owner import DestinationOwner
from p2player.proto.handoff.events import Event, Output, Timer
from p2player.proto.handoff.machine import HandoffConfig, JournalUnlawful, expect
from p2player.proto.handoff.messages import Grant, Message, Offer, Pulled
from p2player.proto.handoff.records import Record
from p2player.proto.handoff.table import Phase

Request = messages.Offer | messages.Sync | messages.Round


class DestinationMachine(DestinationOwner):
    """One migration, seen from the node that takes the app.

    Args:
        parties: who moves what.
        offer: the source's offer; None where only a grant of it is known.

    Attributes:
        outcome: how it ended here; None while it has not.
        row: the source's final row as JSON, once it was told.
        progress: bytes (done, total) of the present request.
        began_at: when it began here.
    """

    def __init__(self, parties: Parties, offer: Offer | None, config: HandoffConfig) -> None:
        super().__init__(parties, offer, config)
        self.progress = (0, 0)
        self.began_at = 0.0
        self._phase_before = Phase.PREFLIGHT
        self._step = 0
        self._answer: Message | None = None
        self._heard = 0.0

    @classmethod
    def offered(cls, offer: Offer, config: HandoffConfig) -> "DestinationMachine":
        """The machine of an offer that came; call `begin` next."""
        return cls(Parties(offer.app_id, offer.epoch, offer.source, offer.destination), offer, config)

    @classmethod
    def asked(cls, grant: Grant, config: HandoffConfig) -> "DestinationMachine":
        """The machine of a grant for a migration that is unknown here; call `begin` next."""
        return cls(Parties(grant.app_id, grant.epoch - 1, grant.source, grant.destination), None, config)

    @classmethod
    def replay(cls, entries: Sequence[Record], config: HandoffConfig) -> "DestinationMachine":
        """The machine of a journal that was found; call `restart` next.

        Raises:
            JournalUnlawful: the records do not follow from one another.
        """
        match entries[0] if entries else None:
            case records.Offered(at, offer):
                machine = cls.offered(offer, config)
            case records.Asked(at, app_id, epoch, source, destination):
                machine = cls(Parties(app_id, epoch - 1, source, destination), None, config)
            case _:
                raise JournalUnlawful("destination journal without its first record")
        machine._replay(entries)
        machine.began_at = at
        for record in entries:
            match record:
                case records.Ready(_, step, pulled):
                    machine._step, machine._answer = step, messages.Ready(step, pulled)
                case records.Restored():
                    machine._restored = record
                case records.Refused():
                    machine._refused = record
                case records.Superseded():
                    machine._superseded = True
                case records.Settled():
                    machine._settled = True
                case records.Closed(_, row):
                    machine.row = row
                case _:
                    pass
        return machine

    # -- what others may read

    @property
    def app_id(self) -> str:
        return self.parties.app_id

    @property
    def peer(self) -> str:
        """NodeId of the other end."""
        return self.parties.source

    @property
    def phase(self) -> Phase:
        """The state of this end's row."""
        if self.outcome is not None:
            return self.outcome.phase
        match self.at:
            case At.READY:
                return Phase.READY
            case At.FINDING | At.RESTORING:
                return Phase.RESTORE
            case At.RESTORED:
                return Phase.COMMIT
            case _:
                return self._phase_before

    @property
    def holds(self) -> bool:
        """Whether nobody but this migration may start, stop or remove the app here."""
        return not self.settled and self.at is not At.RESTORED

    # -- beginnings

    def begin(self, now: float) -> list[Output]:
        """Start, on an offer or an unexpected grant."""
        self._now, self._out = now, []
        self.began_at = self._heard = now
        if self.offer is None:
            parties = self.parties
            self._journal(records.Asked(now, parties.app_id, self.epoch, parties.source, parties.destination))
            self._find()
        else:
            self._step = self.offer.step
            self._token = self._act(events.Preflight(self.offer))
            self._set(Timer.HEARTBEAT, self.config.heartbeat_s)
        return self._out

    def restart(self, now: float) -> list[Output]:
        """Go on after a restart of the node."""
        self._now, self._out = now, []
        self._heard = now
        match self._newest:
            case records.Offered():
                self._refuse("failed", "the destination node was restarted")
            case records.Ready():
                self._wait_for_grant()
            case records.Asked():
                self._find()
            case records.Accepted():
                self._restart_accepted()
            case records.Restored() as restored:
                self._has_restored(restored)
            case records.Refused():
                self._restart_refused()
            case records.Superseded():
                self._discard(At.SUPERSEDED)
            case records.Settled():
                self._restart_settled()
            case _:
                self._restart_closed()
        return self._out

    # -- events

    def _dispatch(self, event: Event) -> None:
        match event:
            case events.Received(message):
                self._heard = self._now
                self._on_message(message)
            case events.Done(token, result) if token == self._token:
                self._token = None
                self._on_done(result)
            case events.Broke(token) if token == self._token:
                self._token = None
                self._on_broke(event)
            case events.Done(token, result) if token == self._hook_token:
                self._on_hook(result if isinstance(result, str) else "")
            case events.Broke(token, _, reason) if token == self._hook_token:
                self._on_hook(f"after_restore: {reason}")
            case events.Advanced(done, total):
                self.progress = (done, total)
            case events.Fired(timer):
                self._on_timer(timer)
            case _:
                pass

    def _on_message(self, message: Message) -> None:
        match message:
            case messages.Commit(row):
                self._on_commit(row)
            case messages.Abort():
                self._on_abort(message)
            case messages.Supersede(epoch):
                self._on_supersede(epoch)
            case _ if self.at is At.REFUSED:
                self._answer_of_the_past(message)
            case messages.Offer() | messages.Sync() | messages.Round():
                self._on_request(message)
            case messages.Grant() if self._is_ours(message):
                self._on_grant()
            case _:
                pass  # a sign of life, or not for us: whoever sent it gets no answer

    def _on_request(self, request: Request) -> None:
        if request.step == self._step and self.at in (At.WAITING, At.READY):
            if self._answer is not None:
                self._send(self._answer)
        elif request.step == self._step and self.at in (At.CHECKING, At.WORKING):
            self._send(self._progress())
        elif request.step > self._step and self.at is At.WAITING and self.offer is not None:
            match request:
                case messages.Sync(step, key):
                    self._work(step, Phase.SYNC, events.PullLayers(self.offer, key))
                case messages.Round(step, number, image, final):
                    phase = Phase.FINAL if final else Phase.PRECOPY
                    self._work(step, phase, events.PullImage(number, image, final))
                case _:
                    pass

    def _on_grant(self) -> None:
        match self.at:
            case At.READY:
                self._accept()
            case At.FINDING | At.RESTORING:
                self._send(self._progress())
            case At.RESTORED:
                self._say_restored()
            case At.CHECKING | At.WAITING | At.WORKING:
                self._refuse("failed", "granted before the destination was ready")
            case _:
                pass

    def _on_done(self, result: events.Result) -> None:
        match self.at:
            case At.CHECKING:
                self._checked(expect(result, events.Checked))
            case At.WORKING:
                self._worked(result)
            case At.FINDING:
                self._found(expect(result, events.Found))
            case At.RESTORING:
                self._on_restore_done(expect(result, events.Resumed))
            case At.REFUSED | At.SUPERSEDED:
                self._has_settled()
            case _:
                pass

    def _on_broke(self, event: events.Broke) -> None:
        match self.at:
            case At.CHECKING | At.WORKING:
                self._refuse(event.code, event.reason)
            case At.RESTORING:
                self._on_restore_broke(event)
            case At.FINDING | At.REFUSED | At.SUPERSEDED:
                self._retry_act()
            case _:
                pass

    # -- requests

    def _work(self, step: int, phase: Phase, action: events.Action) -> None:
        self.at = At.WORKING
        self._phase_before = phase
        self._step, self._answer = step, None
        self.progress = (0, 0)
        self._clear(Timer.PATIENCE)
        self._token = self._act(action)
        self._set(Timer.HEARTBEAT, self.config.heartbeat_s)

    def _answer_with(self, answer: Message) -> None:
        self.at = At.WAITING
        self._answer = answer
        self._heard = self._now
        self._send(answer)
        self._clear(Timer.HEARTBEAT)
        self._set(Timer.PATIENCE, self.config.idle_s)

    def _checked(self, checked: events.Checked) -> None:
        assert self.offer is not None
        if checked.refusals:
            self._refuse("refused", "; ".join(checked.refusals))
            return
        # What the app is travels once; a restart finds it in the record that was staged.
        self._journal(records.Offered(self._now, messages.for_journal(self.offer)))
        self._answer_with(messages.Welcome(self._step, checked.base, checked.app, checked.basis_bytes))

    def _worked(self, result: events.Result) -> None:
        match result:
            case events.LayersPulled(base, app):
                self._answer_with(messages.Synced(self._step, base, app))
            case Pulled() if self._phase_before is Phase.FINAL:
                self._journal(records.Ready(self._now, self._step, result))
                self._answer = messages.Ready(self._step, result)
                self._clear(Timer.HEARTBEAT)
                self._wait_for_grant()
            case _:
                self._answer_with(messages.Rounded(self._step, expect(result, Pulled)))

    def _wait_for_grant(self) -> None:
        self.at = At.READY
        self._attempt = 0
        self._repeat_ready()
        self._set(Timer.PATIENCE, self.config.ready_patience_s)

    def _repeat_ready(self) -> None:
        assert self._answer is not None
        self._send(self._answer)
        self._again()

    def _progress(self) -> messages.Progress:
        working = self.at not in (At.WAITING, At.READY)
        return messages.Progress(self._step, *self.progress, working=working, accepted=self.owns)

    # -- timers

    def _on_timer(self, timer: Timer) -> None:
        match timer:
            case Timer.HEARTBEAT if self.at in (At.CHECKING, At.WORKING, At.RESTORING):
                self._send(self._progress())
                self._set(Timer.HEARTBEAT, self.config.heartbeat_s)
            case Timer.RETRY if self.at is At.READY:
                self._repeat_ready()
            case Timer.RETRY if self.at is At.RESTORED and not self._goodbye:
                self._repeat_restored()
            case Timer.RETRY if self.at is At.REFUSED and not self._goodbye:
                self._repeat_failed()
            case Timer.PATIENCE if self.at is At.READY:
                self._refuse("unreachable", "the source said nothing for too long")
            case Timer.PATIENCE if self.at is At.WAITING:
                self._on_idle()
            case Timer.ACT if self._token is None:
                self._act_again()
            case _:
                pass

    def _on_idle(self) -> None:
        if self._now - self._heard >= self.config.patience_s:
            self._refuse("unreachable", "the source said nothing for too long")
            return
        self._send(self._progress())
        self._set(Timer.PATIENCE, self.config.idle_s)

    def _act_again(self) -> None:
        match self.at:
            case At.FINDING:
                self._find()
            case At.REFUSED | At.SUPERSEDED if not self._settled:
                self._token = self._act(events.Discard(self.epoch))
            case _:
                pass
