"""The facade: packets in and out, exchanges, first contact, leaving, and what hostile input does: nothing."""

import dataclasses
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.config import LOCAL
from gossip.coordinates import DIMENSIONS, ORIGIN, Coordinate
from gossip.errors import Malformed
from gossip.events import (
    Ban,
    Event,
    ExchangeReceived,
    JoinSeeds,
    Leave,
    Output,
    PacketReceived,
    RequestExchange,
    SendPacket,
    TcpPing,
    TcpPingAnswered,
    Tick,
)
from gossip.messages import ANYONE, Ack, Dead, Introduce, MemberState, Nack, Ping, PingReq, Suspect
from gossip.records import Record
from gossip.simnet import pretend_verify
from gossip.state import GossipState
from gossip.table import MemberChanged, MemberForgotten
from gossip.wire import MAX_PAYLOAD_BYTES, Message, decode, encode
from tests.support.members import local_node, record

ALIVE, SUSPECT, DEAD, LEFT = MemberState
A, B = local_node("a").id, local_node("b").id
FROM_A = ("192.0.2.1", 4242)
SEED = ("192.0.2.9", 7420)


def gossip(name: str = "me", *, restored: dict[str, Any] | None = None, boot: int = 1) -> GossipState:
    return GossipState(
        local_node(name, boot=boot),
        verify=pretend_verify,
        rng=random.Random(3),
        now=0.0,
        config=LOCAL,
        restored=restored,
    )


def packet(*messages: Message, sender: str = "a", boot: int = 1) -> PacketReceived:
    local = local_node(sender, boot=boot)
    return PacketReceived(local.id, local.boot_id, FROM_A, b"".join(map(encode, messages)))


def knowing(*names: str) -> GossipState:
    """A state that knows these nodes and has told everyone so."""
    state = gossip()
    for name in names:
        state.handle(packet(record(name), sender=name), 0.0)
    now = 0.0
    while state._gossip_at is not None:
        now = state._gossip_at
        state.handle(Tick(), now)
    return state


def said(outputs: list[Output]) -> list[tuple[tuple[str, int], list[Message]]]:
    return [(output.addr, decode(output.payload)) for output in outputs if isinstance(output, SendPacket)]


def run(state: GossipState, until: float) -> list[Output]:
    """Do all ticks up to a time."""
    outputs: list[Output] = []
    while (at := state.next_deadline()) is not None and at <= until:
        outputs += state.handle(Tick(), at)
    return outputs


# Pings


def test_a_ping_is_answered_to_where_it_came_from() -> None:
    state = knowing("a")
    ((addr, messages),) = said(state.handle(packet(Ping(7, state.id, ORIGIN)), 1.0))
    assert addr == FROM_A
    assert messages[0] == Ack(7, state.id, ORIGIN)


def test_a_ping_for_someone_else_is_not_answered() -> None:
    assert said(knowing("a").handle(packet(Ping(7, B, ORIGIN)), 1.0)) == []


def test_a_ping_to_anyone_is_answered_with_an_introduction() -> None:
    state = gossip()
    ((_, messages),) = said(state.handle(packet(Ping(7, ANYONE, ORIGIN)), 1.0))
    assert Ack(7, state.id, ORIGIN) in messages
    assert any(isinstance(message, Record) and message.node == state.id for message in messages)
    assert Introduce() in messages  # we do not know the sender either


def test_who_is_asked_to_introduce_itself_does() -> None:
    state = knowing("a")
    ((addr, messages),) = said(state.handle(packet(Introduce()), 1.0))
    assert addr == FROM_A
    assert [message.node for message in messages if isinstance(message, Record)] == [state.id]


def test_only_pings_of_strangers_are_answered_with_a_question() -> None:
    # Or two nodes that will not have each other would ask for records for ever.
    state = gossip()
    state.handle(Ban(B), 0.0)
    assert said(state.handle(packet(record("b"), Nack(1)), 0.0)) == []
    assert said(state.handle(packet(record("b"), Ping(1, state.id, ORIGIN), sender="b"), 0.0)) == []


