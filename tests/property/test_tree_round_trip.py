"""Whatever a folder holds, import and checkout give the same folder, and that one the same layer."""

import os

from hypothesis import HealthCheck, given, settings

from chunkstore.checkout import checkout
from chunkstore.importer import import_tree
from chunkstore.manifest import Manifest, load
from tests.support.memory_content import MemoryContent
from tests.support.trees import Node, build, folders, has_user_xattrs, snapshot, workplace


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(folders())
def test_round_trip(tree: Node) -> None:
    with workplace() as place:
        if not has_user_xattrs(place):
            tree = Node("folder", tree.mode, children=tree.children)
        build(os.fsencode(place / "source"), tree)
        content = MemoryContent()
        first = import_tree(content, place / "source")
        manifest = load(content, first.manifest_chunks, first.layer_id)
        assert manifest == first.manifest
        done = checkout(content, manifest, place / "copy")
        assert not set(done.skipped) - {"owners"}
        assert snapshot(place / "copy") == snapshot(place / "source")
        assert import_tree(content, place / "copy").layer_id == first.layer_id


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(folders(), folders())
def test_remains_of_another_tree_do_not_show(tree: Node, other: Node) -> None:
    with workplace() as place:
        build(os.fsencode(place / "source"), tree)
        (place / ".copy.p2player-partial").mkdir()
        build(os.fsencode(place / ".copy.p2player-partial/tree"), other)
        content = MemoryContent()
        imported = import_tree(content, place / "source")
        checkout(content, imported.manifest, place / "copy")
        assert snapshot(place / "copy") == snapshot(place / "source")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(folders(), folders())
def test_an_older_tree_saves_work_and_changes_nothing(tree: Node, other: Node) -> None:
    with workplace() as place:
        build(os.fsencode(place / "source"), tree)
        build(os.fsencode(place / "older"), other)
        content = MemoryContent()
        imported = import_tree(content, place / "source")
        before = snapshot(place / "older")
        checkout(content, imported.manifest, place / "copy", reuse=place / "older")
        assert snapshot(place / "copy") == snapshot(place / "source")
        assert snapshot(place / "older") == before


def test_the_smallest_tree() -> None:
    with workplace() as place:
        build(os.fsencode(place / "source"), Node("folder", 0o755))
        content = MemoryContent()
        imported = import_tree(content, place / "source")
        assert len(Manifest.decode(imported.manifest.encode()).entries) == 1
        checkout(content, imported.manifest, place / "copy")
        assert snapshot(place / "copy") == snapshot(place / "source")
