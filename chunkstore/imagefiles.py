"""Images among the files of a tree that is imported: which layout each file has.

Most images are recognised by their own bytes. A file of CRIU's pages is not: pagemaps of its folder say what is in it.
They come before it in order of path, so by then they were read and are known: how they looked, and what they held. A
pagemap that does not look as it did then has moved, and the pass is repeated. A pages file that did not change is still
cut otherwise when a pagemap did: what is remembered of it carries a token of all of them.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from chunkstore.digest import chunk_id
from chunkstore.images import criu
from chunkstore.images.errors import ImageInvalid
from chunkstore.images.layout import Layout, ReadAt
from chunkstore.images.recognise import by_pagemap, by_tables
from chunkstore.storedfile import Fetch, StoredFile
from chunkstore.treescan import Looks, Moved, Source, looks


def is_pages_path(path: bytes) -> bool:
    """Whether the file can hold pages of a process."""
    return criu.pages_number(path.rpartition(b"/")[2]) is not None


def is_map_path(path: bytes) -> bool:
    """Whether the file can be a pagemap."""
    return criu.is_map_name(path.rpartition(b"/")[2])


class StoredImages:
    """Images among files that are stored already, laid out as `TreeImages` would."""

    def __init__(self, maps: Iterable[tuple[bytes, bytes]], fetch: Fetch) -> None:
        """`maps`: path and extents of every regular file that can be a pagemap; `fetch` as for `StoredFile`."""
        self._fetch = fetch
        self._maps: dict[bytes, dict[bytes, bytes]] = {}
        for path, table in maps:
            self._maps.setdefault(path.rpartition(b"/")[0], {})[path] = table
        self._chosen: dict[bytes, dict[int, bytes]] = {}

    def layout(self, path: bytes, file: StoredFile) -> Layout | None:
        """The layout of the file at `path`, if its first bytes do not show it.

        Raises:
            StoreError: chunks are missing.
        """
        folder, _, name = path.rpartition(b"/")
        number = criu.pages_number(name)
        maps = self._maps.get(folder, {})
        if number is not None and maps:
            if folder not in self._chosen:
                self._chosen[folder] = criu.choose(self._heads(maps))
            chosen = self._chosen[folder].get(number)
            if chosen is not None:
                try:
                    return by_pagemap(self._pagemap(maps[chosen]), file.size)
                except ImageInvalid:
                    pass
        try:
            return by_tables(file.read_at, file.size)
        except ImageInvalid:
            return None

    def _heads(self, maps: dict[bytes, bytes]) -> Iterator[tuple[bytes, criu.Pagemap]]:
        for path, table in maps.items():
            try:
                yield path, self._pagemap(table)
            except ImageInvalid:
                continue

    def _pagemap(self, table: bytes) -> criu.Pagemap:
        return criu.Pagemap(StoredFile(table, self._fetch).read_at)


class TreeImages:
    """What one pass over a tree has learned of its images."""

    def __init__(self, source: Source, open_file: Callable[[bytes], int]) -> None:
        """`open_file` opens a regular file of the tree for reading; it may raise OSError."""
        self._source = source
        self._open = open_file
        self._maps: dict[bytes, dict[bytes, tuple[Looks, bytes | None]]] = {}
        self._chosen: dict[bytes, dict[int, bytes]] = {}
        self._tokens: dict[bytes, bytes | None] = {}

    def note(self, path: bytes, status: os.stat_result, table: bytes | None) -> None:
        """A regular file was imported; `table` are its extents, None if it is only a further name of one."""
        folder, _, name = path.rpartition(b"/")
        if criu.is_map_name(name) and stat.S_ISREG(status.st_mode):
            held = None if table is None else chunk_id(table)
            self._maps.setdefault(folder, {})[path] = (looks(status), held)

    def token(self, path: bytes) -> bytes | None:
        """What else than its own bytes decides where a file is cut; empty if nothing, None if that is not known."""
        folder, _, name = path.rpartition(b"/")
        if criu.pages_number(name) is None:
            return b""
        if folder not in self._tokens:
            self._tokens[folder] = _token(self._maps.get(folder, {}))
        return self._tokens[folder]

    @contextmanager
    def layout(self, path: bytes, fd: int, status: os.stat_result) -> Iterator[Layout | None]:
        """The layout of the regular file at `path`, open at `fd`, unless its first bytes will show it.

        Raises:
            Moved: a pagemap changed, also while the layout was used.
            TreeUnreadable: something cannot be read.
        """
        map_path = self._map_of(path)
        if map_path is None:
            yield self._tables(path, fd, status)
            return
        map_fd = self._open_map(map_path)
        try:
            try:
                layout: Layout | None = by_pagemap(criu.Pagemap(self._reader(map_path, map_fd)), status.st_size)
            except ImageInvalid:
                layout = self._tables(path, fd, status)
            yield layout
            self._check(map_path, map_fd)
        finally:
            os.close(map_fd)

    def _tables(self, path: bytes, fd: int, status: os.stat_result) -> Layout | None:
        try:
            return by_tables(self._reader(path, fd), status.st_size)
        except ImageInvalid:
            return None

    def _map_of(self, path: bytes) -> bytes | None:
        folder, _, name = path.rpartition(b"/")
        number = criu.pages_number(name)
        if number is None or folder not in self._maps:
            return None
        if folder not in self._chosen:
            self._chosen[folder] = criu.choose(self._read_heads(self._maps[folder]))
        return self._chosen[folder].get(number)

    def _read_heads(self, paths: dict[bytes, tuple[Looks, bytes | None]]) -> Iterator[tuple[bytes, criu.Pagemap]]:
        for path in paths:
            fd = self._open_map(path)
            try:
                yield path, criu.Pagemap(self._reader(path, fd))
            except ImageInvalid:
                continue
            finally:
                os.close(fd)

    def _open_map(self, path: bytes) -> int:
        with self._source.blame(path):
            fd = self._open(path)
        try:
            self._check(path, fd)
        except Moved:
            os.close(fd)
            raise
        return fd

    def _check(self, path: bytes, fd: int) -> None:
        """A pagemap must be as it was when it was imported."""
        if looks(os.fstat(fd)) != self._maps[path.rpartition(b"/")[0]][path][0]:
            raise Moved(path)

    def _reader(self, path: bytes, fd: int) -> ReadAt:
        def read_at(offset: int, length: int) -> bytes:
            with self._source.blame(path):
                return os.pread(fd, length, offset)

        return read_at


def _token(maps: dict[bytes, tuple[Looks, bytes | None]]) -> bytes | None:
    if not maps:
        return b""
    parts: list[bytes] = []
    for path, (_, held) in maps.items():
        if held is None:
            return None
        parts += (path.rpartition(b"/")[2], b"\0", held)
    return chunk_id(b"".join(parts))
