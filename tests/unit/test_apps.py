"""Applications of a node over an engine that lives in memory, and so outlives the node like a real one."""

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from backends.base import (
    AppLayout,
    Capabilities,
    Checkpoint,
    EngineState,
    Exit,
    Moment,
    Probe,
    Started,
    Status,
    Workspace,
)
from backends.errors import (
    AlreadyRunning,
    BackendError,
    ConfigError,
    NotRunning,
    StartFailed,
    StopFailed,
    SuspendFailed,
)
from chunkstore.digest import LayerId
from p2player import appstate
from p2player.apprecord import AppRecord, AppShelf, BadRecord, check_name, unique
from p2player.apps import AppEvent, AppNotSaved, Apps, AppStartFailed, AppState, AppSuspendFailed
from p2player.errors import Failed, NotFound, Refused, Unreachable, Usage

BASE, APP = LayerId(b"b" * 32), LayerId(b"a" * 32)
CONFIG = 'command = ["run"]\naddresses = ["10.0.0.7"]\n'
SLOW_S = 5.0
CAPABILITIES = Capabilities(live=False, cooperative=True, leave_running=True, root=False)


@dataclass
class FakeEngine:
    """An engine whose state a test sets and reads; `fail_next` is raised by the next call of that name."""

    name: str = "fake"
    capabilities: Capabilities = CAPABILITIES
    available: bool = True
    states: dict[str, Status] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    fail_next: dict[str, Exception] = field(default_factory=dict)
    hold: threading.Event | None = None
    hold_status: threading.Event | None = None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.hold is not None:
            assert self.hold.wait(SLOW_S)
        if name in self.fail_next:
            raise self.fail_next.pop(name)

    def probe(self) -> Probe:
        return Probe(self.name, self.available, "1", None if self.available else "not today")

    def create(self, layout: AppLayout) -> None:
        layout.state_dir.mkdir(parents=True, exist_ok=True)
        self._call("create")

    def _begin(self, layout: Workspace) -> Started:
        if self.status(layout).state is EngineState.RUNNING:
            raise AlreadyRunning("it runs")
        started = Started(7, Moment.now())
        self.states[layout.app_id] = Status(EngineState.RUNNING, 7, started.at)
        return started

    def start(self, layout: AppLayout) -> Started:
        self._call("start")
        return self._begin(layout)

    def restore(self, layout: AppLayout) -> Started:
        self._call("restore")
        return self._begin(layout)

    def resume(self, layout: AppLayout) -> Started:
        self._call("resume")
        status = self.status(layout)
        if status.state is EngineState.RUNNING:
            assert status.started is not None
            return Started(7, status.started)
        return self._begin(layout)

    def stop(self, workspace: Workspace) -> None:
        self._call("stop")
        if self.status(workspace).executing:
            self.states[workspace.app_id] = Status(EngineState.EXITED, exit=Exit(0, None, asked=True))

    def checkpoint(self, layout: AppLayout, *, leave_running: bool) -> Checkpoint:
        self._call("checkpoint")
        if self.status(layout).state is not EngineState.RUNNING:
            raise NotRunning("it does not run")
        return Checkpoint(Moment.now())

    def obstacles(self, layout: AppLayout) -> Sequence[str]:
        return ("a device",)

    def facts(self, layout: AppLayout) -> Mapping[str, str]:
        return {"cpu": "old"}

    def mismatches(self, facts: Mapping[str, str]) -> Sequence[str]:
        return [f"not {value}" for value in facts.values()]

    def suspend(self, layout: AppLayout, *, memory: bool = True) -> Checkpoint:
        self._call("suspend")
        self.states[layout.app_id] = Status(EngineState.SUSPENDED)
        return Checkpoint(Moment.now())

    def destroy(self, workspace: Workspace) -> None:
        self._call("destroy")
        self.states.pop(workspace.app_id, None)

    def logs(self, workspace: Workspace, max_bytes: int) -> bytes:
        return b"what it said"[-max_bytes:]

    def status(self, workspace: Workspace) -> Status:
        if self.hold_status is not None:
            assert self.hold_status.wait(SLOW_S)
        if "status" in self.fail_next:
            raise self.fail_next["status"]
        return self.states.get(workspace.app_id, Status(EngineState.ABSENT))

    def becomes(self, app_id: str, state: EngineState, exit: Exit | None = None, **values: Any) -> None:
        self.states[app_id] = Status(state, exit=exit, **values)


