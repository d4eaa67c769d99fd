"""A player of BZFlag, which speaks enough of its protocol (version 0221, of 2.4) to join, drive into death, and score.

The server listens on TCP: the client greets with `BZFLAG`, is told the version and its number, and from then on both
send messages of a length, a code of two letters, and a body, all big-endian. The player asks for the state of the game
ten times a second. Whenever it is on the field it blows itself up, which the server counts as a loss and tells
everybody; it comes back to life some seconds later. So the server's memory and the player's must agree on the losses,
and on the digest of the field, which the server had drawn at random when it started.
"""

import select
import socket
import struct
import threading
import time

from bench.paper.clients.probing import PATIENCE_S, connect
from bench.paper.clients.record import APP, Record

PORT = 5154
ASK_S = 0.1
VERSION = b"BZFS0221"
CALL_SIGN = b"traveller"
MOST_BYTES = 4096

ENTER = b"en"
ACCEPT = b"ac"
REJECT = b"rj"
ALIVE = b"al"
KILLED = b"kl"
SCORE = b"sc"
LAG_PING = b"pi"
QUERY_GAME = b"qg"
WORLD_DIGEST = b"wh"
SUPER_KILL = b"sk"

_TANK = 0
_ROGUE = 0
_SELF_DESTRUCTION = 2
_HEADER = struct.Struct(">H2s")
_SCORE = struct.Struct(">BHHH")


class Refused(Exception):
    """The server does not let the player in."""


def message(code: bytes, body: bytes = b"") -> bytes:
    """A message as it is sent."""
    return _HEADER.pack(len(body), code) + body


def enter(call_sign: bytes) -> bytes:
    """The message of a player who wants to join, as a tank without a team."""
    names = struct.pack("32s128s22s60s", call_sign, b"", b"", b"2.4.26.0")
    return message(ENTER, struct.pack(">Hh", _TANK, _ROGUE) + names)


def own_death(player: int) -> bytes:
    """The message of a player who has blown up by its own doing: killer, reason, no shot, no flag."""
    return message(KILLED, struct.pack(">Bhh2s", player, _SELF_DESTRUCTION, -1, b""))


def losses_of(player: int, body: bytes) -> int | None:
    """How often a player has lost, from the body of a message with scores; None if it is not in there."""
    for at in range(1, len(body) - _SCORE.size + 1, _SCORE.size):
        number, _, losses, _ = _SCORE.unpack_from(body, at)
        if number == player:
            return int(losses)
    return None


class Player:
    """A player on a connection, from joining to the end of it."""

    def __init__(self, end: socket.socket, record: Record) -> None:
        self._end = end
        self._record = record
        self._deaths = 0
        self._losses = 0
        self._digest = b""
        end.sendall(b"BZFLAG\r\n\r\n")
        greeting = self._take(len(VERSION) + 1)
        if not greeting.startswith(VERSION):
            raise Refused(f"the server is {greeting!r}")
        self.number = greeting[-1]
        end.sendall(enter(CALL_SIGN))

    def play(self, ending: threading.Event) -> None:
        """Play until told to end.

        Raises:
            OSError: the connection broke.
            Refused: the server does not want the player.
        """
        due = 0.0
        while not ending.is_set():
            if time.monotonic() >= due:
                due = time.monotonic() + ASK_S
                self._end.sendall(message(QUERY_GAME))
            if select.select([self._end], [], [], max(0.0, due - time.monotonic()))[0]:
                self._answer(*self._receive())

    def _answer(self, code: bytes, body: bytes) -> None:
        if code in {REJECT, SUPER_KILL}:
            raise Refused(body.decode("ascii", "replace"))
        if code == ACCEPT:
            self._end.sendall(message(WORLD_DIGEST) + message(ALIVE))
        elif code == QUERY_GAME:
            self._record.answered(APP, losses=self._losses)
        elif code == LAG_PING:
            self._end.sendall(message(LAG_PING, body))
        elif code == ALIVE and body[:1] == bytes([self.number]):
            self._deaths += 1
            self._end.sendall(own_death(self.number))
        elif code == SCORE:
            self._count(losses_of(self.number, body))
        elif code == WORLD_DIGEST:
            if self._digest and body != self._digest:
                self._record.lost(APP, "the field is another one")
            self._digest = body

    def _count(self, losses: int | None) -> None:
        """The server has counted a loss: be born again, and see that the field is still the same."""
        if losses is None or losses == self._losses:
            return
        if losses != self._deaths:
            self._record.lost(APP, f"the server counts {losses} losses of {self._deaths}")
        self._losses = losses
        self._end.sendall(message(WORLD_DIGEST) + message(ALIVE))

    def _receive(self) -> tuple[bytes, bytes]:
        length, code = _HEADER.unpack(self._take(_HEADER.size))
        if length > MOST_BYTES:
            raise Refused(f"the server sends {length} bytes at once")
        return code, self._take(length)

    def _take(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._end.recv(count - len(data))
            if not part:
                raise ConnectionError("the server has closed the connection")
            data += part
        return data


def use(address: str, record: Record, ending: threading.Event) -> None:
    """Join and play; join again when the connection breaks."""
    while not ending.is_set():
        try:
            with connect(address, PORT, PATIENCE_S) as end:
                Player(end, record).play(ending)
        except (OSError, Refused) as error:
            record.broken(APP, error)
            ending.wait(1.0)
