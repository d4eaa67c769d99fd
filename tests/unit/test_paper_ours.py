"""What an application is taken to have dirtied between two migrations of the bench."""

import os
from pathlib import Path

import pytest

from bench.paper.ours import dirtied, written_since


def test_pages_that_were_written_twice_before_the_return_count_once() -> None:
    assert dirtied(1e6, 10, 0, 100e6) == pytest.approx(10e6, rel=0.06)
    assert dirtied(1e6, 1000, 0, 100e6) == pytest.approx(100e6, rel=0.001)
    assert dirtied(1e6, 1000, 30, 100e6) == pytest.approx(130e6, rel=0.001)
    assert dirtied(1e6, 1000, 30, 0) == 0


@pytest.mark.parametrize("root", ["upper", "upper/rootfs"])
def test_files_that_were_written_since(tmp_path: Path, root: str) -> None:
    state = tmp_path / "app" / "state"
    place = state / root / "var"
    place.mkdir(parents=True)
    for name, size, at in (("old", 10, 100.0), ("new", 1000, 300.0)):
        (place / name).write_bytes(bytes(size))
        os.utime(place / name, (at, at))
    (place / "link").symlink_to("new")
    (state / "images").mkdir()
    (state / "images" / "pages-1.img").write_bytes(bytes(5000))
    assert written_since(tmp_path, 200.0) == 1000
