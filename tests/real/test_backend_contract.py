"""What every backend must do, on each engine that runs here, with real programs.

A backend passes when the node can be killed at any time and finds its applications again, when a suspended application
is either final or back, and when nothing of a stopped one is left. What engines declare that they cannot is in
`tests.support.contract.rigs.Facets`. Tests that only look, or leave an application running, share one.
"""

import base64
import dataclasses
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from backends import applog, config
from backends.base import AppLayout, Backend, EngineState, Hooks, Started
from backends.errors import AlreadyRunning, BackendError, NotRunning, StartFailed, SuspendFailed
from tests.support import apps
from tests.support.apps import executing, toml
from tests.support.contract import engines, leftovers, programs
from tests.support.contract.rigs import HERE, THERE, Rig
from tests.support.waiting import eventually

pytestmark = pytest.mark.real

Make = Callable[..., AppLayout]

FACT_BYTES = 4096


@pytest.fixture(scope="module", params=engines.params("process", "runc", "lxd", "libvirt"))
def rig(request: pytest.FixtureRequest, engine_home: Path) -> Iterator[Rig]:
    with engines.opened(request.param, engine_home) as made:
        yield made


@pytest.fixture
def backend(rig: Rig) -> Backend:
    return rig.backend()


@pytest.fixture
def make(rig: Rig) -> Iterator[Make]:
    """Makes layouts of created applications; destroys them afterwards."""
    made: list[tuple[int, AppLayout]] = []

    def build(program: str, node: int = HERE, **options: object) -> AppLayout:
        layout = rig.layout(program, node, **options)  # type: ignore[arg-type]
        made.append((node, layout))
        rig.backend(node).create(layout)
        return layout

    with apps.adopting_orphans():
        yield build
        for node, layout in made:
            rig.backend(node).destroy(layout)
            shutil.rmtree(layout.base.parent)


class Running(NamedTuple):
    """One counter for many tests; `started` is how its backend said that it was."""

    layout: AppLayout
    started: Started
    after: tuple[float, float]


@pytest.fixture(scope="module")
def running(rig: Rig) -> Iterator[Running]:
    hooks = None if rig.facets.memory else {"save": ["sh", "-c", "kill -USR1 $P2P_PID; sleep 0.2"]}
    layout = rig.layout(programs.COUNTER, hooks=hooks)
    backend = rig.backend()
    backend.create(layout)
    after = time.monotonic(), time.time()
    try:
        yield Running(layout, backend.start(layout), after)
    finally:
        backend.destroy(layout)


def log(backend: Backend, layout: AppLayout) -> str:
    return backend.logs(layout, 1 << 20).decode(errors="replace")


def ready(backend: Backend, layout: AppLayout) -> None:
    eventually(lambda: "ready" in log(backend, layout), within_s=30)


def starts(backend: Backend, layout: AppLayout) -> list[int]:
    """The counts from which the counter says that it started."""
    lines = (line.split() for line in log(backend, layout).splitlines())
    return [int(words[1]) for words in lines if len(words) == 2 and words[0] == "ready"]


@dataclasses.dataclass(frozen=True, slots=True)
class Tick:
    """What the counter has in memory: a token that is drawn at each start, and its count."""

    token: str
    count: int


def ticks(backend: Backend, layout: AppLayout) -> list[Tick]:
    """All that the log still has, but for what may be half a line."""
    whole = log(backend, layout).rpartition("\n")[0]
    lines = (line.split() for line in whole.splitlines())
    return [Tick(words[1], int(words[2])) for words in lines if len(words) == 3 and words[0] == "tick"]


def counted(backend: Backend, layout: AppLayout, above: int = 0) -> Tick:
    """The newest tick, as soon as one is above a count."""

    def look() -> Tick | None:
        last = ticks(backend, layout)[-1:]
        return last[0] if last and last[0].count > above else None

    return eventually(look, within_s=30)


def move(source: AppLayout, destination: AppLayout) -> None:
    """Copy the instance, and nothing else, to another node."""
    shutil.rmtree(destination.state_dir, ignore_errors=True)
    subprocess.run(["cp", "-a", "--sparse=always", source.state_dir, destination.state_dir], check=True)


