"""Applications of a node over the process backend: kills of the node, and a whole hand-off between two nodes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from backends.registry import builtin
from chunkstore.digest import LayerId
from p2player.apps import AppEvent, Apps, AppStartFailed, AppState, AppSuspendFailed
from p2player.errors import Refused
from tests.support import apps as programs
from tests.support.apps import HEALTHY_AFTER_S, PYTHON, executing, toml

pytestmark = pytest.mark.real

BASE, APP = LayerId(b"b" * 32), LayerId(b"a" * 32)


@dataclass
class Site:
    """A STATE folder with layers, and nodes one after the other."""

    root: Path
    events: list[AppEvent] = field(default_factory=list)

    def node(self, healthy_after_s: float = HEALTHY_AFTER_S) -> Apps:
        async def checkout(layer: LayerId) -> Path:
            folder = self.root / layer.hex()
            await trio.Path(folder).mkdir(exist_ok=True)
            return folder

        backends = builtin(healthy_after_s=healthy_after_s)
        return Apps(self.root / "apps", backends, checkout, self.events.append, watch_interval_s=0.02)

    def install(self, program: str, **values: object) -> str:
        """Put `program` into the app layer; gives the configuration that runs it."""
        folder = self.root / APP.hex()
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "main.py").write_text(program)
        return toml(command=[*PYTHON, "{app}/main.py"], **values)  # type: ignore[arg-type]

    def pid(self, app_id: str) -> int:
        return int(self._live(app_id)["app"][0])

    def supervisor(self, app_id: str) -> int:
        return int(self._live(app_id)["shim"][0])

    def _live(self, app_id: str) -> Any:
        return json.loads((self.root / "apps" / app_id / "run" / "live").read_text())

    def told(self, verb: str) -> bool:
        return any(event.type == f"app.{verb}" for event in self.events)


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Callable[[str], Site]]:
    made: list[Site] = []

    def make(name: str) -> Site:
        (tmp_path / name).mkdir()
        made.append(Site(tmp_path / name))
        return made[-1]

    with programs.adopting_orphans():
        yield make
        for site in made:
            node = site.node()
            for record in node.records() + node.staged():
                await node.discard(record.id)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


async def test_a_hand_off_keeps_the_state(sites: Callable[[str], Site]) -> None:
    here, there = sites("here"), sites("there")
    moved_to = ["sh", "-c", "echo moved to $P2P_ADDRESSES"]
    config = here.install(programs.COUNTER, addresses=["10.0.0.7"], hooks={"after_restore": moved_to})
    there.install(programs.COUNTER)
    source, destination = here.node(), there.node()
    app = await source.create("counter", "process", BASE, APP, config)
    await source.start(app.id)
    await until(lambda: b"ready" in (here.root / "apps" / app.id / "log").read_bytes())

    await source.set_state(app.id, AppState.MIGRATING)
    place = await destination.stage(source.record(app.id))
    suspended = await source.suspend(app.id)
    shutil.copytree(source.state_path(app.id), place, dirs_exist_ok=True)
    await source.set_state(app.id, AppState.IN_DOUBT)
    started = await destination.restore(app.id, 2)
    assert await destination.run_after_restore(app.id) is None
    await source.discard(app.id)

    assert suspended.at.monotonic_s < started.at.monotonic_s
    assert source.records() == []
    assert [(r.state, r.epoch) for r in destination.records()] == [(AppState.RUNNING, 2)]
    await until(lambda: b"ready" in (there.root / "apps" / app.id / "log").read_bytes())
    log = (await destination.logs(app.id, 4096)).decode()
    assert "moved to 10.0.0.7\n" in log
    count = next(int(line.split()[1]) for line in log.splitlines() if line.startswith("ready"))
    assert count > 0


async def test_a_failing_after_restore_hook_is_a_warning(sites: Callable[[str], Site]) -> None:
    site = sites("here")
    config = site.install(programs.COUNTER, hooks={"after_restore": ["false"]})
    node = site.node()
    app = await node.create("counter", "process", BASE, APP, config)
    assert await node.run_after_restore(app.id) == "hook after_restore: exit code 1"
    assert site.events[-1].type == "app.warning"


async def test_an_unclean_suspend_runs_on_here(sites: Callable[[str], Site]) -> None:
    site = sites("here")
    announce = {"before_suspend": ["touch", "drained"], "after_restore": ["rm", "drained"]}
    node = site.node()
    app = await node.create("bad", "process", BASE, APP, site.install(programs.EXITS_3, hooks=announce))
    await node.start(app.id)
    await until(lambda: b"ready" in (site.root / "apps" / app.id / "log").read_bytes())
    with pytest.raises(AppSuspendFailed, match="exit code 3") as caught:
        await node.suspend(app.id)
    assert caught.value.running
    assert node.record(app.id).state is AppState.RUNNING
    assert list(node.state_path(app.id).iterdir()) == []


async def test_the_watch_sees_a_real_end(sites: Callable[[str], Site]) -> None:
    site = sites("here")
    node = site.node()
    app = await node.create("short", "process", BASE, APP, site.install(programs.DIES_LATER))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.watch)
        await node.start(app.id)
        await until(lambda: site.told("failed"))
        nursery.cancel_scope.cancel()
    assert node.record(app.id).reason == "ended by itself: exit code 7"


async def test_a_killed_supervisor_is_replaced(sites: Callable[[str], Site]) -> None:
    site = sites("here")
    node = site.node()
    app = await node.create("counter", "process", BASE, APP, site.install(programs.COUNTER))
    await node.start(app.id)
    first = site.pid(app.id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.watch)
        os.kill(site.supervisor(app.id), 9)
        await until(lambda: site.told("restarted"))
        nursery.cancel_scope.cancel()
    assert not executing(first)
    assert executing(site.pid(app.id))


async def test_engines_that_are_not_there_are_refused(sites: Callable[[str], Site]) -> None:
    site = sites("here")
    node = site.node()
    probes = await node.engines.probes()
    assert [probe.name for probe in probes] == ["process", "runc", "lxd", "libvirt"]
    assert probes[0].available
    for probe in probes:
        if not probe.available:
            with pytest.raises(Refused) as refused:
                await node.create("x", probe.name, BASE, APP, "")
            assert refused.value.message == f"backend {probe.name} cannot be used here: {probe.reason}"


async def test_a_start_that_fails_shows_the_output(sites: Callable[[str], Site]) -> None:
    site = sites("here")
    node = site.node(programs.SURELY_UNHEALTHY_AFTER_S)
    app = await node.create("short", "process", BASE, APP, site.install(programs.DIES_YOUNG))
    with pytest.raises(AppStartFailed, match="exit code 4; last output: cannot open the database"):
        await node.start(app.id)
    assert node.record(app.id).state is AppState.FAILED


NODE = """
import sys
from pathlib import Path
import trio
from tests.real.test_apps_process import APP, BASE, Site, programs

