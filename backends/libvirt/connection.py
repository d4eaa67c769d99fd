"""Talk to libvirtd: one connection a backend, opened when needed, and again when the daemon was restarted.

libvirt's client library blocks without limit when the daemon hangs. So each call runs in a thread of its own, which is
left behind when the time is over, together with its connection. There are never more than `MAX_LEFT` of these: nobody
knows how long a daemon hangs that is asked once a second. Errors of libvirt become `LibvirtFailed`.

What a call that was left behind asked for may be done yet. So it can be told what to do then (`late`), and others can
find out whether one is open that concerns the same thing (`unanswered`).
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class _Left:
    """A call that was given up."""

    about: str
    thread: threading.Thread


class Connection:
    """Calls of libvirt, for use from any thread.

    Args:
        uri: as in `virsh -c`; None: libvirt's own default.
    """

    def __init__(self, uri: str | None) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._open: Any = None
        self._left: list[_Left] = []

    def unanswered(self, about: str) -> bool:
        """Whether a call about that was given up, and may have an effect yet."""
        with self._lock:
            return any(left.about == about for left in self._still_left())

    def run(
        self,
        work: Callable[[Any], T],
        timeout_s: float = SHORT_S,
        *,
        about: str = "",
        late: Callable[[Any], None] | None = None,
    ) -> T:
        """Do `work` with a connection that answered just now.

        Args:
            work: gets a `virConnect`.
            about: for `unanswered`.
            late: gets it when `work` has succeeded after it was given up, to take its effect back.

        Raises:
            BackendUnavailable: libvirt-python or libvirtd is missing.
            LibvirtFailed: libvirt raised an error in `work`.
            LibvirtSilent: `work` took longer than `timeout_s`; it is left alone. Or too many others did.
        """
        libvirt = library()
        with self._lock:
            if len(self._still_left()) >= MAX_LEFT:
                raise LibvirtSilent(f"libvirtd has not answered {len(self._left)} earlier calls")
        outcome: list[T] = []
        problem: list[BaseException] = []
        given_up = threading.Event()

        def attempt() -> None:
            try:
                hypervisor = self._connected(libvirt)
                if given_up.is_set():
                    return
                made = work(hypervisor)
                with self._lock:
                    if not given_up.is_set():
                        outcome.append(made)
                        return
                if late is not None:
                    with contextlib.suppress(libvirt.libvirtError):
                        late(hypervisor)
            except BaseException as error:  # noqa: ASYNC103 - it belongs to the thread that waits
                problem.append(error)

        thread = threading.Thread(target=attempt, name="libvirt", daemon=True)
        thread.start()
        thread.join(timeout_s)
        with self._lock:
            if outcome:
                return outcome[0]
            if not problem:
                given_up.set()
                self._left.append(_Left(about, thread))
                self._open = None
        if given_up.is_set():
            raise LibvirtSilent(f"libvirtd did not answer within {timeout_s:g} s")
        if isinstance(problem[0], libvirt.libvirtError):
            error: Any = problem[0]
            code = error.get_error_code()
            raise LibvirtFailed(_one_line(error), -1 if code is None else code)
        raise problem[0]

    def _still_left(self) -> list[_Left]:
        """Those that have not ended. To be called with the lock."""
        self._left = [left for left in self._left if left.thread.is_alive()]
        return self._left

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
