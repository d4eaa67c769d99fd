"""Engines that answer, and engines that hang."""

import threading
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest
import trio

from backends.base import Backend, Probe
from backends.errors import BackendError
from p2player.engines import Engines
from p2player.errors import Usage


class Engine:
    def __init__(self, name: str) -> None:
        self.name = name
        self.hold: threading.Event | None = None
        self.wrong: Sequence[str] | BackendError = ()

    def probe(self) -> Probe:
        if self.hold is not None:
            self.hold.wait(10)
        return Probe(self.name, True, "1")

    def mismatches(self, facts: Mapping[str, str]) -> Sequence[str]:
        self.probe()
        if isinstance(self.wrong, BackendError):
            raise self.wrong
        return self.wrong


def engines(*made: Engine, answer_s: float = 5.0) -> Engines:
    return Engines(cast(dict[str, Backend], {engine.name: cast(Any, engine) for engine in made}), answer_s=answer_s)


async def test_all_answer_in_their_order() -> None:
    known = engines(Engine("b"), Engine("a"))
    assert await known.probes() == [Probe("b", True, "1"), Probe("a", True, "1")]
    assert list(known) == ["b", "a"]
    assert await known.probe("c") is None
    with pytest.raises(Usage, match="unknown backend 'c'; known: b, a"):
        known.get("c")
    with pytest.raises(Usage):
        await known.mismatches("c", {})


async def test_one_that_hangs_is_not_waited_for_and_hinders_no_other() -> None:
    stuck, sound = Engine("stuck"), Engine("sound")
    stuck.hold = threading.Event()
    known = engines(stuck, sound, answer_s=0.05)
    try:
        with trio.fail_after(5):
            for _ in range(6):  # more than there are threads for it
                hanging, other = await known.probes()
                assert (hanging.available, hanging.reason) == (False, "no answer within 0.05 s")
                assert other.available
            assert await known.mismatches("stuck", {}) == ["stuck does not answer"]
    finally:
        stuck.hold.set()


async def test_mismatches_are_few_and_errors_are_some() -> None:
    engine = Engine("a")
    known = engines(engine)
    assert await known.mismatches("a", {}) == []
    engine.wrong = [str(number) for number in range(100)]
    assert await known.mismatches("a", {}) == [str(number) for number in range(16)]
    engine.wrong = BackendError("the daemon is gone")
    assert await known.mismatches("a", {}) == ["the daemon is gone"]