def test_a_new_boot_of_a_member_is_shown_its_old_record() -> None:
    state = knowing("a")
    ((_, messages),) = said(state.handle(packet(Ping(7, state.id, ORIGIN), boot=2), 1.0))
    assert record("a") in messages and Introduce() in messages


@pytest.mark.parametrize(
    ("believed", "hint"),
    [
        (Suspect(A, 1, B), Suspect(A, 1, gossip().id)),
        (Dead(A, 1, B), Dead(A, 1, gossip().id)),
        (record("a", 2, left=True), record("a", 2, left=True)),
    ],
)
def test_whoever_is_accused_hears_it_with_the_next_packet(believed: Message, hint: Message) -> None:
    state = knowing("a", "b")
    state.handle(packet(believed, sender="b"), 1.0)
    ((_, messages),) = said(state.handle(packet(Ping(7, state.id, ORIGIN)), 1.0))
    assert hint in messages


def test_a_suspect_is_told_in_the_ping_itself() -> None:
    state = knowing("a")
    state.handle(packet(Suspect(A, 1, B), sender="b"), 1.0)
    pings = [messages for _, messages in said(run(state, 2.0)) if any(isinstance(m, Ping) for m in messages)]
    assert pings and all(Suspect(A, 1, state.id) in messages for messages in pings)


@pytest.mark.parametrize("sender", ["a", "b"])
def test_round_trips_are_measured_from_direct_acks_only(sender: str) -> None:
    state = knowing("a", "b")
    there = Coordinate((0.01,) * DIMENSIONS, 0.001, 0.5)
    for _ in range(50):
        now = state.next_deadline()
        assert now is not None
        for _, messages in said(state.handle(Tick(), now)):
            for message in messages:
                if isinstance(message, Ping) and message.target == A:
                    state.handle(packet(Ack(message.seq, A, there), sender=sender), now + 0.004)
                elif isinstance(message, Ping):
                    state.handle(packet(Ack(message.seq, B, there), sender="b"), now + 0.004)
    member = state.member(A)
    assert member is not None and member.state is ALIVE
    if sender == "a":
        assert member.rtt_s == state.estimate_s(state.id, A) == pytest.approx(0.004)
    else:  # a relay's ack says that A lives, not how far it is
        assert member.rtt_s is None


def test_a_ping_request_is_relayed_or_refused() -> None:
    state = knowing("a", "b")
    ((addr, messages),) = said(state.handle(packet(PingReq(5, B)), 1.0))
    assert addr == ("b.test", 7420)
    (ping,) = [message for message in messages if isinstance(message, Ping)]
    ((addr, messages),) = said(state.handle(packet(Ack(ping.seq, B, ORIGIN), sender="b"), 1.1))
    assert addr == FROM_A and Ack(5, B, ORIGIN) in messages
    stranger = local_node("stranger").id
    ((_, messages),) = said(state.handle(packet(PingReq(6, stranger)), 1.2))
    assert Nack(6) in messages
    ((_, messages),) = said(state.handle(packet(PingReq(8, state.id)), 1.3))
    assert messages[0] == Ack(8, state.id, ORIGIN)


def test_whoever_probes_someone_who_left_is_told_so() -> None:
    state = knowing("a", "b")
    state.handle(packet(record("b", 2, left=True), sender="b"), 1.0)
    ((addr, messages),) = said(state.handle(packet(PingReq(5, B)), 1.0))
    assert addr == FROM_A and messages[:2] == [Nack(5), record("b", 2, left=True)]


# Failure


def test_a_silent_member_is_suspected_then_dead_and_tcp_can_save_it() -> None:
    for tcp_answers in (False, True):
        state, states = knowing("a"), []
        for _ in range(400):
            now = state.next_deadline()
            assert now is not None and now < 100
            for output in state.handle(Tick(), now):
                if isinstance(output, TcpPing) and tcp_answers:
                    state.handle(TcpPingAnswered(output.node), now)
                if isinstance(output, MemberChanged):
                    states.append(output.new.state)
            if now > 10:
                break
        assert states == ([] if tcp_answers else [SUSPECT, DEAD])


