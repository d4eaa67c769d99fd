"""When a reader of a socket is woken."""

import socket

from p2player.net.gathering import MAX_MARK_BYTES, Gathering


class Marks:
    """A socket that notes its low-water marks."""

    def __init__(self) -> None:
        self.set: list[int] = []

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        self.set.append(value)


def fed(rate: float, sock: Marks | None = None) -> Gathering:
    """One that took a second's worth of data at `rate` bytes a second."""
    gathering = Gathering(sock)
    for step in range(1, 101):
        gathering.took(int(rate / 100), 100 + step / 100)
    return gathering


def test_a_fast_peer_wakes_the_reader_for_much_at_a_time() -> None:
    sock = Marks()
    gathering = fed(100e6, sock)
    gathering.wait_for(1 << 20)
    gathering.wait_for(1 << 20)
    assert sock.set == [MAX_MARK_BYTES], "and the socket is told once"


def test_what_is_lacking_bounds_the_mark() -> None:
    gathering = fed(100e6, Marks())
    gathering.wait_for(40_000)
    assert 1 < gathering.mark < 40_000 - 16_384
    gathering.wait_for(20_000)
    assert gathering.mark == 1
    gathering.wait_for(0)
    assert gathering.mark == 1


def test_a_slow_peer_is_heard_with_every_packet() -> None:
    gathering = fed(100e3, Marks())
    gathering.wait_for(1 << 20)
    assert gathering.mark == 1


def test_a_peer_that_becomes_slow_is_heard_again() -> None:
    gathering = fed(10e6, Marks())
    gathering.wait_for(1 << 20)
    assert gathering.mark == MAX_MARK_BYTES
    gathering.took(MAX_MARK_BYTES, 110)
    gathering.wait_for(1 << 20)
    assert gathering.mark == 1


def test_without_a_socket_nothing_is_set() -> None:
    gathering = fed(100e6)
    gathering.wait_for(1 << 20)
    assert gathering.mark == 1
