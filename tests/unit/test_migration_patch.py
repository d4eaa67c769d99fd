"""A patched tree is the very tree that a checkout makes."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chunkstore.checkout import checkout
from chunkstore.entries import Kind
from chunkstore.importer import import_tree
from chunkstore.manifest import Manifest
from p2player.migration import patch as patching
from p2player.migration.patch import patch
from tests.support.memory_content import MemoryContent
from tests.support.trees import Node, build, folders, snapshot, workplace

BULK = Node("file", pieces=((200_000, 77),))
OLD = Node(
    "folder",
    0o755,
    children=(
        (b"bulk", BULK),
        (b"changed", Node("file", pieces=((100, 1),))),
        (b"gone", Node("file", pieces=((100, 2),))),
        (b"file to folder", Node("file")),
        (b"folder to file", Node("folder", children=((b"in", Node("file")), (b"deep", Node("folder"))))),
        (b"link to folder", Node("symlink", target=b"/etc")),
        (b"folder to link", Node("folder", children=((b"in", Node("file")),))),
        (b"gone too", Node("folder", 0o555, children=((b"in", Node("folder", children=((b"x", Node("file")),))),))),
        (b"mode", Node("file", 0o600)),
        (b"shut", Node("folder", 0o500, children=((b"inside", Node("file")), (b"stays", Node("file"))))),
        (b"pipe", Node("fifo")),
        (b"quiet", Node("folder", 0o711, children=((b"same", Node("file")),))),
    ),
)
NEW = Node(
    "folder",
    0o750,
    mtime_ns=5,
    children=(
        (b"bulk", BULK),
        (b"changed", Node("file", pieces=((100, 3),))),
        (b"file to folder", Node("folder", 0o500, children=((b"new", Node("file", pieces=((10, 4),))),))),
        (b"folder to file", Node("file", pieces=((10, 5),))),
        (b"link to folder", Node("folder", children=((b"passwd", Node("file")),))),
        (b"folder to link", Node("symlink", target=b"..")),
        (b"mode", Node("file", 0o640)),
        (
            b"shut",
            Node("folder", 0o500, children=((b"inside", Node("file", pieces=((9, 6),))), (b"stays", Node("file")))),
        ),
        (b"pipe", Node("socket")),
        (b"quiet", Node("folder", 0o711, children=((b"same", Node("file")),))),
        (b"made", Node("folder", children=((b"of", Node("folder", children=((b"it", Node("file")),))),))),
    ),
)


def images(content: MemoryContent, place: Path, old: Node, new: Node) -> tuple[Manifest, Manifest]:
    made = []
    for name, node in (("old", old), ("new", new)):
        build(os.fsencode(place / name), node)
        made.append(import_tree(content, place / name).manifest)
    return made[0], made[1]


def test_every_kind_of_change() -> None:
    with workplace() as place:
        content = MemoryContent()
        old, new = images(content, place, OLD, NEW)
        checkout(content, old, place / "tree")
        untouched = (place / "tree" / "bulk").stat().st_ino
        assert patch(content, old, new, place / "tree", place / "scratch")
        checkout(content, new, place / "fresh")
        assert snapshot(place / "tree") == snapshot(place / "fresh")
        assert (place / "tree" / "bulk").stat().st_ino == untouched
        assert not (place / "scratch").exists()
        assert not Path("/etc/new").exists()


def test_nothing_changed() -> None:
    with workplace() as place:
        content = MemoryContent()
        build(os.fsencode(place / "old"), OLD)
        manifest = import_tree(content, place / "old").manifest
        checkout(content, manifest, place / "tree")
        before = snapshot(place / "tree")
        assert patch(content, manifest, manifest, place / "tree", place / "scratch")
        assert snapshot(place / "tree") == before


@pytest.mark.parametrize(
    "new",
    [
        Node("folder", children=((b"bulk", Node("file", pieces=((200_000, 78),))),)),
        Node("folder", children=((b"bulk", BULK), (b"a", Node("file")), (b"second", Node("hardlink", target=b"a")))),
    ],
    ids=["too much", "hard links"],
)
def test_what_is_left_to_a_full_checkout(new: Node) -> None:
    with workplace() as place:
        content = MemoryContent()
        older, newer = images(content, place, OLD, new)
        checkout(content, older, place / "tree")
        before = snapshot(place / "tree")
        assert not patch(content, older, newer, place / "tree", place / "scratch")
        assert snapshot(place / "tree") == before


def test_too_many_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "MAX_CHANGES", 3)
    with workplace() as place:
        content = MemoryContent()
        old, new = images(content, place, OLD, NEW)
        checkout(content, old, place / "tree")
        assert not patch(content, old, new, place / "tree", place / "scratch")


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(old=folders(), new=folders(), common=folders(depth=1), kept=st.booleans())
def test_any_tree_into_any_other(old: Node, new: Node, common: Node, kept: bool) -> None:
    """Two trees with a large file and, perhaps, a folder in common; either way the result is that of a checkout."""

    def with_common(node: Node) -> Node:
        own = tuple(child for child in node.children if child[0] not in (b"bulk", b"common"))
        shared = ((b"bulk", Node("file", pieces=((2_000_000, 9),))), *(((b"common", common),) if kept else ()))
        return Node("folder", node.mode, node.owner, node.mtime_ns, xattrs=node.xattrs, children=(*own, *shared))

    with workplace() as place:
        content = MemoryContent()
        older, newer = images(content, place, with_common(old), with_common(new))
        checkout(content, older, place / "tree")
        checkout(content, newer, place / "fresh")
        before = snapshot(place / "tree")
        patched = patch(content, older, newer, place / "tree", place / "scratch")
        hard = any(entry.kind is Kind.HARDLINK for entry in (*older.entries, *newer.entries))
        assert patched is not hard
        assert snapshot(place / "tree") == (before if hard else snapshot(place / "fresh"))
