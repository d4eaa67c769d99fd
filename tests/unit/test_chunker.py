"""Cut points and holes: pinned, independent of how the bytes arrive, and found whatever the filesystem says."""

import os
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from chunkstore.chunker import CONTENT, MANIFEST, Chunker, ChunkSizes, cut, cut_file
from chunkstore.digest import chunk_id, layer_id
from chunkstore.holes import BLOCK_BYTES, WINDOW_BYTES, ShortRead, Window, file_windows, mapped_windows, split_holes

SEEDED = random.Random(20220).randbytes(2_000_000)

GOLDEN_CONTENT = (
    *(59215, 60706, 73408, 26201, 65529, 69436, 137225, 53385, 173167, 35522, 39151, 78654, 75600, 73780, 82217),
    *(20565, 141615, 76206, 93045, 23455, 88997, 95399, 71106, 72648, 76859, 92065, 44844),
)
GOLDEN_MANIFEST = (
    *(21729, 20495, 16991, 20834, 9852, 19582, 10438, 8770, 27071, 19771, 17796, 16114, 13094, 4408, 22627, 9292),
    *(17621, 23515),
)
GOLDEN_DIGEST = "681e466c0bcdb38ca0d8233c349359315556f29b481bb7d234da108b126988d6"


def lengths(data: bytes, sizes: ChunkSizes = CONTENT) -> tuple[int, ...]:
    return tuple(len(chunk) for chunk in cut(data, sizes))


def test_golden_cut_points() -> None:
    """If this fails, every layer in the world gets another name: do not adjust it."""
    assert lengths(SEEDED) == GOLDEN_CONTENT
    assert lengths(SEEDED[:300_000], MANIFEST) == GOLDEN_MANIFEST
    names = b"".join(chunk_id(chunk) for chunk in cut(SEEDED, CONTENT))
    assert layer_id(names).hex() == GOLDEN_DIGEST


@pytest.mark.parametrize("window", [1000, 4096, 65_537, 300_000, 1 << 20, 3 << 20])
def test_cut_points_do_not_depend_on_windows(window: int) -> None:
    chunker = Chunker(CONTENT)
    chunks: list[bytes] = []
    for at in range(0, len(SEEDED), window):
        chunks += map(bytes, chunker.feed(SEEDED[at : at + window]))
    chunks += map(bytes, chunker.finish())
    assert tuple(map(len, chunks)) == GOLDEN_CONTENT
    assert b"".join(chunks) == SEEDED


def test_sizes_are_bounded_where_nothing_can_be_found() -> None:
    same = b"x" * 1_000_000
    assert lengths(same) == (CONTENT.maximum,) * 3 + (1_000_000 - 3 * CONTENT.maximum,)
    assert all(CONTENT.minimum <= size <= CONTENT.maximum for size in GOLDEN_CONTENT)


@pytest.mark.parametrize("size", [0, 1, CONTENT.minimum - 1, CONTENT.minimum, CONTENT.minimum + 1])
def test_short_runs(size: int) -> None:
    assert sum(lengths(SEEDED[:size])) == size
    assert len(lengths(SEEDED[:size])) == min(size, 1)


def test_a_chunker_begins_anew_after_each_run() -> None:
    chunker = Chunker(CONTENT)
    for _ in range(2):
        found = [*chunker.feed(SEEDED[:200_000]), *chunker.finish()]
        assert tuple(map(len, found)) == lengths(SEEDED[:200_000])


def test_an_insertion_moves_only_cuts_next_to_it() -> None:
    changed = SEEDED[:700_000] + b"something new" + SEEDED[700_000:]
    before = {bytes(chunk) for chunk in cut(SEEDED, CONTENT)}
    after = [bytes(chunk) for chunk in cut(changed, CONTENT)]
    assert sum(chunk not in before for chunk in after) <= 2


def pieces(*windows: Window) -> list[int]:
    """Lengths of what `split_holes` gives, holes negative."""
    return [-piece if isinstance(piece, int) else len(piece) for piece in split_holes(windows)]


