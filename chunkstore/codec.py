"""Groups: neighbouring chunks compressed together. The only importer of zstandard.

A chunk of 64 KiB alone compresses badly, so up to 1 MiB of neighbours share one zstd frame. The same
group is what a pack record holds and what a DATA frame carries: content served whole is never recompressed.

Two traps of zstd are closed here. `max_output_size` is ignored when a frame declares its size, so the
declared size is compared with the table *before* anything is decompressed, and a frame that declares none
is refused. And zstd's contexts are not thread-safe, so each thread has its own.
"""

import math
import threading
from collections.abc import Container, Iterable, Iterator, KeysView, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import zstandard

from chunkstore.digest import ID_BYTES, Buffer, ChunkId, chunk_id
from chunkstore.errors import BadGroup, CorruptChunk

MAX_CHUNK_BYTES = 1 << 20
MAX_GROUP_BYTES = 1 << 20
MAX_BUNDLE_BYTES = 4 << 20
MAX_GROUP_CHUNKS = 4096
FAIR_GROUP_BYTES = 512 << 10

DEFAULT_LEVEL = 2
_PAYS = 15 / 16  # a frame larger than this share of its input is stored raw: it would cost time at every read
_PROBE_ABOVE = 3  # level 1 runs over random bytes at 5 GB/s, slower levels do not: above this, try level 1 first
_WORTH_REPACKING = 0.97  # of the stored frame
_MAX_WINDOW_LOG = 27
_KEPT_UP_TO = 9
_ENDS_ONE_IN = 4  # of the chunks after which a group of a fair size may end: most do so before they are full


class _Finder(NamedTuple):
    """How matches with a large dictionary are searched for; two tables of 4 << table_log bytes, held twice."""

    up_to_level: int
    strategy: int
    table_log: int
    min_match: int


_FINDERS = (
    _Finder(2, zstandard.STRATEGY_DFAST, 20, 5),
    _Finder(5, zstandard.STRATEGY_GREEDY, _MAX_WINDOW_LOG, 4),
    _Finder(12, zstandard.STRATEGY_LAZY2, _MAX_WINDOW_LOG, 4),
    _Finder(zstandard.MAX_COMPRESSION_LEVEL, zstandard.STRATEGY_BTULTRA2, 21, 3),
)


