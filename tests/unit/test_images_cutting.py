"""Images in trees and archives: cut by their layout, the same everywhere, and never in the way of an import."""

import gzip
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkstore import fileimport, importer
from chunkstore.checkout import checkout
from chunkstore.chunker import CONTENT, cut, cut_file
from chunkstore.digest import chunk_id, layer_id
from chunkstore.fileimport import import_file
from chunkstore.holes import Window, file_windows
from chunkstore.importer import import_tree
from chunkstore.ingest import Imported
from chunkstore.statcache import StatCache
from chunkstore.store import ChunkStore
from chunkstore.tarfiles import import_tar
from chunkstore.tree_errors import SourceUnsupported, TreeChanged, TreeUnreadable
from tests.support.images import (
    PAGE,
    PRESENT,
    ZERO_PAGE,
    boot_sector,
    criu_folder,
    libvirt_save,
    page,
    pagemap,
    qcow2,
    raw_disk,
    stream,
)
from tests.support.memory_content import MemoryContent

BASE = 0x7F00_0000_0000
SECOND = 10**9
CLUSTER = 1 << 16
RAM = [(b"pc.ram", number * PAGE, page(number)) for number in range(130)]
SAVE = libvirt_save(stream([(b"pc.ram", 1 << 20)], [RAM]))
DISK = raw_disk(600_000, [(0, boot_sector((0x80, 0x83, 2048, 4096)))])
PAGES = b"".join(ZERO_PAGE if number == 70 else page(number) for number in range(130))
RUNS = [(BASE + 3 * PAGE, 100, PRESENT), (BASE + 200 * PAGE, 30, PRESENT)]

GOLDEN = {
    b"disk.img": (*(65536,) * 3, 61440, -4096, *(65536,) * 5, 10176),
    b"disk.qcow2": (*(4096, -61440) * 3, *(65536,) * 10),
    b"dump/pages-1.img": (249856, 36864, -4096, 118784, 122880),
    b"vm.save": (5186, 262663, 262656, 8208, 882),
}
GOLDEN_LAYER = "d8415cd415089b3b402a53cade1f71c1185fece9bc885fc4bfd6de71394d35f2"