def test_a_node_that_stood_still_accuses_nobody() -> None:
    state = knowing("a", "b")
    state.handle(packet(Suspect(A, 1, B), sender="b"), 1.0)
    due = state.next_deadline()
    assert due is not None
    outputs = state.handle(Tick(), due + 60.0)
    assert not any(isinstance(output, MemberChanged) for output in outputs)
    assert state.health == 1
    state.handle(packet(record("a", 2)), due + 60.1)  # the refutation that waited in the socket
    assert state.state_of(A) is ALIVE


def test_news_is_spread_in_packets_that_are_never_too_long() -> None:
    state = gossip()
    for number in range(40):
        state.handle(packet(record(f"n{number}"), sender=f"n{number}"), 0.0)
    packets = [output for output in run(state, 3.0) if isinstance(output, SendPacket)]
    assert max(len(output.payload) for output in packets) <= MAX_PAYLOAD_BYTES
    told = {m.name for _, messages in said(list(packets)) for m in messages if isinstance(m, Record)}
    assert told == {"me", *(f"n{number}" for number in range(40))}
    assert said(run(state, 20.0))
    assert len(state._queue) == 0 or state._gossip_at is not None


# First contact


def test_a_seed_is_greeted_until_it_answers_and_then_asked_for_everything() -> None:
    state = gossip()
    state.handle(JoinSeeds((SEED,)), 0.0)
    hellos = [messages[0] for addr, messages in said(run(state, 1.0)) if addr == SEED]
    assert len(hellos) >= 2 and all(isinstance(hello, Ping) and hello.target == ANYONE for hello in hellos)
    assert isinstance(hellos[-1], Ping)
    answer = packet(Ack(hellos[-1].seq, A, ORIGIN), record("a"))
    assert RequestExchange(A) in state.handle(answer, 1.0)
    assert state.state_of(A) is ALIVE
    assert not [addr for addr, _ in said(run(state, 60.0)) if addr == SEED]


def test_a_seed_that_is_this_node_itself_is_crossed_off() -> None:
    state = gossip()
    state.handle(JoinSeeds((SEED,)), 0.0)
    ((_, messages),) = said(state.handle(Tick(), 0.0))
    state.handle(packet(*messages, sender="me"), 0.01)
    assert said(run(state, 30.0)) == []


def test_the_dead_are_tried_again_and_asked_when_found() -> None:
    state = knowing("a", "b")
    state.handle(packet(Dead(A, 1, B), sender="b"), 1.0)
    pings = [
        message
        for addr, messages in said(run(state, 1.0 + 3 * LOCAL.reconnect_interval_s))
        for message in messages
        if isinstance(message, Ping) and message.target == A
    ]
    assert pings
    outputs = state.handle(packet(Ack(pings[-1].seq, A, ORIGIN), record("a", 2)), 8.0)
    assert RequestExchange(A) in outputs
    assert state.state_of(A) is ALIVE


def test_a_found_part_of_the_mesh_is_compared_with_more_often_for_a_while() -> None:
    state = knowing("a", "b")
    run(state, 100.0)
    state.handle(packet(record("a", 2), record("b", 2), Dead(A, 2, B)), 100.0)
    pings = [
        (at, message)
        for at in (100.0 + 0.1 * n for n in range(50))
        for _, messages in said(run(state, at))
        for message in messages
        if isinstance(message, Ping) and message.target == A
    ]
    at, ping = pings[-1]
    state.handle(packet(Ack(ping.seq, A, ORIGIN), record("a", 3)), at)
    soon = [output for output in run(state, at + 2.0) if isinstance(output, RequestExchange)]
    assert soon, "the next regular exchange would be 7.5 s away"


def test_an_exchange_makes_everyone_known_at_once() -> None:
    old, new = knowing("a", "b"), gossip("new")
    new.handle(ExchangeReceived(old.id, old.exchange_body(5.0)), 0.0)
    old.handle(ExchangeReceived(new.id, new.exchange_body(0.0)), 5.0)
    assert {member.name for member in new.alive()} == {"me", "a", "b"}
    assert {member.name for member in old.alive()} == {"new", "a", "b"}


