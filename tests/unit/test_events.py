"""The event bus: order, loss told, and nothing kept for nobody."""

import gc

from p2player.events import BACKLOG, EventBus


async def test_events_arrive_in_order() -> None:
    bus = EventBus()
    subscription = bus.open()
    bus.emit("layer.added", name="a")
    bus.emit("layer.added", name="b")
    assert [(await anext(subscription)).data["name"] for _ in range(2)] == ["a", "b"]


async def test_a_slow_listener_is_told_what_it_lost() -> None:
    bus = EventBus()
    subscription = bus.open()
    for number in range(BACKLOG + 5):
        bus.emit("n", number=number)
    first = await anext(subscription)
    assert (first.type, first.data) == ("events.lost", {"count": 5})
    assert (await anext(subscription)).data == {"number": 5}


def test_a_dropped_subscription_is_forgotten() -> None:
    bus = EventBus()
    subscription = bus.open()
    assert len(bus._subscriptions) == 1
    del subscription
    gc.collect()
    assert len(bus._subscriptions) == 0
