"""Read tar archives from anywhere: ustar, PAX, GNU long names, and all four ways to store a sparse file.

Theory of operation
-------------------
An archive is read once from front to back, so that a compressed one is decompressed once. Everything in it is
a claim: headers have limits, data is handed out in windows, nothing is extracted. Names and values stay
bytes, times stay exact to the nanosecond.

Python's `tarfile` is not used: it takes a damaged header for the end of the archive, keeps times as floats
and all members in memory, and reads whatever size a header announces (and before 3.11.10 spends quadratic
time on it).

Sources: POSIX.1-2017 pax, "pax Interchange Format"; GNU tar manual, "Basic Tar Format" and "Storing Sparse
Files".
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Protocol

from chunkstore.holes import Window, mapped_windows
from chunkstore.tarfields import Records, TarDamaged, check_sum, decimal, nanoseconds, number, plain, text, update
from chunkstore.tarsparse import MAX_REGIONS, MAX_SIZE, Regions, SparseData, map_fields, regions

BLOCK_BYTES = 512
MAX_HEADER_BYTES = 2 << 20
_MAGIC_BYTES = 6
_SKIP_BYTES = 1 << 20
_MAX_EXTENDED = 32  # headers before one member that only describe it
_DATA_TYPES = (b"0", b"\0", b"7", b"S")
_KNOWN_TYPES = (*_DATA_TYPES, b"1", b"2", b"3", b"4", b"5", b"6")
_READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)


@dataclass(slots=True)
class Member:
    """One entry of an archive, as its headers describe it.

    `type` is the type flag of the format (b"0" a regular file, b"5" a folder, ...). `size` is that of the
    file when restored, `stored` the bytes of data in the archive. `regions` are (start, end) of a sparse
    file's data. `pax` holds the extended records that apply.
    """

    name: bytes
    type: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    stored: int
    target: bytes
    device: tuple[int, int]
    pax: Records = field(default_factory=dict)
    regions: Regions | None = None


class _Readable(Protocol):
    def read(self, length: int, /) -> bytes: ...


class TarReader:
    """Iterates over the members of an archive. The data of a member can be read until the next one is asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        """Read from the present position of `file`, compressed (gzip, bzip2, xz) or not; the caller closes it.

        Raises:
            TarDamaged: the file cannot be read.
        """
        try:
            start = file.tell()
            head = file.read(_MAGIC_BYTES)
            file.seek(start)
        except OSError as error:
            raise TarDamaged(error.strerror or str(error)) from None
        self._stream = _decompressed(head, file)
        self._globals: Records = {}
        self._data_left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        return self

    def __next__(self) -> Member:
        """The next member.

        Raises:
            TarDamaged: the archive breaks the format or a limit.
        """
        self._skip(self._data_left + self._padding)
        self._data_left = self._padding = 0
        pax = dict(self._globals)
        long_name = long_target = b""
        sparse_map: list[int] = []
        for _ in range(_MAX_EXTENDED):
            block = self._take(BLOCK_BYTES)
            if block.count(0) == BLOCK_BYTES:
                if pax != self._globals or long_name or long_target:
                    raise TarDamaged("it ends after the header of a member that is not there")
                raise StopIteration
            check_sum(block)
            kind = block[156:157]
            if kind in (b"x", b"X", b"g", b"L", b"K"):
                data = self._extended(block)
                if kind == b"L":
                    long_name = data.rstrip(b"\0")
                elif kind == b"K":
                    long_target = data.rstrip(b"\0")
                else:
                    sparse_map += update(pax if kind != b"g" else self._globals, data)
                    if kind == b"g":
                        pax = dict(self._globals)
                    if sum(len(key) + len(value) for key, value in self._globals.items()) > MAX_HEADER_BYTES:
                        raise TarDamaged("too many global records")
                continue
            if kind == b"V":  # a label
                continue
            if kind not in _KNOWN_TYPES:
                raise TarDamaged(f"a member of type {kind!r}")
            return self._member(block, pax, long_name, long_target, sparse_map)
        raise TarDamaged("too many extended headers")

    def windows(self, member: Member) -> Iterator[Window]:
        """The content of the regular file that was returned last, see `holes`; once.

        Raises:
            TarDamaged: the archive is cut off there.
        """
        if member.regions is None:
            return mapped_windows(member.size, ((0, member.size),), lambda _, length: self._data(length))
        return mapped_windows(member.size, member.regions, SparseData(member.regions, self._data).read_at)

    def _member(
        self, block: bytes, pax: Records, long_name: bytes, long_target: bytes, sparse_map: list[int]
    ) -> Member:
        kind = block[156:157]
        name = long_name or text(block[:100])
        if block[257:263] == b"ustar\0" and block[345] and not long_name:
            name = text(block[345:500]) + b"/" + name
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or name
        size = decimal(pax, b"size", number(block[124:136]))
        if not 0 <= size <= MAX_SIZE:
            raise TarDamaged("a size out of range")
        if kind == b"\0" and name.endswith(b"/"):
            kind = b"5"
        stored = size if kind in _DATA_TYPES else 0
        self._data_left = stored
        self._padding = -stored % BLOCK_BYTES
        member = Member(
            name,
            b"0" if kind in _DATA_TYPES else kind,
            number(block[100:108]) & 0o7777,
            decimal(pax, b"uid", number(block[108:116])),
            decimal(pax, b"gid", number(block[116:124])),
            nanoseconds(pax.get(b"mtime"), number(block[136:148])),
            stored,
            stored,
            pax.get(b"linkpath") or long_target or text(block[157:257]),
            (number(block[329:337]), number(block[337:345])) if kind in (b"3", b"4") else (0, 0),
            pax,
        )
        if kind == b"S":
            self._old_sparse(block, member)
        elif member.type == b"0" and (sparse_map or any(key.startswith(b"GNU.sparse.") for key in pax)):
            self._pax_sparse(member, sparse_map)
        return member

    def _old_sparse(self, block: bytes, member: Member) -> None:
        """A map in the header and in blocks that follow it."""
        numbers = map_fields(block[386:482])
        more, member.size = block[482], number(block[483:495])
        while more:
            block = self._take(BLOCK_BYTES)
            numbers += map_fields(block[:504])
            more = block[504]
            if len(numbers) > 2 * MAX_REGIONS:
                raise TarDamaged("a sparse file in too many pieces")
        member.regions = regions(numbers, member.size, member.stored)

    def _pax_sparse(self, member: Member, sparse_map: list[int]) -> None:
        """A map in records (0.0: one each number, 0.1: all in one) or before the data (1.0)."""
        pax = member.pax
        member.size = decimal(pax, b"GNU.sparse.realsize", decimal(pax, b"GNU.sparse.size", member.size))
        if pax.get(b"GNU.sparse.major") == b"1":
            numbers = self._leading_map()
            member.stored = self._data_left
        elif b"GNU.sparse.map" in pax:
            numbers = [plain(number) for number in pax[b"GNU.sparse.map"].split(b",") if number]
        else:
            numbers = sparse_map
        member.regions = regions(numbers, member.size, member.stored)

    def _leading_map(self) -> list[int]:
        """Decimal numbers, one a line, the first says how many pairs follow; padded to a whole block."""
        rest = b""
        lines: list[bytes] = []
        wanted = 1
        while len(lines) < wanted:
            rest += self._data(BLOCK_BYTES)
            *whole, rest = rest.split(b"\n")
            lines += whole
            if len(rest) > BLOCK_BYTES:
                raise TarDamaged("a broken map of a sparse file")
            if lines:
                wanted = 1 + 2 * plain(lines[0])
                if wanted > 2 * MAX_REGIONS:
                    raise TarDamaged("a sparse file in too many pieces")
        return [plain(line) for line in lines[1:wanted]]

    def _extended(self, block: bytes) -> bytes:
        size = number(block[124:136])
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise TarDamaged("a header that is too large")
        data = self._take(size)
        self._skip(-size % BLOCK_BYTES)
        return data

    def _data(self, length: int) -> bytes:
        if length > self._data_left:
            raise TarDamaged("a member with less data than it needs")
        self._data_left -= length
        return self._take(length)

    def _take(self, length: int) -> bytes:
        try:
            data = self._stream.read(length)
            while 0 < len(data) < length:
                more = self._stream.read(length - len(data))
                if not more:
                    break
                data += more
        except _READ_ERRORS as error:
            raise TarDamaged(f"it cannot be read: {error}") from None
        if len(data) != length:
            raise TarDamaged("it is cut off")
        return data

    def _skip(self, length: int) -> None:
        while length > 0:
            length -= len(self._take(min(length, _SKIP_BYTES)))


def _decompressed(head: bytes, file: IO[bytes]) -> _Readable:
    """The archive in a file that begins with `head`."""
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file, mode="rb")
    if head.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if head.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(file)
    return file