# New, running, stopped


def test_engines_run(rig: Rig) -> None:
    """On both nodes; where an engine does not, the fixture has skipped this, or failed it in continuous integration."""
    for node in (HERE, THERE):
        probe = rig.backend(node).probe()
        assert (probe.name, probe.available, probe.reason) == (rig.name, True, None)
        assert probe.version


def test_a_new_application_is_absent_and_has_nothing_to_show(backend: Backend, make: Make) -> None:
    layout = make(programs.COUNTER)
    assert backend.status(layout).state is EngineState.ABSENT
    assert not backend.status(layout).executing
    assert backend.logs(layout, 1000) == b""
    backend.stop(layout)
    with pytest.raises(NotRunning):
        backend.checkpoint(layout, leave_running=True)
    with pytest.raises(SuspendFailed) as caught:
        backend.suspend(layout)
    assert not caught.value.running


def test_start_says_when_the_application_was_executed(backend: Backend, running: Running) -> None:
    layout, started, after = running
    assert after[0] < started.at.monotonic_s < time.monotonic()
    assert after[1] < started.at.wall_s < time.time()
    status = backend.status(layout)
    assert (status.state, status.pid, status.started) == (EngineState.RUNNING, started.pid, started.at)
    assert status.executing
    assert executing(started.pid)


def test_only_one_copy_runs(rig: Rig, backend: Backend, running: Running) -> None:
    layout, started, _ = running
    with pytest.raises(AlreadyRunning):
        backend.start(layout)
    with pytest.raises(AlreadyRunning):
        rig.backend().restore(layout)
    assert backend.resume(layout) == started
    assert backend.status(layout).pid == started.pid


def test_it_counts_and_what_it_prints_is_its_log(backend: Backend, running: Running) -> None:
    layout = running.layout
    first = counted(backend, layout)
    assert counted(backend, layout, above=first.count + 5).token == first.token
    assert starts(backend, layout) == [0]
    assert len(backend.logs(layout, 100)) == 100


def test_nothing_stands_against_a_checkpoint_of_a_counter(backend: Backend, running: Running) -> None:
    assert list(backend.obstacles(running.layout)) == []


def test_own_facts_match_everywhere_here(rig: Rig, backend: Backend, running: Running) -> None:
    facts = backend.facts(running.layout)
    assert bool(facts) == rig.facets.memory
    assert sum(len(key.encode()) + len(value.encode()) for key, value in facts.items()) <= FACT_BYTES
    assert list(backend.mismatches(facts)) == []
    assert list(rig.backend(THERE).mismatches(facts)) == []


def test_facts_of_another_machine_are_refused(rig: Rig, backend: Backend, running: Running) -> None:
    if not rig.facets.memory:
        pytest.skip("no memory moves")
    found = rig.backend(THERE).mismatches(rig.of_another_cpu(backend.facts(running.layout)))
    assert found
    assert all(sentence.isprintable() and len(sentence) > 10 for sentence in found)


def test_strange_facts_do_no_harm(backend: Backend, running: Running) -> None:
    own = backend.facts(running.layout)
    strange = (
        "",
        "\0",
        "\n",
        "x" * 4096,
        "-1",
        "9" * 400,
        "{",
        "\u263a",
        "NaN",
        "\x1b[31m",
        "1.2.3.4.5.6",
        "a:b,c=d e;f",
    )
    for value in strange:
        for facts in (dict.fromkeys(own, value), {value: value}, {}):
            for sentence in backend.mismatches(facts):
                assert sentence.isprintable()
                assert len(sentence) < 1000


