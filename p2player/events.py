"""What happens on this node, told to whoever listens: the stream behind `/v1/events`.

An event is a type and a small JSON document. A listener that does not keep up loses its oldest events and is told how
many, so that a stuck browser tab never costs the node memory.
"""

import time
import weakref
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import trio

BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    `type` is `noun.verb`, as in `migration.changed`; `at` is seconds since the epoch; `data` is JSON-able.
    """

    type: str
    data: dict[str, Any]
    at: float = field(default_factory=time.time)


class Subscription:
    """The events since somebody subscribed; iterate to receive them."""

    def __init__(self) -> None:
        self._queue: deque[Event] = deque(maxlen=BACKLOG)
        self._wake = trio.Event()
        self._lost = 0

    def put(self, event: Event) -> None:
        """Queue one event; the oldest gives way when the listener is far behind."""
        if len(self._queue) == BACKLOG:
            self._lost += 1
        self._queue.append(event)
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._queue:
            self._wake = trio.Event()
            await self._wake.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return Event("events.lost", {"count": lost})
        return self._queue.popleft()


class EventBus:
    """Hands each event to every subscription that somebody still holds; never waits."""

    def __init__(self) -> None:
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()

    def emit(self, type_: str, **data: Any) -> None:
        """Tell all listeners."""
        event = Event(type_, data)
        for subscription in self._subscriptions:
            subscription.put(event)

    def open(self) -> Subscription:
        """Listen from now on, for as long as the caller keeps the subscription."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        return subscription
