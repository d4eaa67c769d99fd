"""A checkout is complete or absent, goes on after a kill, keeps every attribute, and stays inside its folder."""

import fcntl
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from chunkstore import leftovers, staging
from chunkstore.beneath import Beneath
from chunkstore.checkout import CheckedOut, checkout
from chunkstore.digest import ChunkId
from chunkstore.entries import Entry, Extent, Kind, pack_extents
from chunkstore.importer import import_tree
from chunkstore.ingest import Imported
from chunkstore.manifest import Manifest
from chunkstore.tree_errors import CheckoutFailed, CheckoutRefused, ContentMissing, ManifestInvalid
from tests.support.memory_content import MemoryContent
from tests.support.trees import (
    ORDINARY_USER,
    ROOT,
    Node,
    allocated,
    as_ordinary_user,
    build,
    has_user_xattrs,
    let_others_in,
    may_make_devices,
    snapshot,
)

PARTIAL = ".copy.p2player-partial"
SIZES = ((b"f%02d" % number, Node("file", 0o640, pieces=((300_000, number + 1),))) for number in range(8))
TREE = Node(
    "folder",
    0o711,
    (1000, 50),
    children=(
        (b"setuid", Node("file", 0o6755, (1000, 50), pieces=((100_000, 90),))),
        (b"second name", Node("hardlink", target=b"setuid")),
        (b"sparse", Node("file", 0o400, pieces=((5000, 91), (1 << 20, 0), (5000, 92), (40_000, 0)))),
        (b"empty", Node("file", 0)),
        (b"zeros", Node("file", pieces=((50_000, 0),))),
        (b"link", Node("symlink", 0o777, (7, 8), -1, target=b"../..")),
        (b"link too", Node("hardlink", target=b"link")),
        (b"pipe", Node("fifo", 0o622)),
        (b"socket", Node("socket", 0o755)),
        (b"shut", Node("folder", 0o555, children=((b"in", Node("folder", 0o500, children=tuple(SIZES))),))),
        (b"shut-x", Node("file", 0o444)),
    ),
)