class Cache(dict[tuple[int, int], bytes]):
    """A stat cache in memory."""

    def cached(self, dev: int, ino: int) -> bytes | None:
        return self.get((dev, ino))

    def remember(self, dev: int, ino: int, payload: bytes) -> None:
        self[dev, ino] = payload


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one image of every sort."""
    place = tmp_path / "source"
    criu_folder(place / "dump", RUNS, PAGES)
    disk = bytearray(DISK)
    disk[63 * PAGE : 64 * PAGE] = ZERO_PAGE
    (place / "disk.img").write_bytes(disk)
    (place / "disk.qcow2").write_bytes(qcow2([8, 9, 10, 11, 0, 1, 2, 3, 5, 6]))
    (place / "vm.save").write_bytes(SAVE)
    settle(place)
    return place


def settle(place: Path) -> None:
    """Give everything in a tree the same fixed attributes."""
    for path in (*place.rglob("*"), place):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, ns=(0, 1_700_000_000 * SECOND))


def lengths(imported: Imported, path: bytes) -> tuple[int, ...]:
    """What the file was cut into; holes are negative."""
    entry = imported.manifest.find(path)
    assert entry is not None
    return tuple(-extent.length if extent.chunk is None else extent.length for extent in entry.extents)


def test_golden_cuts(source: Path) -> None:
    """If this fails, every layer with an image in it gets another name: do not adjust it."""
    imported = import_tree(MemoryContent(), source)
    assert {path: lengths(imported, path) for path in GOLDEN} == GOLDEN
    names = b"".join(chunk for entry in imported.manifest.entries for _, chunk in entry.extents if chunk is not None)
    assert layer_id(names).hex() == GOLDEN_LAYER


def test_segments_become_chunks(source: Path) -> None:
    store = MemoryContent()
    import_tree(store, source)
    for data in (PAGES[61 * PAGE : 70 * PAGE], DISK[64 * PAGE : 80 * PAGE], qcow2([3])[3 * CLUSTER :]):
        assert chunk_id(data) in store.chunks


def test_what_was_cut_can_be_checked_out(source: Path, tmp_path: Path) -> None:
    with ChunkStore.open(tmp_path / "store", reserve_bytes=0) as store:
        imported = import_tree(store, source)
        checkout(store, imported.manifest, tmp_path / "copy")
    for path in source.rglob("*"):
        if path.is_file():
            assert (tmp_path / "copy" / path.relative_to(source)).read_bytes() == path.read_bytes()


def archive(source: Path, order: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(source, ".", recursive=False)
        for name in order:
            tar.add(source / name, name, recursive=False)
    return buffer.getvalue()


@pytest.mark.parametrize("backwards", [False, True])
def test_an_archive_gives_the_layer_of_its_folder(source: Path, tmp_path: Path, backwards: bool) -> None:
    (source / "other").mkdir()
    os.link(source / "dump/pages-1.img", source / "other/pages-1.img")
    os.link(source / "disk.qcow2", source / "a-disk")
    settle(source)
    names = sorted((str(path.relative_to(source)) for path in source.rglob("*")), reverse=backwards)
    if not backwards:
        names.append("dump/pagemap-101.img")  # once more: the last one counts
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(archive(source, names), 1))
    expected = import_tree(MemoryContent(), source)
    with ChunkStore.open(tmp_path / "store", reserve_bytes=0) as store:
        imported = import_tar(store, tmp_path / "a.tar.gz")
        assert not store.missing(imported.manifest.chunks())
    assert lengths(imported, b"dump/pages-1.img") == GOLDEN[b"dump/pages-1.img"]
    assert lengths(imported, b"a-disk") == GOLDEN[b"disk.qcow2"]
    assert imported.layer_id == expected.layer_id


def plain(data: bytes) -> tuple[int, ...]:
    return tuple(len(chunk) for chunk in cut(data, CONTENT))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda dump: (dump / "pagemap-101.img").unlink(),
        lambda dump: (dump / "pagemap-101.img").write_bytes(b"noise"),
        lambda dump: (dump / "pagemap-101.img").write_bytes(pagemap(2, RUNS)),
        lambda dump: (dump / "pagemap-101.img").write_bytes(pagemap(1, RUNS[:1])),
        lambda dump: (dump / "pagemap-101.img").write_bytes(pagemap(1, RUNS)[:-3]),
        lambda dump: (dump / "pagemap-102.img").write_bytes(pagemap(1, RUNS)),
    ],
    ids=["no map", "noise", "of another number", "too short", "cut off", "two maps"],
)
def test_pages_without_a_sound_map_are_cut_by_content(source: Path, spoil: object, tmp_path: Path) -> None:
    assert callable(spoil)
    spoil(source / "dump")
    settle(source)
    imported = import_tree(MemoryContent(), source)
    assert lengths(imported, b"dump/pages-1.img") == (*plain(PAGES[: 70 * PAGE]), -PAGE, *plain(PAGES[71 * PAGE :]))
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*"))
    (tmp_path / "a.tar").write_bytes(archive(source, names))
    assert import_tar(MemoryContent(), tmp_path / "a.tar").layer_id == imported.layer_id


def test_a_map_that_is_no_file_is_none(source: Path) -> None:
    (source / "dump/pagemap-101.img").unlink()
    (source / "dump/pagemap-101.img").symlink_to("pagemap-9.img")
    os.mkfifo(source / "dump/pagemap-5.img")
    os.link(source / "dump/pagemap-5.img", source / "dump/pagemap-6.img")
    imported = import_tree(MemoryContent(), source)
    assert lengths(imported, b"dump/pages-1.img")[0] == plain(PAGES[: 70 * PAGE])[0]


def test_a_broken_disk_is_cut_by_content(source: Path) -> None:
    broken = bytearray((source / "disk.qcow2").read_bytes())
    broken[CLUSTER + 2] = 0xFF
    (source / "disk.qcow2").write_bytes(broken)
    found = lengths(import_tree(MemoryContent(), source), b"disk.qcow2")
    assert sum(map(abs, found)) == len(broken)
    assert found != GOLDEN[b"disk.qcow2"]


@pytest.mark.parametrize("where", [1 << 63, (1 << 64) - CLUSTER, (1 << 63) - CLUSTER])
def test_a_disk_with_a_table_where_no_file_reaches(source: Path, where: int) -> None:
    disk = source / "disk.qcow2"
    data = bytearray(disk.read_bytes())
    data[40:48] = where.to_bytes(8, "big")
    disk.write_bytes(data)
    assert sum(map(abs, lengths(import_tree(MemoryContent(), source), b"disk.qcow2"))) == len(data)
    with pytest.raises(SourceUnsupported, match="damaged: at byte"):
        import_file(MemoryContent(), disk)


def test_a_save_that_breaks_off_is_cut_by_its_layout_up_to_there() -> None:
    save = stream([(b"pc.ram", 4 << 20)], [[(b"pc.ram", number * PAGE, page(number)) for number in range(300)]])
    whole, part = (list(map(bytes, cut_file([data]))) for data in (save, save[:-300_000]))
    assert [len(chunk) for chunk in whole[1:]] == [64 * 4104 + 7, *[64 * 4104] * 3, 44 * 4104, len(whole[-1])]
    assert part[:4] == whole[:4]
    assert b"".join(part) == save[:-300_000]


# The stat cache


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that were read."""
    sizes: list[int] = []

    def spy(fd: int, size: int, allocated: int) -> Iterator[Window]:
        sizes.append(size)
        return file_windows(fd, size, allocated)

    monkeypatch.setattr(importer, "file_windows", spy)
    return sizes


