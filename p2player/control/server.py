"""The sockets of the control API, and Hypercorn on them.

The unix socket is bound through a descriptor of its folder, since the path of a socket may have no more than 107 bytes
and a state folder may lie deeper than that. Its mode is set by the umask at the moment of binding: there is no instant
at which anyone could connect who may not later. The mode of that folder says whether a group may (`group_may_use`).
"""

import hmac
import os
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from p2player import errors
from p2player.addresses import is_loopback
from p2player.control.endpoint import problem
from p2player.statedir import write_atomic

DRAIN_S = 2.0
BACKLOG = 128
COOKIE = "p2player-token"


def group_may_use(folder_mode: int) -> bool:
    """Whether whoever gave the state folder this mode let its group in: the group may pass, and nobody else may.

    That is 0710 or 0750. A folder that everybody may pass (0755, as `mkdir` makes them) was not opened for a group.
    """
    return folder_mode & (stat.S_IXGRP | stat.S_IXOTH) == stat.S_IXGRP


def bind_unix(path: Path) -> socket.socket:
    """A listening socket at `path`; a stale one there is replaced.

    Its mode is 0600, or 0660 where its folder lets a group in.

    Raises:
        OSError: the folder is not ours to write.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=folder)
        before = os.umask(0o117 if group_may_use(os.fstat(folder).st_mode) else 0o177)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


def bind_loopback(host: str, port: int) -> socket.socket:
    """A listening TCP socket on loopback.

    Raises:
        Refused: `host` is no loopback address: the API is not made for the network.
    """
    if not is_loopback(host):
        raise errors.Refused(f"the control API listens on loopback only, not on {host}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def read_token(path: Path) -> str:
    """The bearer token in `path`; a random one is written there if there is none.

    Raises:
        Refused: the file is empty.
    """
    try:
        token = path.read_text("utf-8").strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(32)
        write_atomic(path, f"{token}\n".encode(), 0o600)
    if not token:
        raise errors.Refused(f"{path} holds no token")
    return token


class BearerOnly:
    """Passes on what carries the token; the rest is refused. For the TCP listener, where no file mode guards.

    Programs send `Authorization: Bearer TOKEN`. A browser opens `/?token=TOKEN` once and gets a cookie in exchange.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        if (scheme.lower() == "bearer" and self._is_token(bearer)) or self._is_token(request.cookies.get(COOKIE, "")):
            await self._app(scope, receive, send)
        elif scope["path"] == "/" and self._is_token(request.query_params.get("token", "")):
            redirect = RedirectResponse("/", 303)
            redirect.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
            await redirect(scope, receive, send)
        else:
            refusal = problem(errors.Refused("a bearer token is needed here; see control_token_file"))
            refusal.status_code = 401
            await refusal(scope, receive, send)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


async def serve_on(
    listener: socket.socket,
    app: Callable[..., Any],
    shutdown: Callable[[], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on `listener` until `shutdown` returns; requests under way get `DRAIN_S` to end."""
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.graceful_timeout = DRAIN_S
    config.keep_alive_timeout = 30
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    await serve(app, config, shutdown_trigger=shutdown, task_status=task_status)
