"""The memory of a virtual machine in QEMU's migration stream, bare or in a save file of libvirt.

Theory of operation
-------------------
A save file of libvirt is a header, the XML of the machine, and the stream. The stream is a sequence of sections; those
named "ram" hold one record a page: a big-endian word of address and flags, then 4096 bytes, or one byte if the page is
zero; a record names its block of memory unless that is the one before's. So pages lie 4104 bytes apart, at any offset,
and a page that becomes zero shifts all that follow. Records are segments, see `layout`; the framing between sections,
which falls where the writer's clock wanted, and everything else is plain. Behind the memory come devices in sections
whose length is not told: from there on all is plain.

The parser is fed windows of any size. It holds a piece of a record at most, and knows a segment once it has seen where
the next one begins. Pages that were compressed or sent as differences (`xbzrle`), memory shared by file and guest
pages other than 4096 bytes are refused.

Sources: QEMU 7.2, docs/devel/migration.rst, migration/ram.c, migration/savevm.c;
libvirt 9.0, src/qemu/qemu_saveimage.h.
"""

import struct
from collections import deque
from collections.abc import Callable

from chunkstore.holes import Window
from chunkstore.images.errors import ImageInvalid, ImageUnsupported
from chunkstore.images.layout import PAGE_BYTES, REGION_BYTES, Key, Segment, is_seam

LIBVIRT_MAGIC = b"LibvirtQemudSave"
STREAM_MAGIC = b"QEVM"
_VERSION = 3

_LIBVIRT = struct.Struct("<16s5I56x")
_SWAPPED = struct.Struct(">16s5I56x")
_LIBVIRT_VERSIONS = (1, 2)

_WORD = struct.Struct(">Q")
_INT = struct.Struct(">I")

# Sections, from migration/savevm.h
_START, _PART, _END, _FULL, _SUBSECTION, _CONFIGURATION, _COMMAND, _FOOTER = 1, 2, 3, 4, 5, 7, 8, 0x7E
_MAX_MACHINE_BYTES = 1024
_MAX_BLOCKS = 1024
_CAPABILITIES = b"configuration/capabilities"
_PAGE_BITS = b"configuration/target-page-bits"
_UUID = b"configuration/uuid"

# Flags of a record, from migration/ram.c
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_FLAGS = PAGE_BYTES - 1
_NEXT_PAGE, _NEXT_ZERO = _PAGE | _CONTINUE, _ZERO | _CONTINUE
_PAGE_RECORD, _ZERO_RECORD = 8 + PAGE_BYTES, 9

_ZEROS = bytes(1 << 20)

_Step = Callable[[bytes, int], int]
"""Takes what stands at a position and returns the one behind it, or the same if it does not end in the buffer."""


def is_stream(head: bytes) -> bool:
    """Whether a file that begins like this holds the stream."""
    return head.startswith((LIBVIRT_MAGIC, STREAM_MAGIC + _INT.pack(_VERSION)))


