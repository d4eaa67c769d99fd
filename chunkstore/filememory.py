"""The stat cache as an import uses it: what a file held when it was last read, and what to keep of a new read."""

import os
import stat
from collections.abc import Callable

from chunkstore.statcache import Recall, Remembered, StatCache


class Memory:
    """A stat cache, if there is one, as one import uses it."""

    def __init__(self, key: bytes | None, cache: StatCache | None, clock_ns: Callable[[], int]) -> None:
        self._recall = Recall(key)
        self._cache = cache
        self.clock_ns = clock_ns

    def propose(self, status: os.stat_result) -> Remembered | None:
        """What this file held when it was last read, if it has not changed since."""
        if self._cache is None or not stat.S_ISREG(status.st_mode):
            return None
        payload = self._cache.cached(status.st_dev, status.st_ino)
        return None if payload is None else self._recall.match(status, payload)

    def keep(self, status: os.stat_result, file: Remembered, read_at_ns: int) -> None:
        """Remember what was read, unless its times are too young."""
        if self._cache is not None:
            payload = self._recall.payload(status, file, read_at_ns)
            if payload is not None:
                self._cache.remember(status.st_dev, status.st_ino, payload)