def again(store: MemoryContent, source: Path, cache: StatCache) -> Imported:
    """Import with a clock that trusts every time."""
    last = max(path.stat().st_ctime_ns for path in source.rglob("*"))
    return import_tree(store, source, stat_cache=cache, clock_ns=lambda: last + 10 * SECOND)


def test_a_dump_that_did_not_change_is_not_read_again(source: Path, reads: list[int]) -> None:
    store, cache = MemoryContent(), Cache()
    first = again(store, source, cache)
    reads.clear()
    assert again(store, source, cache) == first
    assert reads == []


def test_pages_are_read_again_when_their_map_changed(source: Path, reads: list[int]) -> None:
    store, cache = MemoryContent(), Cache()
    again(store, source, cache)
    reads.clear()
    (source / "dump/pagemap-101.img").write_bytes(pagemap(1, [(BASE, 130, PRESENT)]))
    settle(source)
    second = again(store, source, cache)
    assert len(PAGES) in reads
    assert lengths(second, b"dump/pages-1.img")[0] == 64 * PAGE
    assert second.layer_id == import_tree(MemoryContent(), source).layer_id
    (source / "dump/pagemap-101.img").unlink()
    settle(source)
    assert again(store, source, cache).layer_id == import_tree(MemoryContent(), source).layer_id


def test_pages_with_a_map_of_many_names_are_not_remembered(source: Path, reads: list[int]) -> None:
    (source / "a").mkdir()
    os.link(source / "dump/pagemap-101.img", source / "a/map")
    settle(source)
    store, cache = MemoryContent(), Cache()
    first = again(store, source, cache)
    assert lengths(first, b"dump/pages-1.img") == GOLDEN[b"dump/pages-1.img"]
    reads.clear()
    assert again(store, source, cache) == first
    assert reads == [len(PAGES)]


