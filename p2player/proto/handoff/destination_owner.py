"""The destination from the grant on: it owns the app, and restores it.

`Accepted` is durable before the engine is touched. From then on the app may have executed here. A machine that was
restarted in between cannot tell: it asks the engine for a copy first, restores again if there is none, and never
refuses any more. Where the engine vouches, without a restart in between, that not one instruction ran, the grant is
refused after all.

A grant for a migration that is unknown here (the journal was lost) is answered from what the node has: an app of that
epoch is `Restored`, anything else refused.
"""

from p2player.proto.handoff import events, messages, records
from p2player.proto.handoff.destination_end import At, DestinationEnd, Parties
from p2player.proto.handoff.events import Timer
from p2player.proto.handoff.machine import HandoffConfig, clip
from p2player.proto.handoff.messages import Offer


class DestinationOwner(DestinationEnd):
    """A destination that may have accepted."""

    def __init__(self, parties: Parties, offer: Offer | None, config: HandoffConfig) -> None:
        super().__init__(parties, offer, config)
        self._maybe_executed = False
        self._started_at: float | None = None
        self._hook_token: int | None = None
        self._hook_done = False

    def _is_ours(self, grant: messages.Grant) -> bool:
        return self.parties == Parties(grant.app_id, grant.epoch - 1, grant.source, grant.destination)

    def _accept(self) -> None:
        self._clear(Timer.RETRY, Timer.PATIENCE)
        self._journal(records.Accepted(self._now, self.epoch))
        self._restore()

    def _restore(self) -> None:
        self.at = At.RESTORING
        running = self.offer.running if self.offer is not None else True
        self._token = self._act(events.Restore(self.epoch, running, owned=self._maybe_executed))
        self._set(Timer.HEARTBEAT, self.config.heartbeat_s)

    def _on_restore_done(self, resumed: events.Resumed) -> None:
        self._started_at = self._now - resumed.since_start_s
        self._has_restored(records.Restored(self._now, self.epoch))

    def _on_restore_broke(self, event: events.Broke) -> None:
        self._clear(Timer.HEARTBEAT)
        if event.executed or self._maybe_executed:
            self._has_restored(records.Restored(self._now, self.epoch, healthy=False, error=clip(event.reason)))
        else:
            self._refuse(event.code, event.reason)

    def _has_restored(self, restored: records.Restored) -> None:
        if self._newest is not restored:
            self._journal(restored)
        self.at = At.RESTORED
        self._restored = restored
        self._clear(Timer.HEARTBEAT)
        self._attempt = 0
        self._repeat_restored()
        if restored.healthy and self.offer is not None:
            self._hook_token = self._act(events.RunHook())
        else:
            self._hook_done = True

    def _repeat_restored(self) -> None:
        self._say_restored()
        self._again()

    def _say_restored(self) -> None:
        assert self._restored is not None
        since_start_s = None if self._started_at is None else max(self._now - self._started_at, 0.0)
        healthy, error = self._restored.healthy, self._restored.error
        self._send(messages.Restored(self.epoch, since_start_s, healthy, error, self.parties.app_id))

    def _on_hook(self, warning: str) -> None:
        self._hook_token = None
        self._hook_done = True
        self._warning = clip(warning)
        self._close_if_possible()

    def _on_commit(self, row: str) -> None:
        if self.at is At.RESTORED:
            self.row = records.bounded_row(row)
            self._take_leave()
            self._close_if_possible()

    def _close_if_possible(self) -> None:
        if self.at is At.RESTORED and self._goodbye and self._hook_done:
            self._close()

    # -- after a restart, or out of the blue

    def _find(self) -> None:
        self.at = At.FINDING
        self._token = self._act(events.FindCopy(self.parties.app_id, self.epoch))

    def _restart_accepted(self) -> None:
        self._maybe_executed = True
        self._find()

    def _found(self, found: events.Found) -> None:
        if isinstance(self._newest, records.Accepted):
            if found.running:
                self._has_restored(records.Restored(self._now, self.epoch))
            else:
                self._restore()
        elif found.owned:
            self._has_restored(records.Restored(self._now, self.epoch))
        else:
            self._refuse("failed", "the destination knows nothing of this migration")
