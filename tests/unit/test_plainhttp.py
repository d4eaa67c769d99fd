"""The small HTTP client: how bodies are framed, whole and byte by byte, and what is no HTTP."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from p2player.plainhttp import Answer, BadAnswer, ask, quote


@contextmanager
def answered(data: bytes, *, piece_bytes: int = 1 << 20, method: str = "GET") -> Iterator[tuple[Answer, list[bytes]]]:
    """The answer to a request when the other end says `data`, and the request as it was sent."""
    near, far = socket.socketpair()
    sent: list[bytes] = []

    def say() -> None:
        with far, suppress(OSError):  # who has heard enough hangs up
            sent.append(far.recv(1 << 16))
            for start in range(0, len(data), piece_bytes):
                far.sendall(data[start : start + piece_bytes])

    speaker = threading.Thread(target=say)
    speaker.start()
    with near:
        try:
            yield ask(near, method, "/v1/x?wait=1", {"Accept": "text/plain"}, b"{}" if method == "POST" else None), sent
        finally:
            speaker.join()


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 \r\nContent-Length: 11\r\n\r\nhello\nworld and more",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n6\r\nhello\n\r\n5;x=y\r\nworld\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\n\nhello\nworld",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello\nworld",
    ],
)
def test_a_body_is_read_to_its_end_and_no_further(data: bytes, piece_bytes: int) -> None:
    with answered(data, piece_bytes=piece_bytes) as (answer, _):
        assert answer.status == 200
        assert answer.body.readline(100) == b"hello\n"
        assert answer.body.read() == b"world"


def test_an_answer_without_content_has_none_whatever_follows() -> None:
    with answered(b"HTTP/1.1 204 No Content\r\n\r\nrest") as (answer, _):
        assert answer.body.read() == b""


def test_headers_are_found_by_their_name_in_lower_case() -> None:
    with answered(b"HTTP/1.1 202 Accepted\r\nLocation:  /v1/operations/1 \r\nContent-Length: 0\r\n\r\n") as (answer, _):
        assert answer.headers["location"] == "/v1/operations/1"


def test_a_request_says_how_long_its_body_is() -> None:
    with answered(b"HTTP/1.1 204 \r\n\r\n", method="POST") as (_, sent):
        head, _, body = sent[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /v1/x?wait=1 HTTP/1.1",
        b"Host: localhost",
        b"Accept: text/plain",
        b"Content-Length: 2",
    ]
    assert body == b"{}"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 \xb2\xb2\xb2 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 10 + b"c" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"h%d: x\r\n" % number for number in range(200)),
    ],
)
def test_what_is_no_whole_answer_is_an_error(data: bytes) -> None:
    with pytest.raises(BadAnswer), answered(data) as (answer, _):
        answer.body.read()


@pytest.mark.parametrize("target", ["/a b", "/a\r\nX: y", "/ü", "/\0"])
def test_a_target_cannot_smuggle_a_second_line(target: str) -> None:
    near, far = socket.socketpair()
    with near, far, pytest.raises(ValueError, match="not a target"):
        ask(near, "GET", target, {}, None)


def test_a_segment_of_a_path_is_quoted() -> None:
    assert quote("edge/base:1 %?#~.-_ü") == "edge%2Fbase%3A1%20%25%3F%23~.-_%C3%BC"
    assert quote("\udcff") == "%FF"
