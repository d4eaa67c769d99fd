"""The makers of the benchmark's data: plans, contents and the cache; nothing is downloaded or started."""

import itertools
import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path, PurePosixPath

import pytest

from bench.data import (
    CASES,
    Maker,
    Spoiled,
    Unavailable,
    contained,
    database,
    debs,
    disks,
    files,
    processes,
    records,
    releases,
    trees,
    workshop,
)
from bench.data.pair import MB, PAGE_BYTES, Facts, check, differing_pages, measure
from bench.data.workshop import Workshop


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


class Building:
    """A maker of two small folders that counts its calls, and fails when told to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.error: BaseException | None = None

    def __call__(self, _workshop: Workshop, folder: Path, size_mb: int) -> Facts:
        self.sizes.append(size_mb)
        write(folder / "old/file", b"before")
        write(folder / "new/file", b"after it")
        if self.error is not None:
            raise self.error
        return {"edits": 1}


def test_all_cases_of_the_benchmark_are_there() -> None:
    assert set(CASES) == {
        "cold-tree", "cold-file", "edits", "renamed", "releases", "log", "sqlite", "ext4", "vm-saves", "process-dumps",
        "noop",
    }  # fmt: skip
    assert {name for name, maker in CASES.items() if maker.image} == {"sqlite", "ext4", "vm-saves", "process-dumps"}


def test_a_pair_is_made_once(tmp_path: Path) -> None:
    build = Building()
    cases = {"case": Maker(build, 100, image=True)}
    with workshop.opened(tmp_path, cases) as shop:
        made = shop.pair("case", None)
        assert shop.pair("case", None) == made
        assert shop.pair("case", 100) == made
    assert workshop.finished(tmp_path, "case", None) == made
    assert made.old is not None
    assert (made.size, made.files, made.image) == (8, 1, True)
    assert (made.old / "file").read_bytes() == b"before"
    assert build.sizes == [100]
    assert workshop.noted(tmp_path, "case", None) == {"edits": 1}


def test_a_smaller_variant_is_another_pair_but_not_below_the_least(tmp_path: Path) -> None:
    build = Building()
    with workshop.opened(tmp_path, {"case": Maker(build, 100, least_mb=16)}) as shop:
        full, small, least = shop.pair("case", None), shop.pair("case", 20), shop.pair("case", 3)
        assert shop.pair("case", 16) == least
    assert len({full.new, small.new, least.new}) == 3
    assert build.sizes == [100, 20, 16]


def test_what_was_made_by_halves_is_not_kept(tmp_path: Path) -> None:
    build = Building()
    for error in (Spoiled("wrong"), KeyboardInterrupt()):
        build.error = error
        with workshop.opened(tmp_path, {"case": Maker(build, 100)}) as shop, pytest.raises(type(error)):
            shop.pair("case", None)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        assert workshop.finished(tmp_path, "case", None) is None
    build.error = None
    write(tmp_path / ".making-case/new/leftover", b"of a killed run")
    with workshop.opened(tmp_path, {"case": Maker(build, 100)}) as shop:
        assert shop.pair("case", None).files == 1


def test_the_unchanged_case_is_the_other_one(tmp_path: Path) -> None:
    cases = {"tree": Maker(Building(), 100), "same": Maker(None, 100, same="tree")}
    with workshop.opened(tmp_path, cases) as shop:
        pair = shop.pair("same", 10)
        assert pair.old == pair.new == shop.pair("tree", 10).new
    assert workshop.finished(tmp_path, "same", 10) == pair


def test_an_ingredient_is_made_once_and_kept_only_when_whole(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        write(folder / "part", b"x")
        if len(calls) == 1:
            raise Unavailable("no archive")

    with workshop.opened(tmp_path, {}) as shop:
        with pytest.raises(Unavailable, match="no archive"):
            shop.ingredient("parts", build)
        first = shop.ingredient("parts", build)
        assert shop.ingredient("parts", build) == first
    assert len(calls) == 2
    assert (first / "part").exists()


def test_a_third_of_the_files_is_renamed_and_none_lost(tmp_path: Path) -> None:
    paths = [PurePosixPath(f"usr/{a}/{b}/file{c}") for a in range(12) for b in range(8) for c in range(10)]
    plan = trees.plan_moves(paths, random.Random(1))
    assert plan == trees.plan_moves(reversed(paths), random.Random(1))
    for path in paths:
        write(tmp_path / path, str(path).encode())
    for source, target in plan.folders + plan.files:
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        assert not (tmp_path / target).exists()
        (tmp_path / source).rename(tmp_path / target)
    found = trees.file_paths(tmp_path)
    assert len(found) == len(paths)
    assert {(tmp_path / path).read_text() for path in found} == {str(path) for path in paths}
    gone = len(set(paths) - set(found))
    assert 0.3 <= gone / len(paths) <= 0.37
    in_folders = sum(path.parts[0] == "srv" for path in found)
    assert in_folders >= gone / 3
    assert len(plan.files) >= gone / 3


def test_a_sample_keeps_folders_links_and_times_and_stays_below_the_size(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for number in range(200):
        path = write(whole / f"folder{number % 10}/file{number}", bytes(1000))
        os.utime(path, (number, number))
    (whole / "folder0/link").symlink_to("file0")
    trees.sample(whole, tmp_path / "part", 50_000)
    trees.sample(whole, tmp_path / "again", 50_000)
    count, size = measure(tmp_path / "part")
    assert 25 <= count <= 50
    assert size <= 50_000
    assert trees.file_paths(tmp_path / "part") == trees.file_paths(tmp_path / "again")
    for name in trees.file_paths(tmp_path / "part"):
        assert (tmp_path / "part" / name).stat().st_mtime == (whole / name).stat().st_mtime
    assert trees.sample(whole, tmp_path / "all", 1 << 30) == 201
    assert os.readlink(tmp_path / "all/folder0/link") == "file0"


def test_edits_are_scattered_and_never_overlap() -> None:
    size = 256 * MB
    plan = files.plan_edits(size, 500, random.Random(3))
    assert len(plan.spans) == 500
    assert plan.insert_at < size // 100
    ends = [plan.insert_at, *(offset + length for offset, length in plan.spans)]
    assert all(offset >= end for (offset, _), end in zip(plan.spans, ends, strict=False))
    assert ends[-1] <= size
    assert 0.009 <= sum(length for _, length in plan.spans) / size <= 0.011
    with pytest.raises(Spoiled, match="no room"):
        files.plan_edits(100_000, 500, random.Random(3))


def test_log_lines_are_plausible_and_the_same_in_every_run() -> None:
    lines = list(itertools.islice(files.log_lines(random.Random(5)), 3000))
    assert lines == list(itertools.islice(files.log_lines(random.Random(5)), 3000))
    assert all(line.endswith("us\n") and line.count('"') == 6 for line in lines)
    clients = {line.split(" ", 1)[0] for line in lines}
    assert 100 < len(clients) < 2500
    assert len({line.split("session=")[1][:10] for line in lines}) == 3000


def test_the_log_grows_by_two_per_cent(tmp_path: Path) -> None:
    with workshop.opened(tmp_path, {}) as shop:
        files.log(shop, tmp_path, 1)
    old, new = (tmp_path / side / "access.log" for side in ("old", "new"))
    before, after = old.read_bytes(), new.read_bytes()
    assert after.startswith(before)
    assert len(before) >= MB
    assert 0.019 <= len(after) / len(before) - 1 <= 0.021
    assert after.endswith(b"\n")


def test_compressibility_tells_noise_from_text(tmp_path: Path) -> None:
    assert files.compressibility(write(tmp_path / "noise", random.Random(1).randbytes(200_000))) > 0.95
    assert files.compressibility(write(tmp_path / "zeros", bytes(200_000))) < 0.05


def test_rows_of_the_database_are_updated_in_place(tmp_path: Path) -> None:
    with workshop.opened(tmp_path, {}) as shop:
        facts = database.build(shop, tmp_path, 1)
    old, new = (tmp_path / side / "shop.sqlite" for side in ("old", "new"))
    assert int(facts["updated_rows"]) == int(facts["rows"]) // 100
    assert 0 < int(facts["rewritten_pages"]) < int(facts["pages"]) * 0.3
    assert old.stat().st_mtime < new.stat().st_mtime
    with closing(sqlite3.connect(new)) as after:
        after.execute("ATTACH ? AS before", (str(old),))
        assert after.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (changed,) = after.execute(
            "SELECT count(*) FROM orders JOIN before.orders AS held USING (id) WHERE orders.changed != held.changed"
        ).fetchone()
    assert changed == facts["updated_rows"]


def test_pages_are_compared_at_their_offsets(tmp_path: Path) -> None:
    pages = [bytes([number]) * PAGE_BYTES for number in range(10)]
    old = write(tmp_path / "old", b"".join(pages))
    pages[3] = b"x" * PAGE_BYTES
    new = write(tmp_path / "new", b"".join(pages) + b"more")
    assert differing_pages(old, new) == (2, 11)
    assert differing_pages(old, old) == (0, 10)


def test_pages_of_a_dump_are_compared_wherever_they_are(tmp_path: Path) -> None:
    pages = [bytes([number]) * PAGE_BYTES for number in range(10)]
    write(tmp_path / "old/pages-1.img", b"".join(pages))
    write(tmp_path / "new/pages-1.img", b"".join(pages[5:] + pages[:5]))
    write(tmp_path / "new/pages-2.img", b"y" * PAGE_BYTES)
    write(tmp_path / "new/pagemap-1.img", b"no pages")
    assert processes.fresh_pages(tmp_path / "old", tmp_path / "new") == (1, 11)


def test_one_record_in_a_hundred_is_updated() -> None:
    rng = random.Random(7)
    before = {number: records.fresh(number, rng) for number in range(1000)}
    after = {number: dict(record) for number, record in before.items()}
    assert records.update(after, rng) == 10
    assert sum(before[number] != after[number] for number in before) == 10


def test_blocks_of_files_are_read_from_the_listing() -> None:
    listing = (
        'debugfs 1.47.0\ndebugfs: blocks "/a b"\n17 18 0 19 \ndebugfs: blocks "/empty"\n\ndebugfs: blocks "/c"\n4096\n'
    )
    assert disks.block_lists("debugfs 1.47.0\n" + listing) == [[17, 18, 19], [4096]]


def test_packages_are_chosen_in_order_while_they_fit() -> None:
    assert releases.choose({"a": 60, "b": 50, "c": 30, "d": 20}, 100) == ["a", "c"]
    assert releases.choose({"a": 60}, 10) == []


def test_only_files_with_other_content_have_changed(tmp_path: Path) -> None:
    for side, content in (("old", b"one"), ("new", b"two")):
        write(tmp_path / side / "changed", content)
        write(tmp_path / side / "same", b"same")
        write(tmp_path / side / f"only-{side}", content)
        (tmp_path / side / "link").symlink_to("changed")
    assert releases.changed_files(tmp_path / "old", tmp_path / "new") == 1


def test_security_updates_come_from_the_folder_beside_the_mirror() -> None:
    lines = debs.sources("http://mirror/debian", ["one", "one-security"]).splitlines()
    assert [line.split("] ")[1] for line in lines] == [
        "http://mirror/debian one main",
        "http://mirror/debian-security one-security main",
    ]


def test_a_missing_program_is_told_with_the_way_to_get_it() -> None:
    contained.need("sh")
    with pytest.raises(Unavailable, match=r"no-such-program.*bench-packages\.sh"):
        contained.need("sh", "no-such-program")


def test_a_failed_check_is_told() -> None:
    check(True, "fine")
    with pytest.raises(Spoiled, match="not fine"):
        check(False, "not fine")
