"""As much of HTTP/1.1 as a client of the control API needs, without what makes the standard library's slow to import.

One request on one connection; the answer's body is framed by its length, by chunks, or by the end of the connection.
The other end is the node on this machine, so an answer that breaks the protocol is an error and nothing worse:
heads are bounded here, bodies by whoever reads them.
"""

import io
import socket
from collections.abc import Mapping
from typing import Final

MAX_LINE_BYTES: Final = 64 << 10
MAX_HEADERS: Final = 100

_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class BadAnswer(Exception):
    """What came is no answer of HTTP, or not all of one."""


def quote(text: str) -> str:
    """`text` as one segment of a path: only letters, digits and `-._~` stay as they are."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in text.encode("utf-8", "surrogateescape"))


class Answer:
    """The answer to a request, its body not read yet.

    Attributes:
        headers: names in lower case.
        body: raises `BadAnswer` where the connection ends too early, and what sockets raise.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: io.BufferedReader) -> None:
        self.status = status
        self.headers = headers
        self.body = body


def ask(sock: socket.socket, method: str, target: str, headers: Mapping[str, str], payload: bytes | None) -> Answer:
    """Send a request on a connection of its own and read the head of the answer.

    Args:
        target: path and query, quoted.

    Raises:
        BadAnswer: what came is no HTTP.
        ValueError: the target has characters that no request may have.
        OSError: as sockets do.
    """
    if not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError(f"not a target of a request: {target!r}")
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
    if payload is not None or method not in ("GET", "HEAD", "DELETE"):
        lines.append(f"Content-Length: {len(payload or b'')}")
    sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii") + (payload or b""))
    received = sock.makefile("rb")
    status, found = _head(received)
    while 100 <= status < 200:
        status, found = _head(received)
    return Answer(status, found, io.BufferedReader(_framed(received, status, found)))


def _head(received: io.BufferedReader) -> tuple[int, dict[str, str]]:
    version, _, rest = _line(received).partition(" ")
    code = rest.split(" ", 1)[0]
    if not version.startswith("HTTP/1.") or len(code) != 3 or not (code.isascii() and code.isdigit()):
        raise BadAnswer("this is no HTTP")
    headers: dict[str, str] = {}
    while line := _line(received):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
        if len(headers) > MAX_HEADERS:
            raise BadAnswer("too many headers")
    return int(code), headers


def _line(received: io.BufferedReader) -> str:
    line = received.readline(MAX_LINE_BYTES)
    if not line.endswith(b"\n"):
        raise BadAnswer("a line without an end" if line else "the connection was closed without an answer")
    return line.rstrip(b"\r\n").decode("latin-1")


def _framed(received: io.BufferedReader, status: int, headers: Mapping[str, str]) -> io.RawIOBase:
    if status in (204, 304):
        return _Sized(received, 0)
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return _Chunked(received)
    length = headers.get("content-length")
    if length is None:
        return _Open(received)
    return _Sized(received, _number(length, 10))


def _number(text: str, base: int) -> int:
    digits = "0123456789abcdef"[:base]
    if not text or len(text) > 16 or text.lower().strip(digits):
        raise BadAnswer("a length that is no number")
    return int(text, base)


class _Open(io.RawIOBase):
    """A body that ends with the connection."""

    def __init__(self, received: io.BufferedReader) -> None:
        self._received = received

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray, /) -> int:  # type: ignore[override]
        return self._received.readinto1(buffer)


class _Sized(_Open):
    """A body of a known length."""

    def __init__(self, received: io.BufferedReader, length: int) -> None:
        super().__init__(received)
        self._left = length

    def readinto(self, buffer: bytearray, /) -> int:  # type: ignore[override]
        if not self._left:
            return 0
        with memoryview(buffer) as view:
            count = self._received.readinto1(view[: self._left])
        if not count:
            raise BadAnswer("the connection was closed in the middle of an answer")
        self._left -= count
        return count


class _Chunked(_Open):
    """A body in chunks, each with its length before it; an empty one ends it."""

    def __init__(self, received: io.BufferedReader) -> None:
        super().__init__(received)
        self._chunk: _Sized | None = None
        self._ended = False

    def readinto(self, buffer: bytearray, /) -> int:  # type: ignore[override]
        while not self._ended:
            if self._chunk is None:
                length = _number(_line(self._received).partition(";")[0].strip(), 16)
                self._ended = not length
                self._chunk = _Sized(self._received, length)
            elif count := self._chunk.readinto(buffer):
                return count
            else:
                self._chunk = None
                if _line(self._received):
                    raise BadAnswer("a chunk without an end")
        return 0
