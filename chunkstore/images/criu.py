"""The memory of a process in a CRIU image folder.

`pages-N.img` holds nothing but pages, one after the other. Which they are stands in a *pagemap*, another file of the
folder, whose head carries the number N: runs of pages by virtual address, of which only those that are marked present
lie in the pages file (others are in a parent image, or were never read). A page that came into use shifts all behind
it, so only the pagemap tells which pages of two dumps belong together.

A pagemap is read entry by entry and never held. It is a claim like any file: what it says must add up to the size of
the pages file, and addresses must ascend.

Sources: CRIU 4.2, images/pagemap.proto, criu/pagemap.c, criu/protobuf.c; protobuf.dev "Encoding".
"""

import re
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from chunkstore.images.errors import ImageInvalid
from chunkstore.images.layout import PAGE_BYTES, REGION_BYTES, Key, ReadAt, Segment, is_seam

SPACE = "vaddr"

_MAGIC = struct.pack("<II", 0x54564319, 0x56084025)  # of images in general, of pagemaps
_LENGTH = struct.Struct("<I")
_MAX_MESSAGE_BYTES = 4096
_BUFFER_BYTES = 64 << 10
_TOP = 1 << 64

_PAGES_NAME = re.compile(rb"pages-(0|[1-9][0-9]{0,9})\.img")
_MAP_NAME = re.compile(rb"pagemap-[a-z0-9-]{1,40}\.img")

# Fields of messages
_PAGES_ID = 1
_VADDR, _OLD_COUNT, _IN_PARENT, _FLAGS, _COUNT = 1, 2, 3, 4, 5
_PRESENT = 1 << 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def pages_number(name: bytes) -> int | None:
    """N if a file of this name can hold pages."""
    found = _PAGES_NAME.fullmatch(name)
    return None if found is None else int(found[1])


def is_map_name(name: bytes) -> bool:
    """Whether a file of this name can be a pagemap."""
    return _MAP_NAME.fullmatch(name) is not None


class Run(NamedTuple):
    """Neighbouring pages of one kind, from the virtual address `vaddr` on; `stored` in the pages file or not."""

    vaddr: int
    pages: int
    stored: bool


class Pagemap:
    """One pagemap file."""

    def __init__(self, read_at: ReadAt) -> None:
        """Read its head.

        Raises:
            ImageInvalid: it is no pagemap.
        """
        self._read_at = read_at
        if read_at(0, len(_MAGIC)) != _MAGIC:
            raise ImageInvalid(0, "not a pagemap")
        messages = self._messages()
        head = next(messages, None)
        if head is None:
            raise ImageInvalid(len(_MAGIC), "a pagemap that is cut off")
        self.pages_number = head[1].get(_PAGES_ID, -1)

    def runs(self) -> Iterator[Run]:
        """What the map says, in order of address.

        Raises:
            ImageInvalid: it is cut off, or no such map.
        """
        messages = self._messages()
        next(messages, None)
        end = 0
        for at, fields in messages:
            vaddr, count = fields.get(_VADDR, -1), fields.get(_COUNT) or fields.get(_OLD_COUNT, -1)
            if vaddr < 0 or count < 0:
                raise ImageInvalid(at, "an entry without address or count")
            if vaddr < end or vaddr % PAGE_BYTES or vaddr + count * PAGE_BYTES > _TOP:
                raise ImageInvalid(at, f"pages at {vaddr:#x}, which is out of order or no address")
            end = vaddr + count * PAGE_BYTES
            present = _FLAGS not in fields or bool(fields[_FLAGS] & _PRESENT)
            if count:
                yield Run(vaddr, count, present and not fields.get(_IN_PARENT))

    def _messages(self) -> Iterator[tuple[int, dict[int, int]]]:
        """Offset and numeric fields of each message, the head first."""
        at = len(_MAGIC)
        buffer, start = b"", at
        while True:
            if at + _LENGTH.size + _MAX_MESSAGE_BYTES > start + len(buffer):
                buffer, start = self._read_at(at, _BUFFER_BYTES), at
                if not buffer:
                    return
            if len(buffer) < at - start + _LENGTH.size:
                raise ImageInvalid(at, "a pagemap that is cut off")
            length = _LENGTH.unpack_from(buffer, at - start)[0]
            if length > _MAX_MESSAGE_BYTES:
                raise ImageInvalid(at, f"an entry of {length} bytes")
            message = buffer[at - start + _LENGTH.size :][:length]
            if len(message) < length:
                raise ImageInvalid(at, "a pagemap that is cut off")
            yield at, _fields(message, at)
            at += _LENGTH.size + length


def segments(pagemap: Pagemap, pages_bytes: int) -> Iterator[Segment]:
    """The segments of the pages file that `pagemap` belongs to; for `layout.Prepared`.

    Args:
        pages_bytes: size of the pages file.

    Raises:
        ImageInvalid: at once if the two do not fit; later only if the pagemap changes meanwhile.
    """
    stored = 0
    for run in pagemap.runs():
        stored += run.pages * PAGE_BYTES if run.stored else 0
        if stored > pages_bytes:
            break
    if stored != pages_bytes:
        raise ImageInvalid(min(stored, pages_bytes), "pages are not as many as the pagemap says")
    return _segments(pagemap.runs())


def choose(maps: Iterable[tuple[bytes, Pagemap]]) -> dict[int, bytes]:
    """Which of a folder's pagemaps belongs to each pages file: names by number. Where two claim a number, none does."""
    found: dict[int, list[bytes]] = {}
    for name, pagemap in maps:
        found.setdefault(pagemap.pages_number, []).append(name)
    return {number: names[0] for number, names in found.items() if len(names) == 1}


def _segments(runs: Iterator[Run]) -> Iterator[Segment]:
    start = offset = 0
    key: Key | None = None
    last = 0
    for run in runs:
        if not run.stored:
            continue
        vaddr, end = run.vaddr, run.vaddr + run.pages * PAGE_BYTES
        while vaddr < end:
            if key is None:
                key = Key(SPACE, vaddr)
            elif is_seam(offset - start, last, vaddr):
                yield Segment(start, offset - start, key)
                start, key = offset, Key(SPACE, vaddr)
            behind = min(end, vaddr - vaddr % REGION_BYTES + REGION_BYTES)
            offset += behind - vaddr
            last, vaddr = behind - PAGE_BYTES, behind
    if key is not None:
        yield Segment(start, offset - start, key)


def _fields(message: bytes, at: int) -> dict[int, int]:
    """The numbers in a protobuf message by field, the last one of each; what is no number is passed over."""
    fields: dict[int, int] = {}
    where = 0
    try:
        while where < len(message):
            tag, where = _varint(message, where)
            kind = tag & 7
            if kind == _VARINT:
                fields[tag >> 3], where = _varint(message, where)
            elif kind == _BYTES:
                length, where = _varint(message, where)
                where += length
            elif kind in (_FIXED64, _FIXED32):
                where += 8 if kind == _FIXED64 else 4
            else:
                raise ImageInvalid(at, "an entry that is no message")
    except IndexError:
        raise ImageInvalid(at, "an entry that is cut off") from None
    if where > len(message):
        raise ImageInvalid(at, "an entry that is cut off")
    return fields


def _varint(message: bytes, where: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[where]
        where += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (_TOP - 1), where
        shift += 7
        if shift > 63:
            raise IndexError