@dataclass
class Site:
    """One STATE folder, its engine, and nodes one after the other."""

    root: Path
    engine: FakeEngine = field(default_factory=FakeEngine)
    events: list[AppEvent] = field(default_factory=list)
    missing: set[LayerId] = field(default_factory=set)

    def node(self, **options: float) -> Apps:
        return Apps(self.root / "apps", {"fake": self.engine}, self.checkout, self.events.append, **options)

    async def checkout(self, layer: LayerId) -> Path:
        await trio.lowlevel.checkpoint()
        if layer in self.missing:
            raise Unreachable("nobody has that layer")
        return self.root / layer.hex()

    def on_disk(self, app_id: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.root / "apps" / app_id / "record.json").read_text())
        return document

    @property
    def told(self) -> list[str]:
        return [event.type.removeprefix("app.") for event in self.events]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def create(apps: Apps, name: str = "shop") -> str:
    return (await apps.create(name, "fake", BASE, APP, CONFIG)).id


def record(state: AppState = AppState.STOPPED, **values: Any) -> AppRecord:
    fields = {
        "id": "0123456789abcdef" * 2,
        "name": "shop",
        "backend": "fake",
        "base": BASE,
        "app": APP,
        "config": CONFIG,
        "addresses": ("10.0.0.7",),
        "epoch": 3,
        "state": state,
        "created_s": 12.5,
    }
    return AppRecord(**{**fields, **values})


# Users


async def test_create_is_durable_and_listed(site: Site) -> None:
    apps = site.node()
    made = await apps.create("shop", "fake", BASE, APP, CONFIG)
    assert (made.epoch, made.state, made.addresses) == (1, AppState.STOPPED, ("10.0.0.7",))
    assert apps.records() == [made] == site.node().records()
    assert apps.layers_in_use() == {BASE, APP}
    assert apps.state_path(made.id).is_dir()
    assert site.told == ["created"]


async def test_names_are_checked_and_unique(site: Site) -> None:
    apps = site.node()
    await create(apps, "shop")
    with pytest.raises(Refused, match="the name shop is taken"):
        await create(apps, "shop")
    for bad in ("", "-x", "a b", "a/b", "..", "x" * 64, "é"):
        with pytest.raises(Usage, match="bad name"):
            await create(apps, bad)
    assert len(apps.records()) == 1


async def test_of_two_creations_at_once_one_gets_the_name(site: Site) -> None:
    apps = site.node()
    outcomes: list[object] = []

    async def attempt() -> None:
        try:
            outcomes.append(await create(apps))
        except Refused as error:
            outcomes.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attempt)
        nursery.start_soon(attempt)
    assert sorted(isinstance(outcome, Refused) for outcome in outcomes) == [False, True]
    assert len(list((site.root / "apps").iterdir())) == 1


async def test_creation_is_refused_where_it_cannot_run(site: Site) -> None:
    apps = site.node()
    with pytest.raises(Usage, match="unknown backend 'docker'; known: fake"):
        await apps.create("shop", "docker", BASE, APP, CONFIG)
    with pytest.raises(Usage, match="configuration: comand: unknown key"):
        await apps.create("shop", "fake", BASE, APP, "comand = 1")
    site.engine.available = False
    with pytest.raises(Refused, match="fake cannot be used here: not today"):
        await create(apps)


async def test_a_failed_creation_leaves_nothing(site: Site) -> None:
    apps = site.node()
    site.engine.fail_next["create"] = ConfigError("command", "needed")
    with pytest.raises(Usage, match="configuration: command: needed"):
        await create(apps)
    site.missing.add(BASE)
    with pytest.raises(Unreachable):
        await create(apps)
    assert apps.records() == []
    assert list((site.root / "apps").iterdir()) == []


async def test_find_by_name_id_and_prefix(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps, "shop")
    assert {apps.find(text).id for text in ("shop", app_id, app_id[:8])} == {app_id}
    for text in ("sho", app_id[:7], "f" * 31, ""):
        with pytest.raises(NotFound):
            apps.find(text)


def test_a_prefix_of_several_is_refused_and_a_name_goes_first() -> None:
    twins = [record(id="ab" * 16, name="one"), record(id="ab" * 15 + "cd", name="abababab")]
    assert unique(twins, "abababab") is twins[1]
    with pytest.raises(Refused, match="ambiguous: one, abababab"):
        unique(twins, "ab" * 8)


