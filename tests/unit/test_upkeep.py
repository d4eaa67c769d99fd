"""When the store is collected by itself, what that spares, and that it is not tried again in vain."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from chunkstore.digest import LayerId
from p2player.operations import Operation
from p2player.upkeep import LAYER_RECENT_S, PAUSE_S, Round, is_due
from tests.support.content import Clock, add_each, make_chunks, put_layer
from tests.support.layerroom import Room, room

CHUNKS = make_chunks(9, 16, 2000)


@pytest.mark.parametrize(
    ("used", "last", "now", "due"),
    [
        (0.5, None, 0.0, False),
        (0.9, None, 0.0, False),
        (0.91, None, 0.0, True),
        (0.91, Round(0.0, 0.8), 1.0, True),
        (0.91, Round(0.0, 0.91), 1.0, False),
        (0.99, Round(0.0, 0.91), PAUSE_S - 1, False),
        (0.91, Round(0.0, 0.91), PAUSE_S, True),
        (0.5, Round(0.0, 0.91), PAUSE_S, False),
    ],
)
def test_it_is_due_above_the_watermark_unless_it_was_just_in_vain(
    used: float, last: Round | None, now: float, due: bool
) -> None:
    assert is_due(used, 0.9, last, now) is due


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def here(tmp_path: Path, clock: Clock) -> Iterator[Room]:
    with room(tmp_path, clock) as opened:
        yield opened


async def looked_at(here: Room) -> set[LayerId]:
    """Run the upkeep until it has looked at the disk and done what follows; what is held then."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.upkeep.run)
        await until(here.waiting)
        nursery.cancel_scope.cancel()
    return {record.id for record in here.store.layers() if record.held}


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.005)


def four_layers(here: Room, clock: Clock) -> list[LayerId]:
    add_each(here.store, CHUNKS, 4)
    layers = []
    for at in range(4):
        clock.now += 1
        layers.append(put_layer(here.store, CHUNKS[4 * at : 4 * at + 4], tag=str(at)))
    clock.now += 2 * LAYER_RECENT_S
    return layers


async def test_below_the_watermark_nothing_happens(here: Room, clock: Clock) -> None:
    layers = four_layers(here, clock)
    here.others_bytes = 100_000
    assert await looked_at(here) == set(layers)
    assert "collect" not in here.asked.asked


async def test_a_full_disk_makes_old_layers_go_but_none_that_is_needed(here: Room, clock: Clock) -> None:
    used, named, coming, old = four_layers(here, clock)
    here.in_use = {used}
    here.ledger.bind("named", named, kind="app", size=1, chunks=4, now=clock.now)
    here.nobody.on_the_way = {coming}
    here.others_bytes = 950_000
    assert await looked_at(here) == {used, named, coming}
    assert here.store.layer(old) is None
    assert here.nobody.published == 1


async def test_what_was_used_a_moment_ago_stays(here: Room, clock: Clock) -> None:
    layers = four_layers(here, clock)
    here.store.touch(layers[0])
    here.others_bytes = 950_000
    assert await looked_at(here) == {layers[0]}


async def test_a_pull_is_a_reason_to_look(here: Room, clock: Clock) -> None:
    layers = four_layers(here, clock)
    here.others_bytes = 100_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.upkeep.run)
        await until(here.waiting)
        here.others_bytes = 950_000
        await here.layers.fetch(layers[3])
        await until(lambda: "collect" in here.asked.asked)
        nursery.cancel_scope.cancel()


async def test_a_disk_that_fails_does_not_stop_the_node(
    here: Room, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = four_layers(here, clock)
    here.others_bytes = 950_000

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(here.store, "collect", fail)
    assert await looked_at(here) == set(layers)
    assert here.asked.asked.count("collect") == 1


async def test_no_tree_goes_while_an_app_cannot_be_read(here: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[float] = []

    async def sweep(idle_s: float) -> int:
        swept.append(idle_s)
        return 1

    monkeypatch.setattr(here.layers, "sweep_trees", sweep)
    monkeypatch.setattr(here.upkeep, "_may_sweep", lambda: False)
    assert (await here.upkeep.collect(Operation("gc")))["trees"] == 0
    assert swept == []
    monkeypatch.setattr(here.upkeep, "_may_sweep", lambda: True)
    assert (await here.upkeep.collect(Operation("gc")))["trees"] == 1