async def main():
    site = Site(Path(sys.argv[1]))
    node = site.node()
    app = await node.create("app", "process", BASE, APP, site.install(getattr(programs, sys.argv[2])))
    await node.start(app.id)
    print(app.id, flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


async def killed_node(site: Site, program: str) -> str:
    """Start an application from another node, kill that node with SIGKILL; gives the application's id."""
    command = [sys.executable, "-c", NODE, str(site.root), program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as node:
        assert node.stdout is not None
        app_id = node.stdout.readline().decode().strip()
        node.kill()
    return app_id


async def test_applications_survive_a_kill_of_the_node(sites: Callable[[str], Site]) -> None:
    site = sites("here")
    app_id = await killed_node(site, "COUNTER")
    pid = site.pid(app_id)
    assert executing(pid)
    node = site.node()
    await node.adopt_all()
    assert site.told("adopted")
    assert node.record(app_id).state is AppState.RUNNING
    await node.stop(app_id)
    assert not executing(pid)


async def test_an_end_while_the_node_was_away_is_a_failure_with_its_code(sites: Callable[[str], Site]) -> None:
    site = sites("here")
    app_id = await killed_node(site, "DIES_LATER")
    supervisor = site.supervisor(app_id)
    await until(lambda: not executing(supervisor))
    node = site.node()
    await node.adopt_all()
    assert (node.record(app_id).state, site.events[-1].exit_code) == (AppState.FAILED, 7)


async def test_after_a_restart_of_the_machine_it_runs_again(sites: Callable[[str], Site]) -> None:
    site = sites("here")
    node = site.node()
    app = await node.create("counter", "process", BASE, APP, site.install(programs.COUNTER))
    await node.start(app.id)
    first = site.pid(app.id)
    live = site.root / "apps" / app.id / "run" / "live"
    document = json.loads(live.read_text())
    os.kill(document["shim"][0], 9)
    live.write_text(json.dumps({**document, "boot": "the one before"}))
    await until(lambda: not executing(first))

    node = site.node()
    await node.adopt_all()
    assert (site.events[-1].type, site.events[-1].message) == ("app.restarted", "the machine restarted")
    assert executing(site.pid(app.id))
