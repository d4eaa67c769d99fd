"""Segments: the stretches of an image that are cut out whole, each with the guest's address of its first byte.

Theory of operation
-------------------
A layout covers a file with segments, in order and without gaps. A segment with a key holds memory or disk of a guest
from that address on and becomes one chunk; holes are still taken out of it. A segment without a key is *plain*
(headers, tables, device state) and is cut by content; neighbouring plain segments are one stretch.

Where guest content meets guest content, segments end at *seams*: where the file goes on in another region (64 pages
or 256 KiB of memory, 64 KiB of a disk, at multiples of that). Inside a region only ascending addresses go on. Two
saves of one guest cut that way have the same segments wherever they lie in the file, but for the regions that changed.
A region of which little is stored (nearly all zero, or only a few pages used) does not end a segment before it has
16 KiB, or there would be a chunk for every few hundred bytes; but each 16 MiB of addresses begin with a segment of
their own, so that a change never moves more than the seams up to there.

A layout is asked while the file is read, once, from front to back: it is shown each window before that is cut. Formats
with tables know everything before; a stream shows its structure only as it goes by.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from chunkstore.holes import Window
from chunkstore.images.errors import ImageInvalid

PAGE_BYTES = 4096
REGION_BYTES = 64 * PAGE_BYTES
"""Seams in memory lie at multiples of this in the guest's addresses."""
DISK_REGION_BYTES = 16 * PAGE_BYTES
"""The same for disks, whose changes are scattered and whose content seldom moves: smaller pieces find more that is
the same, and cost little."""
COARSE_BYTES = 16 << 20
LEAST_BYTES = 16 << 10

_REST = 1 << 63

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)`: that many bytes of a file, fewer at its end."""


class Key(NamedTuple):
    """An address of the guest in bytes. `space` says of what: "vaddr", "disk", or "ram/" and the name of a block."""

    space: str
    address: int


class Segment(NamedTuple):
    """`length` bytes of a file from `offset` on; plain where there is no key. The last one may reach past the end."""

    offset: int
    length: int
    key: Key | None

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.length


class Layout(Protocol):
    """Where one file is cut. The whole file is shown by `feed`, in order, and offsets asked for ascend."""

    def feed(self, window: Window) -> None:
        """Be shown the next bytes of the file.

        Raises:
            ImageInvalid: they are not what the format demands; what was known before still stands.
        """

    def finish(self) -> None:
        """The file ends here; raises as `feed`."""

    def segment_at(self, offset: int) -> Segment | None:
        """The segment that holds this byte, or None if only bytes still to be shown can tell.

        Raises:
            ImageInvalid: the tables that say so are broken.
        """


def is_seam(held: int, last: int, following: int) -> bool:
    """Whether a segment of `held` bytes ends where one address space goes on from page `last` to page `following`.

    Both are byte addresses of a page's start. Asked for each page, or at least where a region begins.
    """
    if last < following and last // REGION_BYTES == following // REGION_BYTES:
        return False
    return may_end(held, last, following)


def may_end(held: int, last: int, following: int) -> bool:
    """Whether a segment is large enough to end where addresses do not simply go on."""
    return held >= LEAST_BYTES or last // COARSE_BYTES != following // COARSE_BYTES


class Prepared:
    """A layout that is known from tables: an iterator over its segments, taken as they are needed."""

    def __init__(self, segments: Iterator[Segment]) -> None:
        self._segments = segments
        self._now = Segment(0, 0, None)

    def feed(self, window: Window) -> None:
        """Nothing is learned from content."""

    def finish(self) -> None:
        """Nothing is learned from content."""

    def segment_at(self, offset: int) -> Segment:
        """See `Layout`; behind the last segment all is plain."""
        while self._now.end <= offset:
            self._now = next(self._segments, Segment(self._now.end, _REST, None))
        return self._now


class Forgiving:
    """A layout that never fails: where the one inside breaks off, the rest of the file is plain."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._broken = False

    def feed(self, window: Window) -> None:
        """See `Layout`."""
        if not self._broken:
            try:
                self._layout.feed(window)
            except ImageInvalid:
                self._broken = True

    def finish(self) -> None:
        """See `Layout`."""
        if not self._broken:
            try:
                self._layout.finish()
            except ImageInvalid:
                self._broken = True

    def segment_at(self, offset: int) -> Segment | None:
        """See `Layout`."""
        try:
            segment = self._layout.segment_at(offset)
        except ImageInvalid:
            self._broken = True
            segment = None
        return Segment(offset, _REST, None) if segment is None and self._broken else segment
