"""Clients of the game, each a thread: they play, reconnect when the server moves, and note what they saw."""

import random
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import msgpack

LENGTH = struct.Struct("!I")
STEP_S = 0.01
RETRY_S = 0.005
PATIENCE_S = 1.0


@dataclass
class Sight:
    """What one player saw since the last `take`.

    Attributes:
        worlds: names of the worlds that it found itself in; one, if the game goes on.
        pythons: where the server's interpreter lives.
        longest_gap_s: between two answers.
        lost: moves that the server had acknowledged and did not know any more.
    """

    answers: int = 0
    worlds: set[str] = field(default_factory=set)
    pythons: set[str] = field(default_factory=set)
    longest_gap_s: float = 0.0
    lost: int = 0


class Player(threading.Thread):
    """One player; `stop` ends it."""

    def __init__(self, name: str, port: int) -> None:
        super().__init__(name=name, daemon=True)
        self._port = port
        self._steps = random.Random(name)
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._sight = Sight()
        self._acknowledged = 0
        self._last_answer: float | None = None

    def stop(self) -> None:
        """End the play and wait for the thread."""
        self._ending.set()
        self.join(5)

    def take(self) -> Sight:
        """What was seen since the last call."""
        with self._lock:
            seen, self._sight = self._sight, Sight()
            return seen

    def run(self) -> None:
        """Play until stopped, over as many connections as that takes."""
        while not self._ending.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S) as connection:
                    while not self._ending.is_set():
                        self._note(self._move(connection))
                        time.sleep(STEP_S)
            except (OSError, EOFError, ValueError):
                time.sleep(RETRY_S)

    def _move(self, connection: socket.socket) -> dict[str, Any]:
        move = {"player": self.name, "dx": self._steps.randint(-1, 1), "dy": self._steps.randint(-1, 1)}
        data = msgpack.packb(move)
        connection.sendall(LENGTH.pack(len(data)) + data)
        (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
        answer: dict[str, Any] = msgpack.unpackb(_exactly(connection, length))
        return answer

    def _note(self, answer: dict[str, Any]) -> None:
        now = time.monotonic()
        with self._lock:
            seen = self._sight
            seen.answers += 1
            seen.worlds.add(answer["world"])
            seen.pythons.add(answer["python"])
            if self._last_answer is not None:
                seen.longest_gap_s = max(seen.longest_gap_s, now - self._last_answer)
            seen.lost += max(0, self._acknowledged + 1 - answer["moves"])
            self._last_answer, self._acknowledged = now, answer["moves"]


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise EOFError("the server closed the connection")
        data += piece
    return data