class Codec(IntEnum):
    """How the payload of a group is encoded."""

    RAW = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring chunks and their bytes, compressed together.

    `ids[i]` names `lengths[i]` uncompressed bytes; the chunks follow each other without gaps. A group from
    a peer or a disk is only a claim: `unpack` checks that it is consistent, `open_group` also every digest.
    """

    ids: tuple[ChunkId, ...]
    lengths: tuple[int, ...]
    codec: Codec
    payload: bytes

    @property
    def raw_bytes(self) -> int:
        """Uncompressed size of all chunks together."""
        return sum(self.lengths)


def check_table(
    ids: Sequence[bytes], lengths: Sequence[int], payload_bytes: int, most_bytes: int = MAX_GROUP_BYTES
) -> int:
    """Refuse a group that breaks a limit, before its payload is looked at.

    Args:
        most_bytes: of all chunks together; `MAX_BUNDLE_BYTES` for what comes over a wire.

    Returns:
        The uncompressed size of the group.

    Raises:
        BadGroup: no chunks or too many, an id that is not 32 bytes, a length out of bounds, an oversized sum
            or payload.
    """
    if not 0 < len(ids) <= MAX_GROUP_CHUNKS or len(ids) != len(lengths):
        raise BadGroup(f"group of {len(ids)} ids and {len(lengths)} lengths")
    if any(len(name) != ID_BYTES for name in ids):
        raise BadGroup("group with an id that is not 32 bytes")
    if min(lengths) < 1 or max(lengths) > MAX_CHUNK_BYTES:
        raise BadGroup("group with a chunk length out of bounds")
    raw_bytes = sum(lengths)
    if raw_bytes > most_bytes or not 0 < payload_bytes <= raw_bytes:
        raise BadGroup(f"group of {raw_bytes} bytes with a payload of {payload_bytes}")
    return raw_bytes


def pack(chunks: Sequence[tuple[ChunkId, Buffer]], level: int = DEFAULT_LEVEL) -> Group:
    """Compress chunks into one group; raw where zstd does not pay.

    Args:
        chunks: names and bytes, at most `MAX_GROUP_BYTES` together. The names are not checked.
        level: zstd level. Bytes that level 1 cannot shrink are stored raw whatever the level.

    Raises:
        BadGroup: no chunks, an empty chunk, or more than a group can hold.
    """
    ids = tuple(name for name, _ in chunks)
    lengths = tuple(len(data) for _, data in chunks)
    raw = b"".join(data for _, data in chunks)
    check_table(ids, lengths, len(raw))
    frame = _compressor(DEFAULT_LEVEL if level > _PROBE_ABOVE else level).compress(raw)
    if len(frame) > len(raw) * _PAYS:
        return Group(ids, lengths, Codec.RAW, raw)
    if level > _PROBE_ABOVE:
        frame = _compressor(level).compress(raw)
    return Group(ids, lengths, Codec.ZSTD, frame)


class Boundaries:
    """Where groups end in a sequence of chunks: decided by the chunks, so that every node draws the same lines.

    A group ends before it would grow too large, and after a chunk whose id says so once the group has a fair size:
    content-defined cutting over chunks. Two sequences that differ somewhere have the same groups soon after. So who
    asks for content can ask for whole groups, which are sent as they are stored.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self._chunks = 0
        self._ended = True

    def starts_group(self, name: ChunkId, length: int) -> bool:
        """Whether the next chunk of the sequence is the first of a group."""
        full = self._bytes + length > MAX_GROUP_BYTES or self._chunks == MAX_GROUP_CHUNKS
        starts = self._ended or full
        if starts:
            self._bytes = self._chunks = 0
        self._bytes += length
        self._chunks += 1
        self._ended = self._bytes >= FAIR_GROUP_BYTES and name[0] % _ENDS_ONE_IN == 0
        return starts


class Packer:
    """Packs a stream of chunks into groups that end at `Boundaries`; holds one group's worth of chunks at most."""

    def __init__(self, level: int = DEFAULT_LEVEL) -> None:
        self._level = level
        self._boundaries = Boundaries()
        self._held: dict[ChunkId, Buffer] = {}

    @property
    def held(self) -> KeysView[ChunkId]:
        """Chunks that were taken and are in no group yet."""
        return self._held.keys()

    def take(self, chunks: Iterable[tuple[ChunkId, Buffer]]) -> Iterator[Group]:
        """The groups that are complete now; a chunk that is held already is not taken again.

        Raises:
            BadGroup: an empty chunk, or one larger than `MAX_CHUNK_BYTES`.
        """
        for name, data in chunks:
            if name in self._held:
                continue
            if self._boundaries.starts_group(name, len(data)) and self._held:
                yield from self._pack()
            self._held[name] = data

    def finish(self) -> Iterator[Group]:
        """The last group, if anything is held; the next chunk begins a new one."""
        if self._held:
            yield from self._pack()
        self._boundaries = Boundaries()

    def _pack(self) -> Iterator[Group]:
        held, self._held = self._held, {}
        yield pack(list(held.items()), self._level)


def pack_all(chunks: Iterable[tuple[ChunkId, Buffer]], level: int = DEFAULT_LEVEL) -> Iterator[Group]:
    """Pack chunks into groups; see `Packer`.

    Raises:
        BadGroup: an empty chunk, or one larger than `MAX_CHUNK_BYTES`.
    """
    packer = Packer(level)
    yield from packer.take(chunks)
    yield from packer.finish()


