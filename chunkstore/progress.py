"""Tell a caller how far an import or a checkout is, often enough for a bar and rarely enough to cost nothing."""

from collections.abc import Callable, Iterable, Iterator

from chunkstore.holes import Window

Progress = Callable[[int, int], None]
"""`progress(done_bytes, total_bytes)`, called in the thread that works; whatever it raises ends the work."""

_STEP_BYTES = 1 << 20
_STEP_CALLS = 256


class Meter:
    """Counts bytes up to a total. `done` may be set back where work is repeated."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self.done = 0
        self._progress = progress
        self._total = total_bytes
        self._told = 0
        self._calls = 0

    def advance(self, count: int) -> None:
        """Count bytes that are done, and tell if it is time; raises what the callback raises."""
        self.done += count
        self._calls += 1
        if self._calls >= _STEP_CALLS or abs(self.done - self._told) >= _STEP_BYTES:
            self._calls = 0
            self._told = self.done
            if self._progress is not None:
                self._progress(min(self.done, self._total), self._total)

    def count(self, windows: Iterable[Window]) -> Iterator[Window]:
        """Pass the windows of a file on, counting what goes by."""
        for window in windows:
            yield window
            self.advance(window if isinstance(window, int) else len(window))

    def finish(self) -> None:
        """Tell that everything is done."""
        if self._progress is not None:
            self._progress(self._total, self._total)