def test_a_checkpoint_for_pre_copy_leaves_it_running(rig: Rig, backend: Backend, running: Running) -> None:
    layout, started, _ = running
    for _ in range(2):
        before = counted(backend, layout)
        called_at = time.monotonic()
        checkpoint = backend.checkpoint(layout, leave_running=True)
        assert checkpoint.saved
        assert called_at <= checkpoint.at.monotonic_s <= time.monotonic()
        assert 0 <= checkpoint.paused_s <= time.monotonic() - called_at
        assert backend.status(layout).pid == started.pid
        assert counted(backend, layout, above=before.count).token == before.token
        assert {entry.name for entry in layout.state_dir.iterdir()} == rig.instance
    assert {entry.name for entry in layout.folder.iterdir()} <= {"state", "run", "log", "log.1"}
    assert starts(backend, layout) == [0]


def test_a_failing_before_suspend_hook_keeps_it_running(backend: Backend, running: Running) -> None:
    hooks = Hooks(before_suspend=("sh", "-c", "echo no entry; exit 9"))
    layout = dataclasses.replace(running.layout, config=dataclasses.replace(running.layout.config, hooks=hooks))
    before = counted(backend, layout)
    with pytest.raises(SuspendFailed, match="hook before_suspend: exit code 9") as caught:
        backend.suspend(layout)
    assert caught.value.running
    assert backend.status(layout).pid == running.started.pid
    assert "no entry" in log(backend, layout)
    assert counted(backend, layout, above=before.count).token == before.token


def test_resume_after_suspend_continues_here(rig: Rig, backend: Backend, running: Running) -> None:
    layout = running.layout
    for turn in (1, 2):
        counted(backend, layout)
        pid = backend.status(layout).pid
        called_at = time.monotonic()
        checkpoint = backend.suspend(layout)
        assert called_at <= checkpoint.at.monotonic_s <= time.monotonic()
        assert pid is not None and not executing(pid)
        assert backend.status(layout).state is EngineState.SUSPENDED
        assert not backend.status(layout).executing
        assert rig.processes(layout) == []
        before = ticks(backend, layout)[-1]
        assert backend.resume(layout).pid == backend.status(layout).pid
        assert backend.status(layout).state is EngineState.RUNNING
        after = counted(backend, layout, above=before.count)
        assert (after.token == before.token) == rig.facets.memory
        assert len(starts(backend, layout)) == (1 if rig.facets.memory else 1 + turn)


def test_stop_is_clean_can_be_repeated_and_keeps_the_files(rig: Rig, backend: Backend, make: Make) -> None:
    layout = make(programs.COUNTER)
    pid = backend.start(layout).pid
    before = counted(backend, layout, above=5)
    backend.stop(layout)
    backend.stop(layout)
    status = backend.status(layout)
    assert status.state is EngineState.EXITED
    assert status.exit is not None
    assert (status.exit.asked, status.exit.forced) == (True, False)
    assert status.exit.code in ({0} if rig.facets.exit_known else {0, None})
    assert not executing(pid)
    assert rig.processes(layout) == []

    backend.start(layout)
    eventually(lambda: len(starts(backend, layout)) == 2, within_s=30)
    assert starts(backend, layout)[1] >= before.count


def test_stop_kills_what_ignores_sigterm(rig: Rig, backend: Backend, make: Make) -> None:
    layout = make(programs.IGNORES_SIGTERM, stop_timeout_s=0.5)
    pid = backend.start(layout).pid
    ready(backend, layout)
    backend.stop(layout)
    status = backend.status(layout)
    assert status.state is EngineState.EXITED
    assert status.exit is not None
    assert (status.exit.asked, status.exit.forced) == (True, True)
    assert not executing(pid)
    assert rig.processes(layout) == []


def test_a_program_that_ends_at_once_has_not_started(rig: Rig, make: Make) -> None:
    layout = make(programs.DIES_YOUNG)
    backend = rig.backend(healthy_after_s=apps.SURELY_UNHEALTHY_AFTER_S)
    with pytest.raises(StartFailed, match="cannot open the database") as caught:
        backend.start(layout)
    assert caught.value.executed
    status = backend.status(layout)
    assert not status.executing
    eventually(lambda: not rig.processes(layout))
    if rig.facets.exit_known:
        assert caught.value.exit is not None
        assert caught.value.exit.code == 4
        assert status.state is EngineState.EXITED
        assert status.exit is not None
        assert not status.exit.asked


