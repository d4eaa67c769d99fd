"""Shared trees: made once, removed when nobody needs them, never while somebody may."""

import os
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from chunkstore.digest import LayerId
from p2player.log import Log
from p2player.trees import Trees, erase
from tests.support.content import Clock

A, B = (LayerId(letter * 32) for letter in (b"\xaa", b"\xbb"))
IDLE_S = 600.0


class Maker:
    """Makes a tree of a file and a folder that may not be written to; waits for `go`, if there is one."""

    def __init__(self) -> None:
        self.made: list[LayerId] = []
        self.go: trio.Event | None = None

    async def __call__(self, layer: LayerId, path: Path) -> None:
        if self.go is not None:
            await self.go.wait()
        (path / "shut/in").mkdir(parents=True)
        (path / "shut/in/file").write_bytes(layer)
        os.symlink("/", path / "shut/out")
        (path / "shut").chmod(0o500)
        (path / "shut/in").chmod(0)
        self.made.append(layer)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def trees(tmp_path: Path, maker: Maker, clock: Clock) -> Trees:
    return Trees(tmp_path / "checkouts", maker, Log(level="error"), clock=lambda: clock.now)


async def test_a_tree_is_made_once(trees: Trees, maker: Maker) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trees.tree, A)
        nursery.start_soon(trees.tree, A)
    assert (await trees.tree(A)).is_dir()
    assert maker.made == [A]


async def test_what_nobody_uses_or_asks_for_is_removed(
    trees: Trees, maker: Maker, clock: Clock, tmp_path: Path
) -> None:
    used, unused = await trees.tree(A), await trees.tree(B)
    clock.now += IDLE_S - 1
    assert await trees.sweep(lambda: {A}, IDLE_S) == []
    clock.now += 1
    assert await trees.sweep(lambda: {A}, IDLE_S) == [B]
    assert used.is_dir() and not unused.exists()
    assert os.listdir(tmp_path / "checkouts") == [A.hex()]
    assert (await trees.tree(B)).is_dir() and maker.made == [A, B, B]


async def test_asking_again_keeps_a_tree(trees: Trees, clock: Clock) -> None:
    path = await trees.tree(A)
    clock.now += IDLE_S
    await trees.tree(A)
    assert await trees.sweep(set, IDLE_S) == []
    assert path.is_dir()


async def test_trees_of_an_earlier_run_get_their_time(maker: Maker, trees: Trees, clock: Clock, tmp_path: Path) -> None:
    await trees.tree(A)
    clock.now += 2 * IDLE_S
    again = Trees(tmp_path / "checkouts", maker, Log(), clock=lambda: clock.now)
    assert await again.sweep(set, IDLE_S) == []
    clock.now += IDLE_S
    assert await again.sweep(set, IDLE_S) == [A]


async def test_a_tree_that_is_being_made_is_left_alone(
    trees: Trees, maker: Maker, clock: Clock, tmp_path: Path
) -> None:
    maker.go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trees.tree, A)
        await wait_all_tasks_blocked(0.01)
        (tmp_path / "checkouts" / f".{A.hex()}.p2player-partial").mkdir(parents=True)
        clock.now += 2 * IDLE_S
        assert await trees.sweep(set, IDLE_S) == []
        maker.go.set()
    assert await trees.sweep(set, IDLE_S) == []


async def test_what_was_interrupted_is_cleared_away_and_strangers_stay(
    trees: Trees, clock: Clock, tmp_path: Path
) -> None:
    folder = tmp_path / "checkouts"
    for name in (f".{A.hex()}.p2player-partial", f".gone-{B.hex()}", "notes", f"{A.hex()}x", A.hex().upper()):
        (folder / name / "tree").mkdir(parents=True)
    clock.now += IDLE_S
    assert await trees.sweep(set, IDLE_S) == [A]
    assert sorted(os.listdir(folder)) == sorted(["notes", f"{A.hex()}x", A.hex().upper()])


async def test_no_folder_means_nothing_to_sweep(trees: Trees) -> None:
    assert await trees.sweep(set, 0.0) == []


def test_the_deepest_tree_can_be_erased(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(2040):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", top / "link")
    erase(top)
    assert os.listdir(tmp_path) == ["outside"]