def unpack(group: Group, most_bytes: int = MAX_GROUP_BYTES) -> memoryview:
    """The uncompressed bytes of the whole group; digests are not checked.

    Args:
        most_bytes: as for `check_table`.

    Raises:
        BadGroup: the group breaks a limit, declares another size than its table, or does not decompress.
    """
    raw_bytes = check_table(group.ids, group.lengths, len(group.payload), most_bytes)
    if group.codec is Codec.RAW:
        if len(group.payload) != raw_bytes:
            raise BadGroup(f"raw group of {len(group.payload)} bytes where its table says {raw_bytes}")
        return memoryview(group.payload)
    if group.codec is not Codec.ZSTD:
        raise BadGroup(f"unknown codec {group.codec!r}")
    return memoryview(_expand(group.payload, raw_bytes, raw_bytes, _decompressor()))


def split(group: Group, most_bytes: int = MAX_GROUP_BYTES) -> list[tuple[ChunkId, memoryview]]:
    """Every chunk of the group with its bytes; digests are not checked.

    Raises:
        BadGroup: as `unpack`.
    """
    raw = unpack(group, most_bytes)
    chunks = []
    at = 0
    for name, length in zip(group.ids, group.lengths, strict=True):
        chunks.append((name, raw[at : at + length]))
        at += length
    return chunks


def open_group(
    group: Group, key: bytes | None = None, most_bytes: int = MAX_GROUP_BYTES
) -> list[tuple[ChunkId, memoryview]]:
    """Every chunk of the group with its bytes, each checked against its name.

    Args:
        group: from anywhere; it may be hostile.
        key: where the names are keyed hashes, their key (32 bytes).
        most_bytes: as for `check_table`.

    Raises:
        BadGroup: as `unpack`.
        CorruptChunk: the first chunk whose bytes have another digest.
    """
    chunks = split(group, most_bytes)
    for name, data in chunks:
        if chunk_id(data, key) != name:
            raise CorruptChunk(name)
    return chunks


def take(group: Group, keep: Container[ChunkId], level: int = DEFAULT_LEVEL) -> Group | None:
    """A group of only those chunks that are in `keep`, each once; None when there are none.

    The group itself when that is all of it, else recompressed.

    Raises:
        BadGroup: as `unpack`.
    """
    kept = dict.fromkeys(name for name in group.ids if name in keep)
    if not kept:
        return None
    if len(kept) == len(group.ids):
        return group
    data = dict(split(group))
    return pack([(name, data[name]) for name in kept], level)


def recompress(group: Group, level: int) -> Group:
    """The same chunks packed again with a higher level, for a link that is slower than that.

    Returns:
        The group itself if it is stored raw, or would not shrink by 3 %.

    Raises:
        BadGroup: as `unpack`.
    """
    if group.codec is Codec.RAW:
        return group
    frame = compress(unpack(group), level)
    if len(frame) > len(group.payload) * _WORTH_REPACKING:
        return group
    return Group(group.ids, group.lengths, Codec.ZSTD, frame)


def bundle(groups: Sequence[Group], level: int) -> list[Group]:
    """The same chunks in fewer and larger groups of up to `MAX_BUNDLE_BYTES`, for a slow link: not for a store.

    Groups that are stored raw stay as they are; neighbours of the others are packed together where that makes them
    smaller.

    Raises:
        BadGroup: as `unpack`.
    """
    made: list[Group] = []
    held: list[Group] = []
    for group in groups:
        raw_bytes, chunks = sum(one.raw_bytes for one in held), sum(len(one.ids) for one in held)
        full = raw_bytes + group.raw_bytes > MAX_BUNDLE_BYTES or chunks + len(group.ids) > MAX_GROUP_CHUNKS
        if group.codec is Codec.RAW or full:
            made += _bundled(held, level)
            held = []
        if group.codec is Codec.RAW:
            made.append(group)
        else:
            held.append(group)
    return made + _bundled(held, level)


def _bundled(groups: list[Group], level: int) -> list[Group]:
    if len(groups) < 2:
        return [recompress(group, level) for group in groups]
    frame = compress(b"".join(unpack(group) for group in groups), level)
    if len(frame) > sum(len(group.payload) for group in groups) * _WORTH_REPACKING:
        return groups
    ids = tuple(name for group in groups for name in group.ids)
    return [Group(ids, tuple(length for group in groups for length in group.lengths), Codec.ZSTD, frame)]


