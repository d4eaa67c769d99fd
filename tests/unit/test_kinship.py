"""Which old chunks a missing chunk is compared with: file pairs, gaps, units, and what hostile manifests cost."""

import time
from collections.abc import Iterable, Sequence

import pytest

from chunkstore.delta.kinship import RELATIVE_BYTES, RELATIVE_CHUNKS, UNIT_BYTES, Kinship
from chunkstore.delta.pairing import without_versions
from chunkstore.digest import ChunkId
from chunkstore.entries import Entry, Extent, Kind, pack_extents
from chunkstore.manifest import Manifest

KIB = 1 << 10
SEGMENT = 256 * KIB


def chunk(name: object) -> ChunkId:
    return ChunkId(str(name).encode().ljust(32, b"."))


def file(path: str, chunks: Iterable[tuple[object, int]]) -> Entry:
    """A file of (name, length) chunks; the name None stands for a hole."""
    extents = [Extent(length, None if name is None else chunk(name)) for name, length in chunks]
    return Entry(path.encode(), Kind.REGULAR, table=pack_extents(extents))


def tree(*entries: Entry) -> Manifest:
    return Manifest((Entry(b"", Kind.DIRECTORY), *sorted(entries, key=lambda entry: entry.path)))


def even(names: Iterable[object], length: int = 64 * KIB) -> list[tuple[object, int]]:
    return [(name, length) for name in names]


class Windows:
    """The windows between two manifests, by the names of chunks."""

    def __init__(self, new: Manifest, old: Manifest) -> None:
        self.new = list(new.chunks())
        self.old = list(old.chunks())
        self.kinship = Kinship.between(new, old, set(self.new) - set(self.old))

    def of(self, name: object) -> list[str]:
        window = self.kinship.window(self.new.index(chunk(name)))
        return [self.old[position].rstrip(b".").decode() for position in window]


def test_a_gap_faces_what_lies_between_the_same_anchors() -> None:
    old = tree(file("f", even("abcdef")))
    new = tree(file("f", even("abXYdeZ")))
    windows = Windows(new, old)
    assert windows.of("X") == windows.of("Y") == ["c"]
    assert windows.of("Z") == ["f"]
    assert windows.of("a") == []
    assert windows.kinship.covered_bytes == 3 * 64 * KIB


def test_an_insertion_faces_the_chunks_around_it() -> None:
    windows = Windows(tree(file("f", even("abcdXef"))), tree(file("f", even("abcdef"))))
    assert windows.of("X") == ["c", "d", "e", "f"]


def test_what_is_appended_faces_the_old_end() -> None:
    windows = Windows(tree(file("log", even("abcXYZ"))), tree(file("log", [*even("abc"), ("d", 10)])))
    assert windows.of("X") == windows.of("Z") == ["c", "d"]


def test_a_small_file_without_anchors_faces_the_whole_old_one() -> None:
    windows = Windows(tree(file("f", even("XYZ", 70 * KIB))), tree(file("f", even("abcd"))))
    assert windows.of("Y") == ["a", "b", "c", "d"]


def test_equal_gaps_are_paired_slot_by_slot() -> None:
    old = tree(file("image", [("head", 100), *even(range(40), SEGMENT)]))
    new = tree(file("image", [("head", 100), *even((f"n{at}" for at in range(40)), SEGMENT)]))
    windows = Windows(new, old)
    assert windows.of("n7") == ["6", "7", "8"]
    assert windows.of("n0") == ["0", "1"]
    assert windows.of("n39") == ["38", "39"]


def test_a_hole_takes_room_and_is_no_relative() -> None:
    old = tree(file("disk", [*even(range(8), SEGMENT), (None, 4 * SEGMENT), *even(range(8, 16), SEGMENT)]))
    new = tree(file("disk", even((f"n{at}" for at in range(20)), SEGMENT)))
    windows = Windows(new, old)
    assert windows.of("n3") == ["2", "3", "4"]
    assert windows.of("n10") == ["7", "8"]
    assert windows.of("n13") == ["8", "9", "10"]


def test_segments_that_are_as_good_as_equally_long_are_paired_slot_by_slot() -> None:
    old = tree(file("save", [(at, SEGMENT + at % 3) for at in range(40)]))
    new = tree(file("save", [(f"n{at}", SEGMENT - at % 5) for at in range(40)]))
    assert Windows(new, old).of("n20") == ["19", "20", "21"]


def test_a_segment_that_slipped_in_widens_the_slots() -> None:
    old = tree(file("image", even(range(40), SEGMENT)))
    new = tree(file("image", even((f"n{at}" for at in range(41)), SEGMENT)))
    assert Windows(new, old).of("n20") == ["18", "19", "20", "21"]