class Store(MemoryContent):
    """Remembers which chunks were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[ChunkId] = []

    def read(self, ids: Sequence[ChunkId]) -> Iterator[tuple[ChunkId, memoryview]]:
        self.asked += ids
        yield from super().read(ids)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build(os.fsencode(tmp_path / "source"), TREE)
    if has_user_xattrs(tmp_path):
        os.chmod(tmp_path / "source/shut", 0o755)
        for path in ("shut", "second name"):
            os.setxattr(tmp_path / "source" / path, "user.note", b"\0\xff")
        os.chmod(tmp_path / "source/shut", 0o555)
    if may_make_devices(tmp_path):
        os.mknod(tmp_path / "source/whiteout", stat.S_IFCHR, 0)
        os.mknod(tmp_path / "source/disk", stat.S_IFBLK | 0o660, os.makedev(8, 17))
        os.link(tmp_path / "source/disk", tmp_path / "source/disk too")
        os.utime(tmp_path / "source", ns=(0, TREE.mtime_ns))
    return tmp_path / "source"


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def imported(source: Path, store: Store) -> Imported:
    return import_tree(store, source)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "copy"


class Killed(Exception):
    """Stands for a kill: raised from the progress callback."""


def kill_after(steps: int) -> Callable[[int, int], None]:
    left = [steps]

    def progress(done: int, total: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return progress


def test_everything_comes_back(store: Store, imported: Imported, source: Path, copy: Path) -> None:
    done = checkout(store, imported.manifest, copy)
    assert snapshot(copy) == snapshot(source)
    files = sum(entry.kind is not Kind.DIRECTORY for entry in imported.manifest.entries)
    assert done == CheckedOut(files, imported.size, {} if ROOT else done.skipped)
    assert os.listdir(copy.parent) == ["source", "copy"] or set(os.listdir(copy.parent)) == {"source", "copy"}
    assert import_tree(store, copy).layer_id == imported.layer_id


def test_holes_stay_holes(store: Store, imported: Imported, copy: Path) -> None:
    checkout(store, imported.manifest, copy)
    assert (copy / "sparse").stat().st_size == (1 << 20) + 50_000
    assert allocated(copy / "sparse") < 100_000
    assert allocated(copy / "zeros") == 0


def test_many_batches(store: Store, tmp_path: Path, copy: Path) -> None:
    """More content than one batch holds, with chunks that come back in later batches."""
    repeated = tuple((3 << 20, seed) for seed in range(1, 8))
    files = (Node("file", pieces=repeated), Node("file", pieces=repeated[::-1]), Node("file", pieces=((7, 1),)))
    build(
        os.fsencode(tmp_path / "big"), Node("folder", children=tuple((b"%d" % n, file) for n, file in enumerate(files)))
    )
    checkout(store, import_tree(store, tmp_path / "big").manifest, copy)
    assert snapshot(copy) == snapshot(tmp_path / "big")
    assert store.reads >= 3


def test_progress_counts_bytes(store: Store, imported: Imported, copy: Path) -> None:
    told: list[tuple[int, int]] = []
    checkout(store, imported.manifest, copy, progress=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {imported.size}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (imported.size, imported.size)
    assert len(told) > 2


def test_an_empty_folder_is_replaced(store: Store, imported: Imported, source: Path, copy: Path) -> None:
    copy.mkdir(0o777)
    checkout(store, imported.manifest, copy)
    assert snapshot(copy) == snapshot(source)


def test_parents_are_made_and_symlinks_to_the_place_followed(store: Store, imported: Imported, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "way").symlink_to("real")
    checkout(store, imported.manifest, tmp_path / "way")
    assert (tmp_path / "way").is_symlink()
    assert (tmp_path / "real/pipe").is_fifo()
    checkout(store, imported.manifest, tmp_path / "a/b/c")
    assert (tmp_path / "a/b/c/pipe").is_fifo()


def test_what_is_not_empty_is_refused(store: Store, imported: Imported, copy: Path) -> None:
    copy.mkdir()
    (copy / "precious").write_text("keep")
    with pytest.raises(CheckoutRefused, match="it is not empty"):
        checkout(store, imported.manifest, copy)
    assert os.listdir(copy) == ["precious"]
    assert not (copy.parent / PARTIAL).exists()
    with pytest.raises(CheckoutRefused, match="it is no folder"):
        checkout(store, imported.manifest, copy / "precious")
    with pytest.raises(CheckoutRefused, match="its parent cannot be made"):
        checkout(store, imported.manifest, copy / "precious/in")
    with pytest.raises(CheckoutRefused, match="it is not empty"):
        checkout(store, imported.manifest, Path("/"))


def test_what_fills_up_meanwhile_is_refused_at_the_end(store: Store, imported: Imported, copy: Path) -> None:
    def fill(done: int, total: int) -> None:
        copy.mkdir(exist_ok=True)
        (copy / "precious").touch()

    with pytest.raises(CheckoutRefused, match="no longer an empty folder"):
        checkout(store, imported.manifest, copy, progress=fill)
    assert os.listdir(copy) == ["precious"]


def test_nothing_shows_before_everything_is_there(store: Store, imported: Imported, copy: Path) -> None:
    for steps in range(3):
        with pytest.raises(Killed):
            checkout(store, imported.manifest, copy, progress=kill_after(steps))
        assert not copy.exists()
        assert stat.S_IMODE((copy.parent / PARTIAL).stat().st_mode) == 0o700


def test_a_killed_checkout_goes_on_with_what_is_there(
    store: Store, imported: Imported, source: Path, copy: Path
) -> None:
    with pytest.raises(Killed):
        checkout(store, imported.manifest, copy, progress=kill_after(2))
    store.asked.clear()
    told: list[int] = []
    checkout(store, imported.manifest, copy, progress=lambda done, _: told.append(done))
    assert snapshot(copy) == snapshot(source)
    assert 0 < len(store.asked) < imported.chunks
    assert told[-1] == imported.size
    assert not (copy.parent / PARTIAL).exists()


def finished_but_for_the_rename(store: Store, imported: Imported, copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout killed at the last moment: all attributes are set, folders are shut."""

    def fail(fd: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(staging, "sync_filesystem", fail)
        with pytest.raises(Killed):
            checkout(store, imported.manifest, copy)
    store.asked.clear()
    return copy.parent / PARTIAL / "tree"


def test_remains_are_verified_not_believed(
    store: Store, imported: Imported, source: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = finished_but_for_the_rename(store, imported, copy, monkeypatch)
    for path in (partial / "shut", partial / "shut/in"):
        os.chmod(path, 0o700)
    flipped, longer, filled, linked = (partial / "shut/in" / f"f0{n}" for n in range(4))
    before = flipped.stat()
    with flipped.open("r+b") as file:
        file.seek(200_000)
        file.write(b"flipped")
    os.utime(flipped, ns=(0, before.st_mtime_ns))
    with longer.open("r+b") as file:
        file.seek(299_999)
        file.write(b"longer")
    os.truncate(filled, 7)
    linked.unlink()
    os.link(partial / "shut/in/f04", linked)  # one file where the tree has two
    os.chmod(partial / "sparse", 0o600)
    with (partial / "sparse").open("r+b") as file:
        file.seek(500_000)
        file.write(b"in the hole")
    if ROOT:
        os.chown(partial / "second name", 1, 1)
        os.chmod(partial / "second name", 0o6755)
    (partial / "pipe").unlink()
    (partial / "pipe").mkdir()
    (partial / "pipe/more").mkdir()
    (partial / "pipe/more/foreign").touch()
    (partial / "foreign").symlink_to("/")
    if has_user_xattrs(partial):
        os.setxattr(partial / "shut", "user.foreign", b"")
        os.chmod(partial / "empty", 0o600)
        os.setxattr(partial / "empty", "user.foreign", b"")
    checkout(store, imported.manifest, copy)
    assert snapshot(copy) == snapshot(source)
    entry = imported.manifest.find(b"shut/in/f07")
    assert entry is not None
    assert {extent.chunk for extent in entry.extents}.isdisjoint(store.asked)


def test_what_is_whole_is_not_fetched_again(
    store: Store, imported: Imported, source: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished_but_for_the_rename(store, imported, copy, monkeypatch)
    checkout(store, imported.manifest, copy)
    assert store.asked == []
    assert snapshot(copy) == snapshot(source)


def test_inherited_acls_and_setgid_do_not_show(store: Store, imported: Imported, source: Path, copy: Path) -> None:
    inherited = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in ((1, 7, 2**32 - 1), (2, 7, 1234), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1), (32, 0, 2**32 - 1))
    )
    try:
        os.setxattr(copy.parent, "system.posix_acl_default", inherited)
    except OSError:
        pytest.skip("this filesystem has no ACLs")
    os.chmod(copy.parent, 0o2755)
    checkout(store, imported.manifest, copy)
    assert snapshot(copy) == snapshot(source)


def test_acls_and_capabilities(store: Store, source: Path, copy: Path) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in ((1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1))
    )
    try:
        os.setxattr(source / "shut-x", "system.posix_acl_access", acl)
        os.chmod(source, 0o755)
        os.setxattr(source, "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("this filesystem has no ACLs")
    if ROOT:
        os.setxattr(source / "shut-x", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
        os.setxattr(source / "link", "trusted.overlay.opaque", b"y", follow_symlinks=False)
        os.setxattr(source / "shut", "trusted.overlay.opaque", b"y")
    done = checkout(store, import_tree(store, source).manifest, copy)
    assert snapshot(copy) == snapshot(source)
    assert not done.skipped or not ROOT


def test_remains_of_folders_with_default_acls(
    store: Store, source: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in ((1, 7, 2**32 - 1), (2, 7, 1000), (4, 7, 2**32 - 1), (16, 7, 2**32 - 1), (32, 7, 2**32 - 1))
    )
    try:
        os.chmod(source / "shut/in", 0o755)
        os.setxattr(source / "shut/in", "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("this filesystem has no ACLs")
    imported = import_tree(store, source)
    partial = finished_but_for_the_rename(store, imported, copy, monkeypatch)
    (partial / "shut/in/f03").unlink()
    checkout(store, imported.manifest, copy)
    assert snapshot(copy) == snapshot(source)


def test_a_missing_chunk_is_named_with_its_path(store: Store, imported: Imported, copy: Path) -> None:
    entry = imported.manifest.find(b"shut/in/f03")
    assert entry is not None
    lost = next(extent.chunk for extent in entry.extents if extent.chunk is not None)
    data = store.chunks.pop(lost)
    with pytest.raises(ContentMissing, match=f"chunk {lost.hex()[:16]} of shut/in/f03 is not stored") as caught:
        checkout(store, imported.manifest, copy)
    assert (caught.value.chunk_id, caught.value.path) == (lost, b"shut/in/f03")
    assert not copy.exists()
    store.chunks[lost] = data
    checkout(store, imported.manifest, copy)


def test_a_chunk_of_another_length_than_the_manifest_says(store: Store, imported: Imported, copy: Path) -> None:
    chunk = next(iter(imported.manifest.chunks()))
    entry = Entry(b"x", Kind.REGULAR, table=pack_extents([Extent(5, chunk)]))
    with pytest.raises(ManifestInvalid, match="x: a chunk with another length"):
        checkout(store, Manifest((imported.manifest.entries[0], entry)), copy)


TOP = Entry(b"", Kind.DIRECTORY, 0o755)


@pytest.mark.parametrize(
    "entries",
    [
        (Entry(b"../evil", Kind.REGULAR),),
        (Entry(b"/tmp/evil", Kind.REGULAR),),
        (Entry(b"..", Kind.DIRECTORY), Entry(b"../evil", Kind.REGULAR)),
        (Entry(b"a", Kind.SYMLINK, 0o777, target=b".."), Entry(b"a/evil", Kind.REGULAR)),
        (Entry(b"a", Kind.HARDLINK, target=b"../source/empty"),),
        (Entry(b"a\0/../../evil", Kind.REGULAR),),
    ],
)
def test_hostile_manifests_write_nothing(store: Store, copy: Path, entries: tuple[Entry, ...]) -> None:
    with pytest.raises(ManifestInvalid):
        checkout(store, Manifest((TOP, *entries)), copy)
    assert os.listdir(copy.parent) == []


@pytest.mark.parametrize("openat2", [True, False])
def test_no_folder_outside_can_be_reached(tmp_path: Path, openat2: bool) -> None:
    (tmp_path / "root/a/b").mkdir(parents=True)
    (tmp_path / "outside/b").mkdir(parents=True)
    with Beneath(os.open(tmp_path / "root", os.O_RDONLY), openat2=openat2) as root:
        assert os.path.samestat(os.fstat(root.folder(b"a/b")), (tmp_path / "root/a/b").stat())
        for path in (b"..", b"a/../..", b"/etc", b"a\0/..", b"a/b/../../.."):
            with pytest.raises(OSError, match="leads outside"):
                root.folder(path)
            with pytest.raises(OSError, match="leads outside"):
                root.locate(path + b"/name")
        root.forget()
        (tmp_path / "root/a").rename(tmp_path / "root/moved")
        (tmp_path / "root/a").symlink_to("../outside")
        for path in (b"a", b"a/b"):
            with pytest.raises(OSError, match=r"directory|symbolic"):
                root.folder(path)


def test_a_folder_swapped_for_a_symlink_leads_nowhere(store: Store, imported: Imported, copy: Path) -> None:
    outside = copy.parent / "outside"
    (outside / "in").mkdir(parents=True)
    swapped: list[Path] = []

    def swap(done: int, total: int) -> None:
        inside = copy.parent / PARTIAL / "tree/shut"
        if inside.is_dir() and not inside.is_symlink():
            inside.rename(copy.parent / "moved")
            inside.symlink_to(outside)
            swapped.append(inside)

    with pytest.raises(CheckoutFailed):
        checkout(store, imported.manifest, copy, progress=swap)
    assert swapped
    assert os.listdir(outside) == ["in"]
    assert os.listdir(outside / "in") == []


def test_a_second_checkout_to_the_same_place_waits_for_nobody(store: Store, imported: Imported, copy: Path) -> None:
    def again(done: int, total: int) -> None:
        with pytest.raises(CheckoutRefused, match="another checkout is writing"):
            checkout(store, imported.manifest, copy)

    checkout(store, imported.manifest, copy, progress=again)


def test_the_staging_folder_is_closed_even_if_it_was_not(store: Store, imported: Imported, copy: Path) -> None:
    modes: set[int] = set()
    (copy.parent / PARTIAL).mkdir()
    os.chmod(copy.parent / PARTIAL, 0o777)
    checkout(
        store, imported.manifest, copy, progress=lambda *_: modes.add((copy.parent / PARTIAL).stat().st_mode & 0o777)
    )
    assert modes == {0o700}


def test_a_staging_folder_that_was_published_meanwhile(
    store: Store, imported: Imported, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock_too_late(fd: int, operation: int) -> None:
        (copy.parent / PARTIAL).rename(copy.parent / "moved")
        (copy.parent / PARTIAL).mkdir()

    monkeypatch.setattr(fcntl, "flock", lock_too_late)
    with pytest.raises(CheckoutRefused, match="another checkout was writing"):
        checkout(store, imported.manifest, copy)


@pytest.mark.skipif(not ROOT, reason="gives a folder away")
@pytest.mark.root
def test_a_staging_folder_of_somebody_else_is_not_used(store: Store, imported: Imported, copy: Path) -> None:
    (copy.parent / PARTIAL).mkdir(0o777)
    os.chown(copy.parent / PARTIAL, ORDINARY_USER, -1)
    with pytest.raises(CheckoutRefused, match="belongs to somebody else"):
        checkout(store, imported.manifest, copy)


def test_a_symlink_in_place_of_the_staging_folder_is_not_followed(store: Store, imported: Imported, copy: Path) -> None:
    (copy.parent / "outside").mkdir()
    (copy.parent / PARTIAL).symlink_to("outside")
    with pytest.raises(CheckoutRefused, match=r"Not a directory|symbolic"):
        checkout(store, imported.manifest, copy)
    assert os.listdir(copy.parent / "outside") == []


def test_a_working_folder_is_filled_in_place(
    store: Store, imported: Imported, source: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.mkdir()
    inode = copy.stat().st_ino
    monkeypatch.chdir(copy)
    checkout(store, imported.manifest, Path("."))
    assert copy.stat().st_ino == inode
    assert snapshot(copy) == snapshot(source)


def test_filling_in_place_goes_on_after_a_kill(
    store: Store, imported: Imported, source: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy.mkdir()
    monkeypatch.setattr(staging, "is_replaceable", lambda place, parent: False)
    with pytest.raises(Killed):
        checkout(store, imported.manifest, copy, progress=kill_after(2))
    assert os.listdir(copy) == [PARTIAL]
    for name in ("shut", "second name"):  # as if killed while it moved entries up
        (copy / PARTIAL / "tree" / name).rename(copy / name)
    os.chmod(copy / "shut", 0o500)
    store.asked.clear()
    checkout(store, imported.manifest, copy)
    assert snapshot(copy) == snapshot(source)
    assert len(store.asked) < imported.chunks


def test_filling_in_place_spares_what_is_not_of_the_tree(
    store: Store, imported: Imported, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "is_replaceable", lambda place, parent: False)
    (copy / PARTIAL).mkdir(parents=True)
    (copy / "precious").touch()
    with pytest.raises(CheckoutRefused, match="not empty"):
        checkout(store, imported.manifest, copy)
    (copy / "precious").unlink()
    odd = Manifest((TOP, Entry(PARTIAL.encode(), Kind.FIFO)))
    with pytest.raises(CheckoutRefused, match="name of the staging folder"):
        checkout(store, odd, copy)


def test_reuse_takes_unchanged_files_from_an_older_tree(
    store: Store, imported: Imported, source: Path, copy: Path
) -> None:
    older = copy.parent / "older"
    checkout(store, imported.manifest, older)
    os.chmod(older / "shut", 0o755)
    before = snapshot(older)
    store.asked.clear()
    done = checkout(store, imported.manifest, copy, reuse=older)
    assert store.asked == []
    assert done.bytes == imported.size
    assert snapshot(copy) == snapshot(source)
    assert snapshot(older) == before
    assert (copy / "setuid").stat().st_ino != (older / "setuid").stat().st_ino
    assert allocated(copy / "sparse") < 100_000


def test_reuse_believes_bytes_and_not_times(store: Store, imported: Imported, source: Path, copy: Path) -> None:
    older = copy.parent / "older"
    checkout(store, imported.manifest, older)
    for path in (older / "shut", older / "shut/in"):
        os.chmod(path, 0o755)
    for name in ("f00", "f01"):
        status = (older / "shut/in" / name).stat()
        os.chmod(older / "shut/in" / name, 0o600)
        with (older / "shut/in" / name).open("r+b") as file:
            file.write(b"edited")
        os.utime(older / "shut/in" / name, ns=(0, status.st_mtime_ns))
    (older / "sparse").unlink()
    (older / "sparse").symlink_to("setuid")
    store.asked.clear()
    checkout(store, imported.manifest, copy, reuse=older)
    assert 0 < len(store.asked) < 10
    assert snapshot(copy) == snapshot(source)


def test_reuse_where_nothing_can_be_shared(
    store: Store, imported: Imported, source: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = copy.parent / "older"
    checkout(store, imported.manifest, older)

    def refuse(*arguments: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    monkeypatch.setattr(leftovers.os, "copy_file_range", refuse)  # type: ignore[attr-defined]
    checkout(store, imported.manifest, copy, reuse=older)
    assert snapshot(copy) == snapshot(source)
    shutil.rmtree(copy, ignore_errors=True)
    checkout(store, imported.manifest, copy.parent / "another", reuse=copy.parent / "absent")
    assert snapshot(copy.parent / "another") == snapshot(source)


@pytest.mark.skipif(not ROOT, reason="becomes another user")
@pytest.mark.root
def test_without_privilege_all_else_is_equal(store: Store, source: Path, tmp_path: Path) -> None:
    os.setxattr(source / "shut", "trusted.overlay.opaque", b"y")
    os.setxattr(source / "shut-x", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    imported = import_tree(store, source)
    let_others_in(tmp_path)
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", ORDINARY_USER, ORDINARY_USER)
    copy = tmp_path / "theirs/copy"

    def attempt() -> str:
        with pytest.raises(Killed):
            checkout(store, imported.manifest, copy, progress=kill_after(2))
        return repr(checkout(store, imported.manifest, copy).skipped)

    skipped = eval(as_ordinary_user(attempt))
    folders = sum(entry.kind is Kind.DIRECTORY for entry in imported.manifest.entries)
    devices = {b"whiteout", b"disk", b"disk too"}
    made, expected = snapshot(copy, owners=False), snapshot(source, owners=False)
    missing = expected.keys() - made.keys()
    assert missing <= devices
    links = sum(entry.kind is Kind.HARDLINK and entry.path not in missing for entry in imported.manifest.entries)
    assert skipped == {
        "devices": len(missing),
        "owners": len(made) - links,
        "trusted": 1,
        "capabilities": 1,
    }
    assert folders == 3
    for path in (b"shut", b"shut-x"):
        *rest, xattrs = expected[path]
        kept = {name: value for name, value in xattrs.items() if name.startswith("user.")}
        expected[path] = (*rest, kept)
    assert made == {path: facts for path, facts in expected.items() if path not in missing}


CLOSED = Node(
    "folder",
    0o111,
    children=(
        (b"closed", Node("folder", 0, children=((b"in", Node("folder", 0o100, children=((b"f", Node("file", 0)),))),))),
        (b"shut", Node("folder", 0o555, children=((b"f", Node("file", 0o444, pieces=((100_000, 1),))),))),
    ),
)


@pytest.mark.skipif(not ROOT, reason="becomes another user")
@pytest.mark.root
@pytest.mark.parametrize("inside", [False, True])
def test_without_privilege_a_killed_checkout_opens_what_it_had_shut(
    store: Store, tmp_path: Path, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(os.fsencode(tmp_path / "source"), CLOSED)
    imported = import_tree(store, tmp_path / "source")
    let_others_in(tmp_path)
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", ORDINARY_USER, ORDINARY_USER)
    copy = tmp_path / "theirs/copy"

    def attempt() -> str:
        if inside:
            copy.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(staging, "is_replaceable", lambda place, parent: not inside)
            patch.setattr(staging._Inside if inside else os, "publish" if inside else "rename", die)
            with pytest.raises(Killed):
                checkout(store, imported.manifest, copy)
        checkout(store, imported.manifest, copy)
        return ""

    as_ordinary_user(attempt)
    assert snapshot(copy, owners=False) == snapshot(tmp_path / "source", owners=False)
    assert os.listdir(tmp_path / "theirs") == ["copy"]


def die(*arguments: object, **more: object) -> None:
    raise Killed


@pytest.mark.skipif(not ROOT, reason="becomes another user")
@pytest.mark.root
def test_an_empty_folder_in_a_parent_that_may_not_be_written(store: Store, imported: Imported, tmp_path: Path) -> None:
    let_others_in(tmp_path)
    copy = tmp_path / "theirs"
    copy.mkdir()
    os.chown(copy, ORDINARY_USER, ORDINARY_USER)

    def attempt() -> str:
        with pytest.raises(CheckoutRefused, match="Permission denied"):
            checkout(store, imported.manifest, tmp_path / "absent")
        return str(checkout(store, imported.manifest, copy).files)

    assert int(as_ordinary_user(attempt)) > 8
    assert stat.S_IMODE(copy.stat().st_mode) == 0o711
    assert (copy / "shut/in/f07").stat().st_size == 300_000


def test_a_disk_that_is_full(store: Store, imported: Imported, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: object, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(CheckoutFailed, match=r"cannot write .*: No space left on device"):
            checkout(store, imported.manifest, copy)
    assert not copy.exists()
    checkout(store, imported.manifest, copy)


def test_names_and_modes_that_a_umask_would_change(store: Store, tmp_path: Path, copy: Path) -> None:
    build(
        os.fsencode(tmp_path / "open"),
        Node("folder", 0o777, children=((b"f", Node("file", 0o666)), (b"p", Node("fifo", 0o777)))),
    )
    imported = import_tree(store, tmp_path / "open")
    before = os.umask(0o077)
    try:
        checkout(store, imported.manifest, copy)
    finally:
        os.umask(before)
    assert snapshot(copy) == snapshot(tmp_path / "open")


def test_a_hole_as_large_as_the_filesystem_allows(store: Store, copy: Path) -> None:
    huge = Entry(b"huge", Kind.REGULAR, table=pack_extents([Extent(2**62, None)]))
    with pytest.raises(CheckoutFailed, match="huge"):
        checkout(store, Manifest((TOP, replace(huge))), copy)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_rsync_sees_no_difference(store: Store, imported: Imported, source: Path, copy: Path) -> None:
    checkout(store, imported.manifest, copy)
    command = ["rsync", "-aHAXnc", "--delete", "--itemize-changes", f"{source}/", f"{copy}/"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == ""
