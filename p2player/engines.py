"""The engines of this node by name, and questions to them that must not wait for ever.

A probe, or a look at what memory from elsewhere needs, may ask a daemon that hangs. Such an engine counts as one that
cannot be used: the question is given up after `ANSWER_S`, and the thread that asked is left behind. Every engine has
few threads for this, so that one that hangs takes none from the others.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeVar, runtime_checkable

import trio

from backends.base import Adopter, Backend, Probe
from backends.errors import BackendError
from p2player.errors import Refused, Usage

ANSWER_S = 10.0
THREADS = 4
MAX_MISMATCHES = 16

T = TypeVar("T")


@runtime_checkable
class AdoptingBackend(Adopter, Backend, Protocol):
    """A backend whose engine may have instances of its own."""


class Engines:
    """All backends of one node.

    Args:
        backends: by name, in the order in which they are listed.
        answer_s: how long a question may take.
    """

    def __init__(self, backends: Mapping[str, Backend], *, answer_s: float = ANSWER_S) -> None:
        self._backends = dict(backends)
        self._answer_s = answer_s
        self._limiters = {name: trio.CapacityLimiter(THREADS) for name in backends}

    def __iter__(self) -> Iterator[str]:
        return iter(self._backends)

    def get(self, name: str) -> Backend:
        """The backend of that name.

        Raises:
            Usage: there is none.
        """
        backend = self._backends.get(name)
        if backend is None:
            raise Usage(f"unknown backend {name!r}; known: {', '.join(self._backends)}")
        return backend

    def adopter(self, name: str) -> AdoptingBackend:
        """The backend of that name, to adopt an instance of its engine.

        Raises:
            Usage: there is none.
            Refused: its instances do not exist before it.
        """
        backend = self.get(name)
        if not isinstance(backend, AdoptingBackend):
            raise Refused(f"there is nothing to adopt: backend {name} has no instances that exist before it")
        return backend

    async def probe(self, name: str) -> Probe | None:
        """Whether one engine can be used here; None for an unknown one."""
        backend = self._backends.get(name)
        if backend is None:
            return None
        answer = await self._ask(name, backend.probe)
        return Probe(name, False, None, f"no answer within {self._answer_s:g} s") if answer is None else answer

    async def probes(self) -> list[Probe]:
        """One answer an engine, in their order; all are asked at once."""
        found: dict[str, Probe] = {}

        async def ask(name: str) -> None:
            answer = await self.probe(name)
            assert answer is not None
            found[name] = answer

        async with trio.open_nursery() as nursery:
            for name in self:
                nursery.start_soon(ask, name)
        return [found[name] for name in self]

    async def mismatches(self, name: str, facts: Mapping[str, str]) -> list[str]:
        """Why memory that was saved on a machine of those `facts` cannot be restored by an engine of this one.

        Raises:
            Usage: there is no such engine.
        """
        backend = self.get(name)
        try:
            answer = await self._ask(name, lambda: list(backend.mismatches(facts)))
        except BackendError as error:
            return [str(error)]
        return [f"{name} does not answer"] if answer is None else answer[:MAX_MISMATCHES]

    async def _ask(self, name: str, question: Callable[[], T]) -> T | None:
        """The answer; None when it takes too long."""
        with trio.move_on_after(self._answer_s):
            return await trio.to_thread.run_sync(question, abandon_on_cancel=True, limiter=self._limiters[name])
        return None
