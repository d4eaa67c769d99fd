"""Chunks that two files share and that tell where the rest of the one lies in the other.

Theory of operation
-------------------
A chunk that occurs once in either file is a candidate. Of the candidates the longest sequence that ascends in both
files is kept (patience diff, Bram Cohen; the sequence by Fredman's binary search, O(n log n)).

Not each of these is evidence. The framing of a stream of memory is a few bytes that are the same in every stream and
stand where the writer's clock wanted: one such piece at another place would pull apart a hundred megabytes on either
side of it that face each other exactly. So an anchor must be worth the *detour* it asks for: neighbours on about one
diagonal (the same distance between both files) count together, and what they hold must be at least 1/`WORTH` of the
bytes by which the diagonal would move less without them. The ends of the files are anchors that need no worth.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

WORTH: Final = 256
_PASSES: Final = 4


class Anchor(NamedTuple):
    """A piece of a new file and the chunk of an old one that are the same.

    Attributes:
        piece, chunk: indices in either file.
        start, old_start: where they begin in it, in bytes.
        length: theirs, in bytes.
    """

    piece: int
    chunk: int
    start: int
    old_start: int
    length: int

    @property
    def diagonal(self) -> int:
        """How much further it stands in the old file than in the new one, in bytes."""
        return self.old_start - self.start


def once(values: Sequence[int], base: int) -> dict[int, int]:
    """Where each value stands, counted from `base`, that is not negative and occurs once."""
    found: dict[int, int] = {}
    repeated = set()
    for at, value in enumerate(values, base):
        if found.setdefault(value, at) != at:
            repeated.add(value)
    for value in repeated:
        del found[value]
    found.pop(-1, None)
    return found


def ascending(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of pairs that ascend in their first part, the longest sequence that ascends in both."""
    if all(one[1] < other[1] for one, other in pairwise(pairs)):
        return pairs
    tops: list[int] = []  # second part of the pair at the end of the best sequence of each length
    ends: list[int] = []  # that pair's index
    before: list[int] = []
    for index, (_, chunk) in enumerate(pairs):
        at = bisect_left(tops, chunk)
        before.append(ends[at - 1] if at else -1)
        if at == len(tops):
            tops.append(chunk)
            ends.append(index)
        else:
            tops[at], ends[at] = chunk, index
    found = []
    index = ends[-1]
    while index >= 0:
        found.append(pairs[index])
        index = before[index]
    return found[::-1]


def supported(anchors: Sequence[Anchor], end: int) -> list[Anchor]:
    """The anchors that are worth their detour.

    Args:
        anchors: ascending in both files.
        end: the diagonal of the ends of both files; that of their beginnings is 0.
    """
    kept = list(anchors)
    for _ in range(_PASSES):  # one that is dropped may have been what another leaned on
        runs, kept = _runs(kept), []
        for at, run in enumerate(runs):
            before = kept[-1].diagonal if kept else 0
            behind = runs[at + 1][0].diagonal if at + 1 < len(runs) else end
            first, last = run[0].diagonal, run[-1].diagonal
            detour = abs(first - before) + abs(behind - last) - abs(behind - before)
            if detour <= WORTH * sum(anchor.length for anchor in run):
                kept += run
        if len(kept) == sum(map(len, runs)):
            break
    return kept


def _runs(anchors: Sequence[Anchor]) -> list[list[Anchor]]:
    """Neighbours that ask for one and the same detour, or nearly so."""
    runs: list[list[Anchor]] = []
    for anchor in anchors:
        last = runs[-1][-1] if runs else None
        near = last is not None and abs(anchor.diagonal - last.diagonal) <= WORTH * min(anchor.length, last.length)
        if near:
            runs[-1].append(anchor)
        else:
            runs.append([anchor])
    return runs