def test_a_large_gap_faces_its_proportional_part() -> None:
    old = tree(file("binary", [(at, 40 * KIB + 997 * (at * 7 % 31)) for at in range(1000)]))
    new = tree(file("binary", [(f"n{at}", 40 * KIB + 997 * (at * 11 % 37)) for at in range(1100)]))
    window = [int(name) for name in Windows(new, old).of("n550")]
    assert window[0] < 490 and window[-1] > 510
    assert len(window) < 60


def test_no_window_is_larger_than_a_relative() -> None:
    old = tree(file("f", even(range(3000), SEGMENT)))
    new = tree(file("f", [("small", 1000), ("other", 2000)]))
    windows = Windows(new, old)
    for name in ("small", "other"):
        assert 0 < len(windows.of(name)) * SEGMENT <= RELATIVE_BYTES
    grains = Windows(tree(file("f", even(["n"]))), tree(file("f", even(range(20_000), 16))))
    assert len(grains.of("n")) == RELATIVE_CHUNKS


def test_repeated_chunks_are_no_anchors() -> None:
    old = tree(file("f", even("azbzczd")))
    new = tree(file("f", even("azXzczd")))
    assert Windows(new, old).of("X") == ["z", "b"]


def test_moved_chunks_leave_the_longest_ascending_sequence() -> None:
    old = tree(file("f", even("abcdefgh")))
    new = tree(file("f", even("gabcXefh")))
    assert Windows(new, old).of("X") == ["d"]


@pytest.mark.parametrize(
    ("path", "old_path"),
    [
        ("opt/foo-1.3/x", "opt/foo-1.2/x"),
        ("lib/libfoo.so.1.2.4", "lib/libfoo.so.1.2.3"),
        ("new/place/tool", "bin/tool"),
        ("new/libfoo.so.7", "lib/libfoo.so.6"),
    ],
)
def test_files_without_common_chunks_are_paired_by_name(path: str, old_path: str) -> None:
    others = [file(f"lib/other{at}", even([f"o{at}"])) for at in range(5)]
    old = tree(file(old_path, even("ab")), *others)
    new = tree(file(path, even("XY", 60 * KIB)), *others)
    assert Windows(new, old).of("X") == ["a", "b"]


def test_of_several_with_the_name_the_closest_in_size_is_taken() -> None:
    old = tree(*(file(f"old/{at}/init", [(at, 1000 * at)]) for at in (1, 5, 9)))
    new = tree(file("new/place/init", [("X", 5400)]))
    assert Windows(new, old).of("X") == ["5"]


def test_a_path_that_is_still_there_gives_no_name_to_others() -> None:
    stays = file("a/init", even("a"))
    assert Windows(tree(stays, file("b/init", even("X"))), tree(stays)).of("X") == []


def test_a_renamed_and_edited_file_is_found_by_its_chunks() -> None:
    old = tree(file("before", even("abcdef")), file("other", even("uvw")))
    new = tree(file("after", even("abXdef")))
    assert Windows(new, old).of("X") == ["c"]


def test_a_rotated_log_is_found_by_its_chunks_and_not_by_its_path() -> None:
    old = tree(file("log", even("abcde")), file("log.1", even("uvwxy")))
    new = tree(file("log", even("N")), file("log.1", even("abcdeX")))
    windows = Windows(new, old)
    assert windows.of("X") == ["d", "e"]
    assert windows.of("N") == ["a", "b", "c", "d", "e"]


def test_numbered_files_that_changed_places_are_told_by_their_sizes() -> None:
    """Images of two processes: one small, one large and changed all over, but for a chunk or two."""
    small, large = even("abcd"), even([f"l{at}" for at in range(40)])
    old = tree(file("images/pages-1.img", small), file("images/pages-2.img", large))
    for common in ([], ["l7"]):
        changed = even([name if name in common else f"new{name}" for name, _ in large])
        windows = Windows(tree(file("images/pages-1.img", changed), file("images/pages-2.img", even("abcX"))), old)
        assert "l20" in windows.of("newl20")
        assert windows.of("X") == ["d"]
    windows = Windows(tree(file("images/pages-1.img", even("abcX"))), old)
    assert windows.of("X") == ["d"]


def test_one_common_chunk_does_not_outweigh_the_path() -> None:
    old = tree(file("a", even(["licence", *range(3)])), file("f", even("abc")))
    new = tree(file("f", even(["licence", *(f"n{at}" for at in range(20))])))
    assert Windows(new, old).of("n3") == ["a", "b", "c"]


def test_another_name_of_an_old_file_is_that_file() -> None:
    old = tree(file("a", even("ab")), Entry(b"b", Kind.HARDLINK, target=b"a"))
    assert Windows(tree(file("b", even("aX"))), old).of("X") == ["b"]


