"""The LXD daemon of this machine: found by its unix socket, asked through pylxd, and seen as a process.

pylxd's models are not used: they cache what is stale a moment later, and wait for operations without a limit. Its
client is, which knows the socket's transport and LXD's kinds of errors. pylxd is imported at the first use, for it is
slow to import and an optional extra.

The daemon may live in a mount namespace of its own, as the snap's does: `process` tells which one, by the credentials
of the socket, and with it what the daemon's own folder is called there and which `criu` it would run.
"""

import os
import shutil
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from backends.base import EngineSettings
from backends.errors import BackendError, BackendUnavailable

EXTRA = "pip install 'p2player[lxd]'"
HOW_TO_GET = "as root: sh scripts/engine-packages.sh"

_SOCKETS = ("/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket")
_FOLDER = "/var/lib/lxd"
_TEMPLATES = "/usr/share/lxc/config"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CALL_TIMEOUT_S = 15.0
_MAX_SOCKET_PATH = 100
_DONE = 200


class LxdError(BackendError):
    """LXD refused something, or did not answer; `status` is that of HTTP, or None."""

    def __init__(self, problem: str, status: int | None = None) -> None:
        super().__init__(problem)
        self.status = status


class StillAtWork(LxdError):
    """LXD did not end an operation in time; it may do so later."""


@dataclass(frozen=True, slots=True)
class Process:
    """The daemon as a process.

    Attributes:
        pid: in whose mount namespace its paths mean something.
        folder: its own folder, as it is called there.
        criu: the program that it runs for checkpoints; None when it finds none.
        templates: folder of LXC's own configuration that it includes in every container's.
    """

    pid: int
    folder: Path
    criu: Path | None
    templates: Path

    def outside(self, path: Path) -> Path:
        """A path of the daemon's, for processes in other mount namespaces."""
        return Path(f"/proc/{self.pid}/root", *path.parts[1:])


