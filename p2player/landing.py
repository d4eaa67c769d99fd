"""What becomes of chunks that arrive: they are checked, verified, stored, and committed now and then.

Verifying and storing is done in worker threads, in batches of `BATCH_BYTES`; digests and decompression run beside the
event loop and each other. A kill costs at most what was not committed, and that only where the content says so.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

import trio

from chunkstore.codec import MAX_BUNDLE_BYTES, MAX_GROUP_BYTES, Group, open_group, pack_all
from chunkstore.content import Content
from chunkstore.digest import ChunkId
from chunkstore.errors import BadGroup, CorruptChunk
from p2player.proto import content_wire as wire
from p2player.proto.frames import Part, RemoteProtocolError

BATCH_BYTES = 4 << 20
COMMIT_BYTES = 64 << 20
COMMIT_S = 1.0

Landed = Callable[[Mapping[ChunkId, int]], None]


class Landing:
    """The way of one transfer's chunks into `content`.

    Args:
        wants: chunk id -> length of everything that may be asked for.
        threads: how many worker threads verify and store at a time.
    """

    def __init__(self, content: Content, wants: Mapping[ChunkId, int], threads: trio.CapacityLimiter) -> None:
        self._content = content
        self._wants = wants
        self._threads = threads
        self._uncommitted_bytes = 0
        self._committed_at = trio.current_time()
        self._committing = False

    async def receive(self, ids: Sequence[ChunkId], parts: AsyncIterator[Part], landed: Landed) -> None:
        """Take the answer to an ask for `ids`.

        Args:
            landed: told of chunks (id -> length) as soon as they are in the content; not even cancellation comes
                between the two.

        Raises:
            RemoteProtocolError: the peer sent what is no group, what was not asked, or what has another digest.
            StoreError: the content could not take it.
        """
        due = set(ids)
        batch, size = list[Group](), 0
        async for part in parts:
            group = wire.read_group(part.header, part.payload)
            self.expect(group, due)
            batch.append(group)
            size += group.raw_bytes
            if size >= BATCH_BYTES:
                landed(await self.keep(batch))
                batch, size = [], 0
        if batch:
            landed(await self.keep(batch))

    def expect(self, group: Group, due: set[ChunkId]) -> None:
        """Take the chunks of a group off what is due.

        Raises:
            RemoteProtocolError: one of them is not, or has another length than it should.
        """
        for chunk, length in zip(group.ids, group.lengths, strict=True):
            if chunk not in due or length != self._wants[chunk]:
                raise RemoteProtocolError("a chunk that was not asked for, or of another length")
            due.remove(chunk)

    async def keep(self, groups: Sequence[Group]) -> Mapping[ChunkId, int]:
        """Verify groups and store them; the chunks, as they are told to `Landed`. Raises as `receive`."""
        return self.kept(await trio.to_thread.run_sync(verify_and_add, self._content, groups, limiter=self._threads))

    def kept(self, chunks: Iterable[ChunkId]) -> Mapping[ChunkId, int]:
        """Some chunks were stored: their lengths."""
        lengths = {chunk: self._wants[chunk] for chunk in chunks}
        self._uncommitted_bytes += sum(lengths.values())
        return lengths

    def size_of(self, chunks: Iterable[ChunkId]) -> int:
        """Bytes of some wanted chunks together."""
        return sum(self._wants[chunk] for chunk in chunks)

    @property
    def commit_due(self) -> bool:
        """Whether it is time for `commit`, and none is under way."""
        if self._committing or not self._uncommitted_bytes:
            return False
        waited_s = trio.current_time() - self._committed_at
        return self._uncommitted_bytes >= COMMIT_BYTES or waited_s >= COMMIT_S

    async def commit(self) -> None:
        """Make durable what is stored, while more comes in.

        Raises:
            StoreError, OSError: the disk failed.
        """
        self._committing = True
        self._uncommitted_bytes = 0
        try:
            await trio.to_thread.run_sync(self._content.commit)
        finally:
            self._committed_at = trio.current_time()
            self._committing = False


def verify_and_add(content: Content, groups: Sequence[Group]) -> dict[ChunkId, int]:
    """Check every digest and store the groups; for a worker thread.

    Returns:
        The chunks, with their lengths.

    Raises:
        RemoteProtocolError: a digest is wrong, or a group is not what it says.
        StoreError: they could not be stored.
    """
    chunks: dict[ChunkId, int] = {}
    storable: list[Group] = []
    for group in groups:
        try:
            opened = open_group(group, content.key, MAX_BUNDLE_BYTES)
        except (BadGroup, CorruptChunk) as error:
            raise RemoteProtocolError(str(error)) from None
        chunks.update(zip(group.ids, group.lengths, strict=True))
        storable += [group] if group.raw_bytes <= MAX_GROUP_BYTES else pack_all(opened)
    content.add(storable)
    return chunks
