"""The canonical encoding of a tree: what a LayerId is the digest of.

Theory of operation
-------------------
A manifest is a sequence of msgpack arrays without a frame around them: a header, then one row an entry in
bytewise order of path.

    header    ["p2player-manifest", version, entries, size]           size: bytes of all regular files
    hard link [path, kind, target]
    others    [path, kind, mode, uid, gid, mtime_ns, xattrs, detail]
    xattrs    [name, value, name, value, ...] sorted by name
    detail    regular: extents, 40 bytes each (see `entries.EXTENT`); symlink: its text; device: [major, minor];
              else: nil

All strings are msgpack bin, all integers are in their shortest form: there is exactly one encoding of a tree.
A row depends on no other row, so that two versions of a layer differ only in the rows that changed, and
content-defined chunks of the encoding find the rest again.

Decoding trusts nothing. Every row is packed again and compared with the bytes it came from, which refuses whatever
msgpack can say in two ways. `treecheck` then refuses impossible trees. The same check runs before encoding: nothing
is written that would not be read.
"""

from collections.abc import Iterator
from typing import Final

import msgpack

from chunkstore.digest import Buffer
from chunkstore.entries import Entry, Kind, Xattrs
from chunkstore.tree_errors import ManifestInvalid, printable
from chunkstore.treecheck import MAX_XATTRS, TreeCheck

MAX_MANIFEST_BYTES = 256 << 20

_MAGIC = b"p2player-manifest"
_VERSION = 1
_FEED_BYTES = 1 << 20
_KINDS = tuple(Kind)
_DEVICES = (Kind.CHARACTER, Kind.BLOCK)
_HEADER_ROOM: Final = 64


class TreeEncoder:
    """Encodes a tree entry by entry, in order of path; nothing is kept but what `treecheck` keeps."""

    def __init__(self) -> None:
        self._packer = msgpack.Packer(use_bin_type=True)
        self._check = TreeCheck()
        self._encoded = bytearray(_HEADER_ROOM)

    def take(self, entry: Entry) -> None:
        """Encode the next entry.

        Raises:
            ManifestInvalid: it does not belong there in any possible tree, or a limit is exceeded.
        """
        self._check.take(entry)
        self._encoded += self._packer.pack(_row(entry))
        self._refuse_excess(_HEADER_ROOM)

    def finish(self) -> tuple[bytearray, int]:
        """The canonical encoding of what was taken, and the bytes of all its regular files; call it once.

        Raises:
            ManifestInvalid: the tree is empty or too large.
        """
        check = self._check
        check.finish(check.count, check.size)
        self._encoded[:_HEADER_ROOM] = self._packer.pack((_MAGIC, _VERSION, check.count, check.size))
        self._refuse_excess(0)
        return self._encoded, check.size

    def _refuse_excess(self, room: int) -> None:
        if len(self._encoded) - room > MAX_MANIFEST_BYTES:
            raise ManifestInvalid("the tree is too large for one manifest")


