"""The content of one migration: what a running application had in memory and on its disk.

Instance content never enters the shared packs. It lives in a folder of its own: `key`, 32 random bytes with mode 0600,
and `sealed`, a file of encrypted groups (see `sealed`). Names are keyed hashes under the same key, so neither bytes
nor names tell anything to whoever has only the file.

The index is kept in memory and read from the file when the vault is opened. Wiping destroys the key first: from that
moment the rest is noise, whatever becomes of the file.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from chunkstore.codec import Group, check_table, split, take
from chunkstore.digest import KEY_BYTES, ChunkId
from chunkstore.errors import BadGroup, BadRecord, StoreBusy, StoreClosed, StoreDamaged
from chunkstore.packs import sync_folder
from chunkstore.retrieve import OpenGroups, mostly, regroup
from chunkstore.sealed import SALT_BYTES, SealedFile, SealedRecord

RESERVE_BYTES = 64 << 20


class Vault:
    """Chunks of one migration, sealed in one folder; see `create` and `open`. Implements `Content`."""

    def __init__(self, folder: Path, key: bytes, file: SealedFile) -> None:
        self._folder = folder
        self._key: bytes | None = key
        self._file = file
        self._lock = threading.RLock()
        self._where: dict[ChunkId, SealedRecord] = {}
        self._suspects: set[ChunkId] = set()
        self._cache = OpenGroups()
        for record, ids in file.found:
            self._where.update((name, record) for name in ids)
        file.found.clear()

    @classmethod
    def create(cls, folder: Path, key: bytes | None = None, *, reserve_bytes: int = RESERVE_BYTES) -> Self:
        """Make an empty vault; durable when this returns.

        Args:
            folder: made with mode 0700 if it does not exist.
            key: 32 bytes, where the other end of the migration has chosen one; None: a new random key.
            reserve_bytes: leave this much of the disk free.

        Raises:
            StoreBusy: there is a vault already.
        """
        if key is not None and len(key) != KEY_BYTES:
            raise ValueError(f"a vault key has {KEY_BYTES} bytes")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (folder / "key").exists():
            raise StoreBusy(folder)
        _write(folder / "sealed", os.urandom(SALT_BYTES))
        _write(folder / "key.new", key or os.urandom(KEY_BYTES))
        (folder / "key.new").rename(folder / "key")  # a vault exists once its key does
        sync_folder(folder)
        sync_folder(folder.parent)
        return cls.open(folder, reserve_bytes=reserve_bytes)

    @classmethod
    def open(cls, folder: Path, *, reserve_bytes: int = RESERVE_BYTES) -> Self:
        """Open a vault, whatever happened to it: what is torn is cut off, what is damaged is missing.

        Raises:
            StoreDamaged: there is no vault, or it has no key (it was wiped, or never finished).
        """
        try:
            key = (folder / "key").read_bytes()
            if len(key) != KEY_BYTES:
                raise StoreDamaged(folder, "the key is damaged")
            return cls(folder, key, SealedFile(folder / "sealed", key, reserve_bytes))
        except FileNotFoundError as error:
            raise StoreDamaged(folder, "no vault, or one without its key") from error

    @staticmethod
    def destroy(folder: Path) -> None:
        """Wipe the vault in `folder`, whether it can be opened or not. Repeating it is harmless.

        The key is overwritten and removed, durably, before anything else. On file systems that never overwrite in
        place (btrfs, ZFS) old blocks of the key may live until they are reused.
        """
        with suppress(FileNotFoundError):
            fd = os.open(folder / "key", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(fd, os.urandom(KEY_BYTES), 0)
                os.fsync(fd)
            finally:
                os.close(fd)
            (folder / "key").unlink()
            sync_folder(folder)
        for name in ("key.new", "sealed"):
            (folder / name).unlink(missing_ok=True)
        with suppress(OSError):  # gone already, or somebody keeps other files there
            folder.rmdir()

    def wipe(self) -> None:
        """Close the vault and destroy it: key first, then content. See `destroy`."""
        self.close()
        self.destroy(self._folder)

    def close(self) -> None:
        """Let go of the file and the key. What was not committed is verified when the vault is next opened."""
        with self._lock:
            self._file.close()
            self._key = None
            self._where.clear()
            self._cache.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stored_bytes(self) -> int:
        """Size of the sealed file."""
        return self._file.end

    # -- Content

    @property
    def key(self) -> bytes:
        """The key of this vault's names; secret, for the other end of the migration only."""
        if self._key is None:
            raise StoreClosed(f"{self._folder} is closed")
        return self._key

    def missing(self, ids: Iterable[ChunkId]) -> set[ChunkId]:
        """Those of `ids` that are not here, or were found damaged."""
        with self._lock:
            self._require_open()
            return {name for name in ids if name not in self._where or name in self._suspects}

    def add(self, groups: Iterable[Group]) -> int:
        """Keep verified chunks; see `Content.add`."""
        added = 0
        for group in groups:
            check_table(group.ids, group.lengths, len(group.payload))
            lengths = dict(zip(group.ids, group.lengths, strict=True))
            with self._lock:
                fresh = self.missing(group.ids)
                fresh_bytes = sum(lengths[name] for name in fresh)
                kept = group if 4 * fresh_bytes >= 3 * group.raw_bytes else take(group, fresh)
                if kept is not None:
                    record = self._file.append(kept)
                    self._where.update((name, record) for name in fresh)
                    self._suspects -= fresh
                    added += fresh_bytes
        return added

    def groups(self, ids: Sequence[ChunkId]) -> Iterator[Group]:
        """The wanted chunks, packed for a wire; see `Content.groups`."""
        return regroup(self._servings(ids), self._suspects)

    def read(self, ids: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
        """The wanted chunks and their bytes; see `Content.read`."""
        for record, asked in self._locate(ids):
            chunks = self._cache.get(record.offset)
            if chunks is None:
                try:
                    chunks = dict(split(self._file.unseal(record)))
                except (BadGroup, BadRecord):
                    self._suspects |= asked
                    continue
                if len(asked) < len(chunks):
                    self._cache.put(record.offset, chunks)
            yield from ((name, data) for name, data in chunks.items() if name in asked)

    def commit(self) -> None:
        """Make what was added so far durable; see `Content.commit`."""
        self._file.sync()

    def _locate(self, ids: Iterable[ChunkId]) -> list[tuple[SealedRecord, set[ChunkId]]]:
        """Records that hold wanted chunks, in order, and which."""
        found: dict[SealedRecord, set[ChunkId]] = {}
        with self._lock:
            self._require_open()
            for name in ids:
                if name in self._where:
                    found.setdefault(self._where[name], set()).add(name)
        return sorted(found.items(), key=lambda item: item[0].offset)

    def _servings(self, ids: Iterable[ChunkId]) -> Iterator[tuple[Group, set[ChunkId], bool]]:
        for record, asked in self._locate(ids):
            try:
                group = self._file.unseal(record)
            except BadRecord:
                self._suspects |= asked
                continue
            own = all(self._where.get(name) is record for name in group.ids)
            yield group, asked, own and mostly(group, asked)

    def _require_open(self) -> None:
        if self._key is None:
            raise StoreClosed(f"{self._folder} is closed")


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
