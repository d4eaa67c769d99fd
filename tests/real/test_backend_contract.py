"""What every backend must do, on each that is available here, with real programs.

A backend passes when the node can be killed at any time and finds its applications again, when a suspended application
is either final or back, and when nothing of a stopped one is left.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.base import AppLayout, Backend, EngineState
from backends.errors import AlreadyRunning, NotRunning, StartFailed, SuspendFailed
from backends.registry import builtin
from tests.support import apps
from tests.support.apps import HEALTHY_AFTER_S, eventually, make_layout

pytestmark = pytest.mark.real

AVAILABLE = [name for name, backend in builtin().items() if backend.probe().available]

Make = Callable[..., AppLayout]


@pytest.fixture(params=AVAILABLE)
def backend(request: pytest.FixtureRequest) -> Backend:
    return builtin(healthy_after_s=HEALTHY_AFTER_S)[request.param]


@pytest.fixture
def make(backend: Backend, tmp_path: Path, orphanage: None) -> Iterator[Make]:
    """Makes layouts of created applications; destroys them afterwards."""
    made: list[AppLayout] = []

    def build(program: str, **options: object) -> AppLayout:
        layout = make_layout(tmp_path, program, name=f"app{len(made)}", **options)  # type: ignore[arg-type]
        backend.create(layout)
        made.append(layout)
        return layout

    yield build
    for layout in made:
        backend.destroy(layout)


@pytest.fixture
def orphanage() -> Iterator[None]:
    with apps.adopting_orphans():
        yield


def patient(backend: Backend) -> Backend:
    """The same, for a program that ends at once."""
    return builtin(healthy_after_s=apps.SURELY_UNHEALTHY_AFTER_S)[backend.name]


def log(backend: Backend, layout: AppLayout) -> str:
    return backend.logs(layout, 1 << 20).decode()


def ready(backend: Backend, layout: AppLayout) -> None:
    eventually(lambda: "ready" in log(backend, layout))


def counts(backend: Backend, layout: AppLayout) -> list[int]:
    """The counts from which the counter says it started."""
    return [int(line.split()[1]) for line in log(backend, layout).splitlines() if line.startswith("ready")]


def exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_a_new_application_is_absent_and_has_nothing_to_show(backend: Backend, make: Make) -> None:
    layout = make(apps.COUNTER)
    assert backend.status(layout).state is EngineState.ABSENT
    assert not backend.status(layout).executing
    assert backend.logs(layout, 1000) == b""
    backend.stop(layout)
    with pytest.raises(NotRunning):
        backend.checkpoint(layout, leave_running=True)
    with pytest.raises(SuspendFailed) as caught:
        backend.suspend(layout)
    assert not caught.value.running


def test_start_says_when_the_application_was_executed(backend: Backend, make: Make) -> None:
    layout = make(apps.COUNTER)
    before = time.monotonic(), time.time()
    started = backend.start(layout)
    assert before[0] < started.at.monotonic_s <= time.monotonic() - HEALTHY_AFTER_S
    assert before[1] < started.at.wall_s <= time.time() - HEALTHY_AFTER_S
    status = backend.status(layout)
    assert (status.state, status.pid, status.started) == (EngineState.RUNNING, started.pid, started.at)
    assert status.executing


def test_only_one_copy_runs(backend: Backend, make: Make) -> None:
    layout = make(apps.COUNTER)
    started = backend.start(layout)
    with pytest.raises(AlreadyRunning):
        backend.start(layout)
    with pytest.raises(AlreadyRunning):
        backend.restore(layout)
    assert backend.resume(layout) == started
    assert backend.status(layout).pid == started.pid


def test_stop_is_clean_and_can_be_repeated(backend: Backend, make: Make) -> None:
    layout = make(apps.COUNTER)
    pid = backend.start(layout).pid
    backend.stop(layout)
    backend.stop(layout)
    status = backend.status(layout)
    assert status.state is EngineState.EXITED
    assert status.exit is not None
    assert (status.exit.code, status.exit.asked, status.exit.forced) == (0, True, False)
    assert not exists(pid)
    assert (layout.state_dir / "count").exists()


def test_a_stopped_application_starts_again_where_its_files_are(backend: Backend, make: Make) -> None:
    layout = make(apps.COUNTER)
    backend.start(layout)
    backend.stop(layout)
    backend.start(layout)
    ready(backend, layout)
    eventually(lambda: len(counts(backend, layout)) == 2)
    assert counts(backend, layout)[1] > 0


def test_stop_kills_what_ignores_sigterm(backend: Backend, make: Make) -> None:
    layout = make(apps.IGNORES_SIGTERM, stop_timeout_s=0.2)
    pid = backend.start(layout).pid
    ready(backend, layout)
    backend.stop(layout)
    status = backend.status(layout)
    assert status.exit is not None
    assert (status.exit.signal, status.exit.asked, status.exit.forced) == (signal.SIGKILL, True, True)
    assert not exists(pid)


def test_a_program_that_ends_at_once_has_not_started(backend: Backend, make: Make) -> None:
    layout = make(apps.DIES_YOUNG)
    with pytest.raises(StartFailed, match="exit code 4; last output: cannot open the database") as caught:
        patient(backend).start(layout)
    assert caught.value.executed
    assert caught.value.exit is not None
    assert caught.value.exit.code == 4
    status = backend.status(layout)
    assert status.state is EngineState.EXITED
    assert status.exit is not None
    assert not status.exit.asked


def test_a_command_that_does_not_exist_was_not_executed(backend: Backend, make: Make) -> None:
    layout = make(apps.COUNTER, command=["{app}/no-such-program"])
    with pytest.raises(StartFailed, match="no-such-program: No such file or directory") as caught:
        backend.start(layout)
    assert not caught.value.executed
    assert not backend.status(layout).executing


def test_an_application_that_dies_later_tells_its_exit(backend: Backend, make: Make) -> None:
    layout = make(apps.DIES_LATER)
    backend.start(layout)
    eventually(lambda: backend.status(layout).state is not EngineState.RUNNING)
    status = backend.status(layout)
    assert status.state is EngineState.EXITED
    assert status.exit is not None
    assert (status.exit.code, status.exit.asked) == (7, False)


def test_suspend_then_restore_elsewhere_continues(backend: Backend, make: Make) -> None:
    source, destination = make(apps.COUNTER), make(apps.COUNTER)
    pid = backend.start(source).pid
    ready(backend, source)
    before = time.monotonic()
    checkpoint = backend.suspend(source)
    assert before <= checkpoint.at.monotonic_s <= time.monotonic()
    assert backend.status(source).state is EngineState.SUSPENDED
    assert not backend.status(source).executing
    assert not exists(pid)

    destination.state_dir.rmdir()
    source.state_dir.rename(destination.state_dir)
    backend.restore(destination)
    ready(backend, destination)
    assert counts(backend, destination)[0] > 0


def test_resume_after_suspend_continues_here(backend: Backend, make: Make) -> None:
    layout = make(apps.COUNTER)
    backend.start(layout)
    ready(backend, layout)
    backend.suspend(layout)
    backend.resume(layout)
    eventually(lambda: len(counts(backend, layout)) == 2)
    assert counts(backend, layout)[1] > 0
    assert backend.status(layout).state is EngineState.RUNNING


def test_a_checkpoint_for_pre_copy_leaves_it_running(backend: Backend, make: Make) -> None:
    layout = make(apps.COUNTER, hooks={"save": ["sh", "-c", "kill -USR1 $P2P_PID; sleep 0.1"]})
    pid = backend.start(layout).pid
    ready(backend, layout)
    checkpoint = backend.checkpoint(layout, leave_running=True)
    assert checkpoint.saved
    assert int((layout.state_dir / "count").read_text()) > 0
    assert backend.status(layout).pid == pid


def test_an_unclean_exit_on_suspend_brings_it_back(backend: Backend, make: Make) -> None:
    layout = make(apps.EXITS_3)
    first = backend.start(layout).pid
    ready(backend, layout)
    with pytest.raises(SuspendFailed, match=r"exit code 3.*started again") as caught:
        backend.suspend(layout)
    assert caught.value.running
    status = backend.status(layout)
    assert status.state is EngineState.RUNNING
    assert status.pid != first


def test_one_that_does_not_end_on_suspend_runs_on(backend: Backend, make: Make) -> None:
    layout = make(apps.IGNORES_SIGTERM, stop_timeout_s=0.2)
    pid = backend.start(layout).pid
    ready(backend, layout)
    with pytest.raises(SuspendFailed, match=r"did not exit within 0\.2 s") as caught:
        backend.suspend(layout)
    assert caught.value.running
    assert backend.status(layout).pid == pid


def test_a_failing_before_suspend_hook_keeps_it_running(backend: Backend, make: Make) -> None:
    layout = make(apps.COUNTER, hooks={"before_suspend": ["sh", "-c", "echo no entry; exit 9"]})
    pid = backend.start(layout).pid
    with pytest.raises(SuspendFailed, match="hook before_suspend: exit code 9") as caught:
        backend.suspend(layout)
    assert caught.value.running
    assert backend.status(layout).pid == pid
    assert "no entry" in log(backend, layout)


@pytest.mark.parametrize(
    ("way", "program"), [("stop", apps.STUBBORN_FAMILY), ("suspend", apps.FAMILY), ("destroy", apps.FAMILY)]
)
def test_children_and_orphans_end_with_it(backend: Backend, make: Make, way: str, program: str) -> None:
    layout = make(program)
    pids = [backend.start(layout).pid]
    ready(backend, layout)
    pids += [int((layout.state_dir / name).read_text()) for name in ("child", "grandchild")]
    assert all(exists(pid) for pid in pids)
    getattr(backend, way)(layout)
    assert [pid for pid in pids if exists(pid)] == []
    assert not backend.status(layout).executing


def test_destroy_leaves_no_files_and_can_be_repeated(backend: Backend, make: Make) -> None:
    layout = make(apps.COUNTER)
    backend.start(layout)
    backend.destroy(layout)
    backend.destroy(layout)
    assert list(layout.folder.iterdir()) == []
    assert backend.status(layout).state is EngineState.ABSENT


NODE = """
import sys, time
from pathlib import Path
from backends.registry import builtin
from tests.support import apps
backend = builtin(healthy_after_s=apps.HEALTHY_AFTER_S)[sys.argv[1]]
layout = apps.make_layout(Path(sys.argv[2]), getattr(apps, sys.argv[3]), name="app0")
backend.create(layout)
print(backend.start(layout).pid, flush=True)
time.sleep(60)
"""


def start_in_a_node_that_is_killed(backend: Backend, root: Path, program: str) -> int:
    """Start an application from another process, kill that one, and give the application's pid."""
    command = [sys.executable, "-c", NODE, backend.name, str(root), program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as node:
        assert node.stdout is not None
        pid = int(node.stdout.readline())
        node.kill()
    return pid


def test_it_survives_the_node_and_is_found_again(backend: Backend, make: Make, tmp_path: Path) -> None:
    layout = make(apps.COUNTER)
    pid = start_in_a_node_that_is_killed(backend, tmp_path, "COUNTER")
    status = backend.status(layout)
    assert (status.state, status.pid) == (EngineState.RUNNING, pid)
    with pytest.raises(AlreadyRunning):
        backend.start(layout)
    ready(backend, layout)
    backend.suspend(layout)
    assert backend.status(layout).state is EngineState.SUSPENDED
    assert not exists(pid)


def test_how_it_ended_is_known_after_the_node_was_gone(backend: Backend, make: Make, tmp_path: Path) -> None:
    layout = make(apps.DIES_LATER)
    start_in_a_node_that_is_killed(backend, tmp_path, "DIES_LATER")
    eventually(lambda: backend.status(layout).state is EngineState.EXITED)
    status = backend.status(layout)
    assert status.exit is not None
    assert (status.exit.code, status.exit.asked) == (7, False)