class Daemon:
    """One daemon; connects at the first question, and again when it was restarted. For use from any thread."""

    def __init__(self, settings: EngineSettings) -> None:
        self.socket = find_socket(settings)
        self._settings = settings
        self._lock = threading.Lock()
        self._client: Any = None
        self._folder_fd = -1

    def server(self) -> Mapping[str, Any]:
        """What it tells of itself.

        Raises:
            BackendUnavailable: pylxd or the daemon is not there, or it does not trust us.
        """
        found: dict[str, Any] = self._answer(self._raw("get", ()))
        if found.get("auth") != "trusted":
            raise BackendUnavailable(f"LXD at {self.socket} does not trust this user")
        return found

    def version(self) -> str:
        """As in `lxd --version`."""
        return str(self.server()["environment"]["server_version"])

    def pool(self) -> str:
        """The storage pool to use: that of the settings, else the first of driver `dir`.

        Raises:
            BackendUnavailable: there is none.
        """
        pools = self.get("storage-pools", params={"recursion": 1})
        fitting = [pool["name"] for pool in pools if pool["driver"] == "dir"]
        wanted = self._settings.lxd_pool
        if wanted is not None:
            if wanted not in fitting:
                raise BackendUnavailable(f"LXD has no storage pool {wanted} of driver dir")
            return wanted
        if not fitting:
            raise BackendUnavailable("LXD has no storage pool of driver dir: lxc storage create p2player dir")
        return str(fitting[0])

    def process(self) -> Process:
        """The daemon as a process; needs root.

        Raises:
            BackendUnavailable: its process cannot be seen from here.
        """
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_CALL_TIMEOUT_S)
            try:
                connection.connect(self._reachable())
                raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                pid = struct.unpack("3i", raw)[0]
                with open(f"/proc/{pid}/environ", "rb") as file:
                    environ = dict(word.partition(b"=")[::2] for word in file.read().split(b"\0"))
            except OSError as error:
                raise BackendUnavailable(f"the process of LXD at {self.socket} cannot be seen: {error}") from error

        def variable(name: str, default: str) -> str:
            return os.fsdecode(environ.get(name.encode(), b"")) or default

        criu = shutil.which("criu", path=variable("PATH", _PATH))
        return Process(
            pid=pid,
            folder=Path(variable("LXD_DIR", _FOLDER)),
            criu=None if criu is None else Path(criu),
            templates=Path(variable("LXD_LXC_TEMPLATE_CONFIG", _TEMPLATES)),
        )

    def get(self, *path: str, params: Mapping[str, Any] | None = None) -> Any:
        """GET below /1.0; the metadata of the answer."""
        return self._call("get", path, params=params)

    def put(self, *path: str, body: Mapping[str, Any]) -> str:
        """PUT below /1.0; the name of the operation that it began."""
        return str(self._call("put", path, json=body)["id"])

    def post(self, *path: str, timeout_s: float = _CALL_TIMEOUT_S, **options: Any) -> str:
        """POST below /1.0; the name of the operation that it began."""
        return str(self._call("post", path, timeout=timeout_s, **options)["id"])

    def delete(self, *path: str) -> str:
        """DELETE below /1.0; the name of the operation that it began."""
        return str(self._call("delete", path)["id"])

    def wait(self, operation: str, timeout_s: float) -> Mapping[str, Any]:
        """Wait for an operation to end well.

        Raises:
            StillAtWork: not within `timeout_s`, in whole seconds.
            LxdError: it failed.
        """
        seconds = max(1, round(timeout_s))
        path = ("operations", operation, "wait")
        done = self._call("get", path, params={"timeout": seconds}, timeout=seconds + _CALL_TIMEOUT_S)
        if done["status_code"] < _DONE:
            raise StillAtWork(f"LXD: {done['description'].lower()} takes longer than {seconds} s")
        if done["status_code"] != _DONE:
            raise LxdError(f"LXD: {_line(done['err'] or done['status'])}", done["status_code"])
        return dict(done)

    def read(self, *path: str, into: Path, timeout_s: float) -> str:
        """GET a file below /1.0; returns the kind of its content."""
        response = self._raw("get", path, stream=True, is_api=False, timeout=timeout_s)
        with into.open("wb") as file:
            for block in response.iter_content(1 << 20):
                file.write(block)
        return str(response.headers.get("Content-Type", ""))

    def _call(self, method: str, path: tuple[str, ...], **options: Any) -> Any:
        return self._answer(self._raw(method, path, **options))

    def _raw(self, method: str, path: tuple[str, ...], **options: Any) -> Any:
        import requests
        from pylxd.exceptions import LXDAPIException

        node = self._api()
        for part in path:
            node = node[quote(part, safe="")]
        try:
            return getattr(node, method)(**options)
        except LXDAPIException as error:
            raise LxdError(f"LXD: {_line(str(error))}", error.response.status_code) from error
        except (requests.RequestException, OSError) as error:
            raise BackendUnavailable(f"LXD at {self.socket} does not answer: {_line(str(error))}") from error
        except (TypeError, KeyError) as error:  # pylxd does not expect JSON of another shape
            raise LxdError(f"LXD at {self.socket} gave an answer that makes no sense") from error

    def _answer(self, response: Any) -> Any:
        try:
            return response.json()["metadata"]
        except (ValueError, KeyError, TypeError) as error:
            raise LxdError(f"LXD at {self.socket} gave an answer that makes no sense") from error

    def _api(self) -> Any:
        """pylxd's node for /1.0."""
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            else:
                self._reachable()
            return self._client.api

    def _connect(self) -> Any:
        try:
            import pylxd
            import requests
            from pylxd.client import get_session_for_url
        except ImportError as error:
            raise BackendUnavailable(f"needs the Python package pylxd ({error}): {EXTRA}") from error
        if not self.socket.exists():
            raise BackendUnavailable(f"LXD is not here: there is no {self.socket}; {HOW_TO_GET}, or set lxd_socket")
        endpoint = f"http+unix://{quote(self._reachable(), safe='')}"
        session = get_session_for_url(endpoint)
        session.trust_env = False  # proxies and certificates of the environment are not for this socket
        try:
            return pylxd.Client(endpoint=endpoint, session=session, timeout=_CALL_TIMEOUT_S)
        except (pylxd.exceptions.ClientConnectionFailed, requests.RequestException, OSError) as error:
            raise BackendUnavailable(f"LXD at {self.socket} does not answer: {_line(str(error))}") from error
        except pylxd.exceptions.LXDAPIException as error:
            raise BackendUnavailable(f"LXD at {self.socket}: {_line(str(error))}") from error

    def _reachable(self) -> str:
        """A path to the socket that fits into an address, however long the real one is."""
        if len(os.fsencode(self.socket)) <= _MAX_SOCKET_PATH:
            return str(self.socket)
        try:
            place = os.stat(self.socket.parent)
            if self._folder_fd < 0 or not os.path.samestat(place, os.fstat(self._folder_fd)):
                self._open_folder()
        except OSError as error:
            raise BackendUnavailable(f"LXD is not here: {self.socket.parent}: {error.strerror}") from error
        return f"/proc/self/fd/{self._folder_fd}/{self.socket.name}"

    def _open_folder(self) -> None:
        """Hold the socket's folder; in place of another under the same number, which the client's address has."""
        found = os.open(self.socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if self._folder_fd < 0:
            self._folder_fd = found
        else:
            os.dup2(found, self._folder_fd, inheritable=False)
            os.close(found)


def find_socket(settings: EngineSettings) -> Path:
    """The socket of the settings, of the environment, or where distributions have it."""
    if settings.lxd_socket is not None:
        return settings.lxd_socket
    folder = os.environ.get("LXD_DIR")
    if folder:
        return Path(folder) / "unix.socket"
    return Path(next((path for path in _SOCKETS if os.path.exists(path)), _SOCKETS[-1]))


def _line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:500]