def test_a_command_that_does_not_exist_was_not_executed(rig: Rig, backend: Backend, make: Make) -> None:
    if not rig.facets.absent_command:
        pytest.skip("the guest's own affair")
    layout = make(programs.COUNTER, command=["{app}/no-such-program"])
    with pytest.raises(StartFailed, match=r"no-such-program.*[Nn]o such file or directory") as caught:
        backend.start(layout)
    assert not caught.value.executed
    assert not backend.status(layout).executing


@pytest.mark.parametrize("way", ["stop", "suspend"])
def test_children_and_orphans_end_with_it(rig: Rig, backend: Backend, make: Make, way: str) -> None:
    layout = make(programs.STUBBORN_FAMILY if way == "stop" else programs.FAMILY)
    backend.start(layout)
    ready(backend, layout)
    assert len(rig.processes(layout)) >= rig.family
    getattr(backend, way)(layout)
    assert rig.processes(layout) == []
    assert not backend.status(layout).executing


def test_ten_megabytes_of_output_stay_bounded(rig: Rig, backend: Backend, make: Make) -> None:
    if not rig.facets.prints_fast:
        pytest.skip("its console is too slow to flood")
    layout = make(programs.TALKATIVE)
    backend.start(layout)
    eventually(lambda: backend.logs(layout, 100).decode().endswith("the end\n"), within_s=60)
    most = 2 * (applog.LIMIT_BYTES + applog.BLOCK_BYTES)
    assert len(backend.logs(layout, 1 << 30)) <= most
    assert len(backend.logs(layout, 1000)) == 1000
    elsewhere = [path for path in rig.root.rglob("*") if path.is_file() and path.stat().st_blocks * 512 > most]
    assert [path for path in elsewhere if b"x" * 500 in path.read_bytes()] == []


# Moved


def test_restore_elsewhere_continues(rig: Rig, backend: Backend, make: Make) -> None:
    source = make(programs.COUNTER)
    destination = make(programs.COUNTER, THERE, app_id=source.app_id)
    there = rig.backend(THERE)
    backend.start(source)
    before = counted(backend, source, above=5)
    backend.suspend(source)
    last = ticks(backend, source)[-1]
    assert last.token == before.token
    assert {entry.name for entry in source.state_dir.iterdir()} == rig.instance

    move(source, destination)
    started = there.restore(destination)
    assert executing(started.pid)
    after = counted(there, destination, above=last.count)
    assert (after.token == last.token) == rig.facets.memory
    came = starts(backend, source) if rig.facets.log_moves else []
    assert starts(there, destination)[: len(came)] == came
    assert len(starts(there, destination)) - len(came) == (0 if rig.facets.memory else 1)

    backend.destroy(source)  # as after a migration: which must not touch the other node's copy
    assert counted(there, destination, above=after.count).token == after.token
    assert there.status(destination).pid == started.pid

    there.suspend(destination)
    last = ticks(there, destination)[-1]
    move(destination, source)
    backend.restore(source)
    assert (counted(backend, source, above=last.count).token == last.token) == rig.facets.memory


def test_suspended_without_its_memory_it_starts_afresh_elsewhere(rig: Rig, backend: Backend, make: Make) -> None:
    source = make(programs.COUNTER)
    destination = make(programs.COUNTER, THERE, app_id=source.app_id)
    there = rig.backend(THERE)
    backend.start(source)
    before = counted(backend, source, above=5)
    if rig.facets.memory:
        backend.checkpoint(source, leave_running=True)  # what an earlier round wrote must not be mistaken for final
    backend.suspend(source, memory=False)
    assert backend.status(source).state is EngineState.SUSPENDED
    assert rig.processes(source) == []

    move(source, destination)
    there.restore(destination)
    after = counted(there, destination, above=before.count)
    assert after.token != before.token
    assert len(starts(there, destination)) == (2 if rig.facets.log_moves else 1)
    assert starts(there, destination)[-1] >= before.count