def test_a_chunk_in_two_files_gets_the_window_that_one_of_them_has() -> None:
    old = tree(file("z", even("abc")))
    new = tree(file("unknown", even("X")), file("z", even("aXc")))
    windows = Windows(new, old)
    assert windows.of("X") == ["b"]
    assert windows.kinship.covered_bytes == 64 * KIB


def test_unrelated_layers_have_nothing() -> None:
    windows = Windows(tree(file("x", even("XY"))), tree(file("a", even("ab"))))
    assert windows.kinship.covered_bytes == 0
    assert windows.of("X") == []
    assert Windows(tree(file("x", even("X"))), tree()).of("X") == []


def test_units_merge_neighbours_within_both_limits() -> None:
    old = tree(file("image", even(range(100), SEGMENT)))
    new = tree(file("image", even((f"n{at}" for at in range(100)), SEGMENT)), file("lonely", even(["l1", "l2"])))
    kinship = Windows(new, old).kinship
    units = kinship.units(range(102))
    assert [want for unit in units for want in unit.wants] == list(range(102))
    assert units[-1].wants == (100, 101) and units[-1].relative == ()
    assert units[0].wants == tuple(range(UNIT_BYTES // SEGMENT))
    assert units[0].relative == tuple(range(UNIT_BYTES // SEGMENT + 1))
    scattered = kinship.units([0, 50, 99, 30])
    assert [unit.wants for unit in scattered] == [(0, 50, 99, 30)]
    assert scattered[0].relative == (0, 1, 29, 30, 31, 49, 50, 51, 98, 99)


def test_units_stay_within_the_relative() -> None:
    old = tree(file("image", even(range(300), SEGMENT)))
    new = tree(file("image", even((f"n{at}" for at in range(300)), SEGMENT)))
    units = Windows(new, old).kinship.units(range(0, 300, 4))
    assert all(len(unit.relative) * SEGMENT <= RELATIVE_BYTES for unit in units)
    assert max(len(unit.wants) for unit in units) > 5


def test_a_position_beyond_the_layer_is_an_error() -> None:
    kinship = Windows(tree(file("f", even("X"))), tree()).kinship
    with pytest.raises(IndexError):
        kinship.window(1)
    with pytest.raises(IndexError):
        kinship.units([1])


@pytest.mark.parametrize(
    ("path", "bare"),
    [(b"libfoo.so.1.2.3", b"libfoo.so.#"), (b"a-1.2~3/b2", b"a-#/b#"), (b"app.3f2a91bc.js", b"app.#.js"), (b"x", b"x")],
)
def test_versions_are_taken_out_of_names(path: bytes, bare: bytes) -> None:
    assert without_versions(path) == bare


def _cost_s(new: Manifest, old: Manifest) -> float:
    missing = new.chunks().keys() - old.chunks().keys()
    before = time.process_time()
    kinship = Kinship.between(new, old, missing)
    kinship.units(range(len(new.chunks())))
    return time.process_time() - before


def _hostile(shape: str, count: int) -> tuple[Manifest, Manifest]:
    """Two layers of about `count` extents made to hurt."""
    numbers: Sequence[object] = range(count)
    fresh = [f"n{at}" for at in range(count)]
    if shape == "repeats":
        return tree(file("f", even(["X", "r"] * count, 8))), tree(file("f", even(["r", "q"] * count, 8)))
    if shape == "backwards":
        return tree(file("f", even([*reversed(numbers), "X"], 8))), tree(file("f", even(numbers, 8)))
    if shape == "one large relative of many":
        small = (file(f"n{at}", even([0, at, f"n{at}"], 8)) for at in numbers[: count // 3])
        return tree(*small), tree(file("f", even(numbers, 8)))
    if shape == "names of one large file":
        names = [f"n{at}" for at in range(count // 3)]
        links = (Entry(name.encode(), Kind.HARDLINK, target=b"f") for name in names)
        new = (file(name, even(["common", f"new {name}"], 8)) for name in names)
        return tree(*new), tree(file("e", even(["common"], 8)), file("f", even(numbers, 8)), *links)
    if shape == "one name":
        return (
            tree(*(file(f"n{at}/f", even([name], 8)) for at, name in enumerate(fresh))),
            tree(*(file(f"o{at}/f", even([at], 8)) for at in numbers)),
        )
    return tree(file("f", even(fresh, 8))), tree(file("f", even(numbers, 8)))


@pytest.mark.parametrize(
    "shape",
    ["repeats", "backwards", "one large relative of many", "names of one large file", "one name", "no anchors"],
)
def test_hostile_manifests_cost_time_in_proportion(shape: str) -> None:
    small = _cost_s(*_hostile(shape, 2_000))
    large = _cost_s(*_hostile(shape, 16_000))
    assert large < 24 * small + 0.1