DATA = b"x" * BLOCK_BYTES
ZERO = bytes(BLOCK_BYTES)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        ((b"",), []),
        ((b"x",), [1]),
        ((b"\0",), [-1]),
        ((ZERO,), [-BLOCK_BYTES]),
        ((DATA + ZERO + DATA,), [BLOCK_BYTES, -BLOCK_BYTES, BLOCK_BYTES]),
        ((DATA + ZERO + b"\0\0",), [BLOCK_BYTES, -BLOCK_BYTES - 2]),
        ((DATA + b"\0\0",), [BLOCK_BYTES, -2]),
        ((DATA + b"\0x",), [BLOCK_BYTES + 2]),
        ((ZERO[1:] + b"x" + ZERO,), [BLOCK_BYTES, -BLOCK_BYTES]),
        ((b"x" + ZERO + DATA,), [1 + 2 * BLOCK_BYTES]),
        ((DATA + ZERO, 3 * BLOCK_BYTES, ZERO + DATA), [BLOCK_BYTES, -5 * BLOCK_BYTES, BLOCK_BYTES]),
        ((5 * BLOCK_BYTES, 7), [-5 * BLOCK_BYTES - 7]),
        ((DATA, DATA), [BLOCK_BYTES, BLOCK_BYTES]),
    ],
)
def test_holes_are_aligned_and_maximal(windows: tuple[Window, ...], expected: list[int]) -> None:
    assert pieces(*windows) == expected


def test_holes_equal_a_slow_search() -> None:
    rng = random.Random(5)
    for _ in range(50):
        blocks = [rng.choice((ZERO, DATA, ZERO[1:] + b"x", b"\0" + DATA[1:])) for _ in range(rng.randrange(40))]
        data = b"".join(blocks) + rng.choice((b"", b"\0" * 17, b"\0y"))
        marks = [bool(data[at : at + BLOCK_BYTES].strip(b"\0")) for at in range(0, len(data), BLOCK_BYTES)]
        cuts = sum(a != b for a, b in pairwise(marks)) + 1 if marks else 0
        found = list(split_holes([data]))
        assert len(found) == cuts
        assert b"".join(bytes(piece) for piece in found) == data  # bytes(int) are zeros


def test_runs_between_holes_are_cut_by_themselves() -> None:
    run = SEEDED[: 300 * BLOCK_BYTES]
    found = list(cut_file([run + ZERO + run]))
    hole = found.index(BLOCK_BYTES)
    assert [bytes(chunk) for chunk in found[:hole] if not isinstance(chunk, int)] == [
        bytes(chunk) for chunk in cut(run, CONTENT)
    ]
    assert found[:hole] == found[hole + 1 :]


def test_little_data_does_not_keep_a_large_window() -> None:
    window = bytes(WINDOW_BYTES - BLOCK_BYTES) + DATA
    kept = [piece for piece in split_holes([window]) if not isinstance(piece, int)]
    assert [len(piece.obj) for piece in kept] == [BLOCK_BYTES]  # type: ignore[arg-type]


def windows_of(path: Path) -> Iterator[Window]:
    fd = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(fd)
        yield from file_windows(fd, status.st_size, status.st_blocks * 512)
    finally:
        os.close(fd)


def test_allocated_zeros_and_holes_of_the_filesystem_are_the_same(tmp_path: Path) -> None:
    data = SEEDED[: 10 * BLOCK_BYTES] + bytes(100 * BLOCK_BYTES) + SEEDED[: 5 * BLOCK_BYTES] + bytes(1_000)
    (tmp_path / "full").write_bytes(data)
    with (tmp_path / "sparse").open("wb") as file:
        file.write(SEEDED[: 10 * BLOCK_BYTES])
        file.seek(110 * BLOCK_BYTES)
        file.write(SEEDED[: 5 * BLOCK_BYTES])
        file.truncate(len(data))
    full, sparse = (list(cut_file(windows_of(tmp_path / name))) for name in ("full", "sparse"))
    assert full == sparse
    assert [piece for piece in full if isinstance(piece, int)] == [100 * BLOCK_BYTES, 1_000]


def test_a_huge_hole_is_not_read(tmp_path: Path) -> None:
    size = 10 << 30
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"middle")
    found = list(windows_of(tmp_path / "sparse"))
    assert sum(window if isinstance(window, int) else len(window) for window in found) == size
    assert sum(len(window) for window in found if isinstance(window, bytes)) <= 1 << 20


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.raises(ShortRead):
            list(file_windows(fd, 6, 4096))
    finally:
        os.close(fd)


def test_a_map_that_is_not_aligned() -> None:
    data = bytes(5_000) + b"a" * 10 + bytes(20_000) + b"b" * 3_000 + bytes(9)
    asked: list[tuple[int, int]] = []

    def read_at(offset: int, length: int) -> bytes:
        asked.append((offset, length))
        return data[offset : offset + length]

    found = list(mapped_windows(len(data), [(5_000, 5_010), (5_010, 5_020), (25_010, 28_010)], read_at))
    assert b"".join(bytes(window) for window in found) == data
    assert asked == [(4096, 4096), (24576, len(data) - 24576)]
