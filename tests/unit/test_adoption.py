"""Instances of an engine become layers and apps; whatever happens, nothing is left of the way there."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from backends.base import Adopted, AppLayout, Probe
from backends.errors import BackendError
from chunkstore.manifest import load
from p2player import listing
from p2player.adoption import Adoption
from p2player.apps import Apps
from p2player.directory import Directory
from p2player.errors import Failed, NotFound, Refused, Usage
from p2player.log import Log
from p2player.operations import Operation
from tests.support.content import Clock
from tests.support.layerroom import Room, room
from tests.support.migrationmesh import CounterEngine, World


class Engine(CounterEngine):
    """Has one instance, `c1`, made of two files."""

    def __init__(self, name: str) -> None:
        super().__init__("here", World())
        self.name = name
        self.into: list[Path] = []
        self.given: list[Path | None] = []
        self.during: Callable[[Path], object] = lambda _into: None

    def adopt(self, source: str, into: Path, base: Path | None) -> Adopted:
        assert into.is_dir() and not list(into.iterdir())
        self.into.append(into)
        self.given.append(base)
        (into / "app").mkdir(mode=0o500)
        if base is None:
            (into / "base").mkdir()
            (into / "base/os").write_text("debian")
        os.chmod(into / "app", 0o700)
        (into / "app/game").write_text("chess")
        os.chmod(into / "app", 0o500)
        self.during(into)
        if source != "c1":
            raise BackendError(f"there is no {source}")
        return Adopted(None if base else into / "base", into / "app", 'command = ["found"]\n')


class Site:
    def __init__(self, here: Room, folder: Path) -> None:
        self.room = here
        self.engine, self.plain = Engine("boxes"), CounterEngine("here", World())
        backends = {"boxes": cast(Any, self.engine), "counter": cast(Any, self.plain)}
        self.apps = Apps(folder / "apps", backends, here.layers.tree, lambda _event: None)
        nobody = cast(Any, here.nobody)
        self.directory = Directory(self.apps, here.ledger, here.layers, nobody, nobody, nobody, cast(Any, None))
        self.folder = folder / "adopting"
        self.adoption = Adoption(self.apps, here.layers, self.directory, self.folder, Log(level="error"))
        self.operation = Operation("app.adopt")

    async def adopt(self, name: str = "shop", **wish: Any) -> dict[str, Any]:
        asked = {"backend": "boxes", "instance": "c1", "base": None, "layer_name": None, "config": None, **wish}
        return await self.adoption.adopt(name, operation=self.operation, **asked)

    def paths(self, layer: str) -> list[bytes]:
        store = self.room.store
        (record,) = store.find_layers(layer)
        return [entry.path for entry in load(store, record.manifest_chunks, record.id).entries]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with room(tmp_path, Clock()) as here:
        yield Site(here, tmp_path)


async def test_an_instance_becomes_two_layers_and_an_app(site: Site) -> None:
    row = await site.adopt()
    assert (row["name"], row["backend"], row["state"]) == ("shop", "boxes", "stopped")
    assert site.paths(row["base"]) == [b"", b"os"]
    assert site.paths(row["app"]) == [b"", b"game"]
    assert site.apps.record(row["id"]).config == 'command = ["found"]\n'
    names = {e.name: (e.kind, e.layer.hex()) for e in site.room.ledger.catalog().values()}
    assert names == {"shop-base": ("base", row["base"]), "shop": ("app", row["app"])}
    assert site.engine.given == [None]
    assert list(site.folder.iterdir()) == []
    assert site.adoption.layers_in_use() == set()


async def test_a_given_base_name_and_configuration_win(site: Site, tmp_path: Path) -> None:
    (tmp_path / "os").mkdir()
    (tmp_path / "os/os").write_text("debian")
    base = await site.room.layers.add(tmp_path / "os", "debian", "base", operation=site.operation)
    seen: list[Any] = []
    site.engine.during = lambda _into: seen.append(site.adoption.layers_in_use())
    row = await site.adopt(base="debian", layer_name="shop-7", config='command = ["mine"]\n')
    assert row["base"] == base["id"]
    assert site.engine.given == [site.room.trees / base["id"]]
    assert seen == [{bytes.fromhex(base["id"])}]
    assert site.apps.record(row["id"]).config == 'command = ["mine"]\n'
    assert {e.name for e in site.room.ledger.catalog().values()} == {"debian", "shop-7"}


@pytest.mark.parametrize(
    ("name", "wish", "kind", "words"),
    [
        ("shop", {"backend": "counter"}, Refused, "nothing to adopt: backend counter"),
        ("shop", {"backend": "docker"}, Usage, "unknown backend"),
        ("..", {}, Usage, "name"),
        ("shop", {"config": "x = 1"}, Usage, "unknown key"),
    ],
)
async def test_what_cannot_work_is_refused_before_anything_is_read(
    site: Site, name: str, wish: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await site.adopt(name, **wish)
    assert site.engine.into == []
    assert not site.folder.exists()


async def test_a_base_that_the_mesh_does_not_have(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "ASK_PEERS_S", 0.01)
    monkeypatch.setattr(listing, "ASK_AGAIN_S", 0.01)
    with pytest.raises(NotFound, match="nothing"):
        await site.adopt(base="nothing")
    assert site.engine.into == []


async def test_names_and_engines_are_looked_at_first(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await site.adopt()
    with pytest.raises(Refused, match="an app shop exists already"):
        await site.adopt()
    site.engine.available = False
    with pytest.raises(Refused, match="backend boxes cannot be used here: not today"):
        await site.adopt("other")
    assert len(site.engine.into) == 1
    monkeypatch.setattr(site.engine, "probe", lambda: Probe("boxes", True, "1"))
    monkeypatch.setattr(site.room.layers, "check_owner", _refuse)
    with pytest.raises(Refused, match="not yours: other"):
        await site.adopt("other")


def _refuse(name: str) -> None:
    raise Refused(f"not yours: {name}")


def no_space(_into: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_nothing_is_left_of_one_that_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Failed, match="there is no c2"):
        await site.adopt(instance="c2")
    site.engine.during = no_space
    with pytest.raises(Refused, match="disk full"):
        await site.adopt()
    site.engine.during = lambda _into: None

    def unable(_layout: AppLayout) -> None:
        raise BackendError("no such bridge")

    monkeypatch.setattr(site.engine, "create", unable)
    with pytest.raises(Failed, match="no such bridge"):
        await site.adopt()
    assert len(site.engine.into) == 3
    assert list(site.folder.iterdir()) == []
    assert site.apps.records() == []


async def test_one_that_is_called_off_leaves_nothing(site: Site) -> None:
    with trio.CancelScope() as scope:
        site.engine.during = lambda _into: trio.from_thread.run_sync(scope.cancel)
        await site.adopt()
    assert scope.cancelled_caught
    assert list(site.folder.iterdir()) == []
    assert site.apps.records() == []


async def test_what_a_killed_node_left_is_removed(site: Site) -> None:
    await site.adoption.tidy()
    (site.folder / "old/deep").mkdir(parents=True)
    (site.folder / "old/deep/file").write_text("x")
    (site.folder / "stray").write_text("x")
    await site.adoption.tidy()
    assert [path.name for path in site.folder.iterdir()] == ["stray"]


async def test_nothing_is_deleted_through_a_mount(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    left = site.folder / "an old one"
    (left / "merged").mkdir(parents=True)
    (left / "merged/precious").write_text("x")
    target = os.fsencode(left / "merged").replace(b" ", b"\\040")
    real = Path.read_bytes

    def read(path: Path) -> bytes:
        if str(path) == "/proc/self/mountinfo":
            return real(path) + b"99 1 0:50 / " + target + b" rw shared:1 - overlay overlay rw\n"
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    await site.adoption.tidy()
    assert (left / "merged/precious").read_text() == "x"
