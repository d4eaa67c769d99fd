"""A folder has one layer, wherever it lies; it is read once; and what moves while it is read is told."""

import contextlib
import mmap
import os
import random
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chunkstore import importer
from chunkstore.codec import MAX_GROUP_BYTES
from chunkstore.entries import Kind
from chunkstore.errors import DiskFull
from chunkstore.holes import Window, file_windows
from chunkstore.importer import import_tree
from chunkstore.ingest import Imported
from chunkstore.manifest import load
from chunkstore.sniff import SourceKind, sniff
from chunkstore.tree_errors import SourceUnsupported, TreeChanged, TreeUnreadable
from tests.support.memory_content import MemoryContent
from tests.support.trees import (
    ROOT,
    SECOND,
    Node,
    as_ordinary_user,
    build,
    content,
    has_user_xattrs,
    let_others_in,
    may_make_devices,
)

TREE = Node(
    "folder",
    0o755,
    children=(
        (b"big", Node("file", 0o4755, pieces=((300_000, 1), (8192, 0), (100, 2)))),
        (b"again", Node("hardlink", target=b"big")),
        (b"empty", Node("file", 0o600)),
        (b"dir", Node("folder", 0o1777, children=((b"in", Node("file", pieces=((10, 3),))),))),
        (b"dir-x", Node("fifo", 0o622)),
        (b"link", Node("symlink", 0o777, target=b"../nowhere")),
        (b"socket", Node("socket", 0o755)),
    ),
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build(os.fsencode(tmp_path / "source"), TREE)
    return tmp_path / "source"


def write(path: Path, data: bytes, *, age_s: int = 10) -> None:
    """Write a file whose time lies in the past."""
    path.write_bytes(data)
    os.utime(path, ns=(0, path.stat().st_mtime_ns - age_s * SECOND))


class Calls:
    """Acts on each call of a progress callback."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act = act
        self.count = 0

    def __call__(self, done: int, total: int) -> None:
        self.count += 1
        self.act(self.count)


class Cache(dict[tuple[int, int], bytes]):
    """A stat cache in memory."""

    def cached(self, dev: int, ino: int) -> bytes | None:
        return self.get((dev, ino))

    def remember(self, dev: int, ino: int, payload: bytes) -> None:
        self[dev, ino] = payload


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that were read."""
    sizes: list[int] = []

    def spy(fd: int, size: int, allocated: int) -> Iterator[Window]:
        sizes.append(size)
        return file_windows(fd, size, allocated)

    monkeypatch.setattr(importer, "file_windows", spy)
    return sizes


def test_everything_is_described(source: Path) -> None:
    store = MemoryContent()
    imported = import_tree(store, source)
    found = {entry.path: entry for entry in imported.manifest.entries}
    assert list(found) == [b"", b"again", b"big", b"dir", b"dir-x", b"dir/in", b"empty", b"link", b"socket"]
    assert found[b"again"].mode == 0o4755
    assert (found[b"big"].kind, found[b"big"].target) == (Kind.HARDLINK, b"again")
    assert found[b"link"].target == b"../nowhere"
    assert [found[path].kind for path in (b"dir", b"dir-x", b"socket")] == [Kind.DIRECTORY, Kind.FIFO, Kind.SOCKET]
    assert found[b"dir"].mode == 0o1777
    assert found[b"empty"].mtime_ns == TREE.mtime_ns
    assert imported.size == 300_000 + 8192 + 100 + 10
    assert imported.chunks == len(imported.manifest.chunks())
    data = dict(store.read(list(imported.manifest.chunks())))
    stored = b"".join(
        bytes(extent.length) if extent.chunk is None else data[extent.chunk] for extent in found[b"again"].extents
    )
    assert stored == content(TREE.children[0][1].pieces)
    assert load(store, imported.manifest_chunks, imported.layer_id) == imported.manifest
    assert imported.manifest_size == len(imported.manifest.encode())
    assert store.commits == 1


def test_the_same_tree_made_another_way_is_the_same_layer(tmp_path: Path, source: Path) -> None:
    other = tmp_path / "other"
    build(os.fsencode(other), Node("folder", 0o755, children=TREE.children[2:]))
    (other / "again").write_bytes(content(TREE.children[0][1].pieces))  # zeros instead of a hole
    os.link(other / "again", other / "big")
    (other / "gone").write_bytes(b"")
    (other / "gone").unlink()
    os.chmod(other / "again", 0o4755)
    for path in (other / "again", other):
        os.utime(path, ns=(1, TREE.mtime_ns))
    assert import_tree(MemoryContent(), other).layer_id == import_tree(MemoryContent(), source).layer_id


def test_ids_of_keyed_content_are_keyed(source: Path) -> None:
    plain, keyed = MemoryContent(), MemoryContent(b"k" * 32)
    first, second = import_tree(plain, source), import_tree(keyed, source)
    assert first.layer_id != second.layer_id
    assert plain.chunks.keys().isdisjoint(keyed.chunks)
    assert load(keyed, second.manifest_chunks, second.layer_id) == second.manifest


def test_neighbours_share_groups_and_what_is_there_is_not_packed_again(source: Path) -> None:
    for number in range(300):
        write(source / f"small{number}", b"%d" % number * 2000)
    store = MemoryContent()
    import_tree(store, source)
    assert max(len(group.ids) for group in store.added_groups) > 50
    assert all(group.raw_bytes <= MAX_GROUP_BYTES for group in store.added_groups)
    packed = len(store.added_groups)
    import_tree(store, source)
    assert len(store.added_groups) == packed


def test_progress_counts_bytes(source: Path) -> None:
    write(source / "large", bytes(1 << 20) + b"x" * (5 << 20))
    told: list[tuple[int, int]] = []
    imported = import_tree(MemoryContent(), source, progress=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {imported.size}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (imported.size, imported.size)
    assert len(told) > 3


def test_cancelling_by_the_progress_callback(source: Path) -> None:
    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int) -> None:
        raise Cancelled

    write(source / "large", b"x" * (5 << 20))
    store = MemoryContent()
    with pytest.raises(Cancelled):
        import_tree(store, source, progress=cancel)
    assert store.commits == 0


def test_an_error_of_the_content_ends_the_import(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryContent()

    def full(groups: object) -> int:
        raise DiskFull(source, 10, 5)

    monkeypatch.setattr(store, "add", full)
    with pytest.raises(DiskFull):
        import_tree(store, source)


def test_a_file_that_changes_once_is_read_again(source: Path) -> None:
    write(source / "large", b"x" * (5 << 20))

    def append(call: int) -> None:
        if call == 1:
            with (source / "large").open("ab") as file:
                file.write(b"more")

    imported = import_tree(MemoryContent(), source, progress=Calls(append))
    entry = imported.manifest.find(b"large")
    assert entry is not None
    assert entry.size == (5 << 20) + 4


def test_a_file_that_keeps_changing_is_an_error_that_names_it(source: Path) -> None:
    write(source / "large", b"x" * (5 << 20))

    def append(call: int) -> None:
        with (source / "large").open("ab") as file:
            file.write(b"more")

    with pytest.raises(TreeChanged, match="source/large"):
        import_tree(MemoryContent(), source, progress=Calls(append))


def test_a_file_that_shrinks_while_it_is_read(source: Path) -> None:
    write(source / "large", b"x" * (5 << 20))

    def shrink(call: int) -> None:
        if call == 1:
            os.truncate(source / "large", 1 << 20)

    imported = import_tree(MemoryContent(), source, progress=Calls(shrink))
    assert imported.size == 300_000 + 8192 + 100 + 10 + (1 << 20)


def test_a_file_that_vanishes_makes_a_new_pass(source: Path) -> None:
    write(source / "a-large", b"x" * (5 << 20))

    def remove(call: int) -> None:
        (source / "dir/in").unlink(missing_ok=True)

    imported = import_tree(MemoryContent(), source, progress=Calls(remove))
    assert imported.manifest.find(b"dir/in") is None
    assert imported.manifest.find(b"dir") is not None


def test_a_file_that_appears_makes_a_new_pass(source: Path) -> None:
    write(source / "large", b"x" * (5 << 20))
    imported = import_tree(MemoryContent(), source, progress=Calls(lambda call: (source / "dir/new").touch()))
    assert imported.manifest.find(b"dir/new") is not None


def test_a_tree_that_never_rests_is_an_error(source: Path) -> None:
    write(source / "large", b"x" * (5 << 20))
    with pytest.raises(TreeChanged, match="source/dir kept changing"):
        import_tree(MemoryContent(), source, progress=Calls(lambda call: (source / f"dir/{call}").touch()))


def test_a_live_import_takes_a_file_that_grows_as_it_was_read(source: Path) -> None:
    write(source / "large", b"x" * (5 << 20))
    content, cache = MemoryContent(), Cache()

    def append(call: int) -> None:
        with (source / "large").open("ab") as file:
            file.write(b"more")

    imported = import_tree(content, source, progress=Calls(append), stat_cache=cache, live=True)
    entry = imported.manifest.find(b"large")
    assert entry is not None and entry.size == 5 << 20
    grown = import_tree(content, source, stat_cache=cache).manifest.find(b"large")
    assert grown is not None and grown.size > 5 << 20  # nothing was believed of it


def test_a_live_import_leaves_out_what_vanishes(source: Path) -> None:
    write(source / "a-large", b"x" * (5 << 20))
    (source / "folder/deep").mkdir(parents=True)
    (source / "folder/deep/file").write_text("x")
    (source / "swapped").mkdir()
    (source / "swapped/file").write_text("x")
    (source / "zz").write_text("x")
    os.link(source / "zz", source / "zzz")

    def change(call: int) -> None:
        if call == 1:
            (source / "dir/in").unlink()
            (source / "dir/new").touch()
            shutil.rmtree(source / "folder")
            (source / "swapped").rename(source / "elsewhere")
            (source / "swapped").touch()
            (source / "zz").unlink()

    imported = import_tree(MemoryContent(), source, progress=Calls(change), live=True)
    paths = {entry.path for entry in imported.manifest.entries}
    assert {b"a-large", b"dir", b"swapped", b"big", b"again", b"zzz"} <= paths
    assert not {b"dir/in", b"dir/new", b"folder/deep/file", b"zz"} & paths
    kept = imported.manifest.find(b"zzz")
    assert kept is not None and kept.kind is Kind.REGULAR


def test_a_live_import_leaves_out_a_file_that_shrinks_again_and_again(source: Path) -> None:
    write(source / "large", b"x" * (5 << 20))

    def shrink(call: int) -> None:
        os.truncate(source / "large", (source / "large").stat().st_size - 1)

    imported = import_tree(MemoryContent(), source, progress=Calls(shrink), live=True)
    assert imported.manifest.find(b"large") is None
    assert imported.manifest.find(b"dir/in") is not None


def test_a_live_import_of_a_tree_that_is_gone_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(TreeUnreadable):
        import_tree(MemoryContent(), tmp_path / "not", live=True)


def test_a_live_import_of_a_tree_at_rest_is_the_same(source: Path) -> None:
    assert import_tree(MemoryContent(), source, live=True).layer_id == import_tree(MemoryContent(), source).layer_id


def stored(content: MemoryContent, imported: Imported, name: str) -> bytes:
    """What a file without holes was read as."""
    entry = imported.manifest.find(name.encode())
    assert entry is not None
    return b"".join(bytes(content.chunks[extent.chunk]) for extent in entry.extents if extent.chunk is not None)


@pytest.mark.parametrize("head", [b"", b"QFI\xfb\0\0\0\3", b"QEVM\0\0\0\3", b"LibvirtQemudSave"])
@pytest.mark.parametrize("name", ["mapped", "pages-1.img"])
def test_what_is_stored_through_a_mapping_is_seen_by_the_next_import(source: Path, name: str, head: bytes) -> None:
    """The times of a file say nothing of stores into pages that are dirty already, whatever the file looks like."""
    content, cache, path = MemoryContent(), Cache(), source / name
    path.write_bytes(head.ljust(8192, b"\0"))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped.flush()
        seen = path.stat().st_mtime_ns
        time.sleep(0.02)
        mapped[100] = 1
        if path.stat().st_mtime_ns == seen:
            pytest.skip("this file system writes nothing back")
        os.utime(path, ns=(0, 10**18))  # dirty, and old by its times
        later = lambda: time.time_ns() + 10**10  # noqa: E731
        import_tree(content, source, stat_cache=cache, live=True, clock_ns=later)
        mapped[100] = 2
        imported = import_tree(content, source, stat_cache=cache)
    assert stored(content, imported, name)[:101] == head.ljust(100, b"\0") + b"\2"


@pytest.mark.parametrize(
    ("name", "head", "kept"),
    [
        ("file", b"text", True),
        ("disk", b"QFI\xfb\0\0\0\3", True),  # large, and read again while the machine is suspended
        ("memory", b"LibvirtQemudSave", False),
        ("stream", b"QEVM\0\0\0\3", False),
        ("pages-1.img", b"", False),
    ],
)
def test_a_live_import_remembers_all_but_images_of_memory(source: Path, name: str, head: bytes, kept: bool) -> None:
    cache, path = Cache(), source / name
    path.write_bytes(head.ljust(8192, b"\0"))
    later = lambda: time.time_ns() + 10**10  # noqa: E731
    status = path.stat()
    import_tree(MemoryContent(), source, stat_cache=cache, live=True, clock_ns=later)
    assert (cache.cached(status.st_dev, status.st_ino) is not None) is kept
    import_tree(MemoryContent(), source, stat_cache=cache, clock_ns=later)
    assert cache.cached(status.st_dev, status.st_ino) is not None


@pytest.mark.parametrize("seed", range(4))
def test_a_live_import_of_a_busy_tree_is_always_a_tree(tmp_path: Path, seed: int) -> None:
    """Files and folders come, change, swap and go while it is read; what comes out can be checked out."""
    rng = random.Random(seed)
    root = tmp_path / "busy"
    root.mkdir()
    names = ["a", "b", "c/a", "c/b", "c/d/a", "c/d/e/f", "g/h"]

    def disturb() -> None:
        path = root / rng.choice(names)
        with contextlib.suppress(OSError):
            match rng.randrange(6):
                case 0:
                    shutil.rmtree(root / rng.choice(["c", "c/d", "g"]))
                case 1:
                    path.unlink()
                case 2:
                    path.rename(root / rng.choice(names))
                case 3:
                    os.link(path, root / rng.choice(names))
                case _:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(rng.randbytes(rng.randrange(20_000)))

    for _ in range(100):
        disturb()
    real = os.stat
    content, cache = MemoryContent(), Cache()

    def stat_and_disturb(*args: Any, **kwargs: Any) -> os.stat_result:
        found = real(*args, **kwargs)
        if "dir_fd" in kwargs:
            disturb()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat_and_disturb)
        for _ in range(30):
            imported = import_tree(content, root, stat_cache=cache, live=True)
            assert load(content, imported.manifest_chunks, imported.layer_id).entries[0].path == b""


def test_a_folder_swapped_for_a_symlink_is_not_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/in").write_bytes(b"secret")
    write(source / "a-large", b"x" * (5 << 20))

    def swap(call: int) -> None:
        if call == 1:
            (source / "dir").rename(source / "moved")
            (source / "dir").symlink_to(tmp_path / "secret")

    imported = import_tree(MemoryContent(), source, progress=Calls(swap))
    entry = imported.manifest.find(b"dir")
    assert entry is not None
    assert entry.kind is Kind.SYMLINK
    assert imported.manifest.find(b"dir/in") is None


def test_a_symlink_to_the_folder_is_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(source)
    assert import_tree(MemoryContent(), tmp_path / "way").layer_id == import_tree(MemoryContent(), source).layer_id


def later(path: Path) -> Callable[[], int]:
    """A clock well after the last change of a file."""
    return lambda: path.stat().st_ctime_ns + 10 * SECOND


def test_what_did_not_change_is_not_read_again(source: Path, reads: list[int]) -> None:
    store, cache = MemoryContent(), Cache()
    first = import_tree(store, source, stat_cache=cache, clock_ns=later(source / "big"))
    assert sorted(reads) == [0, 10, 308_292]
    reads.clear()
    told: list[int] = []
    second = import_tree(store, source, stat_cache=cache, progress=lambda done, _: told.append(done))
    assert reads == []
    assert second.layer_id == first.layer_id
    assert told[-1] == first.size
    os.utime(source / "dir/in", ns=(0, 5))
    assert import_tree(store, source, stat_cache=cache).layer_id != first.layer_id
    assert reads == [10]


def test_times_too_young_are_not_trusted(source: Path, reads: list[int]) -> None:
    store, cache = MemoryContent(), Cache()
    changed_ns = max(path.stat().st_ctime_ns for path in (source / "big", source / "dir/in", source / "empty"))
    import_tree(store, source, stat_cache=cache, clock_ns=lambda: changed_ns + 2 * SECOND - 1)
    reads.clear()
    import_tree(store, source, stat_cache=cache, clock_ns=lambda: changed_ns + 2 * SECOND)
    assert reads  # those that changed last
    reads.clear()
    import_tree(store, source, stat_cache=cache)
    assert reads == []


def test_a_lost_chunk_is_read_again(source: Path, reads: list[int]) -> None:
    store, cache = MemoryContent(), Cache()
    first = import_tree(store, source, stat_cache=cache, clock_ns=later(source / "big"))
    entry = first.manifest.find(b"dir/in")
    assert entry is not None
    lost = [extent.chunk for extent in entry.extents if extent.chunk is not None]
    del store.chunks[lost[0]]
    reads.clear()
    import_tree(store, source, stat_cache=cache)
    assert reads == [10]
    assert lost[0] in store.chunks


def test_a_cache_of_other_ids_or_of_noise_is_ignored(source: Path, reads: list[int]) -> None:
    cache = Cache()
    import_tree(MemoryContent(), source, stat_cache=cache, clock_ns=later(source / "big"))
    keyed = MemoryContent(b"k" * 32)
    reads.clear()
    imported = import_tree(keyed, source, stat_cache=cache)
    assert len(reads) == 3
    assert not keyed.missing(imported.manifest.chunks())
    for key in cache:
        cache[key] = b"\xc1 noise"
    reads.clear()
    import_tree(MemoryContent(), source, stat_cache=cache)
    assert len(reads) == 3


def test_extended_attributes_that_belong_to_the_tree(source: Path) -> None:
    if not has_user_xattrs(source):
        pytest.skip("this filesystem has no user.* attributes")
    os.setxattr(source / "empty", "user.b", b"\0\xff")
    os.setxattr(source / "empty", "user.a", b"")
    os.setxattr(source / "dir", "user.d", b"x")
    expected = [(b"user.a", b""), (b"user.b", b"\0\xff")]
    marks: tuple[tuple[bytes, bytes], ...] = ()
    if ROOT:
        os.setxattr(source / "link", "trusted.overlay.opaque", b"y", follow_symlinks=False)
        os.setxattr(source / "empty", "trusted.overlay.origin", b"this machine only")
        os.setxattr(source / "empty", "trusted.other", b"")
        marks = ((b"trusted.overlay.opaque", b"y"),)
    found = {entry.path: entry.xattrs for entry in import_tree(MemoryContent(), source).manifest.entries}
    assert list(found[b"empty"]) == expected
    assert found[b"dir"] == ((b"user.d", b"x"),)
    assert found[b"link"] == marks


def test_device_nodes(source: Path) -> None:
    if not may_make_devices(source):
        pytest.skip("needs the right to make devices")
    os.mknod(source / "whiteout", stat.S_IFCHR, 0)
    os.mknod(source / "disk", stat.S_IFBLK, os.makedev(259, 300))
    found = {entry.path: entry for entry in import_tree(MemoryContent(), source).manifest.entries}
    assert (found[b"whiteout"].kind, found[b"whiteout"].device) == (Kind.CHARACTER, (0, 0))
    assert (found[b"disk"].kind, found[b"disk"].device) == (Kind.BLOCK, (259, 300))


def test_a_path_too_long_for_a_manifest(source: Path) -> None:
    fd = os.open(source, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("n" * 250, dir_fd=fd)
        inner = os.open("n" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with pytest.raises(SourceUnsupported, match="more than 4095 bytes"):
        import_tree(MemoryContent(), source)


@pytest.mark.skipif(not ROOT, reason="becomes another user")
@pytest.mark.root
def test_an_unreadable_file_is_named(source: Path, tmp_path: Path) -> None:
    os.chmod(source / "empty", 0o600)
    let_others_in(tmp_path)
    store = MemoryContent()

    def attempt() -> str:
        with pytest.raises(TreeUnreadable) as caught:
            import_tree(store, source)
        return str(caught.value)

    assert as_ordinary_user(attempt) == f"cannot read {source}/empty: Permission denied"


def test_sniffing(source: Path, tmp_path: Path) -> None:
    assert sniff(source) is SourceKind.FOLDER
    (source / "oci-layout").write_text("{}")
    assert sniff(source) is SourceKind.OCI
    heads = {
        SourceKind.QCOW2: b"QFI\xfb\0\0\0\3",
        SourceKind.RAW: bytes(510) + b"\x55\xaa",
        SourceKind.TAR: b"\x1f\x8b\x08",
        SourceKind.OTHER: b"#!/bin/sh\n",
    }
    for kind, head in heads.items():
        (tmp_path / kind).write_bytes(head)
        assert sniff(tmp_path / kind) is kind
    assert sniff(source / "dir-x") is SourceKind.OTHER


@pytest.mark.parametrize("head", [b"QFI\xfb", bytes(510) + b"\x55\xaa", b"text", b""])
def test_a_file_is_not_a_folder(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "file").write_bytes(head)
    with pytest.raises(SourceUnsupported, match="it is no folder but a"):
        import_tree(MemoryContent(), tmp_path / "file")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(TreeUnreadable, match="absent: No such file"):
        import_tree(MemoryContent(), tmp_path / "absent")


def test_a_sparse_file_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with (tmp_path / "source/sparse").open("wb") as file:
        file.truncate(10 << 30)
    imported: Imported = import_tree(MemoryContent(), tmp_path / "source")
    assert (imported.size, imported.chunks) == (10 << 30, 0)
