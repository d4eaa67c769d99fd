"""What goes out to a peer: exactly the chunks that it asked for, compressed as hard as its link is slow.

Content is stored with a fast zstd level, which a fast link wants as it is. For a slow one, groups are compressed once
more, several together, as hard as the processor can without being slower than the link.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from chunkstore.codec import MAX_BUNDLE_BYTES, MAX_GROUP_BYTES, Group, bundle, take, unpack
from chunkstore.content import Content
from chunkstore.delta.levels import level_for
from chunkstore.digest import ChunkId
from chunkstore.errors import BadGroup
from p2player.net.link import LinkEstimate

FAR_RTT_S: Final = 0.004
FAR_RATE: Final = 5e6


def outflow_rate(link: LinkEstimate) -> float | None:
    """Bytes a second that a link takes; None while nothing says that it is slow.

    Until it is measured, a link is judged by its length: round trips of some milliseconds are those of networks whose
    links a processor keeps busy even when it compresses harder.
    """
    if link.bytes_per_s is not None:
        return link.bytes_per_s
    return FAR_RATE if link.rtt_s is not None and link.rtt_s >= FAR_RTT_S else None


def exact_groups(
    content: Content, ids: Sequence[ChunkId], rate: float | None = None, *, bundles: bool = False
) -> Iterator[Group]:
    """Groups of what is here of `ids`, and of nothing else: what comes along in stored groups is cut off.

    Args:
        rate: as `outflow_rate` gives it.
        bundles: whether the peer takes groups of up to `MAX_BUNDLE_BYTES`.
    """
    wanted = set(ids)
    level = level_for(rate)
    most_bytes = MAX_BUNDLE_BYTES if bundles else MAX_GROUP_BYTES
    held: list[Group] = []
    held_bytes = 0
    for group in content.groups(ids):
        try:
            kept = take(group, wanted)
        except BadGroup:
            continue  # damaged here: to the peer it is missing
        if kept is None:
            continue
        if level is None:
            yield kept
            continue
        if held_bytes + kept.raw_bytes > most_bytes:
            yield from _bundled(held, level)
            held, held_bytes = [], 0
        held.append(kept)
        held_bytes += kept.raw_bytes
    if level is not None:
        yield from _bundled(held, level)


def _bundled(groups: Sequence[Group], level: int) -> list[Group]:
    """As `bundle`; without those that are damaged here, if any is."""
    try:
        return bundle(groups, level)
    except BadGroup:
        return bundle([group for group in groups if _opens(group)], level)


def _opens(group: Group) -> bool:
    try:
        unpack(group)
    except BadGroup:
        return False
    return True
