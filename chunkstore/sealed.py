"""An append-only file of encrypted groups, whatever happens to it.

    file     salt 16 bytes, then records
    record   frame    magic, sealed table bytes, sealed payload bytes, nonce
             table    sealed: codec, then id and length of each chunk
             payload  sealed: the group's payload
    mark     a record with an empty table, its payload an offset: everything before that is durable

Sealing is AES-256-GCM under a key derived from the owner's key and the file's salt, since the other end of a migration
has the same key and a file of its own. Nonces are random. Each part is authenticated together with its frame and
offset: no record can be moved, and nothing torn or damaged is taken for one.
"""

import os
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from chunkstore.codec import MAX_GROUP_BYTES, MAX_GROUP_CHUNKS, Codec, Group
from chunkstore.digest import ChunkId
from chunkstore.errors import BadRecord, DiskFull, StoreClosed, StoreDamaged
from chunkstore.packs import NO_ROOM, require_room, write_all
from chunkstore.records import decode_table, encode_table

SALT_BYTES = 16

_MAGIC = b"P2VR"
_FRAME = struct.Struct("<4sII11s")
_NONCE_BYTES = 11
_TAG_BYTES = 16
_MARK = struct.Struct("<Q")
_MARK_RECORD_BYTES = _FRAME.size + _TAG_BYTES + _MARK.size + _TAG_BYTES
_MAX_TABLE_BYTES = 1 + MAX_GROUP_CHUNKS * 36 + _TAG_BYTES
_MAX_PAYLOAD_BYTES = MAX_GROUP_BYTES + _TAG_BYTES
_WINDOW_BYTES = 1 << 20
_DERIVATION = "p2player sealed file: sealing key from owner key and file salt"


