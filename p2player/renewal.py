"""Keeping this node's certificate valid: when to ask for the next one, and whom.

A certificate lives for 30 days and is due for renewal from day 10, so an authority may be away for almost three weeks
before anybody is locked out. `next_try` says when to ask, from the certificate's dates alone; the task sleeps until
then and asks. The clock is looked at once an hour at least: it may be set, and machines sleep.

An authority asks itself. Other nodes ask the authorities that they noted when they joined; if none of them answers, or
none was noted, they ask a few peers who the authorities are. Open sessions go on with the certificate with which they
began; new ones use the renewed one.
"""

import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import trio

from gossip.messages import NodeId
from p2player import errors
from p2player.faults import describe
from p2player.log import Log
from p2player.net.authority import Authority
from p2player.net.certificates import renewal_due
from p2player.net.connection import Handler
from p2player.net.identity import Identity
from p2player.net.renewing import Peers, RenewalDesk, ask_authorities, renew_own, request_renewal

SPREAD_S: Final = 12 * 3600.0
"""Nodes that joined together ask within this time after the tenth day, not at once."""
SETTLE_S: Final = 60.0
"""A node that starts with a certificate that is due asks within this time: peers have to be found first."""
RETRY_S: Final = 60.0
MAX_RETRY_S: Final = 6 * 3600.0
LOOK_S: Final = 3600.0
ALARM_S: Final = 7 * 86400.0
"""A failure this near to expiry is an error, before that a warning."""
ASKED_PEERS: Final = 8


def next_try(not_before: float, not_after: float, now: float, failures: int, draw: float) -> float:
    """When to ask for the next certificate; seconds since the Unix epoch, as all times here.

    At first some time in the 12 hours after it is due, or within a minute if that is past. After failures with growing
    pauses, a minute to six hours, but at least eight tries in the time that is left.

    Args:
        not_before, not_after: of the present certificate.
        failures: tries since that was got.
        draw: a random number in [0, 1).
    """
    if failures == 0:
        return max(renewal_due(not_before) + draw * SPREAD_S, now + draw * SETTLE_S)
    longest = min(MAX_RETRY_S, (not_after - now) / 8) if now < not_after else MAX_RETRY_S
    pause = min(RETRY_S * (1 << min(failures - 1, 16)), longest)
    return now + max(RETRY_S, pause) * (1 + draw) / 2


def renew_at_start(identity: Identity, log: Log, now: float) -> Identity:
    """An authority that was off until its own certificate expired renews it before anything else; others go on as they
    are. STATE's lock must be held; blocks for fsyncs.

    Raises:
        Integrity, Failed: the authority's files are damaged, or cannot be written.
    """
    if not (identity.is_authority and identity.is_expired(now)):
        return identity
    authority = identity.open_authority()
    try:
        renewed = renew_own(identity, authority, now)
    finally:
        authority.close()
    log.info("certificate renewed", until=_day(renewed), by=identity.name)
    return renewed


class Renewal:
    """Renews this node's certificate, and on an authority those of its members.

    Args:
        authority: this node's own; None where it is none.
        peers: calls to other nodes.
        alive: nodes that may be asked now.
        renewed: hears the identity with the new certificate, which is on disk by then; may raise OSError.
        clock: seconds since the Unix epoch.
    """

    def __init__(
        self,
        identity: Identity,
        authority: Authority | None,
        peers: Peers,
        alive: Callable[[], Sequence[NodeId]],
        renewed: Callable[[Identity], None],
        log: Log,
        *,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._identity = identity
        self._authority = authority
        self._peers = peers
        self._alive = alive
        self._renewed = renewed
        self._log = log
        self._clock = clock
        self._rng = rng or random.Random()
        self._desk = RenewalDesk(identity, authority, log, clock)

    def handlers(self) -> dict[str, Handler]:
        """What peers may ask of this node."""
        return self._desk.handlers()

    async def run(self) -> None:
        """Renew whenever it is time, until cancelled."""
        failures = 0
        while True:
            held = self._identity.certificate
            when = next_try(held.not_before, held.not_after, self._clock(), failures, self._rng.random())
            while (left := when - self._clock()) > 0:  # noqa: ASYNC110 - a date of the wall clock, not an event
                await trio.sleep(min(left, LOOK_S))
            failures = 0 if await self._try() else failures + 1

    async def _try(self) -> bool:
        """Renew once; whether that worked."""
        held = self._identity
        try:
            renewed, by = await self._ask()
            self._renewed(renewed)
        except (errors.P2PlayerError, OSError) as error:
            tell = self._log.error if self._clock() > held.certificate.not_after - ALARM_S else self._log.warning
            tell("certificate not renewed", valid_until=_day(held), error=describe(error).message)
            return False
        self._identity = renewed
        self._log.info("certificate renewed", until=_day(renewed), by=by)
        return True

    async def _ask(self) -> tuple[Identity, str]:
        """The renewed identity, and who renewed it."""
        if self._authority is not None:
            own = await trio.to_thread.run_sync(renew_own, self._identity, self._authority, self._clock())
            return own, own.name
        self._identity.check_valid(self._clock())
        reasons: dict[NodeId, str] = {}
        for find in (self._noted, self._told):
            for node in await find():
                if node in reasons:
                    continue
                try:
                    return await request_renewal(self._identity, self._peers, node, self._clock()), node
                except errors.P2PlayerError as error:
                    reasons[node] = error.message
        said = "; ".join(f"{node[:12]}: {reason}" for node, reason in reasons.items())
        raise errors.Unreachable(f"no authority has renewed it: {said or 'none is known'}")

    async def _noted(self) -> Sequence[NodeId]:
        return self._identity.authorities

    async def _told(self) -> Sequence[NodeId]:
        """Whom a few peers take for authorities; all are asked at a time."""
        told: list[NodeId] = []

        async def ask(node: NodeId) -> None:
            try:
                told.extend(await ask_authorities(self._peers, node))
            except errors.P2PlayerError as error:
                self._log.debug("no authority named", peer=node, error=error.message)

        alive = self._alive()
        async with trio.open_nursery() as nursery:
            for node in self._rng.sample(alive, min(ASKED_PEERS, len(alive))):
                nursery.start_soon(ask, node)
        return [node for node in dict.fromkeys(told) if node != self._identity.node_id]


def _day(identity: Identity) -> str:
    return f"{datetime.fromtimestamp(identity.certificate.not_after, UTC):%Y-%m-%d %H:%M} UTC"
