"""A node's control API with canned answers, on a real unix socket; for tests of the client and the command line."""

import json
import os
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

Document = Any


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the node saw it; `path` is as it was sent, quoted, without the query."""

    method: str
    path: str
    query: str
    body: Document
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """One canned answer; `raw` goes out as it is, instead of the document."""

    document: Document = None
    status: int = 200
    location: str | None = None
    raw: bytes | None = None
    content_type: str = "application/json"


Answer = Reply | Callable[[Request], Reply]


def accepted(location: str) -> Reply:
    """What starts long work."""
    return Reply({"id": location.rpartition("/")[2]}, 202, location)


def problem(status: int, code: str, message: str) -> Reply:
    """An error of the API."""
    return Reply({"error": {"code": code, "message": message}}, status)


def operation(state: str, result: Document = None, error: Document = None, **progress: Any) -> Reply:
    """A row of long work."""
    told = {"done": 0, "total": 0, "message": "", **progress}
    return Reply({"id": "op1", "kind": "test", "state": state, "progress": told, "result": result, "error": error})


@dataclass
class FakeNode:
    """Serves while the block runs.

    Attributes:
        answers: by `METHOD path`; of a list each request takes the next answer, and the last one stays.
        requests: all that came, in order.
    """

    state_dir: Path
    answers: dict[str, Answer | list[Answer]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def __enter__(self) -> Self:
        folder = os.open(self.state_dir, os.O_PATH | os.O_DIRECTORY)
        try:
            self._server = _Server(f"/proc/self/fd/{folder}/control.sock", _handler(self))
        finally:
            os.close(folder)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def seen(self) -> list[str]:
        """`METHOD path` of every request."""
        return [f"{request.method} {request.path}" for request in self.requests]

    def reply(self, request: Request) -> Reply:
        """The answer to a request."""
        self.requests.append(request)
        answer = self.answers.get(f"{request.method} {request.path}")
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if answer is None:
            return problem(404, "not_found", f"no path {request.path}")
        return answer if isinstance(answer, Reply) else answer(request)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up is part of the tests."""
        if not isinstance(sys.exception(), BrokenPipeError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _handler(node: FakeNode) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            data = self.rfile.read(length)
            target = urlsplit(self.path)
            body = json.loads(data) if data else None
            reply = node.reply(Request(self.command, target.path, target.query, body, dict(self.headers)))
            payload = json.dumps(reply.document).encode() if reply.raw is None else reply.raw
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(payload)))
            if reply.location is not None:
                self.send_header("Location", reply.location)
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815  (the names that http.server looks for)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def address_string(self) -> str:
            return "unix"

    return Handler
