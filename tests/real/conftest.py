"""Meshes of real node processes, and the place of engines, for the tests of this folder."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2player.localmesh import LocalMesh
from tests.support.contract import leftovers

pytestmark = pytest.mark.real


@pytest.fixture(scope="session")
def engine_home() -> Iterator[Path]:
    """Below it lies all that tests of engines make; at the end nothing of it may be left."""
    with leftovers.home() as folder:
        yield folder


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[LocalMesh]:
    """An empty mesh; its nodes and apps end with the test."""
    root = tmp_path / "mesh"
    root.mkdir()
    with LocalMesh(root, name="test") as made:
        yield made


@pytest.fixture
def big_tree(tmp_path: Path) -> Path:
    """24 MiB that do not compress, in 24 files, and some odd ones."""
    return make_tree(tmp_path / "big", 24, seed=1)


def make_tree(root: Path, megabytes: int, seed: int) -> Path:
    """A folder of files of 1 MiB each, the same for the same seed, with a few special cases beside them."""
    source = random.Random(seed)
    root.mkdir()
    for number in range(megabytes):
        (root / f"file-{number:03}").write_bytes(source.randbytes(1 << 20))
    (root / "empty").touch()
    (root / "folder").mkdir()
    (root / "folder" / "link").symlink_to("../file-000")
    (root / "sparse").write_bytes(b"head" + bytes(1 << 20) + b"tail")
    (root / "hard").hardlink_to(root / "file-000")
    (root / "read-only").write_text("x")
    (root / "read-only").chmod(0o400)
    return root
