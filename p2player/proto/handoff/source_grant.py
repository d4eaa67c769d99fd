"""The grant at its source: from the record that gives the app away to the answer what became of it.

Once `Granted` is durable the app is not started here, whatever happens, until the destination answers. The grant
itself is the question, since repeating it is harmless; a restarted node first makes sure that no copy runs. An epoch
that was granted is never used here again: after a refusal or by force the app runs on at e+2.

If the record cannot be written, nobody knows whether it is durable, and nothing was sent: `Returned` is written after
it, and makes good either case before the app is resumed.
"""

from p2player.proto.handoff import events, messages, records
from p2player.proto.handoff.events import AppState, Output
from p2player.proto.handoff.machine import HandoffConfig, clip
from p2player.proto.handoff.messages import Offer, Pulled
from p2player.proto.handoff.source_end import At, SourceEnd

FORSAKEN_AFTER = 3
IN_DOUBT = frozenset({At.CHECKING, At.GRANTED})


class SourceGrant(SourceEnd):
    """A source that may have granted.

    Attributes:
        restoring: whether the destination said that it accepted the grant.
    """

    def __init__(self, offer: Offer, config: HandoffConfig) -> None:
        super().__init__(offer, config)
        self.restoring = False
        self.health_s: float | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether the app waits, suspended, for the destination to say what became of the grant."""
        return self.at in IN_DOUBT

    @property
    def forsaken(self) -> bool:
        """Whether the grant was repeated in vain for a while: nobody knows when the answer will come."""
        return self.in_doubt and self._attempt > FORSAKEN_AFTER

    def _grant(self, final: Pulled) -> None:
        """The point of no return; `final` is what the final image cost."""
        self._count(final)
        self._journal(records.Granted(self._now, self.offer.epoch + 1, self.tally))
        self._out.append(events.Mark(AppState.IN_DOUBT))
        self._has_granted()

    def _has_granted(self) -> None:
        self.at = At.GRANTED
        self._attempt = 0
        self._repeat_grant()

    def _restart_granted(self) -> None:
        """The node was restarted with a grant out."""
        self._out.append(events.Mark(AppState.IN_DOUBT))
        self._check()

    def _check(self) -> None:
        self.at = At.CHECKING
        self._token = self._act(events.EnsureSuspended())

    def _repeat_grant(self) -> None:
        offer = self.offer
        self._send(messages.Grant(offer.app_id, offer.epoch + 1, offer.source, offer.destination))
        self._again()

    def _ask_now(self) -> None:
        self._attempt = 0
        self._repeat_grant()

    def _force(self) -> None:
        self._end(records.Forced(self._now, self.offer.epoch + 2))

    # -- answers

    def _on_granted_progress(self, message: messages.Progress) -> None:
        if message.accepted:
            self.restoring = True
        elif not message.working and self.at is At.GRANTED:
            self._repeat_grant()

    def _on_restored(self, message: messages.Restored) -> None:
        if message.epoch != self.offer.epoch + 1:
            return
        self.health_s = message.since_start_s
        self._thaw(message.since_start_s or 0.0)
        error = "" if message.healthy else clip(message.error) or "it failed after it was started there"
        self._end(records.Committed(self._now, message.epoch, self.tally, error))

    def _on_voided(self, code: str, reason: str) -> None:
        """The destination will never accept the grant, or never hears of it."""
        self._end(records.Returned(self._now, self.offer.epoch + 2, code, clip(reason)))

    # -- records that cannot be written

    def _on_grant_unwritten(self, granted: records.Granted) -> None:
        self._newest = records.Suspending(self._now, granted.tally)
        self._on_voided("failed", "the grant could not be written to the journal")

    def _on_abort_unwritten(self, outputs: tuple[Output, ...]) -> None:
        """A restart calls it off anyway: the app need not wait for the disk."""
        self._mute = True
        self._out.extend(outputs[1:])
