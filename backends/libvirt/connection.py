"""Talk to libvirtd: one connection a backend, opened when needed, and again when the daemon was restarted.

libvirt's client library blocks without limit when the daemon hangs. So each call runs in a thread of its own, which is
left behind when the time is over, together with its connection. There are never more than `MAX_LEFT` of these: nobody
knows how long a daemon hangs that is asked once a second. Errors of libvirt become `LibvirtFailed`.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from backends.errors import BackendError, BackendUnavailable

T = TypeVar("T")

_MAX_TEXT = 600

SHORT_S = 10.0
"""For calls that only ask."""

MAX_LEFT = 16
"""Calls that were given up and have not ended; with so many, no other is begun."""


class LibvirtFailed(BackendError):
    """libvirt refused or failed; `code` is one of libvirt's VIR_ERR_*."""

    def __init__(self, problem: str, code: int) -> None:
        super().__init__(problem)
        self.code = code


class LibvirtSilent(BackendError):
    """libvirtd did not answer in time; what was asked for may happen yet."""


def library() -> Any:
    """The module of libvirt-python.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        import libvirt
    except ImportError as error:
        raise BackendUnavailable(f"needs libvirt-python: pip install 'p2player[libvirt]' ({error})") from None
    libvirt.registerErrorHandler(_say_nothing, None)  # it prints to stderr otherwise
    return libvirt


def _one_line(error: Any) -> str:
    """What an error says, which may be all that QEMU printed: its end tells most."""
    lines = " / ".join(str(error.get_error_message() or error).split("\n")).strip(" /")
    text = "".join(letter if letter.isprintable() else "?" for letter in lines)
    return text if len(text) <= _MAX_TEXT else f"... {text[-_MAX_TEXT:]}"


def _say_nothing(context: object, error: object) -> None:
    pass


class Connection:
    """Calls of libvirt, for use from any thread.

    Args:
        uri: as in `virsh -c`; None: libvirt's own default.
    """

    def __init__(self, uri: str | None) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._open: Any = None
        self._left: list[threading.Thread] = []

    def run(self, work: Callable[[Any], T], timeout_s: float = SHORT_S) -> T:
        """Do `work` with a connection that answered just now.

        Args:
            work: gets a `virConnect`.

        Raises:
            BackendUnavailable: libvirt-python or libvirtd is missing.
            LibvirtFailed: libvirt raised an error in `work`.
            LibvirtSilent: `work` took longer than `timeout_s`; it is left alone. Or too many others did.
        """
        libvirt = library()
        with self._lock:
            self._left = [thread for thread in self._left if thread.is_alive()]
            if len(self._left) >= MAX_LEFT:
                raise LibvirtSilent(f"libvirtd has not answered {len(self._left)} earlier calls")
        outcome: list[T] = []
        problem: list[BaseException] = []

        def attempt() -> None:
            try:
                outcome.append(work(self._connected(libvirt)))
            except BaseException as error:  # noqa: ASYNC103 - it belongs to the thread that waits
                problem.append(error)

        thread = threading.Thread(target=attempt, name="libvirt", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if outcome:
            return outcome[0]
        if not problem:
            with self._lock:
                self._left.append(thread)
                self._open = None
            raise LibvirtSilent(f"libvirtd did not answer within {timeout_s:g} s")
        if isinstance(problem[0], libvirt.libvirtError):
            error: Any = problem[0]
            code = error.get_error_code()
            raise LibvirtFailed(_one_line(error), -1 if code is None else code)
        raise problem[0]

    def _connected(self, libvirt: Any) -> Any:
        with self._lock:
            found = self._open
        if found is not None:
            try:
                found.getLibVersion()  # without an event loop, only a call shows that the daemon has gone
                return found
            except libvirt.libvirtError:
                self._forget()
        try:
            made = libvirt.open(self.uri)
        except libvirt.libvirtError as error:
            where = self.uri or "the default URI"
            raise BackendUnavailable(f"no libvirtd at {where}: {_one_line(error)}") from None
        with self._lock:
            self._open = made
        return made

    def _forget(self) -> None:
        with self._lock:
            self._open = None
