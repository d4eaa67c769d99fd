"""Checked-out trees that the applications of this node share: one folder a layer, made when it is first asked for.

A tree that no application uses is removed once nobody has asked for it for a while: whoever asks is about to use it,
and may not be in the books yet. Making and removing a tree hold its lock, and a removed one leaves its place by one
rename, so that a tree is whole or absent whatever is killed. What an interrupted checkout or removal left goes the same
way.
"""

import os
import secrets
import stat
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import count
from pathlib import Path

import trio

from chunkstore.digest import ID_BYTES, LayerId
from p2player.log import Log

_PARTIAL = ".p2player-partial"
_GONE = ".gone-"


class Trees:
    """The trees in one folder, which nobody else writes to.

    Args:
        folder: STATE/checkouts; it need not exist.
        make: checks a layer out to a path that does not exist yet.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        folder: Path,
        make: Callable[[LayerId, Path], Awaitable[None]],
        log: Log,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._make = make
        self._log = log
        self._clock = clock
        self._started_s = clock()
        self._asked_s: dict[LayerId, float] = {}
        self._locks: dict[LayerId, trio.Lock] = {}

    async def tree(self, layer: LayerId) -> Path:
        """The tree of `layer`; whatever making it raises."""
        path = self._folder / layer.hex()
        async with self._lock(layer):
            try:
                if not await trio.to_thread.run_sync(path.is_dir):
                    await self._make(layer, path)
            finally:
                self._asked_s[layer] = self._clock()
        return path

    async def first(self, layers: Iterable[LayerId]) -> Path | None:
        """The tree of the first of these layers that has one. It may go at any time."""
        for layer in layers:
            path = self._folder / layer.hex()
            if await trio.to_thread.run_sync(path.is_dir):
                return path
        return None

    async def sweep(self, in_use: Callable[[], set[LayerId]], idle_s: float) -> list[LayerId]:
        """Remove the trees that are not in use and were not asked for in the last `idle_s` seconds.

        A tree that is being made is left alone. Cancellation leaves the rest for the next sweep.

        Returns:
            The layers whose trees, or what was left of them, are gone.
        """
        removed: list[LayerId] = []
        try:
            for name in await trio.to_thread.run_sync(_names, self._folder):
                layer = _layer_of(name)
                if layer is not None and not self._lock(layer).locked():
                    async with self._lock(layer):
                        if layer in in_use() or self._clock() - self._asked_s.get(layer, self._started_s) < idle_s:
                            continue
                        os.rename(self._folder / name, self._folder / f"{_GONE}{secrets.token_hex(8)}")
                        self._asked_s.pop(layer, None)
                    removed.append(layer)
            await trio.to_thread.run_sync(_clear, self._folder)
        except OSError as error:
            self._log.warning("checked-out trees could not be removed", reason=str(error))
        return removed

    def _lock(self, layer: LayerId) -> trio.Lock:
        return self._locks.setdefault(layer, trio.Lock())


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _layer_of(name: str) -> LayerId | None:
    """The layer whose tree, or whose unfinished tree, is called so."""
    digits = name[1:].removesuffix(_PARTIAL) if name.startswith(".") and name.endswith(_PARTIAL) else name
    if len(digits) != 2 * ID_BYTES or not set(digits) <= set("0123456789abcdef"):
        return None
    return LayerId(bytes.fromhex(digits))


def _clear(folder: Path) -> None:
    for name in _names(folder):
        if name.startswith(_GONE):
            erase(folder / name)


def erase(folder: Path) -> None:
    """Delete a tree of any depth, whatever the modes of its folders; symbolic links are not followed.

    Folders are moved up to beside the top as they are met: so no path grows, and nothing is done by recursion.
    """
    numbers = (f"{folder}.{number}" for number in count())
    left = [os.fspath(folder)]
    while left:
        place = left.pop()
        os.chmod(place, stat.S_IRWXU)
        with os.scandir(place) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                    continue
                os.chmod(entry.path, stat.S_IRWXU)  # moving a folder writes to it
                aside = next(name for name in numbers if not os.path.lexists(name))
                os.rename(entry.path, aside)
                left.append(aside)
        os.rmdir(place)
