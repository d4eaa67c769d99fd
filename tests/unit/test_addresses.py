"""Addresses as people write them, and the ones that others can use."""

import socket

import pytest

from p2player.addresses import Address, free_port, is_loopback, is_wildcard, parse_address, reachable_host
from p2player.errors import Refused, Usage


@pytest.mark.parametrize("text", ["127.0.0.1:7420", "[::1]:7420", "edge-1.example.org:0", "[fe80::1%eth0]:65535"])
def test_what_is_read_is_written_the_same(text: str) -> None:
    assert str(parse_address(text)) == text


def test_parts() -> None:
    assert parse_address(" [::1]:7420 ") == Address("::1", 7420) == ("::1", 7420)


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":7420", "::1:7420", "[::1]", "[host]:1", "a b:1", "host:65536", "host:-1", "host:x"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(Usage, match="not an address"):
        parse_address(text)


def test_kinds() -> None:
    assert is_loopback("127.9.9.9") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("10.0.0.1") and not is_loopback("example.org")
    assert is_wildcard("0.0.0.0") and is_wildcard("::")
    assert not is_wildcard("127.0.0.1") and not is_wildcard("example.org")


def test_a_specific_host_is_its_own_answer() -> None:
    assert reachable_host("10.1.2.3", ["127.0.0.1"]) == "10.1.2.3"


def test_a_wildcard_becomes_the_address_that_leads_there() -> None:
    assert reachable_host("0.0.0.0", ["x" * 300, "127.0.0.1"]) == "127.0.0.1"
    assert not is_wildcard(reachable_host("0.0.0.0"))


def test_a_free_port_is_free_for_both() -> None:
    port = free_port("127.0.0.1")
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", port))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(Refused, match=r"cannot listen on 192\.0\.2\.1"):
        free_port("192.0.2.1")
