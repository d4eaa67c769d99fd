"""An unchanged folder is known by its stats, and every change is seen."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chunkstore.digest import LayerId, chunk_id
from chunkstore.importer import import_tree
from chunkstore.statcache import RACY_NS
from chunkstore.store import ChunkStore
from chunkstore.treerecall import Survey, recall, recall_held, remember, survey

LAYER = LayerId(b"l" * 32)


def later_ns() -> int:
    """A clock at which everything that a test wrote is old."""
    return time.time_ns() + 2 * RACY_NS


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "folder" / "deep").mkdir(parents=True)
    (root / "file").write_bytes(b"content")
    (root / "folder" / "other").write_bytes(b"more")
    (root / "link").symlink_to("file")
    os.link(root / "file", root / "folder" / "again")
    (root / os.fsdecode(b"b\xe9")).touch()
    return root


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    with ChunkStore.open(tmp_path / "store") as opened:
        yield opened


def look(tree: Path) -> Survey:
    seen = survey(tree, later_ns)
    assert seen is not None
    return seen


def test_a_tree_that_rests_looks_the_same(tree: Path) -> None:
    assert look(tree) == look(tree)
    assert look(tree).settled


def test_reading_changes_nothing(tree: Path) -> None:
    before = look(tree)
    (tree / "file").read_bytes()
    assert look(tree) == before


def _point_elsewhere(tree: Path) -> None:
    (tree / "link").unlink()
    (tree / "link").symlink_to("FILE")


def _rewrite_in_place(tree: Path) -> None:
    status = (tree / "file").stat()
    (tree / "file").write_bytes(b"CONTENT")
    os.utime(tree / "file", ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "content, with size and mtime as before": _rewrite_in_place,
    "mode": lambda tree: (tree / "folder" / "other").chmod(0o600),
    "mtime of a folder": lambda tree: os.utime(tree / "folder" / "deep", ns=(0, 0)),
    "a new name": lambda tree: (tree / "folder" / "deep" / "new").touch(),
    "a name gone": lambda tree: (tree / "folder" / "other").unlink(),
    "renamed": lambda tree: (tree / "folder" / "other").rename(tree / "folder" / "another"),
    "a link's text": _point_elsewhere,
    "one name more": lambda tree: os.link(tree / "folder" / "other", tree / "folder" / "third"),
    "the top folder's mode": lambda tree: tree.chmod(0o700),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_seen(tree: Path, change: Callable[[Path], object]) -> None:
    before = look(tree)
    change(tree)
    assert look(tree).digest != before.digest


def test_extended_attributes_are_seen(tree: Path) -> None:
    before = look(tree)
    try:
        os.setxattr(tree / "file", "user.note", b"x")
    except OSError:
        pytest.skip("no extended attributes here")
    assert look(tree).digest != before.digest


def test_names_that_move_between_folders_are_seen(tmp_path: Path) -> None:
    (tmp_path / "t" / "a").mkdir(parents=True)
    before = look(tmp_path / "t")
    (tmp_path / "t" / "a").rename(tmp_path / "t" / "b")
    assert look(tmp_path / "t").digest != before.digest


def test_a_young_tree_is_not_remembered(tree: Path, store: ChunkStore) -> None:
    seen = survey(tree)
    assert seen is not None and not seen.settled
    remember(store, seen, LAYER)
    assert recall(store, seen) is None


def test_what_is_no_folder_is_not_surveyed(tree: Path, store: ChunkStore) -> None:
    assert survey(tree / "file") is None
    assert survey(tree / "absent") is None
    remember(store, None, LAYER)
    assert recall(store, None) is None


def test_a_tree_is_recalled_until_it_changes(tree: Path, store: ChunkStore) -> None:
    remember(store, look(tree), LAYER)
    assert recall(store, look(tree)) == LAYER
    (tree / "new").touch()
    assert recall(store, look(tree)) is None


def test_memories_hold_for_one_key(tree: Path, store: ChunkStore) -> None:
    remember(store, look(tree), LAYER)
    assert recall(store, look(tree), b"k" * 32) is None


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01\x02\x03", b"\x01"])
def test_other_rows_are_not_believed(tree: Path, store: ChunkStore, payload: bytes) -> None:
    seen = look(tree)
    store.remember(seen.dev, seen.ino, payload)
    assert recall(store, seen) is None


def test_a_layer_counts_while_it_is_held_and_whole(tree: Path, store: ChunkStore) -> None:
    seen = look(tree)
    imported = import_tree(store, tree, stat_cache=store)
    chunks = imported.manifest.chunks()
    remember(store, seen, imported.layer_id)
    assert recall_held(store, seen) is None
    store.put_layer(
        imported.layer_id, imported.size, imported.manifest_chunks, imported.manifest_size, chunks, hold=False
    )
    assert recall_held(store, seen) is None
    store.put_layer(imported.layer_id, imported.size, imported.manifest_chunks, imported.manifest_size, chunks)
    record = recall_held(store, seen)
    assert record is not None and record.id == imported.layer_id
    store.forget([chunk_id(b"content")])
    assert recall_held(store, seen) is None


def test_the_importer_and_this_share_the_cache_in_peace(tree: Path, store: ChunkStore) -> None:
    first = import_tree(store, tree, stat_cache=store, clock_ns=later_ns)
    remember(store, look(tree), first.layer_id)
    assert import_tree(store, tree, stat_cache=store, clock_ns=later_ns).layer_id == first.layer_id
    assert recall(store, look(tree)) == first.layer_id
