"""What every application is asked, in the protocol of its first process (see `bench.paper.apps.inside.main`).

Gaps are measured with datagrams: one every 20 ms, whether the last was answered or not. A TCP connection would send
again what was not answered later and later, and so be silent long after the service is back. Nor is a connection opened
for each question: CRIU refuses to dump one that nobody has accepted yet.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from bench.paper.clients.record import HELD, PROBE, Record

PORT = 7000
PROBE_S = 0.02
HELD_S = 0.2
PATIENCE_S = 120.0
"""How long an answer on a connection may take: a service that is moved on slow links is silent for long."""
ANSWER_BYTES = 4096
_TCP_RTO_MAX_MS = 44

GROWING = ("ticks", "answered", "writes", "frames", "detections")
"""Counters of which an application tells."""

State = Mapping[str, Any]
"""What an application says of itself."""


class StateLost(Exception):
    """An application is not the one that it was: the text says what it has forgotten."""


def probe(address: str, record: Record, ending: threading.Event) -> None:
    """Send a datagram every 20 ms and note when answers come."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        end.connect((address, PORT))
        number = 0
        due = time.monotonic()
        while not ending.is_set():
            now = time.monotonic()
            if now >= due:
                number += 1
                # What was missed, because this process did not run, is not made up for.
                due = max(due + PROBE_S, now)
                # An error tells that nobody was there for an earlier one.
                with contextlib.suppress(OSError):
                    end.send(b"%d" % number)
            end.settimeout(max(0.001, due - time.monotonic()))
            try:
                end.recv(64)
            except OSError:
                continue
            record.answered(PROBE)


def hold(address: str, record: Record, ending: threading.Event) -> None:
    """Keep one connection open, ask for the state on it all the time, and tell when it breaks."""
    while not ending.is_set():
        try:
            with Control(address) as control:
                while not ending.wait(HELD_S):
                    record.answered(HELD, ticks=int(control.ask("state")["ticks"]))
        except (OSError, ValueError) as error:
            record.broken(HELD, error)
            ending.wait(HELD_S)


class Control:
    """A connection to the first process; questions and answers are lines."""

    def __init__(self, address: str, patience_s: float = PATIENCE_S) -> None:
        self._end = connect(address, PORT, patience_s)
        self._file = self._end.makefile("rb")

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._end.close()

    def ask(self, question: str) -> dict[str, Any]:
        """Ask one question.

        Raises:
            OSError: no answer came, or the connection broke.
            ValueError: the answer is none.
        """
        self._end.sendall(question.encode() + b"\n")
        line = self._file.readline(ANSWER_BYTES)
        if not line.endswith(b"\n"):
            raise ConnectionError("the connection was closed")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("the answer is no table")
        return answer


def connect(address: str, port: int, patience_s: float) -> socket.socket:
    """Open a connection whose lost packets are sent again each second at least, where the kernel can do that."""
    end = socket.create_connection((address, port), timeout=patience_s)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # By itself the kernel gives up after fifteen retries, which come each second here.
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * patience_s))
    with contextlib.suppress(OSError):  # Linux has it since 6.15
        end.setsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS, 1000)
    return end


def snapshot(address: str, patience_s: float = PATIENCE_S) -> State:
    """What an application says of itself now, all of its memory checked if it is one that fills it.

    Raises:
        OSError, ValueError: it does not answer.
    """
    with Control(address, patience_s) as control:
        state = control.ask("state")
        if "pages" in state and state.get("ready"):
            state.update(control.ask("memory"))
        return state


def verify(before: State, after: State) -> None:
    """Make sure that `after` is what became of `before`.

    Raises:
        StateLost: the application was started anew, went back in time, or its memory has changed.
    """
    if after["identity"] != before["identity"]:
        raise StateLost("the application was started anew")
    for name in GROWING:
        if name in before and int(after.get(name, -1)) < int(before[name]):
            raise StateLost(f"{name} went back from {before[name]} to {after.get(name)}")
    if int(after["programs"]) < int(before["programs"]):
        raise StateLost("one of the application's programs has ended")
    if after.get("damaged", 0) != 0:
        raise StateLost(f"{after['damaged']} of {after['pages']} pages of memory are damaged")
    if "memory" in before and not before["rewrite_bytes_s"] and after.get("memory") != before["memory"]:
        raise StateLost("the memory's content has changed")
