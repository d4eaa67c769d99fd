"""How hard to compress for a link: as hard as one core can without the link having to wait.

Stored groups
-------------
`LEVELS` was measured on one core of a 2020s server with 1 MiB groups of the files of distribution packages. Other
processors and other content differ by a factor of two either way, hence the reserve. Levels that are slower than the
one before and hardly better are left out, and those above 9 altogether. Of 40 MB of programs and texts, 4 MiB at a
time, level 9 makes 14.1 MB at 59 MB/s, 12 makes 14.0 at 24, and 16 makes 13.5 at 5: nothing would cross the link for a
second, and a node has other things to do.

Patches
-------
`WAYS` was measured on 62 MB of programs that were compiled again (git, qemu, openssl, python, libssl), encoded in units
of 4 MiB against 8 MiB; plain zstd -3 of the same chunks takes 21.3 MB. What is found at which place, and how much
differs there, is the same on every way; the literals of most are compressed with the old bytes that face them as a
dictionary.

    way                                     patches   MB/s to encode   of patches
    changes 1, literals 1, no dictionary     10.7 MB              117           20
    changes 3, literals 3, rarely one         9.7 MB              105           17
    changes 6, literals 3, dictionary 1       5.2 MB               60            5
    changes 12, literals 3, dictionary 1      5.1 MB               51          4.2
    all 19                                    4.5 MB                4          0.3

A way is for links that take fewer bytes than it makes, but the dictionary is used up to twice that: without it the link
would wait for bytes instead. The second way has one only where literals are few: then it still encodes 200 MB/s and
more, and two versions of a tree of sources take 40 KB instead of 130, a database with 1 % of its rows changed 340 KB
instead of 680. What was merely edited or moved is encoded at 200 to 450 MB/s on all ways but the last: levels act on
what is new. Level 19 for little that is new, on links that are not as slow as that, would save a tenth of the bytes and
take longer to do so than to send them.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Level:
    """What a zstd level gives: uncompressed bytes a second, and how many of them become one."""

    number: int
    bytes_per_s: float
    ratio: float

    @property
    def output_per_s(self) -> float:
        """Compressed bytes a second."""
        return self.bytes_per_s / self.ratio


LEVELS: Final = (
    Level(3, 282e6, 2.54),
    Level(6, 105e6, 2.67),
    Level(9, 70e6, 2.69),
)
"""Harder and slower than level 1 (467 MB/s, 2.27), with which content is stored; in this order."""

RESERVE: Final = 1.5
"""The processor must be this much faster than the link: it has other things to do."""

FAST_FROM: Final = 50e6
"""Bytes a second from which on a link is not slow: there, what is stored is sent as it is."""


def level_for(rate: float | None) -> int | None:
    """The zstd level with which stored groups are compressed again for a link.

    Args:
        rate: bytes a second that the link takes; None if unknown.

    Returns:
        The hardest level that keeps up with the link; None if they are best sent as they are stored.
    """
    if rate is None or rate >= FAST_FROM:
        return None
    fit = [level.number for level in LEVELS if level.output_per_s >= RESERVE * rate]
    return fit[-1] if fit else None


@dataclass(frozen=True, slots=True)
class Way:
    """How a patch is compressed.

    Attributes:
        below: for links that take fewer bytes a second.
        changes: level for ops and differences: mostly zeros, cheap at every level.
        literals: level for literals.
        dictionary: level for literals with the relative's unused bytes as a dictionary, see
            `codec.compress_against`; None where to search those takes longer than it saves.
        up_to: the share of the target that literals may have for that: a little of them is cheap on any link.
        by_page: whether images are compared by whole pages, which takes less time and finds less.
    """

    below: float
    changes: int
    literals: int
    dictionary: int | None
    up_to: float
    by_page: bool


WAYS: Final = (
    Way(0.2e6, 19, 19, 19, 1, by_page=False),
    Way(3e6, 12, 3, 1, 1, by_page=False),
    Way(10e6, 6, 3, 1, 1, by_page=False),
    Way(75e6, 3, 3, 1, 1 / 8, by_page=True),
    Way(float("inf"), 1, 1, None, 0, by_page=True),
)


def way_for(rate: float | None) -> Way:
    """How patches for a link are compressed; `rate` as for `level_for`. Unknown links are taken for local ones."""
    if rate is None:
        return WAYS[-2]
    return next(way for way in WAYS if rate < way.below or way is WAYS[-1])
