"""New versions of layers between real nodes: what crosses the wire is what changed, whoever has the old version."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from p2player.localmesh import LocalMesh, LocalNode
from tests.real.conftest import make_tree
from tests.real.test_sharing import differences, layer_row
from tests.support.waiting import eventually

pytestmark = pytest.mark.real

EDITS = 24
EDIT_BYTES = 2_000


def edit(tree: Path) -> int:
    """Change `EDITS` files in the middle and move one. Returns how many bytes are new."""
    source = random.Random(9)
    files = sorted(tree.glob("file-*"))
    for path in files[:EDITS]:
        data = bytearray(path.read_bytes())
        at = source.randrange(len(data) - EDIT_BYTES)
        data[at : at + EDIT_BYTES] = source.randbytes(EDIT_BYTES)
        data[:0] = b"shifted"
        path.write_bytes(data)
    files[1].rename(tree / "folder" / "moved")
    return EDITS * EDIT_BYTES


def knows_size(node: LocalNode, name: str, layer: str) -> None:
    def look() -> bool:
        row = layer_row(node, name)
        return row is not None and row["id"] == layer

    assert eventually(look)


def test_a_new_version_costs_what_changed(mesh: LocalMesh, big_tree: Path, tmp_path: Path) -> None:
    one, two = mesh.add("one"), mesh.add("two")
    one.json("layer", "add", str(big_tree), "--name", "big")
    two.json("layer", "pull", "big")
    new_bytes = edit(big_tree)
    added = one.json("layer", "add", str(big_tree), "--name", "big")
    knows_size(two, "big", added["id"])

    pulled = two.json("layer", "pull", "big")["bytes"]
    assert pulled["total"] - pulled["deduplicated"] > 10 * new_bytes
    assert pulled["transferred"] < 2 * new_bytes + 20_000
    two.must("layer", "checkout", "big", str(tmp_path / "copy"))
    assert differences(big_tree, tmp_path / "copy") == ""
    assert two.cli("store", "verify").returncode == 0


def test_so_it_does_where_only_the_puller_has_the_old_version(mesh: LocalMesh, big_tree: Path, tmp_path: Path) -> None:
    one, two = mesh.add("one"), mesh.add("two")
    two.json("layer", "add", str(big_tree), "--name", "big")
    new_bytes = edit(big_tree)
    assert eventually(lambda: layer_row(one, "big"))
    added = one.json("layer", "add", str(big_tree), "--name", "big", "--takeover")
    knows_size(two, "big", added["id"])

    pulled = two.json("layer", "pull", "big")["bytes"]
    missing = pulled["total"] - pulled["deduplicated"]
    assert missing > 10 * new_bytes
    assert pulled["transferred"] < 0.3 * missing
    two.must("layer", "checkout", "big", str(tmp_path / "copy"))
    assert differences(big_tree, tmp_path / "copy") == ""


def test_layers_without_a_name_in_common_are_related_by_their_sketches(mesh: LocalMesh, tmp_path: Path) -> None:
    one, two = mesh.add("one"), mesh.add("two")
    old = make_tree(tmp_path / "old", 24, seed=4)
    two.json("layer", "add", str(old), "--name", "mine")
    new = tmp_path / "new"
    shutil.copytree(old, new, symlinks=True)
    new_bytes = edit(new)
    added = one.json("layer", "add", str(new), "--name", "yours")
    knows_size(two, "yours", added["id"])
    pulled = two.json("layer", "pull", "yours")["bytes"]
    assert pulled["total"] - pulled["deduplicated"] > 10 * new_bytes
    assert pulled["transferred"] < 0.3 * (pulled["total"] - pulled["deduplicated"])


def test_an_unchanged_tree_costs_next_to_nothing(mesh: LocalMesh, big_tree: Path) -> None:
    one, two = mesh.add("one"), mesh.add("two")
    first = one.json("layer", "add", str(big_tree), "--name", "big")
    two.json("layer", "pull", "big")
    assert one.json("layer", "add", str(big_tree), "--name", "big")["id"] == first["id"]
    assert two.json("layer", "pull", "big")["bytes"]["transferred"] == 0


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="needs e2fsprogs")
def test_a_disk_image_is_a_layer(mesh: LocalMesh, tmp_path: Path) -> None:
    one, two = mesh.add("one"), mesh.add("two")
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    one.json("layer", "add", str(disk), "--name", "disk")
    assert eventually(lambda: layer_row(two, "disk"))
    two.must("layer", "checkout", "disk", str(tmp_path / "out"))
    copy = tmp_path / "out" / "disk"
    assert copy.read_bytes() == disk.read_bytes()
    assert os.stat(copy).st_blocks * 512 < 4 << 20
