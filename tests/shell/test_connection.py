"""Connections over memory streams: calls, streams, cancellation, hostile and silent peers."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from gossip.messages import NodeId
from p2player import errors
from p2player.log import Log
from p2player.net.connection import PING_S, SILENCE_S, STUCK_S, Connection, Handler, Incoming
from p2player.net.shaping import Shaper
from p2player.proto.frames import Hello, Ping, Request, encode
from p2player.proto.session import Limits
from tests.support.streams import CountedStream, counted_pair

LEFT, RIGHT = NodeId("a" * 32), NodeId("b" * 32)
QUIET = Log(level="error")


def connection(
    stream: CountedStream, me: NodeId, peer: NodeId, handlers: Mapping[str, Handler] | None = None
) -> Connection:
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


@pytest.mark.parametrize("answer", [{"x": bytes(2 << 20)}, {"x": object()}, {"x": 1 << 64}, None])
async def test_an_answer_that_cannot_be_sent_costs_one_request(answer: Any) -> None:
    async def odd(_: Incoming) -> dict[str, Any]:
        return answer  # type: ignore[no-any-return]

    async with joined({"odd": odd, "echo": echo}) as (left, _):
        with pytest.raises(errors.Failed, match="the answer cannot be sent"):
            await left.call("odd")
        assert (await left.call("echo"))["body"] == {}


async def test_a_connection_contains_its_own_defects(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = counted_pair()
    left = connection(ours, LEFT, RIGHT)
    async with trio.open_nursery() as nursery:
        await theirs.send_all(encode(Hello(RIGHT, "right", "1"))[0])
        await nursery.start(left.run)

        def broken(_: object) -> list[Any]:
            raise TypeError("unhashable type: 'list'")

        monkeypatch.setattr(left._session, "receive", broken)
        await theirs.send_all(encode(Ping())[0])
        await left.closed.wait()
        with pytest.raises(errors.Unreachable, match="internal error: TypeError"):
            await left.call("echo")


async def test_more_callers_than_the_peer_serves_wait_for_their_turn(autojump_clock: MockClock) -> None:
    at_once = most = 0

    async def slow(_: Incoming) -> dict[str, Any]:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await trio.sleep(1)
        at_once -= 1
        return {}

    async with joined({"slow": slow}) as (left, right):
        async with trio.open_nursery() as nursery:
            for _ in range(5 * Limits().inbound):
                nursery.start_soon(partial(left.call, "slow", timeout_s=60))
        assert most == Limits().outbound < Limits().inbound
        assert not right.closed.is_set()


async def test_callers_that_gave_up_take_no_turns_away(autojump_clock: MockClock) -> None:
    async def endless(_: Incoming) -> dict[str, Any]:
        return await trio.sleep_forever()

    async def give_up(left: Connection) -> None:
        with pytest.raises(errors.Unreachable):
            await left.call("endless", timeout_s=1)

    async with joined({"endless": endless, "echo": echo}) as (left, _):
        async with trio.open_nursery() as nursery:
            for _ in range(3 * Limits().outbound):
                nursery.start_soon(give_up, left)
        await trio.sleep(1)
        assert (await left.call("echo"))["body"] == {}
        assert left._session.asking == 0
        assert left._turns.value == Limits().outbound


async def test_who_waits_for_a_turn_is_told_when_the_connection_ends(autojump_clock: MockClock) -> None:
    async def endless(_: Incoming) -> dict[str, Any]:
        return await trio.sleep_forever()

    reasons: set[str] = set()
    async with joined({"endless": endless}) as (left, _), trio.open_nursery() as nursery:

        async def told() -> None:
            try:
                async with left.stream("endless") as parts:
                    async for _ in parts:
                        pass
            except errors.Unreachable as error:
                reasons.add(error.message)

        for _ in range(2 * Limits().outbound):
            nursery.start_soon(told)
        await trio.sleep(1)
        left.close("that is all")
    assert reasons == {"peer node-b: that is all"}


async def test_too_much_at_once_is_refused_and_the_rest_goes_on() -> None:
    busy, done = trio.Event(), trio.Event()

    async def keep(_: Incoming) -> dict[str, Any]:
        busy.set()
        await done.wait()
        return {}

    async with joined({"keep": keep, "echo": echo}) as (left, _), trio.open_nursery() as nursery:
        large = bytes(4 << 20)
        for _ in range(3):
            nursery.start_soon(partial(left.call, "keep", payload=large))
        await busy.wait()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(errors.Refused, match="too much"):
            await left.call("keep", payload=large)
        assert (await left.call("echo"))["body"] == {}
        done.set()


class Deaf(CountedStream):
    """One end of a connection whose other end reads nothing, from when `stopped` is set on."""

    stopped = False

    async def send_buffers(self, buffers: Iterable[bytes | bytearray | memoryview]) -> None:
        if self.stopped:
            await trio.sleep_forever()
        await super().send_buffers(buffers)


async def test_a_peer_that_stops_reading_is_given_up(autojump_clock: MockClock) -> None:
    ours, theirs = counted_pair()
    stream = Deaf(ours._send, ours._receive)
    left = connection(stream, LEFT, RIGHT, {"echo": echo})
    async with trio.open_nursery() as nursery:
        await theirs.send_all(encode(Hello(RIGHT, "right", "1"))[0])
        await nursery.start(left.run)
        stream.stopped = True
        for rid in range(1, 33):
            await theirs.send_all(b"".join(map(bytes, encode(Request(rid, "echo", {"n": rid})))))
        for _ in range(int(STUCK_S / 50)):
            assert not left.closed.is_set()
            await theirs.send_all(encode(Ping())[0])
            await trio.sleep(50)
        await trio.sleep(2 * PING_S)
        assert left.closed.is_set()


async def test_a_peer_that_neither_reads_nor_speaks_is_given_up_early(autojump_clock: MockClock) -> None:
    ours, theirs = counted_pair()
    stream = Deaf(ours._send, ours._receive)
    left = connection(stream, LEFT, RIGHT, {"echo": echo})
    async with trio.open_nursery() as nursery:
        await theirs.send_all(encode(Hello(RIGHT, "right", "1"))[0])
        await nursery.start(left.run)
        stream.stopped = True
        for rid in range(1, 33):
            await theirs.send_all(b"".join(map(bytes, encode(Request(rid, "echo", {"n": rid})))))
        await trio.sleep(SILENCE_S + 2 * PING_S)
        assert left.closed.is_set()


@pytest.mark.parametrize("capped", ["receiving", "sending"])
async def test_a_low_cap_is_not_silence(autojump_clock: MockClock, capped: str) -> None:
    async def one_part(call: Incoming) -> dict[str, Any]:
        await call.send_part({}, bytes(1 << 20))
        return {}

    ours, theirs = counted_pair()
    cap = Shaper(2000.0)
    left = Connection(
        ours, RIGHT, Hello(LEFT, "left", "1"), {}, QUIET, throttle_in=cap if capped == "receiving" else None
    )
    right = Connection(
        theirs,
        LEFT,
        Hello(RIGHT, "right", "1"),
        {"part": one_part},
        QUIET,
        throttle_out=cap if capped == "sending" else None,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(right.run)
        await nursery.start(left.run)
        for _ in range(2):
            async with left.stream("part") as parts:
                assert [len(part.payload) async for part in parts] == [1 << 20]
        assert trio.current_time() > SILENCE_S * 5
        assert not left.closed.is_set()
        assert not right.closed.is_set()
        nursery.cancel_scope.cancel()
