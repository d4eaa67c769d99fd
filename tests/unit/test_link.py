"""What the kernel's counters say of a link: slow ones, fast ones, and fast ones that look slow."""

import socket
import struct
import threading
from dataclasses import replace

import pytest

from p2player.net.link import UNKNOWN, Flow, LinkEstimate, Socket, estimate

MBIT = 125_000
BULK = Flow(
    rtt_s=0.03,
    min_rtt_s=0.02,
    delivery_rate=2.4e6,
    acked_bytes=4_000_000,
    busy_s=1.8,
    idle_s=0.0,
    window=60,
    threshold=40,
)


def rate(flow: Flow) -> float:
    found = flow.estimate().bytes_per_s
    assert found is not None
    return found


def test_a_slow_link_is_known_by_what_it_delivers() -> None:
    assert BULK.estimate() == LinkEstimate(0.02, 2.4e6)


def test_nothing_is_said_before_a_burst_has_passed() -> None:
    assert replace(BULK, acked_bytes=50_000).estimate() == LinkEstimate(0.02, None)


def test_a_receiver_that_is_slow_does_not_make_its_link_slow() -> None:
    held_up = replace(
        BULK, rtt_s=0.01, min_rtt_s=3e-6, delivery_rate=9e7, acked_bytes=47_000_000, busy_s=0.44, idle_s=0.2
    )
    assert rate(held_up) == pytest.approx(47_000_000 / 0.24)


def test_a_growing_window_promises_twice_as_much_until_the_round_trip_swells() -> None:
    growing = replace(BULK, rtt_s=0.0202, delivery_rate=1.1e7, acked_bytes=250_000, busy_s=0.1, threshold=None)
    assert rate(growing) == 2.2e7
    assert rate(replace(growing, rtt_s=0.04)) == 1.1e7
    assert rate(replace(growing, threshold=50)) == 1.1e7


def test_a_clock_that_has_not_ticked_yet_divides_by_no_zero() -> None:
    assert rate(replace(BULK, delivery_rate=0.0, busy_s=0.0, acked_bytes=200_000)) == 200_000 / 0.01


def test_a_round_trip_that_was_never_measured_is_unknown() -> None:
    assert replace(BULK, min_rtt_s=0xFFFFFFFF * 1e-6).estimate().rtt_s is None


def test_the_structure_of_the_kernel_is_read_field_by_field() -> None:
    early = [0] * 24
    early[15], early[17], early[18] = 30_000, 0x7FFFFFFF, 61
    data = struct.pack("=8B24I4Q6I4Q", *[0] * 8, *early, 0, 0, 5_000_000, 7, *[0, 0, 9, 20_000, 0, 0], 77, 900, 100, 50)
    found = Flow.decode(data + bytes(80))
    assert found == Flow(0.03, 0.02, 77.0, 5_000_000, 0.0009, 150 * 1e-6, 61, None)


def test_an_old_kernel_tells_too_little() -> None:
    assert Flow.decode(bytes(104)) is None


def test_loopback_is_fast_after_the_first_two_hundred_kilobytes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sender:
        receiver, _ = listener.accept()
        with receiver:
            taken = threading.Thread(target=_take, args=(receiver, 300_000))
            taken.start()
            sender.sendall(bytes(300_000))
            taken.join()
            found = estimate(sender)
    assert found.rtt_s is not None
    assert found.rtt_s < 0.1
    assert found.bytes_per_s is not None
    assert found.bytes_per_s > 100 * MBIT


def test_what_is_no_tcp_socket_is_unknown() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert estimate(left) == UNKNOWN
    closed: Socket = left
    assert estimate(closed) == UNKNOWN


def _take(receiver: socket.socket, count: int) -> None:
    while count > 0:
        count -= len(receiver.recv(1 << 16))
