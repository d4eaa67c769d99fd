"""Connections that a killed CRIU left in repair mode."""

import os
import socket

import pytest

from backends.tcprepair import end_repair

TCP_REPAIR = 19

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def test_a_connection_goes_on_after_its_repair_and_nothing_else_is_touched() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
        server.accept()[0] as far,
        socket.socket(socket.AF_UNIX),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    ):
        near.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        with pytest.raises(PermissionError):
            near.recv(10)
        before = os.listdir("/proc/self/fd")
        end_repair([2**22 + 1, os.getpid()])
        assert os.listdir("/proc/self/fd") == before
        far.sendall(b"hello")
        assert near.recv(10) == b"hello"
        near.sendall(b"again")
        assert far.recv(10) == b"again"