def test_a_damaged_instance_is_refused_and_nothing_runs(rig: Rig, backend: Backend, make: Make) -> None:
    if not rig.facets.memory:
        pytest.skip("its files are its own affair")
    layout = make(programs.COUNTER)
    backend.start(layout)
    counted(backend, layout)
    backend.suspend(layout)
    rig.damage(layout)
    with pytest.raises(StartFailed) as caught:
        backend.restore(layout)
    assert "\n" not in str(caught.value)
    assert not backend.status(layout).executing
    assert rig.processes(layout) == []


@pytest.mark.parametrize("state", ["running", "suspended"])
def test_destroy_leaves_nothing_and_can_be_repeated(rig: Rig, backend: Backend, make: Make, state: str) -> None:
    layout = make(programs.COUNTER)
    backend.start(layout)
    if state == "suspended":
        counted(backend, layout)
        backend.suspend(layout)
    backend.destroy(layout)
    backend.destroy(layout)
    assert list(layout.folder.iterdir()) == []
    assert backend.status(layout).state is EngineState.ABSENT
    assert leftovers.of_application(layout.app_id) == []
    assert rig.listed(layout) == []


# The node is killed

NODE = """
import base64, pickle, sys, time
from backends.registry import builtin
name, healthy_after_s, packed = sys.argv[1:]
settings, layout = pickle.loads(base64.b64decode(packed))
backend = builtin(settings, healthy_after_s=float(healthy_after_s))[name]
print(backend.start(layout).pid, flush=True)
time.sleep(60)
"""


def start_in_a_node_that_is_killed(rig: Rig, layout: AppLayout) -> int:
    """Start an application from another process, kill that one, and give the application's pid."""
    packed = base64.b64encode(pickle.dumps((rig.settings(), layout))).decode()
    words = [sys.executable, "-c", NODE, rig.name, str(rig.facets.healthy_after_s), packed]
    repository = Path(__file__).parents[2]
    with subprocess.Popen(
        rig.command(words), stdout=subprocess.PIPE, cwd=repository, env=rig.environment(), start_new_session=True
    ) as node:
        assert node.stdout is not None
        said = node.stdout.readline()
        node.kill()
    assert said, "the node did not start it"
    return int(said)


def test_it_survives_the_node_and_is_found_again(rig: Rig, backend: Backend, make: Make) -> None:
    layout = make(programs.COUNTER)
    pid = start_in_a_node_that_is_killed(rig, layout)
    status = backend.status(layout)
    assert (status.state, status.pid) == (EngineState.RUNNING, pid)
    with pytest.raises(AlreadyRunning):
        backend.start(layout)
    before = counted(backend, layout)
    assert counted(backend, layout, above=before.count).token == before.token
    backend.suspend(layout)
    assert backend.status(layout).state is EngineState.SUSPENDED
    before = ticks(backend, layout)[-1]
    backend.resume(layout)
    assert (counted(backend, layout, above=before.count).token == before.token) == rig.facets.memory


def test_how_it_ended_is_known_after_the_node_was_gone(rig: Rig, backend: Backend, make: Make) -> None:
    layout = make(programs.DIES_LATER)
    start_in_a_node_that_is_killed(rig, layout)
    eventually(lambda: not backend.status(layout).executing, within_s=30)
    status = backend.status(layout)
    assert status.state in ({EngineState.EXITED} if rig.facets.exit_known else {EngineState.EXITED, EngineState.LOST})
    eventually(lambda: not rig.processes(layout))
    if rig.facets.exit_known:
        assert status.exit is not None
        assert (status.exit.code, status.exit.asked) == (7, False)


# The configuration


def test_an_unknown_key_of_the_engines_table_is_an_error(rig: Rig, backend: Backend) -> None:
    if not rig.facets.memory:
        pytest.skip("has no table")
    layout = rig.layout(programs.COUNTER)
    wrong = dataclasses.replace(
        layout, config=config.parse(toml(command=rig.words() or None) + rig.tables("no_such_key = 1"))
    )
    with pytest.raises(BackendError, match="no_such_key"):
        backend.create(wrong)
    backend.destroy(layout)
