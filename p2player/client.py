"""Talk to the node of a STATE folder: its control API, over the unix socket there.

Every request has a connection of its own. Long work is answered with a `Location`; `Client.follow` polls it, each
poll waiting at the node until something changed, and `Client.work` does both and cancels the work when the user
presses Ctrl-C. Nothing here knows what the documents mean: that is for the commands. Little is imported, and
`plainhttp` stands in for `http.client`, as the command line starts with this.
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from p2player import errors, plainhttp

ANSWER_S: Final = 90.0
"""How long an answer to a question may take."""

COMMAND_S: Final = 330.0
"""How long an answer to a command may take: to start an application may mean to bring its layers there first."""

POLL_S: Final = 20.0
"""How long the node holds a poll when nothing changes."""

ENDED: Final = frozenset({"done", "failed", "cancelled"})
"""States of long work and of migrations that are final."""

MAX_ANSWER_BYTES: Final = 256 << 20
MAX_LINE_BYTES: Final = 1 << 20

_MAX_SOCKET_PATH_BYTES = 107
_SILENCE_S = 60.0

Row = dict[str, Any]
Watch = Callable[[Mapping[str, Any]], None]
"""Called with each new state of long work."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the node said.

    Attributes:
        document: the JSON value.
        location: where long work can be followed, of a 202.
    """

    status: int
    document: Any
    location: str | None


def path(*parts: str) -> str:
    """An API path, each part quoted: `path("v1", "layers", "edge/base")` is `/v1/layers/edge%2Fbase`."""
    return "/" + "/".join(plainhttp.quote(part) for part in parts)


class Client:
    """The API of one node.

    Args:
        state_dir: its STATE folder; nothing is touched before the first request.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.socket_path = state_dir / "control.sock"

    def get(self, target: str) -> Any:
        """The document at a path; see `request`."""
        return self.request("GET", target).document

    def request(self, method: str, target: str, body: Mapping[str, Any] | None = None) -> Answer:
        """Send one request and read the answer.

        Args:
            target: path and query, quoted.
            body: sent as JSON.

        Raises:
            Unreachable: no node runs here, or it went away, or did not answer in time.
            P2PlayerError: the error that the node answered.
        """
        with self._exchange(method, target, body, ANSWER_S if method == "GET" else COMMAND_S) as response:
            data = response.body.read(MAX_ANSWER_BYTES + 1)
            if len(data) > MAX_ANSWER_BYTES:
                raise errors.Failed(f"the node's answer is over {MAX_ANSWER_BYTES} bytes")
            location = response.headers.get("location")
        return Answer(response.status, _document(response.status, data), location)

    def work(
        self, method: str, target: str, body: Mapping[str, Any] | None, watch: Watch, *, every_s: float = 0.1
    ) -> Row:
        """Start long work, wait until it ends, and return its result. Ctrl-C cancels the work at the node.

        Raises:
            P2PlayerError: what the work failed with, or `Failed` when somebody cancelled it.
        """
        answer = self.request(method, target, body)
        if answer.location is None:
            return _row(answer.document)
        try:
            row = self.follow(answer.location, watch, every_s=every_s)
        except KeyboardInterrupt:
            with contextlib.suppress(errors.P2PlayerError):
                self.request("DELETE", answer.location)
            raise
        raise_failure(row)
        return _row(row.get("result"))

    def follow(self, location: str, watch: Watch, *, every_s: float = 0.1) -> Row:
        """Wait until long work or a migration ends; its last row. Ctrl-C leaves it running.

        Args:
            watch: called with each row before the last one.
            every_s: how often at most, in seconds; to tell costs the node time that the work could use.

        Raises:
            Unreachable: the node went away meanwhile.
        """
        while True:
            row = _row(self.get(f"{location}?wait={POLL_S:g}&every={every_s:g}"))
            if row.get("state") in ENDED:
                return row
            watch(row)

    def events(self) -> Iterator[tuple[str, Row]]:
        """What happens at the node from now on, as (type, data), until it stops.

        Raises:
            Unreachable: no node runs here, or it went away.
        """
        with self._exchange("GET", "/v1/events", None, _SILENCE_S) as response:
            if response.status != 200:
                _document(response.status, response.body.read(MAX_LINE_BYTES))
            kind, data = "message", ""
            while line := response.body.readline(MAX_LINE_BYTES):
                name, _, value = line.decode(errors="replace").rstrip("\r\n").partition(":")
                match name:
                    case "event":
                        kind = value.strip()
                    case "data":
                        data += value.strip()
                    case "" if data and not value:
                        yield kind, _row(_json(data.encode()))
                        kind, data = "message", ""
        raise errors.Unreachable(f"the node on {self.state_dir} stopped")

    @contextlib.contextmanager
    def _exchange(
        self, method: str, target: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> Iterator[plainhttp.Answer]:
        """One request on one connection; what goes wrong on the way is told as the user's trouble."""
        payload = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "text/event-stream" if target == "/v1/events" else "application/json"}
        if payload is not None:
            headers["Content-Type"] = "application/json"
        try:
            sock = _connected(self.socket_path, timeout_s)
        except OSError as error:
            raise self._nobody(error) from None
        try:
            yield plainhttp.ask(sock, method, target, headers, payload)
        except TimeoutError:
            raise errors.Unreachable(f"the node on {self.state_dir} did not answer in {timeout_s:g} s") from None
        except (OSError, plainhttp.BadAnswer) as error:
            detail = str(error) or type(error).__name__
            raise errors.Unreachable(f"the node on {self.state_dir} went away: {detail}") from None
        finally:
            sock.close()

    def _nobody(self, error: OSError) -> errors.P2PlayerError:
        if isinstance(error, PermissionError):
            return errors.Unreachable(f"may not use {self.socket_path}: {error.strerror}")
        if isinstance(error, FileNotFoundError | NotADirectoryError | ConnectionRefusedError):
            if (self.state_dir / "identity").exists():
                return errors.Unreachable(f"no node is running on {self.state_dir}; start it with: p2player run")
            return errors.Unreachable(
                f"no node is running on {self.state_dir}, and it is in no mesh yet; see: p2player init --help"
            )
        return errors.Unreachable(f"cannot reach the node on {self.state_dir}: {error.strerror or error}")