class SavedMemory:
    """The layout of one file."""

    def __init__(self) -> None:
        self._known: deque[Segment] = deque()
        self._carry = b""
        self._base = 0  # offset of the file where `_carry` begins
        self._told = 0  # end of the last segment in `_known`
        self._open: Key | None = None  # of the segment that begins at `_told`, if that holds pages
        self._step: _Step = self._begin
        self._skip = 0
        self._ended = False
        self._section = self._ram = -1  # numbers of the section that is read, and of the one with memory
        self._blocks: dict[bytes, int] = {}
        self._announced = 0  # bytes of blocks that are still to be listed
        self._space = ""
        self._block_bytes = 0
        self._last = -1  # address of the page before
        self._limit = 0  # pages above `_last` and below this go on with it

    def feed(self, window: Window) -> None:
        """See `Layout`."""
        if isinstance(window, bytes):
            self._take(window)
            return
        while window and not self._ended:
            self._take(_ZEROS[:window])
            window -= min(window, len(_ZEROS))
        if window:
            self._base += window
            self._tell(self._base)

    def finish(self) -> None:
        """See `Layout`."""
        if not self._ended:
            raise ImageInvalid(self._base + len(self._carry), "a saved memory that is cut off")

    def segment_at(self, offset: int) -> Segment | None:
        """See `Layout`."""
        known = self._known
        while known and known[0].end <= offset:
            known.popleft()
        return known[0] if known else None

    def _take(self, data: bytes) -> None:
        buffer = self._carry + data if self._carry else data
        at = 0
        try:
            while at < len(buffer):
                if self._skip:
                    step = min(self._skip, len(buffer) - at)
                    self._skip -= step
                    at += step
                elif self._ended:
                    at = len(buffer)
                else:
                    before, step_before = at, self._step
                    at = self._step(buffer, at)
                    if at == before and self._step == step_before and not self._skip and not self._ended:
                        break
        finally:
            self._base += at
            self._carry = buffer[at:]
            if self._open is None:
                self._tell(self._base)

    def _tell(self, end: int) -> None:
        """Everything from the last segment to `end` is one."""
        if end > self._told:
            self._known.append(Segment(self._told, end - self._told, self._open))
            self._told = end
        self._open = None

    def _invalid(self, at: int, reason: str) -> ImageInvalid:
        return ImageInvalid(self._base + at, reason)

    def _unsupported(self, at: int, reason: str) -> ImageUnsupported:
        return ImageUnsupported(self._base + at, reason)

    # What comes before the sections

    def _begin(self, buffer: bytes, at: int) -> int:
        if len(buffer) - at < _LIBVIRT.size:
            return at
        if not buffer.startswith(LIBVIRT_MAGIC, at):
            self._step = self._stream
            return at
        header = _LIBVIRT if buffer[at + 16 : at + 18] != b"\0\0" else _SWAPPED
        _, version, data_bytes, _, compressed, _ = header.unpack_from(buffer, at)
        if version not in _LIBVIRT_VERSIONS:
            raise self._unsupported(at + 16, f"a save file of version {version}")
        if compressed:
            raise self._unsupported(at + 28, "a save file that is compressed")
        self._skip = data_bytes
        self._step = self._stream
        return at + _LIBVIRT.size

    def _stream(self, buffer: bytes, at: int) -> int:
        if len(buffer) - at < 8:
            return at
        if not buffer.startswith(STREAM_MAGIC, at):
            raise self._invalid(at, "no migration stream where it should begin")
        version = _INT.unpack_from(buffer, at + 4)[0]
        if version != _VERSION:
            raise self._unsupported(at + 4, f"a migration stream of version {version}")
        self._step = self._sections
        return at + 8

    def _sections(self, buffer: bytes, at: int) -> int:
        """One section up to its content, or one of those that have none."""
        kind = buffer[at]
        if kind in (_START, _FULL):
            return self._section_start(buffer, at)
        if kind == _CONFIGURATION:
            if len(buffer) - at < 5:
                return at
            length = _INT.unpack_from(buffer, at + 1)[0]
            if length > _MAX_MACHINE_BYTES:
                raise self._invalid(at + 1, "a name of a machine that is too long")
            self._skip = length
            return at + 5
        if kind == _SUBSECTION:
            return self._subsection(buffer, at)
        if kind == _COMMAND:
            if len(buffer) - at < 5:
                return at
            self._skip = int.from_bytes(buffer[at + 3 : at + 5])
            return at + 5
        if kind not in (_PART, _END, _FOOTER):
            raise self._invalid(at, f"a section of unknown kind {kind}")
        if len(buffer) - at < 5:
            return at
        number = _INT.unpack_from(buffer, at + 1)[0]
        if number != (self._section if kind == _FOOTER else self._ram):
            raise self._invalid(at + 1, f"section {number} out of place")
        if kind != _FOOTER:
            self._enter_memory(number)
        return at + 5

    def _section_start(self, buffer: bytes, at: int) -> int:
        if len(buffer) - at < 6 or len(buffer) - at < 6 + buffer[at + 5] + 8:
            return at
        length = buffer[at + 5]
        if buffer[at] != _START or buffer[at + 6 : at + 6 + length] != b"ram":
            self._ended = True  # devices: no one can tell how long they are
            return at
        if self._ram >= 0:
            raise self._invalid(at, "a second section with memory")
        self._ram = _INT.unpack_from(buffer, at + 1)[0]
        self._enter_memory(self._ram)
        return at + 6 + length + 8

    def _subsection(self, buffer: bytes, at: int) -> int:
        """One of those that may follow the configuration."""
        if len(buffer) - at < 2 or len(buffer) - at < 2 + buffer[at + 1] + 8:
            return at
        length = buffer[at + 1]
        name = buffer[at + 2 : at + 2 + length]
        behind = at + 2 + length + 4
        value = _INT.unpack_from(buffer, behind)[0]
        if name == _PAGE_BITS:
            if 1 << min(value, 63) != PAGE_BYTES:
                raise self._unsupported(behind, f"pages of 2^{value} bytes")
            return behind + 4
        if name == _UUID:
            self._skip = 16
            return behind
        if name != _CAPABILITIES:
            raise self._unsupported(at, f"a configuration that is not known: {name!r}")
        if value > _MAX_BLOCKS:
            raise self._invalid(behind, "too many capabilities")
        end = behind + 4
        for _ in range(value):
            if end >= len(buffer):
                return at
            end += 1 + buffer[end]
        return end if end <= len(buffer) else at

    # Memory

    def _enter_memory(self, number: int) -> None:
        self._section = number
        self._limit = 0  # the next page begins a segment
        self._step = self._records

    def _records(self, buffer: bytes, at: int) -> int:
        """As many pages as there are, and whatever else is a record."""
        unpack = _WORD.unpack_from
        last, limit = self._last, self._limit
        while at + 8 <= len(buffer):
            word = unpack(buffer, at)[0]
            flags = word & _FLAGS
            if flags == _NEXT_PAGE:
                behind = at + _PAGE_RECORD
            elif flags == _NEXT_ZERO:
                behind = at + _ZERO_RECORD
            else:
                self._last, self._limit = last, limit
                return self._other_record(buffer, at, word - flags, flags)
            if behind > len(buffer):
                break
            address = word - flags
            if not last < address < limit:
                limit = self._region(at, address, last)
            last = address
            at = behind
        self._last, self._limit = last, limit
        return at

    def _region(self, at: int, address: int, last: int) -> int:
        """Note that the page at `address` does not just go on; returns the address up to which others may."""
        if address + PAGE_BYTES > self._block_bytes:
            raise self._invalid(at, f"a page at {address:#x}, outside of its block of memory")
        offset = self._base + at
        if self._open is None or is_seam(offset - self._told, last, address):
            self._tell(offset)
            self._open = Key(self._space, address)
        return min(address - address % REGION_BYTES + REGION_BYTES, self._block_bytes)

    def _other_record(self, buffer: bytes, at: int, value: int, flags: int) -> int:
        if flags in (_PAGE, _ZERO):
            return self._first_record(buffer, at, value, flags)
        self._tell(self._base + at)
        if flags == _EOS:
            self._step = self._sections
        elif flags == _MEM_SIZE:
            self._announced = value
            self._step = self._block_list
        else:
            raise self._unsupported(at, f"a record with flags {flags:#x}")
        return at + 8

    def _first_record(self, buffer: bytes, at: int, address: int, flags: int) -> int:
        """A page that names its block."""
        if len(buffer) - at < 9 or len(buffer) - at < 9 + buffer[at + 8] + (PAGE_BYTES if flags == _PAGE else 1):
            return at
        behind = at + 9 + buffer[at + 8]
        name = buffer[at + 9 : behind]
        if name not in self._blocks:
            raise self._invalid(at, f"a page of an unknown block of memory: {name!r}")
        space = "ram/" + name.decode("utf-8", "backslashreplace")
        if space != self._space:
            self._tell(self._base + at)
            self._space, self._block_bytes = space, self._blocks[name]
        self._limit = self._region(at, address, self._last)
        self._last = address
        return behind + (PAGE_BYTES if flags == _PAGE else 1)

    def _block_list(self, buffer: bytes, at: int) -> int:
        """One block's name and length, until there are as many bytes as announced."""
        if not self._announced:
            self._step = self._records
            return at
        if len(buffer) - at < 1 + buffer[at] + 8:
            return at
        behind = at + 1 + buffer[at] + 8
        length = _WORD.unpack_from(buffer, behind - 8)[0]
        if length > self._announced or len(self._blocks) == _MAX_BLOCKS:
            raise self._invalid(at, "blocks of memory that do not add up")
        self._announced -= length
        self._blocks[buffer[at + 1 : behind - 8]] = length
        return behind