async def test_start_and_stop(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    assert (await apps.start(app_id)).state is AppState.RUNNING
    assert site.on_disk(app_id)["state"] == "running"
    assert await apps.engine_running(app_id)
    with pytest.raises(Refused, match="cannot start shop: it is running"):
        await apps.start(app_id)
    with pytest.raises(Refused, match="cannot remove shop: it is running"):
        await apps.remove(app_id)
    assert (await apps.stop(app_id)).state is AppState.STOPPED
    assert not await apps.engine_running(app_id)
    with pytest.raises(Refused, match="cannot stop shop: it is stopped"):
        await apps.stop(app_id)
    assert await apps.logs(app_id, 4) == b"said"
    assert site.told == ["created", "started", "stopped"]


async def test_a_failed_start_is_written_down_and_may_be_repeated(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    site.engine.fail_next["start"] = StartFailed("ended at once", executed=True, exit=Exit(4, None), log_tail="no db")
    with pytest.raises(AppStartFailed, match="ended at once; last output: no db") as caught:
        await apps.start(app_id)
    assert caught.value.executed
    assert apps.record(app_id).state is AppState.FAILED
    assert site.node().record(app_id).reason == "ended at once; last output: no db"
    assert (site.events[-1].type, site.events[-1].exit_code) == ("app.failed", 4)
    assert (await apps.start(app_id)).reason == ""


async def test_memory_that_never_ran_again_is_not_thrown_away_by_a_start(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    site.engine.fail_next["start"] = StartFailed("no room", executed=True)
    with pytest.raises(AppStartFailed):
        await apps.start(app_id)
    site.engine.states[app_id] = Status(EngineState.SUSPENDED)
    site.engine.calls.clear()
    await apps.start(app_id)
    assert "resume" in site.engine.calls
    assert "start" not in site.engine.calls


async def test_without_its_layers_it_stays_stopped(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    site.missing.add(APP)
    with pytest.raises(Unreachable):
        await apps.start(app_id)
    assert apps.record(app_id).state is AppState.STOPPED
    assert "start" not in site.engine.calls


async def test_what_cannot_be_stopped_has_failed(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    await apps.start(app_id)
    site.engine.fail_next["stop"] = StopFailed("process 9 cannot be killed", (9,))
    with pytest.raises(Failed, match="process 9"):
        await apps.stop(app_id)
    assert apps.record(app_id).state is AppState.FAILED
    await apps.stop(app_id)
    assert apps.record(app_id).state is AppState.STOPPED


async def test_remove_deletes_all(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    await apps.remove(app_id)
    assert apps.records() == []
    assert list((site.root / "apps").iterdir()) == []
    with pytest.raises(NotFound):
        await apps.start(app_id)
    assert site.told == ["created", "removed"]


async def test_operations_of_one_application_wait_for_each_other(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    site.engine.hold = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(apps.start, app_id)
        await trio.testing.wait_all_tasks_blocked(0.02)
        nursery.start_soon(apps.stop, app_id)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert site.engine.calls == ["create", "start"]
        site.engine.hold.set()
    assert site.engine.calls == ["create", "start", "stop"]
    assert apps.record(app_id).state is AppState.STOPPED


async def test_whoever_waited_for_an_erased_application_is_told(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    site.engine.hold = threading.Event()

    async def start_in_vain() -> None:
        with pytest.raises(NotFound):
            await apps.start(app_id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(apps.remove, app_id)
        await trio.testing.wait_all_tasks_blocked(0.02)
        nursery.start_soon(start_in_vain)
        await trio.testing.wait_all_tasks_blocked(0.02)
        site.engine.hold.set()


async def test_a_cancelled_start_ends_its_step_and_is_consistent(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    site.engine.hold = threading.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(apps.start, app_id)
        await trio.testing.wait_all_tasks_blocked(0.02)
        nursery.cancel_scope.cancel()
        site.engine.hold.set()
    assert await apps.engine_running(app_id)
    assert apps.record(app_id).state is AppState.RUNNING
    assert site.on_disk(app_id)["state"] == "running"


# Migrations: the source


async def running(site: Site) -> tuple[Apps, str]:
    apps = site.node()
    app_id = await create(apps)
    await apps.start(app_id)
    site.events.clear()
    return apps, app_id


async def test_hand_off_at_the_source(site: Site) -> None:
    apps, app_id = await running(site)
    await apps.set_state(app_id, AppState.MIGRATING)
    assert (await apps.save(app_id)).saved
    await apps.suspend(app_id)
    assert site.on_disk(app_id)["state"] == "suspended"
    assert not await apps.engine_running(app_id)
    await apps.set_state(app_id, AppState.IN_DOUBT)
    with pytest.raises(Refused, match="cannot start shop: it is in_doubt"):
        await apps.start(app_id)
    await apps.discard(app_id)
    await apps.discard(app_id)
    assert apps.records() == []
    assert not (site.root / "apps" / app_id).exists()
    assert site.told == ["changed", "suspended", "changed", "discarded"]


async def test_a_suspended_application_is_resumed_by_its_migration_only(site: Site) -> None:
    apps, app_id = await running(site)
    await apps.suspend(app_id)
    for forbidden in (apps.start, apps.stop, apps.remove):
        with pytest.raises(Refused, match="it is suspended"):
            await forbidden(app_id)
    await apps.resume(app_id)
    assert apps.record(app_id).state is AppState.RUNNING
    assert await apps.engine_running(app_id)


async def test_an_aborted_suspend_leaves_it_as_it_was(site: Site) -> None:
    apps, app_id = await running(site)
    await apps.set_state(app_id, AppState.MIGRATING)
    site.engine.fail_next["suspend"] = SuspendFailed("exit code 3; it was started again", running=True)
    with pytest.raises(AppSuspendFailed) as caught:
        await apps.suspend(app_id)
    assert caught.value.running
    assert apps.record(app_id).state is AppState.MIGRATING
    await apps.set_state(app_id, AppState.RUNNING)


async def test_a_suspend_that_ends_it_is_a_failure(site: Site) -> None:
    apps, app_id = await running(site)
    site.engine.fail_next["suspend"] = SuspendFailed("exit code 3, and did not start again", running=False)
    site.engine.becomes(app_id, EngineState.EXITED, Exit(3, None))
    with pytest.raises(AppSuspendFailed) as caught:
        await apps.suspend(app_id)
    assert not caught.value.running
    assert apps.record(app_id).state is AppState.FAILED
    assert site.node().record(app_id).reason.startswith("exit code 3")


async def test_save_needs_a_running_application(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    with pytest.raises(Refused, match="it does not run"):
        await apps.save(app_id)


async def test_a_failed_resume_is_a_failure(site: Site) -> None:
    apps, app_id = await running(site)
    await apps.suspend(app_id)
    site.engine.fail_next["resume"] = OSError("disk full")
    with pytest.raises(Failed, match="disk full"):
        await apps.resume(app_id)
    assert apps.record(app_id).state is AppState.FAILED


@pytest.mark.parametrize("state", [EngineState.LOST, EngineState.EXITED, EngineState.ABSENT])
async def test_what_was_lost_before_it_was_suspended_starts_afresh(site: Site, state: EngineState) -> None:
    """A checkpoint that it ran on after is older than its files."""
    apps, app_id = await running(site)
    await apps.set_state(app_id, AppState.MIGRATING)
    await apps.save(app_id)
    site.engine.states[app_id] = Status(state)
    await apps.resume(app_id)
    assert site.engine.calls[-2:] == ["checkpoint", "start"]
    assert apps.record(app_id).state is AppState.RUNNING


async def test_what_was_suspended_is_resumed_whatever_the_engine_remembers(site: Site) -> None:
    apps, app_id = await running(site)
    await apps.suspend(app_id, memory=False)
    site.engine.states.pop(app_id)  # the machine restarted
    await apps.resume(app_id)
    assert site.engine.calls[-1] == "resume"


async def test_engines_are_asked_about_running_applications_only(site: Site) -> None:
    apps, app_id = await running(site)
    assert (await apps.obstacles(app_id), await apps.facts(app_id)) == (["a device"], {"cpu": "old"})
    assert await apps.mismatches("fake", {"cpu": "new"}) == ["not new"]
    await apps.stop(app_id)
    assert (await apps.obstacles(app_id), await apps.facts(app_id)) == ([], {})


async def test_how_much_memory_moves_is_looked_up_where_the_engine_does_not_tell(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    apps, app_id = await running(site)
    site.engine.capabilities = replace(CAPABILITIES, live=True)
    site.engine.states[app_id] = Status(EngineState.RUNNING, os.getpid(), Moment.now())
    facts = await apps.facts(app_id)
    assert facts["cpu"] == "old" and int(facts["memory_bytes"]) > 1 << 20
    site.engine.states[app_id] = Status(EngineState.RUNNING, None, Moment.now())
    assert (await apps.facts(app_id))["memory_bytes"] == "0"
    monkeypatch.setattr(site.engine, "facts", lambda _layout: {"memory_bytes": "7"})
    assert await apps.facts(app_id) == {"memory_bytes": "7"}


async def test_an_engine_that_cannot_save_memory_refuses(site: Site) -> None:
    apps, app_id = await running(site)
    site.engine.capabilities = replace(CAPABILITIES, live=True)
    for fault in (BackendError("odd socket"), OSError("odd socket")):
        site.engine.fail_next["checkpoint"] = fault
        with pytest.raises(AppNotSaved, match="odd socket"):
            await apps.save(app_id)
    site.engine.fail_next["suspend"] = SuspendFailed("odd socket", running=True)
    with pytest.raises(AppNotSaved, match="odd socket"):
        await apps.suspend(app_id)
    site.engine.fail_next["suspend"] = SuspendFailed("does not end", running=True)
    with pytest.raises(AppSuspendFailed, match="does not end"):
        await apps.suspend(app_id, memory=False)
    assert apps.record(app_id).state is AppState.RUNNING


async def test_states_follow_the_table(site: Site) -> None:
    apps, app_id = await running(site)
    for state in (AppState.SUSPENDED, AppState.IN_DOUBT, AppState.STOPPED, AppState.FAILED, AppState.STAGED):
        with pytest.raises(Refused, match="it is running"):
            await apps.set_state(app_id, state)
    await apps.set_state(app_id, AppState.MIGRATING)
    with pytest.raises(Refused, match="cannot become in_doubt: it is executing"):
        await apps.set_state(app_id, AppState.IN_DOUBT)
    assert apps.record(app_id).state is AppState.MIGRATING


async def test_epochs_only_rise(site: Site) -> None:
    apps, app_id = await running(site)
    await apps.suspend(app_id)
    assert (await apps.set_state(app_id, AppState.IN_DOUBT, 5)).epoch == 5
    for lower in (4, 0, -1, 2**80):
        with pytest.raises(Refused):
            await apps.set_state(app_id, AppState.SUSPENDED, lower)
    assert (await apps.set_state(app_id, AppState.SUSPENDED)).epoch == 5
    assert site.on_disk(app_id)["epoch"] == 5


async def test_a_stopped_application_moves_without_running(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    await apps.set_state(app_id, AppState.MIGRATING)
    await apps.set_state(app_id, AppState.IN_DOUBT)
    await apps.discard(app_id)

    await apps.stage(record(epoch=1))
    await apps.set_state(record().id, AppState.STOPPED, 2)
    assert [(r.state, r.epoch) for r in apps.records()] == [(AppState.STOPPED, 2)]
    assert "start" not in site.engine.calls
    assert "restore" not in site.engine.calls


# Migrations: the destination


async def test_hand_off_at_the_destination(site: Site) -> None:
    apps = site.node()
    place = await apps.stage(record(AppState.RUNNING))
    assert place == apps.state_path(record().id)
    assert list(place.iterdir()) == []
    assert apps.records() == []
    assert apps.staged() == [record(AppState.STAGED)]
    assert apps.layers_in_use() == {BASE, APP}
    with pytest.raises(NotFound):
        apps.find("shop")
    with pytest.raises(Refused, match="it is staged"):
        await apps.start(record().id)
    (place / "file").write_text("arrived")

    await apps.restore(record().id, 4)
    assert apps.records() == [record(AppState.RUNNING, epoch=4)]
    assert site.on_disk(record().id)["epoch"] == 4
    assert (place / "file").read_text() == "arrived"
    assert site.told == ["staged", "restored"]


async def test_staging_again_starts_over(site: Site) -> None:
    apps = site.node()
    place = await apps.stage(record())
    (place / "file").write_text("half")
    assert await apps.stage(record(epoch=9)) == place
    assert list(place.iterdir()) == []
    assert apps.staged()[0].epoch == 9
    await apps.discard(record().id)
    assert list((site.root / "apps").iterdir()) == []


async def test_what_waited_for_an_earlier_staging_is_told(site: Site) -> None:
    apps = site.node()
    await apps.stage(record())
    site.engine.hold_status = threading.Event()

    async def restore_in_vain() -> None:
        with pytest.raises(NotFound, match="not on this node any more"):
            await apps.restore(record().id, 4)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(apps.stage, record())
        await trio.testing.wait_all_tasks_blocked(0.02)
        nursery.start_soon(restore_in_vain)
        await trio.testing.wait_all_tasks_blocked(0.02)
        site.engine.hold_status.set()
    await apps.restore(record().id, 4)


async def test_staging_is_refused_where_it_cannot_be(site: Site) -> None:
    apps = site.node()
    app_id = await create(apps)
    with pytest.raises(Refused, match="the name shop is taken"):
        await apps.stage(record())
    with pytest.raises(Refused, match="on this node already: it is stopped"):
        await apps.stage(apps.record(app_id))
    with pytest.raises(Usage, match="unknown backend"):
        await apps.stage(record(name="other", backend="lxd"))
    with pytest.raises(Usage, match="configuration"):
        await apps.stage(record(name="other", config="x"))
    site.engine.becomes(record().id, EngineState.RUNNING)
    with pytest.raises(Refused, match="executing on this node already"):
        await apps.stage(record(name="other"))
    site.engine.available = False
    with pytest.raises(Refused, match="not today"):
        await apps.stage(record(name="other"))
    assert apps.staged() == []


async def test_a_restore_of_which_nothing_executed_can_be_called_off(site: Site) -> None:
    apps = site.node()
    await apps.stage(record())
    for trouble in (StartFailed("no such program", executed=False), BackendError("no engine"), OSError("no disk")):
        site.engine.fail_next["restore"] = trouble
        with pytest.raises(Failed) as caught:
            await apps.restore(record().id, 4)
        assert not getattr(caught.value, "executed", False)
        assert apps.staged() == [record(AppState.STAGED)]
    site.missing.add(APP)
    with pytest.raises(Unreachable):
        await apps.restore(record().id, 4)
    assert apps.staged() == [record(AppState.STAGED)]


async def test_a_restore_that_executed_belongs_here(site: Site) -> None:
    apps = site.node()
    await apps.stage(record())
    site.engine.fail_next["restore"] = StartFailed("ended at once", executed=True)
    with pytest.raises(AppStartFailed) as caught:
        await apps.restore(record().id, 4)
    assert caught.value.executed
    assert [(r.state, r.epoch) for r in apps.records()] == [(AppState.FAILED, 4)]


@pytest.mark.parametrize("trouble", [StopFailed("it is there still", (7,)), OSError("no disk")])
@pytest.mark.parametrize("engine", [EngineState.RUNNING, EngineState.EXITED, None])
async def test_a_restore_that_broke_off_belongs_here_unless_the_engine_denies_it(
    site: Site, trouble: Exception, engine: EngineState | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the source would let it go on there, too."""

    def restore(layout: AppLayout) -> Started:
        if engine is None:
            site.engine.fail_next["status"] = BackendError("it does not answer any more")
        else:
            site.engine.becomes(layout.app_id, engine)
        raise trouble

    apps = site.node()
    await apps.stage(record())
    monkeypatch.setattr(site.engine, "restore", restore)
    with pytest.raises(Failed):
        await apps.restore(record().id, 4)
    assert [(r.state, r.epoch) for r in apps.records()] == [(AppState.FAILED, 4)]


async def test_an_engine_that_does_not_answer_restores_nothing(site: Site) -> None:
    apps = site.node()
    await apps.stage(record())
    site.engine.fail_next["status"] = BackendError("it does not answer")
    with pytest.raises(Failed):
        await apps.restore(record().id, 4)
    assert "restore" not in site.engine.calls
    assert apps.staged() == [record(AppState.STAGED)]


async def test_a_repeated_restore_takes_over_the_copy_that_runs(site: Site) -> None:
    apps = site.node()
    await apps.stage(record())
    first = await apps.restore(record().id, 4)
    assert await apps.restore(record().id, 4) == first

    # The node was killed after the engine had started it, and before the record said so.
    AppShelf(site.root / "apps").write(record(AppState.STAGED))
    apps = site.node()
    await apps.adopt_all()
    assert await apps.engine_running(record().id)
    assert await apps.restore(record().id, 4) == first
    assert apps.records()[0].state is AppState.RUNNING


async def test_an_epoch_from_the_past_cannot_restore(site: Site) -> None:
    apps = site.node()
    await apps.stage(record(epoch=5))
    with pytest.raises(Refused, match="epoch 4 is below 5"):
        await apps.restore(record().id, 4)
    assert "restore" not in site.engine.calls


async def test_an_unknown_application_does_not_execute(site: Site) -> None:
    assert not await site.node().engine_running("00" * 16)


# A node that starts again


async def adopted(site: Site) -> Apps:
    apps = site.node()
    site.events.clear()
    site.engine.calls.clear()
    await apps.adopt_all()
    return apps


async def test_a_running_application_is_adopted(site: Site) -> None:
    _, app_id = await running(site)
    apps = await adopted(site)
    assert site.told == ["adopted"]
    assert site.engine.calls == []
    await apps.stop(app_id)


@pytest.mark.parametrize(
    ("state", "exit", "how"),
    [
        (EngineState.ABSENT, None, "start"),
        (EngineState.LOST, None, "start"),
        (EngineState.EXITED, Exit(0, None, asked=True), "start"),
        (EngineState.SUSPENDED, None, "resume"),
    ],
)
async def test_one_that_is_gone_and_did_not_end_by_itself_is_started_again(
    site: Site, state: EngineState, exit: Exit | None, how: str
) -> None:
    _, app_id = await running(site)
    site.engine.becomes(app_id, state, exit, reason="the machine restarted")
    apps = await adopted(site)
    assert site.engine.calls == [how]
    assert apps.record(app_id).state is AppState.RUNNING
    assert [(event.type, event.message) for event in site.events] == [("app.restarted", "the machine restarted")]


async def test_one_that_ended_while_no_node_was_looking_has_failed(site: Site) -> None:
    _, app_id = await running(site)
    site.engine.becomes(app_id, EngineState.EXITED, Exit(None, 11))
    apps = await adopted(site)
    assert apps.record(app_id).state is AppState.FAILED
    assert apps.record(app_id).reason == "ended by itself: killed by SIGSEGV"
    assert site.told == ["failed"]


async def test_one_that_cannot_be_started_again_has_failed(site: Site) -> None:
    _, app_id = await running(site)
    site.engine.becomes(app_id, EngineState.LOST, reason="the machine restarted")
    site.missing.add(BASE)
    apps = await adopted(site)
    assert apps.record(app_id).state is AppState.FAILED
    assert "its layers are not here: nobody has that layer" in apps.record(app_id).reason


@pytest.mark.parametrize("state", [AppState.STOPPED, AppState.FAILED, AppState.SUSPENDED, AppState.IN_DOUBT])
async def test_what_must_not_execute_is_stopped(site: Site, state: AppState) -> None:
    apps, app_id = await running(site)
    AppShelf(site.root / "apps").write(replace(apps.record(app_id), state=state))
    apps = await adopted(site)
    assert site.engine.calls == ["stop"]
    assert apps.record(app_id).state is state
    assert site.told == ["warning"]


async def test_leftovers_of_a_lost_one_are_stopped_too(site: Site) -> None:
    apps, app_id = await running(site)
    await apps.stop(app_id)
    site.engine.becomes(app_id, EngineState.LOST, leftovers=(9,))
    await adopted(site)
    assert site.engine.calls == ["stop"]


@pytest.mark.parametrize("engine", list(EngineState))
@pytest.mark.parametrize("state", [AppState.MIGRATING, AppState.STAGED])
async def test_migrations_decide_about_theirs(site: Site, state: AppState, engine: EngineState) -> None:
    apps, app_id = await running(site)
    AppShelf(site.root / "apps").write(replace(apps.record(app_id), state=state))
    site.engine.becomes(app_id, engine, Exit(1, None))
    apps = await adopted(site)
    assert site.engine.calls == []
    assert apps.record(app_id).state is state


async def test_trouble_with_one_does_not_keep_the_others(site: Site) -> None:
    apps = site.node()
    first, second = await create(apps, "one"), await create(apps, "two")
    await apps.start(first)
    await apps.start(second)
    site.engine.becomes(first, EngineState.LOST)
    site.engine.becomes(second, EngineState.LOST)
    site.engine.fail_next["start"] = BackendError("engine trouble")
    apps = await adopted(site)
    assert sorted(r.state.value for r in apps.records()) == ["failed", "running"]


@pytest.mark.parametrize("step", ["start", "stop", "suspend", "resume", "restore"])
async def test_killed_in_the_engine(site: Site, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each step a node may die inside the engine, before or after the engine did its work."""

    class Killed(BaseException):
        pass

    for effect_first in (False, True):
        apps = site.node()
        name = f"{step}{int(effect_first)}"
        if step == "restore":
            app_id = record().id
            await apps.stage(record(name=name))
        else:
            app_id = await create(apps, name)
            if step != "start":
                await apps.start(app_id)
            if step == "resume":
                await apps.suspend(app_id)
        real = getattr(site.engine, step)

        def dying(place: Any, real: Any = real, effect_first: bool = effect_first, **how: Any) -> None:
            if effect_first:
                real(place, **how)
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(site.engine, step, dying)
            with pytest.raises(Killed):
                await (apps.restore(app_id, 4) if step == "restore" else getattr(apps, step)(app_id))

        apps = site.node()
        await apps.adopt_all()
        state, executes = apps.record(app_id).state, await apps.engine_running(app_id)
        if step == "restore":
            assert (state, executes) == (AppState.STAGED, effect_first)
            await apps.restore(app_id, 4)
            assert await apps.engine_running(app_id)
        elif step == "stop":
            assert (state, executes) == (AppState.STOPPED, False)
        else:  # it shall run, and does; an interrupted suspend has given nothing away
            assert (state, executes) == (AppState.RUNNING, True)
        await apps.discard(app_id)


# The watch


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():
            await trio.sleep(0.005)


async def test_the_watch_notices_an_end(site: Site) -> None:
    apps = site.node(watch_interval_s=0.01)
    app_id = await create(apps)
    await apps.start(app_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(apps.watch)
        site.engine.becomes(app_id, EngineState.EXITED, Exit(7, None))
        await until(lambda: "failed" in site.told)
        nursery.cancel_scope.cancel()
    assert (site.events[-1].exit_code, site.events[-1].message) == (7, "ended by itself: exit code 7")
    assert site.on_disk(app_id)["state"] == "failed"


async def test_an_engine_that_hangs_does_not_keep_the_watch_from_the_others(site: Site) -> None:
    hung = FakeEngine("hung")
    apps = Apps(
        site.root / "apps",
        {"fake": site.engine, "hung": hung},
        site.checkout,
        site.events.append,
        watch_interval_s=0.01,
    )
    app_id = await create(apps)
    other = (await apps.create("other", "hung", BASE, APP, CONFIG)).id
    await apps.start(app_id)
    await apps.start(other)
    hung.hold_status = threading.Event()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(apps.watch)
            await trio.sleep(0.05)
            site.engine.becomes(app_id, EngineState.EXITED, Exit(3, None))
            await until(lambda: "failed" in site.told)
            hung.hold_status.set()
            nursery.cancel_scope.cancel()
    finally:
        hung.hold_status.set()


async def test_the_watch_starts_a_lost_one_again_but_not_for_ever(site: Site) -> None:
    apps = site.node(watch_interval_s=0.01)
    app_id = await create(apps)
    await apps.start(app_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(apps.watch)
        site.engine.becomes(app_id, EngineState.LOST, reason="its supervisor was killed")
        await until(lambda: "restarted" in site.told)
        assert apps.record(app_id).state is AppState.RUNNING
        site.engine.becomes(app_id, EngineState.LOST, reason="its supervisor was killed")
        await until(lambda: "failed" in site.told)
        nursery.cancel_scope.cancel()
    assert apps.record(app_id).reason == "its supervisor was killed, within 60 s of a restart"


async def test_the_watch_resumes_one_that_ended_after_a_called_off_suspend(site: Site) -> None:
    apps = site.node(watch_interval_s=0.01)
    app_id = await create(apps)
    await apps.start(app_id)
    await apps.set_state(app_id, AppState.MIGRATING)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(apps.watch)
        site.engine.becomes(app_id, EngineState.SUSPENDED)
        await until(lambda: "restarted" in site.told)
        nursery.cancel_scope.cancel()
    assert site.engine.calls[-1] == "resume"
    assert apps.record(app_id).state is AppState.MIGRATING


async def test_the_watch_leaves_alone_what_does_not_run_here(site: Site) -> None:
    apps = site.node(watch_interval_s=0.01)
    app_id = await create(apps)
    await apps.start(app_id)
    await apps.suspend(app_id)
    idle = await create(apps, "idle")
    await apps.set_state(idle, AppState.MIGRATING)
    site.engine.becomes(idle, EngineState.EXITED, Exit(1, None))
    site.events.clear()
    with trio.move_on_after(0.1):
        await apps.watch()
    assert site.events == []


async def test_an_engine_that_does_not_answer_ends_nothing(site: Site) -> None:
    apps = site.node(watch_interval_s=0.01)
    app_id = await create(apps)
    await apps.start(app_id)
    site.engine.fail_next["status"] = BackendError("engine restarts")
    with trio.move_on_after(0.1):
        await apps.watch()
    del site.engine.fail_next["status"]
    assert apps.record(app_id).state is AppState.RUNNING


# Records


def test_a_record_survives_json() -> None:
    for state in AppState:
        original = record(state, reason="because")
        assert AppRecord.from_dict(json.loads(json.dumps(original.to_dict()))) == original


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("id", "../../etc"),
        ("id", "AB" * 16),
        ("name", "a/b"),
        ("name", ".."),
        ("name", 7),
        ("backend", "x" * 64),
        ("backend", "a\nb"),
        ("base", "00"),
        ("base", b"b" * 32),
        ("app", "zz" * 32),
        ("config", "x" * 70_000),
        ("addresses", ["a"] * 33),
        ("addresses", [1]),
        ("addresses", ["a", "b\n"]),
        ("addresses", ["\ud800"]),
        ("addresses", "a"),
        ("epoch", 0),
        ("epoch", True),
        ("epoch", 1.0),
        ("epoch", 2**70),
        ("state", "flying"),
        ("created_s", float("nan")),
        ("created_s", "now"),
        ("reason", "x" * 501),
        ("reason", None),
    ],
)
def test_a_bad_field_is_named(key: str, value: object) -> None:
    with pytest.raises(BadRecord):
        AppRecord.from_dict({**record().to_dict(), key: value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@given(key=st.sampled_from(sorted(record().to_dict())), value=JSON)
def test_whatever_a_peer_sends_is_a_record_or_a_bad_record(key: str, value: object) -> None:
    for document in ({**record().to_dict(), key: value}, value):
        try:
            parsed = AppRecord.from_dict(document)
        except BadRecord:
            continue
        check_name(parsed.name)
        assert AppRecord.from_dict(parsed.to_dict()) == parsed


async def test_unreadable_records_are_kept_and_reported(site: Site) -> None:
    apps = site.node()
    good, torn, strange = [await create(apps, name) for name in ("good", "torn", "strange")]
    folder = site.root / "apps"
    (folder / torn / "record.json").write_text('{"id": ')
    (folder / strange / "record.json").write_text(json.dumps({**site.on_disk(good), "backend": "future"}))
    deep = "ab" * 16
    (folder / deep).mkdir()
    (folder / deep / "record.json").write_text("[" * 100_000)

    apps = site.node()
    assert [r.id for r in apps.records()] == [good]
    assert set(apps.damaged) == {torn, strange, deep}
    assert (folder / torn / "record.json").exists()
    with pytest.raises(Refused, match="damaged"):
        await apps.stage(record(id=torn, name="other"))


async def test_what_a_crash_left_of_a_creation_is_deleted(site: Site) -> None:
    left = site.root / "apps" / ("cd" * 16)
    (left / "state").mkdir(parents=True)
    foreign = site.root / "apps" / "notes.txt"
    foreign.write_text("not ours")
    apps = site.node()
    assert apps.records() == []
    assert apps.damaged == {}
    assert not left.exists()
    assert foreign.exists()


def test_every_state_can_be_left_and_only_by_rules() -> None:
    for state in AppState:
        assert any(state in rule.sources and rule.target is not state for rule in appstate.RULES.values())
    with pytest.raises(Refused):
        appstate.check("mark staged", "shop", AppState.STOPPED)
