"""Wait for what another process does, with a limit and without guessing how long it takes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(look: Callable[[], T | bool | None], within_s: float = 15.0, every_s: float = 0.05) -> T:
    """The first truthy value of `look`.

    Raises:
        AssertionError: there was none within the limit.
    """
    deadline = time.monotonic() + within_s
    value = look()
    while not value:
        assert time.monotonic() < deadline, f"did not happen within {within_s:g} s; last seen: {value!r}"
        time.sleep(every_s)
        value = look()
    return value  # type: ignore[return-value]