def decode_rows(data: Buffer) -> Iterator[Entry]:
    """Read an encoding from anywhere, entry by entry. It may be hostile, and at the end it is known that it is not.

    Raises:
        ManifestInvalid: it is not the canonical encoding of a possible tree within the limits.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"a manifest of {len(data)} bytes")
    rows = _Rows(data)
    count, size = _header(next(rows, None))
    check = TreeCheck()
    shared: dict[int, int] = {}  # one object for each mode, owner and group instead of one for each entry
    for row in rows:
        entry = _entry(row, shared)
        check.take(entry)
        yield entry
    check.finish(count, size)


def _row(entry: Entry) -> tuple[object, ...]:
    if entry.kind is Kind.HARDLINK:
        return (entry.path, Kind.HARDLINK.value, entry.target)
    detail: object = None
    if entry.kind is Kind.REGULAR:
        detail = entry.table
    elif entry.kind is Kind.SYMLINK:
        detail = entry.target
    elif entry.kind in _DEVICES:
        detail = entry.device
    xattrs = [part for pair in entry.xattrs for part in pair]
    return (entry.path, entry.kind.value, entry.mode, entry.uid, entry.gid, entry.mtime_ns, xattrs, detail)


class _Rows:
    """Iterates over the msgpack arrays of an encoding, each checked to be in canonical form."""

    def __init__(self, data: Buffer) -> None:
        self._data = data
        self._fed = 0
        self._packer = msgpack.Packer(use_bin_type=True)
        self._unpacker = msgpack.Unpacker(
            raw=True,
            use_list=False,
            max_buffer_size=MAX_MANIFEST_BYTES + _FEED_BYTES,
            max_str_len=0,
            max_map_len=0,
            max_ext_len=0,
            max_bin_len=MAX_MANIFEST_BYTES,
            max_array_len=2 * MAX_XATTRS,
        )

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        start = self._unpacker.tell()
        while True:
            try:
                row: object = self._unpacker.unpack()
                break
            except msgpack.OutOfData:
                if self._fed == len(self._data):
                    if start != self._fed:
                        raise ManifestInvalid("the last row is cut off") from None
                    raise StopIteration from None
                piece = self._data[self._fed : self._fed + _FEED_BYTES]
                self._unpacker.feed(piece)
                self._fed += len(piece)
            except (ValueError, msgpack.UnpackException) as error:
                raise ManifestInvalid(f"not a manifest: {error}") from None
        if self._packer.pack(row) != self._data[start : self._unpacker.tell()]:
            raise ManifestInvalid("not the canonical encoding")
        return row


def _header(row: object) -> tuple[int, int]:
    """The counts of entries and bytes that the header announces."""
    if type(row) is not tuple or [type(part) for part in row] != [bytes, int, int, int] or row[0] != _MAGIC:
        raise ManifestInvalid("not a manifest")
    _, version, count, size = row
    if version != _VERSION:
        raise ManifestInvalid(f"manifest version {version}, this program reads {_VERSION}")
    return count, size


def _entry(row: object, shared: dict[int, int]) -> Entry:
    """A row as an entry; its fields have the right types, and no more is checked."""
    if type(row) is not tuple or len(row) not in (3, 8):
        raise ManifestInvalid("a row that is not an entry")
    if len(row) == 3:
        path, number, target = row
        if type(path) is bytes and type(number) is int and number == Kind.HARDLINK and type(target) is bytes:
            return Entry(path, Kind.HARDLINK, target=target)
        raise ManifestInvalid("a row that is not a hard link")
    path, number, mode, uid, gid, mtime_ns, flat, detail = row
    if not (
        type(path) is bytes
        and type(number) is type(mode) is type(uid) is type(gid) is type(mtime_ns) is int
        and type(flat) is tuple
        and 0 <= number < len(_KINDS)
    ):
        raise ManifestInvalid("a row with a field of the wrong type")
    kind = _KINDS[number]
    mode, uid, gid = (shared.setdefault(value, value) for value in (mode, uid, gid))
    xattrs = _pairs(flat) if flat else ()
    if kind is Kind.REGULAR and type(detail) is bytes:
        return Entry(path, kind, mode, uid, gid, mtime_ns, xattrs, detail)
    if kind is Kind.SYMLINK and type(detail) is bytes:
        return Entry(path, kind, mode, uid, gid, mtime_ns, xattrs, target=detail)
    if kind in _DEVICES and type(detail) is tuple and [type(part) for part in detail] == [int, int]:
        return Entry(path, kind, mode, uid, gid, mtime_ns, xattrs, device=detail)
    if kind in (Kind.DIRECTORY, Kind.FIFO, Kind.SOCKET) and detail is None:
        return Entry(path, kind, mode, uid, gid, mtime_ns, xattrs)
    raise ManifestInvalid(f"{printable(path)}: a row that does not fit its kind")


def _pairs(flat: tuple[object, ...]) -> Xattrs:
    if len(flat) % 2:
        raise ManifestInvalid("an extended attribute without a value")
    pairs: list[tuple[bytes, bytes]] = []
    for name, value in zip(flat[::2], flat[1::2], strict=True):
        if type(name) is not bytes or type(value) is not bytes:
            raise ManifestInvalid("an extended attribute of the wrong type")
        pairs.append((name, value))
    return tuple(pairs)
