"""What a node tells of itself: every change in good time, and never at the price of the node."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from chunkstore.errors import StoreError
from chunkstore.store import ChunkStore
from gossip.inventory import AppRow
from gossip.sketch import DEFAULT_K, sketch
from p2player.log import Log
from p2player.presence import GATHER_S, REFRESH_S, RETRY_S, Presence
from tests.support import ledgers
from tests.support.content import add_each, make_chunks, put_layer

APP = AppRow("ab" * 16, "shop", "process", "running", 1, ledgers.layer(1), ledgers.layer(2), ("10.0.0.7:80",))


@dataclass
class Site:
    """A presence with its ledger, and what it said."""

    store: ChunkStore
    folder: Path
    apps: tuple[AppRow, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    said: io.StringIO = field(default_factory=io.StringIO)
    announced: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = ledgers.ledger(1)
        self.presence = Presence(
            self.ledger,
            self.store,
            self.folder,
            lambda: self.apps,
            self.labels,
            lambda: self.announced.append(trio.current_time()),
            Log(stream=self.said),
        )

    def told(self) -> tuple[AppRow, ...]:
        return self.ledger.inventories()[self.ledger.node].apps


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mocked clock jumps ahead while a thread works: here the work is done on the spot."""

    async def on_the_spot(work: Callable[[], object]) -> object:
        await trio.lowlevel.checkpoint()
        return work()

    monkeypatch.setattr(trio.to_thread, "run_sync", on_the_spot)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChunkStore]:
    opened = ChunkStore.open(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def site(store: ChunkStore, tmp_path: Path) -> Site:
    return Site(store, tmp_path)


async def test_one_bad_text_costs_itself_and_is_logged_once(site: Site) -> None:
    site.labels.update({"rack": "r7", "note": "x" * 200})
    site.apps = (APP, AppRow("cd" * 16, "na\nme", "process", "running", 1, ledgers.layer(1), ledgers.layer(2)))
    await site.presence.publish()
    assert site.told() == (APP,)
    assert site.ledger.inventories()[site.ledger.node].labels == {"rack": "r7"}
    await site.presence.publish()
    assert site.said.getvalue().count("label 'note'") == 1


async def test_an_app_with_too_many_addresses_is_told_with_some(site: Site) -> None:
    many = tuple(f"10.0.0.{n}:80" for n in range(40))
    site.apps = (AppRow("ab" * 16, "shop", "process", "running", 1, ledgers.layer(1), ledgers.layer(2), many),)
    await site.presence.publish()
    assert site.told()[0].addresses == many[:32]


async def test_a_change_right_after_a_publishing_is_told_soon(site: Site, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.presence.run)
        await trio.sleep(1)
        # The runner waits by now; publishing by hand must not take its wake-up away.
        await site.presence.publish()
        site.apps = (APP,)
        site.presence.changed()
        await trio.sleep(2 * GATHER_S)
        assert site.told() == (APP,)
        nursery.cancel_scope.cancel()


async def test_a_change_during_a_publishing_is_told_soon(
    site: Site, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = site.ledger.publish_inventory

    def change_then(**values: object) -> bool:
        told = publish(**values)  # type: ignore[arg-type]
        if not site.apps:
            site.apps = (APP,)
            site.presence.changed()
        return told

    monkeypatch.setattr(site.ledger, "publish_inventory", change_then)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.presence.run)
        await trio.sleep(1)
        assert site.told() == (APP,)
        nursery.cancel_scope.cancel()


async def test_a_store_that_fails_is_asked_again(
    site: Site, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: Callable[[], object] = site.store.layers

    def broken() -> object:
        raise StoreError("the index is on fire")

    monkeypatch.setattr(site.store, "layers", broken)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.presence.run)
        await trio.sleep(1)
        assert "on fire" in site.said.getvalue()
        assert site.announced == []
        monkeypatch.setattr(site.store, "layers", layers)
        await trio.sleep(RETRY_S + 1)
        assert len(site.announced) == 1
        nursery.cancel_scope.cancel()


async def test_without_a_change_it_looks_now_and_then(site: Site, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.presence.run)
        await trio.sleep(1)
        site.apps = (APP,)
        await trio.sleep(REFRESH_S / 2)
        await wait_all_tasks_blocked()
        assert site.told() == ()
        await trio.sleep(REFRESH_S)
        assert site.told() == (APP,)
        nursery.cancel_scope.cancel()


async def test_a_sketch_of_all_chunks_is_told(site: Site) -> None:
    await site.presence.publish()
    assert site.ledger.inventories()[site.ledger.node].sketch == b""
    chunks = make_chunks(1, 2 * DEFAULT_K, 100)
    add_each(site.store, chunks, 8)
    put_layer(site.store, chunks)
    await site.presence.publish()
    told = site.ledger.inventories()[site.ledger.node].sketch
    manifests = [chunk for record in site.store.layers() for chunk in record.manifest_chunks]
    assert told == sketch([*(name for name, _ in chunks), *manifests])
