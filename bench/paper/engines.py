"""The engines of two nodes on one machine: each in its host's network, with folders and daemons of its own.

The embedded backend needs no lab: for trying the bench out, its calls are made in the host's network namespace.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final, Protocol, cast

from backends.base import Backend, EngineSettings
from backends.process import ProcessBackend
from bench.enginelab.libvirt import LibvirtNode
from bench.enginelab.lxd import LxdNode
from bench.enginelab.runc import RuncNode
from bench.netlab import Host
from bench.paper.plan import LIBVIRT, LXD, PROCESS, RUNC

_CLONE_NEWNET: Final = 0x40000000


class Engine(Protocol):
    """One node's engine, running.

    Attributes:
        backend: works from this process.
        settings: what the node's configuration says of it.
        environment: what the node's process needs.
    """

    @property
    def backend(self) -> Backend: ...
    @property
    def settings(self) -> EngineSettings: ...
    @property
    def environment(self) -> dict[str, str]: ...
    def command(self, argv: Sequence[str]) -> list[str]:
        """What runs `argv` where the engine is."""
        ...


def open_engine(platform: str, root: Path, name: str, host: Host) -> AbstractContextManager[Engine]:
    """The engine of one node; it runs while the block does.

    Args:
        root: an existing folder; the engine keeps its files in one below it.
        host: whose network namespace it works in.
    """
    opened: Any
    if platform == LXD:
        opened = LxdNode(root, name, netns=host.path)
    elif platform == LIBVIRT:
        opened = LibvirtNode(root, name, netns=host.path)
    elif platform == RUNC:
        opened = RuncNode(root, name, netns=host.path)
    else:
        assert platform == PROCESS
        opened = nullcontext(_ProcessEngine(host))
    return cast(AbstractContextManager[Engine], opened)


class _ProcessEngine:
    """The embedded backend inside a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.settings = EngineSettings()
        self.environment: dict[str, str] = {}
        self.backend = cast(Backend, _Inside(ProcessBackend(), host.path))

    def command(self, argv: Sequence[str]) -> list[str]:
        return self._host.command(argv)


class _Inside:
    """A backend whose methods are called by threads of a network namespace: processes that they start are there."""

    def __init__(self, backend: Backend, netns: str) -> None:
        self._backend = backend
        self._netns = netns

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._backend, name)
        return self._called(found) if callable(found) else found

    def _called(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            outcome = _Outcome(self._netns, lambda: method(*arguments, **options))
            outcome.start()
            outcome.join()
            if outcome.error is not None:
                raise outcome.error
            return outcome.value

        return call


class _Outcome(threading.Thread):
    """One call in a namespace; the thread ends with it, so no other code ever runs there."""

    def __init__(self, netns: str, action: Callable[[], Any]) -> None:
        super().__init__()
        self._netns = netns
        self._action = action
        self.value: Any = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            _enter_network(self._netns)
            self.value = self._action()
        except Exception as error:  # handed to the caller, whatever it is
            self.error = error


def _enter_network(path: str) -> None:
    """Put the calling thread into a network namespace."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)