def compress(data: Buffer, level: int = 3) -> bytes:
    """One zstd frame that declares its size."""
    return _compressor(level).compress(data)


def decompress(frame: Buffer, max_bytes: int) -> bytes:
    """The content of one frame that declares at most `max_bytes`.

    Raises:
        BadGroup: not one whole zstd frame, no declared size, or a larger one.
    """
    return _expand(frame, 0, max_bytes, _decompressor())


def compress_against(data: Buffer, relative: Buffer, level: int = 3) -> bytes:
    """One zstd frame of `data` that refers to `relative`, bytes that the reader holds too ("patch-from").

    The match finder is sized to the relative: at the defaults a raw dictionary of some MiB is barely indexed
    and the frame many times larger. Measured on 62 MB of recompiled programs, 4 MiB at a time against 8 MiB: levels 1
    and 2 make 6.4 MB at 110 MB/s, up to 5 6.8 MB at 26 MB/s, up to 12 6.3 MB, above 5.4 MB at 2 MB/s. Levels 1 and 2
    skip bytes where nothing is found and lose some of what follows: not for rows of digests.

    Args:
        data: what to send; together with `relative` at most 128 MiB.
        relative: the reader's old bytes, at least 8.
        level: 1 to 19; see above. Memory for each byte of `relative`: 16 bytes at levels 3 to 12; below and above, 16
            and 32 MiB are enough for all of up to 8 MiB.

    Raises:
        ValueError: the two do not fit into one window.
    """
    window_log = max(10, math.ceil(math.log2(len(data) + len(relative) + 1)))
    if window_log > _MAX_WINDOW_LOG:
        raise ValueError(f"{len(data) + len(relative)} bytes do not fit into a window of 2^{_MAX_WINDOW_LOG}")
    relative_log = math.ceil(math.log2(len(relative) + 1))
    finder = next(finder for finder in _FINDERS if level <= finder.up_to_level)
    table_log = max(10, min(_MAX_WINDOW_LOG, relative_log + 1, max(finder.table_log, relative_log - 2)))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        window_log=window_log,
        hash_log=table_log,
        chain_log=table_log,
        min_match=finder.min_match,
        strategy=finder.strategy,
        write_content_size=True,
        write_dict_id=False,
    )
    known = zstandard.ZstdCompressionDict(bytes(relative), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    known.precompute_compress(compression_params=parameters)
    return zstandard.ZstdCompressor(dict_data=known, compression_params=parameters).compress(data)


def decompress_against(frame: Buffer, relative: Buffer, max_bytes: int) -> bytes:
    """Undo `compress_against`, given the same relative.

    A wrong relative gives wrong bytes or an error: the caller verifies digests.

    Raises:
        BadGroup: as `decompress`.
    """
    known = zstandard.ZstdCompressionDict(bytes(relative), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return _expand(frame, 0, max_bytes, zstandard.ZstdDecompressor(dict_data=known))


def _expand(frame: Buffer, least: int, most: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """Decompress one frame whose declared size lies within bounds; trailing bytes are an error."""
    try:
        declared = zstandard.frame_content_size(frame)
        if not least <= declared <= most:
            raise BadGroup(f"zstd frame declares {declared} bytes, {most} allowed")
        return decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadGroup(f"not a zstd frame: {error}") from error


class _Contexts(threading.local):
    """This thread's zstd contexts; making one costs more than compressing a small chunk.

    Those of slow levels are not kept: their tables take tens of MiB, and much longer to be used than to be made.
    """

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def _compressor(level: int) -> zstandard.ZstdCompressor:
    compressor = _contexts.compressors.get(level)
    if compressor is None:
        compressor = zstandard.ZstdCompressor(level=level)
        if level <= _KEPT_UP_TO:
            _contexts.compressors[level] = compressor
    return compressor


def _decompressor() -> zstandard.ZstdDecompressor:
    return _contexts.decompressor
