"""One direction of the user-space wire, on a clock of the test's own."""

import random
import struct

import pytest

from bench.wire import BURST_S, Line, LineShape, queue_bytes, super_packet_bytes, wire_bytes

PACKET = bytes(1500)


def line(mbit: float | None, delay_s: float = 0.0, jitter_s: float = 0.0) -> Line:
    return Line(LineShape(mbit, delay_s, jitter_s), random.Random(1))


def arrivals(one: Line) -> list[float]:
    return [at for at, _ in one.packets]


def test_a_saturated_line_gives_its_rate() -> None:
    one = line(12, delay_s=0.02)  # 1500 bytes take 1 ms
    for _ in range(100):
        one.accept(PACKET, 1500, 10.0)
    assert arrivals(one)[-1] == pytest.approx(10.0 + 0.02 + 0.1 - BURST_S)
    gaps = [b - a for a, b in zip(arrivals(one)[2:], arrivals(one)[3:], strict=False)]
    assert gaps == pytest.approx([0.001] * len(gaps))


def test_a_late_reader_makes_up_for_no_more_than_the_burst() -> None:
    one = line(12)
    one.accept(PACKET, 1500, 0.0)
    for _ in range(10):
        one.accept(PACKET, 1500, 5.0)
    assert arrivals(one)[-1] == pytest.approx(5.0 + 0.010 - BURST_S)


def test_packets_arrive_in_order_and_not_before_their_time() -> None:
    one = line(1000, delay_s=0.010, jitter_s=0.009)
    sent = [number.to_bytes(4, "big") for number in range(200)]
    for number, packet in enumerate(sent):
        one.accept(packet, 100, number * 0.001)
    got = list[bytes]()
    for tick in range(300):
        now = tick * 0.001
        new = one.arrived(now)
        assert all(0.001 * int.from_bytes(packet, "big") + 0.001 <= now + 1e-9 for packet in new)
        got += new
    assert got == sent
    assert len({round(at, 9) for at in arrivals(one)}) == 0


def test_a_full_queue_drops_what_comes_last() -> None:
    one = line(8)  # 1 MB/s
    count = queue_bytes(8, 0) // 1500
    for number in range(count + 50):
        one.accept(number.to_bytes(2, "big"), 1500, 1.0)
    assert one.dropped >= 40
    assert len(one.packets) == count + 50 - one.dropped
    assert int.from_bytes(one.packets[-1][1], "big") == len(one.packets) - 1


def test_queues_hold_a_round_trip() -> None:
    assert queue_bytes(5, 0.020) == 256_000
    assert queue_bytes(1000, 0.020) == 5_000_000
    assert queue_bytes(1000, 0.001) == 2_500_000


def test_slow_lines_take_no_super_packets() -> None:
    assert [super_packet_bytes(mbit) for mbit in (5, 20, 100, 1000, None)] == [0, 0, 12_500, 65_536, 65_536]


def test_super_packets_count_with_the_headers_of_all_segments() -> None:
    tcp = bytes(12) + bytes([8 << 4]) + bytes(19)
    header = bytes(14 + 20) + tcp
    plain = struct.pack("=BBHHHH", 0, 0, 0, 0, 0, 0) + header + bytes(1000)
    assert wire_bytes(plain) == 66 + 1000
    large = struct.pack("=BBHHHH", 1, 1, 66, 1448, 34, 16) + header + bytes(3 * 1448 + 1)
    assert wire_bytes(large) == 4 * 66 + 3 * 1448 + 1
