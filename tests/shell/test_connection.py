"""Connections over memory streams: calls, streams, cancellation, hostile and silent peers."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gossip.messages import NodeId
from p2player import errors
from p2player.log import Log
from p2player.net.connection import SILENCE_S, Connection, Handler, Incoming
from p2player.proto.frames import Hello, Ping, encode
from tests.support.streams import CountedStream, counted_pair

LEFT, RIGHT = NodeId("a" * 32), NodeId("b" * 32)
QUIET = Log(level="error")


def connection(stream: CountedStream, me: NodeId, peer: NodeId, handlers: Mapping[str, Handler] | None = None) -> Connection:
    return Connection(stream, peer, Hello(me, f"node-{me[0]}", "1"), handlers or {}, QUIET)


@asynccontextmanager
async def joined(handlers: Mapping[str, Handler]) -> AsyncIterator[tuple[Connection, Connection]]:
    """A connection that asks, and one that serves `handlers`."""
    left_stream, right_stream = counted_pair()
    left, right = connection(left_stream, LEFT, RIGHT), connection(right_stream, RIGHT, LEFT, handlers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.run)
        await nursery.start(left.run)
        yield left, right
        nursery.cancel_scope.cancel()


async def echo(call: Incoming) -> dict[str, Any]:
    return {"from": call.peer_name, "body": call.body, "payload": bytes(call.payload)}


async def test_a_call_is_answered() -> None:
    async with joined({"echo": echo}) as (left, _):
        reply = await left.call("echo", {"n": 1}, payload=b"data")
        assert reply == {"from": "node-a", "body": {"n": 1}, "payload": b"data"}
        assert left.peer_name == "node-b"
        assert left.bytes_in > 0
        assert left.bytes_out > 0


async def test_the_error_of_a_handler_keeps_its_meaning() -> None:
    async def refuse(_: Incoming) -> dict[str, Any]:
        raise errors.Refused("not today")

    async with joined({"refuse": refuse}) as (left, _):
        with pytest.raises(errors.Refused, match="not today"):
            await left.call("refuse")
        with pytest.raises(errors.Usage, match="unknown method"):
            await left.call("other")


async def test_a_defect_in_a_handler_costs_one_request(capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(_: Incoming) -> dict[str, Any]:
        raise ZeroDivisionError("oops")

    async with joined({"broken": broken, "echo": echo}) as (left, _):
        with pytest.raises(errors.Failed, match="ZeroDivisionError"):
            await left.call("broken")
        assert (await left.call("echo"))["body"] == {}
    assert "ZeroDivisionError" in capsys.readouterr().err


async def stream_numbers(call: Incoming) -> dict[str, Any]:
    for number in range(call.body["count"]):
        await call.send_part({"n": number}, bytes(1000))
    return {"sent": call.body["count"]}


async def test_parts_arrive_in_order_and_then_the_reply() -> None:
    async with joined({"numbers": stream_numbers}) as (left, _), left.stream("numbers", {"count": 50}) as parts:
        assert [part.header["n"] async for part in parts] == list(range(50))
        assert parts.reply == {"sent": 50}


async def test_leaving_a_stream_early_stops_the_peer_and_keeps_the_connection() -> None:
    stopped = trio.Event()

    async def endless(call: Incoming) -> dict[str, Any]:
        try:
            while True:
                await call.send_part({}, bytes(100_000))
        finally:
            stopped.set()

    async with joined({"endless": endless, "echo": echo}) as (left, _):
        async with left.stream("endless") as parts:
            await anext(parts)
        with trio.fail_after(5):
            await stopped.wait()
            assert (await left.call("echo"))["body"] == {}


async def test_a_cancelled_call_stops_the_peer(autojump_clock: MockClock) -> None:
    stopped = trio.Event()

    async def sleeper(_: Incoming) -> dict[str, Any]:
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    async with joined({"sleeper": sleeper}) as (left, _):
        with pytest.raises(errors.Unreachable, match="did not answer"):
            await left.call("sleeper", timeout_s=3)
        await stopped.wait()


async def test_callers_are_told_when_the_peer_goes_away(autojump_clock: MockClock) -> None:
    async def vanish(_: Incoming) -> dict[str, Any]:
        right.close("gone")
        return await trio.sleep_forever()

    async with joined({"vanish": vanish}) as (left, right):
        with pytest.raises(errors.Unreachable):
            await left.call("vanish", timeout_s=30)
        with pytest.raises(errors.Unreachable):
            await left.call("vanish")


async def test_a_peer_that_says_no_hello_is_given_up(autojump_clock: MockClock) -> None:
    stream, _ = counted_pair()
    async with trio.open_nursery() as nursery:
        with pytest.raises(errors.Unreachable, match="hello"):
            await nursery.start(connection(stream, LEFT, RIGHT).run)


async def test_a_hello_of_somebody_else_is_refused() -> None:
    ours, theirs = counted_pair()
    async with trio.open_nursery() as nursery:
        await theirs.send_all(encode(Hello("c" * 32, "impostor", "1"))[0])
        with pytest.raises(errors.Unreachable, match="under the certificate"):
            await nursery.start(connection(ours, LEFT, RIGHT).run)


async def test_a_peer_that_talks_nonsense_is_dropped() -> None:
    ours, theirs = counted_pair()
    left = connection(ours, LEFT, RIGHT)
    async with trio.open_nursery() as nursery:
        await theirs.send_all(encode(Hello(RIGHT, "right", "1"))[0])
        await nursery.start(left.run)
        await theirs.send_all(b"\xff" * 64)
        await left.closed.wait()
        with pytest.raises(errors.Unreachable):
            await left.call("echo")


async def test_a_silent_peer_is_dropped_and_a_pinged_one_is_not(autojump_clock: MockClock) -> None:
    ours, theirs = counted_pair()
    left = connection(ours, LEFT, RIGHT)
    async with trio.open_nursery() as nursery:
        await theirs.send_all(encode(Hello(RIGHT, "right", "1"))[0])
        await nursery.start(left.run)
        for _ in range(6):
            await trio.sleep(SILENCE_S / 2)
            await theirs.send_all(encode(Ping())[0])
        assert not left.closed.is_set()
        await trio.sleep(SILENCE_S * 2)
        assert left.closed.is_set()
