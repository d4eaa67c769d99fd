"""Content whose chunks stay while somebody builds on them.

An importer asks what is missing and stores only that; what is here already is in the layer-to-be without being stored
again, and until that layer is on record nothing else may protect it: its only other layer may be dropped and collected
meanwhile. `Reserving` stands between the importer and the store, and leases what it says to be here before it says so.
"""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from chunkstore.codec import Group
from chunkstore.digest import ChunkId
from chunkstore.store import ChunkStore

RESERVED_S = 6 * 3600.0
"""Longer than an import takes; should the process be killed, so long its chunks stay."""


class Reserving:
    """A store's content, for the time of one import; what was reserved is let go at the end of the context."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._owner = f"import {secrets.token_hex(8)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store.release(self._owner)

    @property
    def key(self) -> None:
        """Shared content is named by plain digests."""
        return

    def missing(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Those of `ids` that are not here; the others stay."""
        wanted = set(ids)
        missing = self._store.missing(wanted)
        here = wanted - missing
        if here:
            self._store.lease(here, RESERVED_S, self._owner)
            missing |= self._store.missing(here)  # what was collected before the lease
        return missing

    def add(self, groups: Iterable[Group]) -> int:
        """See `Content.add`. New chunks are young, which is protection enough (see `leases`)."""
        return self._store.add(groups)

    def groups(self, ids: Sequence[ChunkId]) -> Iterator[Group]:
        """See `Content.groups`."""
        return self._store.groups(ids)

    def read(self, ids: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
        """See `Content.read`."""
        return self._store.read(ids)

    def commit(self) -> None:
        """See `Content.commit`."""
        self._store.commit()
