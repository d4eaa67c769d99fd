"""The seam: verified chunks by name, wherever they are kept.

Importers, checkouts and transfers work on `Content` and do not care whether it is the node's shared store
(`ChunkStore`) or the sealed vault of one migration (`Vault`). One contract suite runs over both.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from chunkstore.codec import Group
from chunkstore.digest import ChunkId


class Content(Protocol):
    """Chunks by name. Every method may be called from many threads at once."""

    @property
    def key(self) -> bytes | None:
        """The key of this content's names (32 bytes), or None where names are plain digests."""

    def missing(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Those of `ids` that are not here."""

    def add(self, groups: Iterable[Group]) -> int:
        """Keep the chunks of these groups; they can be read at once, and are durable after `commit()`.

        The caller has verified every digest, for example by `open_group`: nothing is checked again here.
        Chunks that are already here are ignored. When it raises, the groups that were taken before stay.

        Returns:
            Uncompressed bytes of the chunks that were new.

        Raises:
            DiskFull: the reserve would be touched.
            BadGroup: a group breaks a limit.
        """

    def groups(self, ids: Sequence[ChunkId]) -> Iterator[Group]:
        """The wanted chunks in storage order, packed for a wire; each comes once.

        Most of a stored group wanted: as stored, and then a quarter of its bytes at most are chunks that nobody
        asked for. Less: only what was asked, regrouped. A chunk that is not here, or is damaged, is simply absent.
        """

    def read(self, ids: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
        """The wanted chunks and their uncompressed bytes in storage order, each once; absent ones are left out."""

    def commit(self) -> None:
        """Return when everything added so far, by any thread, survives a power cut."""