def test_a_body_survives_msgpack() -> None:
    state = knowing("a", "b")
    body = msgpack.unpackb(msgpack.packb(state.snapshot(1.0)))
    assert body == state.snapshot(1.0)


def test_a_body_always_fits_into_a_frame() -> None:
    state = gossip()
    for number in range(2500):
        local = local_node(f"{number:04}".ljust(64, "n"), host="h" * 253, site="s" * 64)
        state.handle(packet(local.record(1)), 0.0)
    assert 850 << 10 < len(msgpack.packb(state.exchange_body(0.0))) < 1000 << 10
    assert len(state.snapshot(0.0)["members"]) == 2501


# Restart


def test_a_restarted_node_finds_the_others_from_its_snapshot() -> None:
    before = knowing("a", "b")
    before.handle(packet(record("b", 2, left=True), sender="b"), 1.0)
    after = gossip(restored=before.snapshot(1.0), boot=2)
    assert after.me.incarnation == 2
    assert {(member.name, member.state) for member in after.members()} == {("a", DEAD), ("b", LEFT)}
    assert [row[1] for row in after.exchange_body(0.0)["members"]] == ["alive", "left"]  # silence is no death
    outputs = after.handle(Tick(), 0.0)
    assert RequestExchange(A) in outputs
    assert any(addr == ("a.test", 7420) for addr, _ in said(outputs))
    outputs = after.handle(packet(Nack(1)), 0.1)
    assert [output.new.state for output in outputs if isinstance(output, MemberChanged)] == [ALIVE]


def test_another_members_body_is_as_good_as_a_snapshot() -> None:
    state = gossip("new", restored=knowing("a").exchange_body(1.0))
    assert {member.name for member in state.members()} == {"me", "a"}
    assert state.me.incarnation == 1


def test_what_is_not_signed_is_not_restored() -> None:
    snapshot = knowing("a").snapshot(1.0)
    for row in snapshot["members"]:
        row[0] = row[0][:-1] + bytes([row[0][-1] ^ 1])
    state = gossip(restored=snapshot)
    assert state.members() == [] and state.dropped["forged"] == 1


# Leaving and banning


def test_a_leaving_node_tells_some_and_falls_silent() -> None:
    state = knowing("a", "b")
    outputs = said(state.handle(Leave(), 1.0))
    assert {addr for addr, _ in outputs} == {("a.test", 7420), ("b.test", 7420)}
    assert all(any(isinstance(m, Record) and m.left for m in messages) for _, messages in outputs)
    assert state.me.state is LEFT and state.next_deadline() is None
    assert state.handle(packet(Ping(1, state.id, ORIGIN)), 2.0) == []
    other = gossip("other")
    other.handle(ExchangeReceived(state.id, state.exchange_body(1.0)), 1.0)
    assert other.state_of(state.id) is LEFT


def test_the_banned_are_not_heard() -> None:
    state = knowing("a", "b")
    (forgotten,) = state.handle(Ban(A), 1.0)
    assert isinstance(forgotten, MemberForgotten) and forgotten.member.id == A
    assert state.handle(packet(record("a", 5), Ping(1, state.id, ORIGIN)), 1.0) == []
    state.handle(ExchangeReceived(A, gossip("a").exchange_body(0.0)), 1.0)
    assert state.member(A) is None
    assert state.dropped["banned"] == 2


# Hostile input


def test_a_packet_that_does_not_decode_has_no_effect() -> None:
    state = gossip()
    whole = packet(record("a"), Nack(1))
    with pytest.raises(Malformed):
        state.handle(dataclasses.replace(whole, payload=whole.payload[:-1]), 1.0)
    assert state.members() == []


def test_a_forged_part_is_dropped_and_counted_and_the_rest_counts() -> None:
    state = gossip()
    whole = packet(record("b"), record("a"))
    forged = bytearray(whole.payload)
    forged[len(encode(record("b"))) - 1] ^= 1
    state.handle(dataclasses.replace(whole, payload=bytes(forged)), 1.0)
    assert [member.name for member in state.members()] == ["a"]
    assert state.dropped == {"forged": 1}


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=20) | st.text(max_size=5),
    lambda children: st.lists(children, max_size=5) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=15,
)
good_row = st.sampled_from(
    [[record("a").blob, "alive", 0.0, None], [record("b", 3).blob, "dead", 5, ORIGIN.encode()], [b"", "left", 0, None]]
)