def _connected(socket_path: Path, timeout_s: float) -> socket.socket:
    """Connect to a unix socket; one whose path is longer than the 107 bytes that the kernel takes, through its folder.

    Raises:
        OSError: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        if len(os.fsencode(socket_path)) <= _MAX_SOCKET_PATH_BYTES:
            sock.connect(os.fsencode(socket_path))
        else:
            folder = os.open(socket_path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{folder}/{socket_path.name}")
            finally:
                os.close(folder)
    except BaseException:
        sock.close()
        raise
    return sock


def raise_failure(row: Mapping[str, Any]) -> None:
    """Raise what long work, or a migration, ended with, if that is not success.

    Raises:
        P2PlayerError: by the code in the row.
    """
    if row.get("state") == "done":
        return
    error = row.get("error")
    if isinstance(error, dict):
        raise errors.from_code(str(error.get("code")), str(error.get("message")))
    raise errors.Failed("it was cancelled" if row.get("state") == "cancelled" else f"it ended as {row.get('state')}")


def _document(status: int, data: bytes) -> Any:
    """The JSON in an answer, or the error that it tells."""
    if status < 400:
        return None if status == 204 else _json(data)
    try:
        error = json.loads(data)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        code = next((c.code for c in errors.BY_CODE.values() if c.http_status == status), "failed")
        message = f"the node answered HTTP {status}"
    raise errors.from_code(code, message)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise errors.Failed("the node's answer is not JSON") from None


def _row(document: Any) -> Row:
    if not isinstance(document, dict):
        raise errors.Failed("the node's answer has another form than this version of p2player expects")
    return document
