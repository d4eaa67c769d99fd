"""Hold chunks that were read as views of their groups, as long as that costs little more memory than they have bytes.

A view keeps the whole group that it lies in, of which perhaps one chunk is wanted. So views are kept while the groups
stay within a bound together, and what comes then is copied.
"""

from collections.abc import Iterable
from typing import cast

from chunkstore.digest import Buffer, ChunkId


def hold(chunks: Iterable[tuple[ChunkId, memoryview]], pinned_bytes: int) -> dict[ChunkId, Buffer]:
    """The chunks by name.

    Args:
        chunks: as `Content.read` gives them.
        pinned_bytes: what the groups may have together that are kept whole for the views in them.
    """
    held: dict[ChunkId, Buffer] = {}
    groups: set[int] = set()
    for name, data in chunks:
        group = cast("bytes", data.obj)
        if id(group) not in groups:
            if pinned_bytes < len(group):
                held[name] = bytes(data)
                continue
            pinned_bytes -= len(group)
            groups.add(id(group))
        held[name] = data
    return held
