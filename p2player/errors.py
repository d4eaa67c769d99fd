"""What can go wrong, and how it is told.

One class per kind of trouble that a caller can act on. Each carries a `code` for the wire and the control API, the HTTP
status of the API and the exit code of the CLI, so that the mapping stands in one place and a fault keeps its meaning
from a peer's worker thread to the user's shell.

    ========== ==== ==== ==================================================
    code       HTTP exit meaning
    ========== ==== ==== ==================================================
    failed      500    1 it was tried and did not work
    usage       400    2 the request makes no sense
    not_found   404    3 no such layer, app, node, migration
    unreachable 503    4 the node is not running or a peer does not answer
    refused     409    5 refused by preflight or by the present state
    integrity   422    6 bytes are not what their digest says
    ========== ==== ==== ==================================================
"""

from typing import ClassVar


class P2PlayerError(Exception):
    """Base of every error that is told to a user: its text is one line and names the thing it is about."""

    code: ClassVar[str] = "failed"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    @property
    def message(self) -> str:
        """The text for the user, always on one line."""
        return " ".join(str(self).split())


class Failed(P2PlayerError):
    """It was tried and did not work."""


class Usage(P2PlayerError):
    """The request makes no sense, whatever the state."""

    code = "usage"
    http_status = 400
    exit_code = 2


class NotFound(P2PlayerError):
    """No such layer, app, node or migration."""

    code = "not_found"
    http_status = 404
    exit_code = 3


class Unreachable(P2PlayerError):
    """The node is not running, or a peer does not answer."""

    code = "unreachable"
    http_status = 503
    exit_code = 4


class Refused(P2PlayerError):
    """Refused by preflight or by the present state; trying again unchanged will not help."""

    code = "refused"
    http_status = 409
    exit_code = 5


class Integrity(P2PlayerError):
    """Bytes are not what their digest says."""

    code = "integrity"
    http_status = 422
    exit_code = 6


BY_CODE: dict[str, type[P2PlayerError]] = {
    cls.code: cls for cls in (Failed, Usage, NotFound, Unreachable, Refused, Integrity)
}


def from_code(code: str, message: str) -> P2PlayerError:
    """Rebuild the error that a peer or the control API described; an unknown code is a plain failure."""
    return BY_CODE.get(code, Failed)(message)