@dataclass(frozen=True, slots=True)
class SealedRecord:
    """Where a sealed group lies."""

    offset: int
    frame: bytes

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of the sealed table and of the sealed payload."""
        _, table_bytes, payload_bytes, _ = _FRAME.unpack(self.frame)
        return table_bytes, payload_bytes

    @property
    def starts(self) -> tuple[int, int]:
        """Where in the file they begin."""
        table_at = self.offset + _FRAME.size
        return table_at, table_at + self.sizes[0]

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.starts[1] + self.sizes[1]

    def nonce(self, part: int) -> bytes:
        """The nonce of the table (0) or the payload (1): random in the frame, then the part."""
        return self.frame[-_NONCE_BYTES:] + bytes([part])

    def context(self, part: int) -> bytes:
        """What is authenticated along with a part, so that it is good for this place only."""
        return self.frame + struct.pack("<QB", self.offset, part)


class SealedFile:
    """One file and its key. Safe for many threads."""

    def __init__(self, path: Path, key: bytes, reserve_bytes: int) -> None:
        """Open `path` and read its frames and tables; payloads are read only after the last mark.

        What is found is in `found`; what is torn is cut off, what is damaged is left out.

        Args:
            path: at least a salt.
            key: 32 bytes.
            reserve_bytes: leave this much of the disk free.
        """
        self.found: list[tuple[SealedRecord, tuple[ChunkId, ...]]] = []
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        self._failed = False
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            salt = os.pread(self._fd, SALT_BYTES, 0)
            if len(salt) < SALT_BYTES:
                raise StoreDamaged(path, "no salt")
            self._aead = AESGCM(blake3(key + salt, derive_key_context=_DERIVATION).digest())
            self._end = self._synced = self._load()
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def end(self) -> int:
        """Size of the file in bytes."""
        return self._end

    def close(self) -> None:
        """Let go of the file and the key. What was not synced is verified when it is next opened."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                del self._aead

    def append(self, group: Group) -> SealedRecord:
        """Seal and write a group.

        Raises:
            DiskFull: nothing was written.
        """
        with self._lock:
            return self._append(bytes([group.codec]) + encode_table(group.ids, group.lengths), group.payload)

    def unseal(self, record: SealedRecord) -> Group:
        """The group of a record.

        Raises:
            BadRecord: the file no longer holds what was sealed there.
        """
        table = self._part(record, 0)
        ids, lengths = decode_table(table[1:])
        return Group(ids, lengths, Codec(table[0]), self._part(record, 1))

    def sync(self) -> None:
        """Return when everything appended so far is durable.

        Raises:
            OSError: the disk failed; only reopening tells what is there.
        """
        with self._lock:
            self._require_open()
            if self._end == self._synced:
                return
            end, fd = self._end, os.dup(self._fd)
        try:
            os.fdatasync(fd)
        except OSError:
            self._failed = True  # the kernel may have dropped what it could not write
            raise
        finally:
            os.close(fd)
        with self._lock:
            self._require_open()
            self._append(b"", _MARK.pack(end))
            self._synced = self._end if self._end == end + _MARK_RECORD_BYTES else end

    def _append(self, table: bytes, payload: bytes) -> SealedRecord:
        self._require_open()
        frame = _FRAME.pack(_MAGIC, len(table) + _TAG_BYTES, len(payload) + _TAG_BYTES, os.urandom(_NONCE_BYTES))
        record = SealedRecord(self._end, frame)
        needed = record.end - record.offset
        require_room(self._path.parent, needed, self._reserve_bytes)
        sealed = [frame]
        for part, data in enumerate((table, payload)):
            sealed.append(self._aead.encrypt(record.nonce(part), data, record.context(part)))
        try:
            write_all(self._fd, sealed, self._end)
        except OSError as error:
            os.ftruncate(self._fd, self._end)
            if error.errno in NO_ROOM:
                raise DiskFull(self._path, needed, 0) from error
            raise
        self._end = record.end
        return record

    def _part(self, record: SealedRecord, part: int) -> bytes:
        """The table (0) or payload (1) of a record, checked against its seal."""
        with self._lock:
            self._require_open()
            fd, aead = os.dup(self._fd), self._aead
        try:
            sealed = os.pread(fd, record.sizes[part], record.starts[part])
            return aead.decrypt(record.nonce(part), sealed, record.context(part))
        except (InvalidTag, OSError) as error:
            raise BadRecord(f"{self._path}: the record at {record.offset} is damaged") from error
        finally:
            os.close(fd)

    def _load(self) -> int:
        """Fill `found`. Returns where the last sound record ends; cuts off what follows."""
        size = os.fstat(self._fd).st_size
        offset = end = durable = SALT_BYTES
        while offset < size:
            try:
                record = self._record_at(offset, size)
                table = self._part(record, 0)
                if table:
                    self.found.append((record, decode_table(table[1:])[0]))
                else:
                    durable = max(durable, *_MARK.unpack(self._part(record, 1)))
            except BadRecord:
                offset = self._next_magic(offset + 1, size)
            else:
                offset = end = record.end
        self.found = [(record, ids) for record, ids in self.found if record.offset < durable or self._sound(record)]
        if end < size:
            os.ftruncate(self._fd, end)
        return end

    def _sound(self, record: SealedRecord) -> bool:
        try:
            self._part(record, 1)
        except BadRecord:
            return False
        return True

    def _record_at(self, offset: int, size: int) -> SealedRecord:
        frame = os.pread(self._fd, _FRAME.size, offset)
        if len(frame) == _FRAME.size and frame.startswith(_MAGIC):
            record = SealedRecord(offset, frame)
            bounded = record.sizes[0] <= _MAX_TABLE_BYTES and record.sizes[1] <= _MAX_PAYLOAD_BYTES
            if bounded and record.end <= size:
                return record
        raise BadRecord(f"{self._path}: no record at {offset}")

    def _next_magic(self, offset: int, size: int) -> int:
        """Where the next record may begin; `size` where none does."""
        while len(window := os.pread(self._fd, _WINDOW_BYTES, offset)) >= len(_MAGIC):
            found = window.find(_MAGIC)
            if found >= 0:
                return offset + found
            offset += len(window) - len(_MAGIC) + 1
        return size

    def _require_open(self) -> None:
        if self._fd < 0:
            raise StoreClosed(f"{self._path} is closed")
        if self._failed:
            raise StoreDamaged(self._path, "the disk failed to write; reopen it to verify what is there")