@given(st.one_of(plain, st.fixed_dictionaries({"format": st.just(1), "members": st.lists(good_row | plain)})))
def test_a_body_is_read_or_malformed(body: Any) -> None:
    state = gossip()
    try:
        state.handle(ExchangeReceived(A, body), 1.0)
    except Malformed:
        assert state.members() == []


@pytest.mark.parametrize(
    "row",
    [
        [record("a").blob, "alive", -1.0, None],
        [record("a").blob, "alive", float("nan"), None],
        [record("a").blob, "alive", True, None],
        [record("a").blob, "resting", 0.0, None],
        [record("a").blob, ["alive"], 0.0, None],
        [record("a").blob, "alive", 0.0, b"short"],
        [record("a").blob, "alive", 0.0, "text"],
        ["text", "alive", 0.0, None],
        [record("a").blob, "alive", 0.0],
    ],
)
def test_a_single_bad_row_spoils_a_body(row: list[Any]) -> None:
    with pytest.raises(Malformed):
        gossip().handle(ExchangeReceived(A, {"format": 1, "members": [row]}), 1.0)


@pytest.mark.parametrize("incarnation", [None, -1, 2**60, "1", 1.0])
def test_a_bad_snapshot_is_refused(incarnation: object) -> None:
    with pytest.raises(Malformed):
        gossip(restored={**knowing("a").snapshot(1.0), "incarnation": incarnation})


names = st.sampled_from(["a", "b", "c", "me"])
ids = names.map(lambda name: local_node(name).id)
seqs, incarnations = st.integers(0, 9), st.integers(1, 4)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ping, seqs, ids | st.just(ANYONE), st.just(ORIGIN)),
    st.builds(Ack, seqs, ids, st.just(Coordinate((0.01,) * DIMENSIONS, 0.001, 0.5))),
    st.builds(PingReq, seqs, ids),
    st.builds(Nack, seqs),
    st.builds(Introduce),
    st.builds(Suspect, ids, incarnations, ids),
    st.builds(Dead, ids, incarnations, ids),
    st.builds(
        lambda name, n, boot, left: record(name, n, boot=boot, left=left), names, incarnations, seqs, st.booleans()
    ),
)
bodies = st.lists(
    st.builds(
        lambda said, state: [said.blob, state, 1.0, None],
        messages.filter(lambda m: isinstance(m, Record)),
        st.sampled_from(list(MemberState)),
    )
).map(lambda rows: {"format": 1, "members": rows})
events: st.SearchStrategy[Event] = st.one_of(
    st.just(Tick()),
    st.builds(
        lambda said, sender, boot: packet(*said, sender=sender, boot=boot), st.lists(messages, max_size=3), names, seqs
    ),
    st.builds(ExchangeReceived, ids, bodies),
    st.just(JoinSeeds((SEED,))),
    st.builds(TcpPingAnswered, ids),
    st.builds(Ban, st.just(local_node("c").id)),
)


@given(st.lists(st.tuples(events, st.floats(0, 3)), max_size=25))
def test_whatever_happens_the_same_events_and_seed_give_the_same_outputs(happened: list[tuple[Event, float]]) -> None:
    one, two, now = gossip(), gossip(), 0.0
    for event, passed_s in happened:
        now += passed_s
        outputs = one.handle(event, now)
        assert outputs == two.handle(event, now)
        assert all(len(output.payload) <= MAX_PAYLOAD_BYTES for output in outputs if isinstance(output, SendPacket))
        deadline = one.next_deadline()
        assert deadline is not None and deadline == two.next_deadline()
        if isinstance(event, Tick):
            assert deadline > now
        assert one.snapshot(now) == two.snapshot(now)
    assert one.me.state is ALIVE
