"""The session machine: two of them joined by bytes, and a peer that breaks the rules."""

from collections.abc import Iterable

import pytest

from p2player.proto.frames import (
    Buffer,
    Cancel,
    Failure,
    Goodbye,
    Hello,
    LocalProtocolError,
    Message,
    Part,
    Ping,
    RemoteProtocolError,
    Reply,
    Request,
    encode,
)
from p2player.proto.session import Excess, Limits, Opened, Session


def joined(buffers: Iterable[Buffer]) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


def open_pair(limits: Limits | None = None) -> tuple[Session, Session]:
    left = Session(Hello("a" * 32, "left", "1", frozenset({"x", "y"})), limits)
    right = Session(Hello("b" * 32, "right", "2", frozenset({"y", "z"})), limits)
    left_hello, right_hello = left.hello(), right.hello()
    assert right.receive(joined(left_hello)) == [Opened(left._hello, frozenset({"y"}))]
    assert left.receive(joined(right_hello)) == [Opened(right._hello, frozenset({"y"}))]
    return left, right


def test_a_request_is_answered_by_parts_and_one_ending() -> None:
    asker, answerer = open_pair()
    request = Request(asker.next_rid(), "chunks.want", {"n": 1}, b"ids")
    assert answerer.receive(joined(asker.send(request))) == [request]
    part, reply = Part(request.rid, {"codec": 1}, b"data"), Reply(request.rid, {"missing": b""})
    assert asker.receive(joined(answerer.send(part)) + joined(answerer.send(reply))) == [part, reply]
    with pytest.raises(LocalProtocolError):
        answerer.send(reply)


def test_both_directions_use_the_same_numbers_without_mixing() -> None:
    left, right = open_pair()
    mine, theirs = Request(1, "mine"), Request(1, "theirs")
    assert right.receive(joined(left.send(mine))) == [mine]
    assert left.receive(joined(right.send(theirs))) == [theirs]
    assert right.receive(joined(left.send(Reply(1, {"of": "theirs"})))) == [Reply(1, {"of": "theirs"})]
    assert left.receive(joined(right.send(Reply(1, {"of": "mine"})))) == [Reply(1, {"of": "mine"})]


def test_parts_of_a_cancelled_request_are_dropped_until_its_ending() -> None:
    asker, answerer = open_pair()
    answerer.receive(joined(asker.send(Request(1, "m"))))
    late = joined(answerer.send(Part(1, {}, b"late")))
    assert asker.awaits(1)
    cancel = joined(asker.send(Cancel(1)))
    assert not asker.awaits(1)
    assert asker.receive(late) == []
    assert answerer.receive(cancel) == [Cancel(1)]
    assert asker.receive(joined(answerer.send(Failure(1, "cancelled", "")))) == []
    with pytest.raises(RemoteProtocolError):
        asker.receive(joined(encode(Part(1, {}, b"after the end"))))


def test_a_cancel_that_crosses_the_ending_is_ignored() -> None:
    asker, answerer = open_pair()
    answerer.receive(joined(asker.send(Request(1, "m"))))
    answerer.send(Reply(1))
    assert answerer.receive(joined(asker.send(Cancel(1)))) == []


@pytest.mark.parametrize("message", [Part(7, {}), Reply(7), Failure(7, "failed", ""), Hello("c", "again", "1")])
def test_a_peer_cannot_answer_what_was_not_asked(message: Message) -> None:
    session, _ = open_pair()
    with pytest.raises(RemoteProtocolError):
        session.receive(joined(encode(message)))


def test_nothing_is_taken_before_hello() -> None:
    session = Session(Hello("a" * 32, "me", "1"))
    with pytest.raises(RemoteProtocolError, match="before hello"):
        session.receive(joined(encode(Ping())))
    with pytest.raises(LocalProtocolError):
        Session(Hello("a" * 32, "me", "1")).send(Request(1, "m"))


def test_a_peer_cannot_open_more_than_its_share() -> None:
    asker, answerer = open_pair(Limits(inbound=2))
    for rid in (1, 2):
        answerer.receive(joined(asker.send(Request(rid, "m"))))
    with pytest.raises(RemoteProtocolError, match="more than 2"):
        answerer.receive(joined(asker.send(Request(3, "m"))))


def test_what_a_peer_has_open_is_bounded_in_bytes() -> None:
    asker, answerer = open_pair(Limits(inbound_bytes=5000))
    answerer.receive(joined(asker.send(Request(1, "m", {}, bytes(3000)))))
    assert answerer.receive(joined(asker.send(Request(2, "m", {}, bytes(3000))))) == [Excess(2)]
    assert asker.receive(joined(answerer.send(Failure(2, "refused", "too much")))) == [
        Failure(2, "refused", "too much")
    ]
    answerer.send(Reply(1))
    again = Request(3, "m", {}, bytes(3000))
    assert answerer.receive(joined(asker.send(again))) == [again]


def test_a_request_counts_until_its_ending_even_when_it_was_cancelled() -> None:
    asker, answerer = open_pair()
    answerer.receive(joined(asker.send(Request(1, "m"))))
    asker.send(Cancel(1))
    assert asker.asking == 1
    asker.receive(joined(answerer.send(Failure(1, "cancelled", ""))))
    assert asker.asking == 0


def test_a_request_that_was_never_sent_does_not_count() -> None:
    asker, _ = open_pair()
    asker.send(Request(1, "m"))
    asker.retract(1)
    assert asker.asking == 0
    assert not asker.awaits(1)


def test_an_ending_that_is_too_large_leaves_the_request_open_for_another() -> None:
    asker, answerer = open_pair()
    answerer.receive(joined(asker.send(Request(1, "m"))))
    with pytest.raises(LocalProtocolError, match="too large"):
        answerer.send(Reply(1, {"x": bytes(2 << 20)}))
    failure = Failure(1, "failed", "too large")
    assert asker.receive(joined(answerer.send(failure))) == [failure]


def test_a_request_number_cannot_be_open_twice() -> None:
    asker, answerer = open_pair()
    data = joined(asker.send(Request(1, "m")))
    answerer.receive(data)
    with pytest.raises(RemoteProtocolError, match="open already"):
        answerer.receive(data)
    with pytest.raises(LocalProtocolError, match="open already"):
        asker.send(Request(1, "m"))


def test_nothing_is_sent_after_goodbye() -> None:
    session, _ = open_pair()
    session.send(Goodbye("done"))
    with pytest.raises(LocalProtocolError, match="closed"):
        session.send(Ping())


def test_byte_by_byte_is_the_same_as_at_once() -> None:
    asker, answerer = open_pair()
    request = Request(1, "m", {"k": "v"}, b"payload")
    data = joined(asker.send(request))
    events = [event for i in range(len(data)) for event in answerer.receive(data[i : i + 1])]
    assert events == [request]
