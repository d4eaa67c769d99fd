"""Pack files: records check themselves, appends are whole or not at all, and damage is stepped over."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from chunkstore.codec import Group, pack
from chunkstore.digest import chunk_id
from chunkstore.errors import BadGroup, BadRecord, DiskFull, StoreDamaged
from chunkstore.packs import Lost, PackFiles, require_room
from chunkstore.records import Place, at, decode, encode, offset_of, pack_of, record_bytes
from tests.support.content import flip, groups_of, make_chunks, noise_chunks

PLACE = at(3, 4096)


def sample(seed: int = 1, count: int = 3, size: int = 40) -> Group:
    return pack(make_chunks(seed, count, size))


@pytest.fixture
def packs(tmp_path: Path) -> PackFiles:
    return PackFiles(tmp_path)


# -- records


def test_places_sort_in_disk_order() -> None:
    assert (pack_of(PLACE), offset_of(PLACE)) == (3, 4096)
    assert at(1, 0) < at(1, 900) < at(2, 0) < at(10, 5)


def test_a_record_survives_the_round_trip() -> None:
    group = sample()
    record = b"".join(encode(group, PLACE))
    assert len(record) == record_bytes(group)
    assert decode(memoryview(record + b"what follows"), PLACE) == (group, len(record))


def test_the_format_on_disk_does_not_change() -> None:
    raw = pack([(chunk_id(b"golden"), b"golden"), (chunk_id(b"vector"), b"vector")])
    record = b"".join(encode(raw, at(1, 0)))
    assert record[:24].hex() == "5032504700000200" + "0c000000" + "0c000000" + "19eadd56a5d9115a"
    assert chunk_id(record).hex() == "d80de9be5e51a15d73c9201c4dd8416d32f7720b800989b90b56d087c30bdb9b"


def test_any_flipped_bit_is_found() -> None:
    record = bytearray(b"".join(encode(sample(), PLACE)))
    for offset in range(len(record)):
        for mask in (0x01, 0x80):
            record[offset] ^= mask
            with pytest.raises(BadRecord):
                decode(memoryview(record), PLACE)
            record[offset] ^= mask


def test_a_record_cut_anywhere_is_refused() -> None:
    record = b"".join(encode(sample(), PLACE))
    for length in range(len(record)):
        with pytest.raises(BadRecord):
            decode(memoryview(record)[:length], PLACE)


def test_a_record_is_good_for_its_place_only() -> None:
    record = memoryview(b"".join(encode(sample(), PLACE)))
    for place in (at(3, 4097), at(4, 4096), at(0, 0)):
        with pytest.raises(BadRecord):
            decode(record, place)


def test_a_group_that_breaks_a_limit_is_not_written(packs: PackFiles) -> None:
    with pytest.raises(BadGroup):
        packs.append([sample(), Group((), (), sample().codec, b"")])
    assert packs.sizes() == {}


# -- files


def test_what_was_appended_can_be_fetched(packs: PackFiles) -> None:
    groups = list(groups_of(make_chunks(1, 40), 4))
    places = packs.append(groups[:3]) + packs.append(groups[3:])
    wanted = [(place, record_bytes(group)) for place, group in zip(places, groups, strict=True)]
    assert list(packs.fetch(wanted)) == list(zip(places, groups, strict=True))
    assert list(packs.fetch(wanted[1::3])) == list(zip(places, groups, strict=True))[1::3]
    assert list(packs.scan(at(1, 0))) == [(*row, group) for row, group in zip(wanted, groups, strict=True)]


def test_neighbours_are_fetched_by_one_read(packs: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = list(groups_of(noise_chunks(1, 64, 60_000), 4))
    places = packs.append(groups)
    reads: list[int] = []
    pread = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        reads.append(length)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    wanted = [(place, record_bytes(group)) for place, group in zip(places, groups, strict=True)]
    assert [group for _, group in packs.fetch(wanted)] == groups
    assert len(reads) == 1
    reads.clear()
    assert [group for _, group in packs.fetch([wanted[0], wanted[8]])] == [groups[0], groups[8]]
    assert sum(reads) == wanted[0][1] + wanted[8][1], "the gap is too wide to be read over"


def test_a_full_pack_is_followed_by_a_new_one(tmp_path: Path) -> None:
    packs = PackFiles(tmp_path, pack_bytes=1000)
    groups = [sample(seed, 4, 200) for seed in range(6)]
    places = [packs.append([group])[0] for group in groups]
    assert [pack_of(place) for place in places] == [1, 1, 2, 2, 3, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001.pack", "000002.pack", "000003.pack"]
    wanted = [(place, record_bytes(group)) for place, group in zip(places, groups, strict=True)]
    assert [found for _, found in packs.fetch(wanted)] == groups


def test_fetch_tells_damage_from_absence(packs: PackFiles, tmp_path: Path) -> None:
    groups = [sample(seed) for seed in range(3)]
    places = packs.append(groups)
    sizes = [record_bytes(group) for group in groups]
    flip(tmp_path / "000001.pack", offset_of(places[1]) + 70)
    wanted = [*zip(places, sizes, strict=True), (at(9, 0), 100)]
    assert [found for _, found in packs.fetch(wanted)] == [groups[0], Lost.DAMAGED, groups[2], Lost.GONE]
    assert [found for _, found in packs.fetch([(places[0], sizes[0] + 1)])] == [Lost.DAMAGED]


def test_a_bad_sector_costs_one_record(packs: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [sample(seed) for seed in range(4)]
    places = packs.append(groups)
    bad = offset_of(places[2]) + 50
    pread = os.pread

    def failing(fd: int, length: int, offset: int) -> bytes:
        if offset <= bad < offset + length:
            raise OSError(errno.EIO, "input/output error")
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    wanted = [(place, record_bytes(group)) for place, group in zip(places, groups, strict=True)]
    assert [found for _, found in packs.fetch(wanted)] == [groups[0], groups[1], Lost.DAMAGED, groups[3]]


def test_scan_steps_over_damage(packs: PackFiles, tmp_path: Path) -> None:
    # Records of nearly a MiB, so that windows overlap in every way.
    groups = list(groups_of(noise_chunks(3, 48, 64_000), 16))
    small = [sample(seed) for seed in range(3)]
    groups = [small[0], groups[0], small[1], groups[1], groups[2], small[2]]
    places = packs.append(groups)
    for victim in range(len(groups)):
        copy = tmp_path / f"copy{victim}"
        copy.mkdir()
        (copy / "000001.pack").write_bytes((tmp_path / "000001.pack").read_bytes())
        flip(copy / "000001.pack", offset_of(places[victim]) + 8)
        left = [(place, group) for place, group in zip(places, groups, strict=True) if place != places[victim]]
        assert [(place, group) for place, _, group in PackFiles(copy).scan(at(1, 0))] == left


def test_scan_does_not_take_content_for_records(packs: PackFiles, tmp_path: Path) -> None:
    inner = b"".join(encode(pack(noise_chunks(5, 2)), at(1, 0)))
    outer = pack([(chunk_id(inner), inner)])
    assert inner in outer.payload
    packs.append([outer])
    flip(tmp_path / "000001.pack", 3)
    assert list(packs.scan(at(1, 0))) == []


def test_resume_cuts_a_torn_tail(packs: PackFiles, tmp_path: Path) -> None:
    packs.append([sample(1)])
    end = packs.end
    with (tmp_path / "000001.pack").open("ab") as file:
        file.write(b"torn")
    again = PackFiles(tmp_path)
    assert again.resume(end) == 4
    assert again.append([sample(2)]) == [end]
    assert len(list(again.scan(at(1, 0)))) == 2


def test_resume_never_fills_a_hole(packs: PackFiles, tmp_path: Path) -> None:
    packs.append([sample(1)])
    again = PackFiles(tmp_path)
    assert again.resume(Place(packs.end + 1)) == 0
    assert again.append([sample(2)]) == [at(2, 0)]


def test_a_full_disk_leaves_no_trace(packs: PackFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs.append([sample(1)])
    size = packs.sizes()[1]

    def half(fd: int, buffers: Sequence[bytes], offset: int) -> int:
        os.pwrite(fd, buffers[0], offset)
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", half)
        with pytest.raises(DiskFull):
            packs.append([sample(2)])
    assert packs.sizes() == {1: size}
    assert packs.append([sample(3)]) == [at(1, size)]


def test_short_writes_are_completed(packs: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: pwrite(fd, b"".join(buffers)[:11], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:17], offset))
    groups = [sample(seed) for seed in range(3)]
    packs.append(groups)
    assert [group for _, _, group in packs.scan(at(1, 0))] == groups


def test_rewind_takes_back(packs: PackFiles) -> None:
    packs.append([sample(1)])
    end = packs.end
    packs.append([sample(2)])
    packs.rewind(end)
    assert packs.end == end
    assert packs.sizes() == {1: offset_of(end)}


def test_after_a_failed_sync_nothing_is_appended(packs: PackFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    packs.append([sample(1)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="input/output"):
            packs.sync(packs.unsynced())
    with pytest.raises(StoreDamaged):
        packs.append([sample(2)])
    with pytest.raises(StoreDamaged):
        packs.sync([])


def test_unsynced_packs_are_handed_over_once(tmp_path: Path) -> None:
    packs = PackFiles(tmp_path, pack_bytes=1)
    packs.append([sample(1)])
    packs.append([sample(2)])
    assert len(packs.unsynced()) == 2
    assert packs.unsynced() == []
    packs.append([sample(3)])
    assert len(packs.unsynced()) == 1


def test_a_reader_outlives_a_deletion(packs: PackFiles) -> None:
    big = list(groups_of(noise_chunks(1, 160, 60_000), 16))
    places = packs.append(big)
    wanted = [(place, record_bytes(group)) for place, group in zip(places, big, strict=True)]
    reading = packs.fetch(wanted)
    assert next(reading)[1] == big[0]
    assert packs.remove(1) > 9_000_000
    found = [group for _, group in reading]
    # What one read had fetched is still there, and the rest is gone: never anything else.
    assert found[:2] == big[1:3]
    assert set(map(type, found)) == {Group, Lost}
    assert packs.sizes() == {}


def test_only_some_files_stay_open(tmp_path: Path) -> None:
    packs = PackFiles(tmp_path, pack_bytes=1)
    wanted = [(packs.append([sample(seed)])[0], record_bytes(sample(seed))) for seed in range(200)]
    packs.unsynced()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert all(isinstance(found, Group) for _, found in packs.fetch(wanted))
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    packs.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_room_is_what_the_reserve_leaves(tmp_path: Path) -> None:
    require_room(tmp_path, 1, 0)
    with pytest.raises(DiskFull) as caught:
        require_room(tmp_path, 5, 1 << 60)
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (5, 0)


def test_foreign_files_are_ignored(packs: PackFiles, tmp_path: Path) -> None:
    packs.append([sample(1)])
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "x.pack").write_text("x")
    assert list(packs.sizes()) == [1]