def test_a_map_that_changes_meanwhile(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source / "dump/pagemap-101.img"

    def disturb(fd: int, size: int, allocated: int) -> Iterator[Window]:
        if size == len(PAGES):
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        return file_windows(fd, size, allocated)

    monkeypatch.setattr(importer, "file_windows", disturb)
    with pytest.raises(TreeChanged, match=r"pagemap-101\.img"):
        import_tree(MemoryContent(), source)


# A disk as a layer


@pytest.mark.parametrize("name", ["disk.img", "disk.qcow2"])
def test_a_disk_as_a_layer(source: Path, tmp_path: Path, name: str) -> None:
    told: list[tuple[int, int]] = []
    with ChunkStore.open(tmp_path / "store", reserve_bytes=0) as store:
        imported = import_file(store, source / name, progress=lambda done, total: told.append((done, total)))
        checkout(store, imported.manifest, tmp_path / "copy")
    size = (source / name).stat().st_size
    assert told[-1] == (size, size)
    assert imported.size == size
    assert lengths(imported, b"disk") == GOLDEN[name.encode()]
    assert (tmp_path / "copy/disk").read_bytes() == (source / name).read_bytes()
    (tmp_path / "elsewhere").write_bytes((source / name).read_bytes())
    (tmp_path / "elsewhere").chmod(0o600)
    assert import_file(MemoryContent(), tmp_path / "elsewhere").layer_id == imported.layer_id


def test_a_disk_that_did_not_change_is_not_read_again(source: Path) -> None:
    path, store, cache = source / "disk.img", MemoryContent(), Cache()
    late = path.stat().st_ctime_ns + 10 * SECOND
    first = import_file(store, path, stat_cache=cache, clock_ns=lambda: late)
    told: list[int] = []
    second = import_file(store, path, stat_cache=cache, progress=lambda done, _: told.append(done))
    assert second == first
    assert told == [first.size]
    os.truncate(path, 500_000)
    assert import_file(store, path, stat_cache=cache).size == 500_000


def test_what_is_no_disk_layer(source: Path, tmp_path: Path) -> None:
    broken = source / "disk.qcow2"
    os.truncate(broken, 3 * CLUSTER)
    with pytest.raises(SourceUnsupported, match=r"disk\.qcow2: a qcow2 disk image that is damaged: at byte \d+: "):
        import_file(MemoryContent(), broken)
    broken.write_bytes(b"QFI\xfb")
    with pytest.raises(SourceUnsupported, match="damaged: at byte 0"):
        import_file(MemoryContent(), broken)
    with pytest.raises(SourceUnsupported, match="no disk image but a folder"):
        import_file(MemoryContent(), source)
    with pytest.raises(SourceUnsupported, match="no disk image but a file of no kind"):
        import_file(MemoryContent(), source / "vm.save")
    with pytest.raises(TreeUnreadable):
        import_file(MemoryContent(), tmp_path / "nothing")


def test_a_disk_that_is_encrypted_is_cut_by_content(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(qcow2(range(8), encrypted=2))
    imported = import_file(MemoryContent(), tmp_path / "disk")
    assert lengths(imported, b"disk") != GOLDEN[b"disk.qcow2"]
    assert imported.size == (tmp_path / "disk").stat().st_size


@pytest.mark.parametrize("shorter", [False, True])
def test_a_disk_that_keeps_changing(source: Path, monkeypatch: pytest.MonkeyPatch, shorter: bool) -> None:
    path = source / "disk.img"

    def disturb(fd: int, size: int, allocated: int) -> Iterator[Window]:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        if shorter:
            os.truncate(path, size - 5000)
        return file_windows(fd, size, allocated)

    monkeypatch.setattr(fileimport, "file_windows", disturb)
    with pytest.raises(TreeChanged, match=r"disk\.img"):
        import_file(MemoryContent(), path)
