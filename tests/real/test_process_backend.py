"""What only the process backend promises: its supervision, the surroundings of a process, the bounded log, hooks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends import applog, hooks, procfs, shim, spawn, supervised
from backends.base import AppLayout, EngineState
from backends.errors import AlreadyRunning, BackendError, HookFailed, StartFailed, SuspendFailed
from backends.folders import remove_tree
from backends.process import ProcessBackend
from backends.rundir import Live, RunDir
from tests.support import apps
from tests.support.apps import HEALTHY_AFTER_S, eventually, executing, make_layout

pytestmark = pytest.mark.real

LOG_LIMIT = 256 << 10

Make = Callable[..., AppLayout]


@pytest.fixture
def backend() -> ProcessBackend:
    return ProcessBackend(healthy_after_s=HEALTHY_AFTER_S, log_limit_bytes=LOG_LIMIT)


@pytest.fixture
def make(backend: ProcessBackend, tmp_path: Path) -> Iterator[Make]:
    made: list[AppLayout] = []

    def build(program: str, **options: object) -> AppLayout:
        layout = make_layout(tmp_path, program, name=f"app{len(made)}", **options)  # type: ignore[arg-type]
        backend.create(layout)
        made.append(layout)
        return layout

    with apps.adopting_orphans():
        yield build
        for layout in made:
            backend.destroy(layout)


def live(layout: AppLayout) -> Live:
    found = RunDir(str(layout.run_dir)).live()
    assert found is not None
    return found


def exists(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    return os.path.exists(f"/proc/{pid}")


def ready(backend: ProcessBackend, layout: AppLayout) -> None:
    eventually(lambda: b"ready" in backend.logs(layout, 1 << 20))


# Surroundings


def test_the_process_finds_clean_surroundings(
    backend: ProcessBackend, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_SECRET", "do not pass on")
    monkeypatch.setenv("TZ", "UTC")
    layout = make(apps.SURROUNDINGS, arguments=["{base}", "{state}", '{"literal": {}}', "{{app}}"])
    read, write = os.pipe()
    os.set_inheritable(write, True)
    umask = os.umask(0o077)
    try:
        started = backend.start(layout)
    finally:
        os.umask(umask)
        os.close(read)
        os.close(write)
    eventually((layout.state_dir / "report").exists)
    report = json.loads((layout.state_dir / "report").read_text())

    assert report["argv"] == [str(layout.base), str(layout.state_dir), '{"literal": {}}', "{app}"]
    assert report["cwd"] == str(layout.state_dir)
    assert report["sid"] == report["pid"] == started.pid
    assert report["umask"] == 0o022
    fds = report["fds"]
    assert fds.pop("0") == "/dev/null"
    assert fds.pop("1") == fds.pop("2")
    assert fds == {}
    env = report["env"]
    assert "NODE_SECRET" not in env
    assert env["TZ"] == "UTC"
    assert (env["P2P_BASE"], env["P2P_APP"], env["P2P_STATE"]) == (
        str(layout.base),
        str(layout.app),
        str(layout.state_dir),
    )


def test_signals_have_their_defaults(backend: ProcessBackend, make: Make) -> None:
    layout = make("", command=["sh", "-c", "grep ^Sig /proc/self/status; echo ready; exec sleep 60"])
    backend.start(layout)
    ready(backend, layout)
    masks = dict(line.split(":\t") for line in backend.logs(layout, 4096).decode().splitlines()[:-1])
    standard = (1 << 31) - 1  # above are two of the C library's own
    assert int(masks["SigIgn"], 16) & standard == 0
    assert int(masks["SigBlk"], 16) == 0


def test_the_supervisor_holds_nothing_of_the_node(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.COUNTER)
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        backend.start(layout)
        supervisor = live(layout).shim.pid
        links = {os.readlink(f"/proc/{supervisor}/fd/{fd}") for fd in os.listdir(f"/proc/{supervisor}/fd")}
        assert os.readlink(f"/proc/self/fd/{write}") not in links
        assert os.readlink(f"/proc/{supervisor}/cwd") == "/"
        assert os.getsid(supervisor) == supervisor
    finally:
        os.close(read)
        os.close(write)


def children() -> set[procfs.ProcessId]:
    """Those of this process, zombies too."""
    return {found.process for found in procfs.everyone() if found.parent == os.getpid()}


def test_no_zombies(backend: ProcessBackend, make: Make) -> None:
    before = children()
    layout = make(apps.FAMILY)
    counter = make(apps.COUNTER)
    failing = make(apps.DIES_YOUNG)
    missing = make("", command=["/nonexistent"])
    for other in (failing, missing):
        with pytest.raises(StartFailed):
            ProcessBackend(healthy_after_s=apps.SURELY_UNHEALTHY_AFTER_S).start(other)
    backend.start(layout)
    ready(backend, layout)
    backend.suspend(layout)
    backend.start(counter)
    backend.stop(counter)
    assert children() <= before


# Cooperation


def test_stop_kills_what_ignores_sigterm(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.IGNORES_SIGTERM, stop_timeout_s=0.2)
    pid = backend.start(layout).pid
    ready(backend, layout)
    backend.stop(layout)
    status = backend.status(layout)
    assert status.exit is not None
    assert (status.exit.signal, status.exit.asked, status.exit.forced) == (signal.SIGKILL, True, True)
    assert not exists(pid)


def test_a_checkpoint_for_pre_copy_leaves_it_running(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.COUNTER, hooks={"save": ["sh", "-c", "kill -USR1 $P2P_PID; sleep 0.1"]})
    pid = backend.start(layout).pid
    ready(backend, layout)
    checkpoint = backend.checkpoint(layout, leave_running=True)
    assert checkpoint.saved
    assert int((layout.state_dir / "count").read_text()) > 0
    assert backend.status(layout).pid == pid


def test_an_unclean_exit_on_suspend_brings_it_back(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.EXITS_3)
    first = backend.start(layout).pid
    ready(backend, layout)
    with pytest.raises(SuspendFailed, match=r"exit code 3.*started again") as caught:
        backend.suspend(layout)
    assert caught.value.running
    status = backend.status(layout)
    assert status.state is EngineState.RUNNING
    assert status.pid != first


def test_one_that_does_not_end_on_suspend_runs_on(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.IGNORES_SIGTERM, stop_timeout_s=0.2)
    pid = backend.start(layout).pid
    ready(backend, layout)
    with pytest.raises(SuspendFailed, match=r"did not exit within 0\.2 s") as caught:
        backend.suspend(layout)
    assert caught.value.running
    assert backend.status(layout).pid == pid


@pytest.mark.parametrize(
    ("way", "program"), [("stop", apps.STUBBORN_FAMILY), ("suspend", apps.FAMILY), ("destroy", apps.FAMILY)]
)
def test_children_and_orphans_end_with_it(backend: ProcessBackend, make: Make, way: str, program: str) -> None:
    layout = make(program)
    pids = [backend.start(layout).pid]
    ready(backend, layout)
    pids += [int((layout.state_dir / name).read_text()) for name in ("child", "grandchild")]
    assert all(exists(pid) for pid in pids)
    getattr(backend, way)(layout)
    assert [pid for pid in pids if exists(pid)] == []
    assert not backend.status(layout).executing


# Supervision


def test_a_killed_supervisor_takes_the_application_along(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.COUNTER)
    backend.start(layout)
    run = live(layout)
    procfs.send(run.shim, signal.SIGKILL)
    eventually(lambda: not procfs.alive(run.shim) and not procfs.alive(run.app))
    status = backend.status(layout)
    assert (status.state, status.reason, status.exit) == (EngineState.LOST, "its supervisor was killed", None)
    assert not status.executing


def test_orphans_of_a_killed_supervisor_are_found_and_ended(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.STUBBORN_FAMILY)
    backend.start(layout)
    ready(backend, layout)
    orphans = {int((layout.state_dir / name).read_text()) for name in ("child", "grandchild")}
    run = live(layout)
    procfs.send(run.shim, signal.SIGKILL)
    eventually(lambda: not procfs.alive(run.shim) and not procfs.alive(run.app))

    status = backend.status(layout)
    assert status.state is EngineState.LOST
    assert set(status.leftovers) == orphans
    assert status.executing

    for name in ("child", "grandchild"):
        (layout.state_dir / name).unlink()
    backend.start(layout)
    assert not any(executing(pid) for pid in orphans)


def test_a_run_of_an_earlier_boot_is_lost(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.DIES_LATER)
    backend.start(layout)
    run_dir = RunDir(str(layout.run_dir))
    eventually(lambda: backend.status(layout).state is EngineState.EXITED)
    run_dir.write_live(live(layout)._replace(boot="another"))
    assert backend.status(layout).state is EngineState.LOST
    assert backend.status(layout).reason == "the machine restarted"


def test_what_was_stopped_before_a_boot_stays_stopped(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.COUNTER)
    backend.start(layout)
    backend.stop(layout)
    RunDir(str(layout.run_dir)).write_live(live(layout)._replace(boot="another"))
    assert backend.status(layout).state is EngineState.EXITED


def test_a_pid_used_again_is_not_mistaken(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.COUNTER)
    backend.start(layout)
    backend.stop(layout)
    me = procfs.stat(os.getpid())
    assert me is not None
    reused = procfs.ProcessId(me.process.pid, me.process.start - 1)
    RunDir(str(layout.run_dir)).write_live(live(layout)._replace(shim=reused, app=reused, run="00"))
    assert backend.status(layout).state is EngineState.LOST
    backend.stop(layout)  # must not signal this test


def test_no_signal_reaches_another_process_of_the_same_pid() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        found = procfs.stat(child.pid)
        assert found is not None
        earlier = procfs.ProcessId(child.pid, found.process.start - 1)
        assert not procfs.send(earlier, signal.SIGKILL)
        assert procfs.wait_end(earlier, 60.0)
        assert procfs.alive(found.process)
        assert not procfs.wait_end(found.process, 0.0)
        assert procfs.send(found.process, signal.SIGKILL)
        assert procfs.wait_end(found.process, 60.0)
        assert not procfs.alive(found.process)  # a zombie does not count


def test_torn_notes_count_as_none(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.COUNTER)
    backend.start(layout)
    backend.stop(layout)
    for torn in (b"", b"{", b"[]", b'{"run": 1}', b"\xff\xfe"):
        (layout.run_dir / "live").write_bytes(torn)
        assert backend.status(layout).state is EngineState.ABSENT


def test_told_to_end_from_outside_is_no_failure(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.COUNTER)
    backend.start(layout)
    ready(backend, layout)
    run = live(layout)
    procfs.send(run.shim, signal.SIGTERM)
    assert procfs.wait_end(run.shim, 5.0)
    status = backend.status(layout)
    assert status.state is EngineState.EXITED
    assert status.exit is not None
    assert (status.exit.code, status.exit.asked) == (0, True)


def test_an_end_after_a_timed_out_suspend_is_known_as_asked_for(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.SLOW_TO_END, stop_timeout_s=0.1)
    pid = backend.start(layout).pid
    ready(backend, layout)
    with pytest.raises(SuspendFailed) as caught:
        backend.suspend(layout)
    assert caught.value.running
    assert backend.resume(layout).pid == pid  # it still runs: left alone
    (layout.state_dir / "end").touch()
    eventually(lambda: backend.status(layout).state is not EngineState.RUNNING)
    assert backend.status(layout).state is EngineState.SUSPENDED
    assert backend.resume(layout).pid != pid


def test_a_stuck_supervisor_does_not_keep_the_application_alive(
    backend: ProcessBackend, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "SHIM_SLACK_S", 0.2)
    monkeypatch.setattr(shim, "GIVE_UP_S", 0.0)
    layout = make(apps.COUNTER, stop_timeout_s=0.1)
    backend.start(layout)
    run = live(layout)
    procfs.send(run.shim, signal.SIGSTOP)
    backend.stop(layout)
    eventually(lambda: not procfs.alive(run.app))
    assert not backend.status(layout).executing


def test_a_supervisor_that_does_not_report_is_killed(
    backend: ProcessBackend, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "REPORT_TIMEOUT_S", 0.0)
    monkeypatch.setattr(shim, "LINGER_S", 0.0)
    layout = make(apps.COUNTER)
    before = children()
    with pytest.raises(StartFailed, match="does not report"):
        backend.start(layout)
    assert not backend.status(layout).executing
    assert children() <= before


def test_of_two_starts_at_once_one_wins(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.COUNTER)
    outcomes: list[object] = []

    def start() -> None:
        try:
            outcomes.append(backend.start(layout))
        except BackendError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(isinstance(outcome, AlreadyRunning) for outcome in outcomes) == [False, True]
    marks = procfs.marked("P2P_RUN", live(layout).run)
    assert [mark.pid for mark in marks] == [live(layout).app.pid]


# The log


def test_ten_megabytes_of_output_stay_bounded(backend: ProcessBackend, make: Make) -> None:
    layout = make(apps.TALKATIVE)
    backend.start(layout)
    eventually(lambda: backend.logs(layout, 100).endswith(b"the end\n"))
    sizes = [os.path.getsize(name) for name in (layout.log_path, f"{layout.log_path}.1")]
    assert max(sizes) <= LOG_LIMIT
    assert len(backend.logs(layout, 1 << 30)) == sum(sizes)
    assert len(backend.logs(layout, 1000)) == 1000


def test_output_of_an_end_is_not_lost(backend: ProcessBackend, make: Make) -> None:
    program = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit('z' * 60000 + ' bye'))\n"
    layout = make(program + "print('ready', flush=True)\nwhile True: time.sleep(9)")
    backend.start(layout)
    ready(backend, layout)
    backend.stop(layout)
    assert backend.logs(layout, 100).endswith(b"zzz bye\n")


def test_writers_follow_a_rotation(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    one, two = applog.AppLog(path, 100), applog.AppLog(path, 100)
    for turn in range(10):
        one.write(b"1" * 29 + b"\n")
        two.write(b"2" * 29 + b"\n")
        assert os.path.getsize(path) <= 100, turn
    assert applog.tail(path, 60) == b"1" * 29 + b"\n" + b"2" * 29 + b"\n"
    one.close()
    two.close()


def test_a_log_without_room_costs_only_output(tmp_path: Path) -> None:
    log = applog.AppLog(str(tmp_path / "gone" / "log"))
    log.write(b"lost")
    (tmp_path / "gone").mkdir()
    log.write(b"kept")
    log.close()
    assert applog.tail(str(tmp_path / "gone" / "log"), 100) == b"kept"


# Hooks


def test_a_hook_gets_the_environment_and_the_log(backend: ProcessBackend, make: Make) -> None:
    words = ["sh", "-c", "echo $P2P_NAME {state} $P2P_PID; pwd"]
    layout = make(apps.COUNTER, hooks={"after_restore": words})
    assert hooks.run_hook("after_restore", layout, pid=17)
    assert not hooks.run_hook("save", layout)
    text = backend.logs(layout, 1000).decode()
    assert text == f"p2player: hook after_restore\n{layout.name} {layout.state_dir} 17\n{layout.state_dir}\n"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["sh", "-c", "exit 5"], "exit code 5"),
        (["sh", "-c", "kill -9 $$"], "killed by SIGKILL"),
        (["/nonexistent/hook"], "/nonexistent/hook: No such file or directory"),
    ],
)
def test_a_hook_that_fails_says_how(backend: ProcessBackend, make: Make, words: list[str], problem: str) -> None:
    layout = make(apps.COUNTER, hooks={"save": words})
    with pytest.raises(HookFailed, match=problem):
        hooks.run_hook("save", layout)
    assert problem in backend.logs(layout, 1000).decode()


def test_a_hook_that_hangs_is_killed_with_its_children(make: Make) -> None:
    layout = make(apps.COUNTER, hooks={"save": ["sh", "-c", "sleep 60 & echo $! >child; wait"], "timeout_s": 0.4})
    before = time.monotonic()
    with pytest.raises(HookFailed, match=r"did not end within 0\.4 s"):
        hooks.run_hook("save", layout)
    assert time.monotonic() - before < 5
    child = int((layout.state_dir / "child").read_text())
    eventually(lambda: not executing(child))


def test_a_hook_does_not_wait_for_what_it_left_behind(make: Make) -> None:
    layout = make(apps.COUNTER, hooks={"save": ["sh", "-c", "sleep 60 & exit 0"]})
    before = time.monotonic()
    assert hooks.run_hook("save", layout)
    assert time.monotonic() - before < 5


def test_a_hook_cannot_flood_the_log(backend: ProcessBackend, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "MAX_OUTPUT_BYTES", 1000)
    layout = make(apps.COUNTER, hooks={"save": ["sh", "-c", "yes | head -c 1000000"]})
    hooks.run_hook("save", layout)
    assert len(backend.logs(layout, 1 << 20)) == 1000 + len("p2player: hook save\n")


# Folders

REMOVE = """
import os, sys
from pathlib import Path
from backends.folders import remove_tree
os.chdir(sys.argv[1])
if os.getuid() == 0:  # to whom nothing is forbidden
    os.chmod(".", 0o777)
    os.setgid(65534)
    os.setuid(65534)
top = Path("top")
(top / "a" / "b").mkdir(parents=True)
(top / "a" / "b" / "file").write_text("x")
(top / "link").symlink_to("/")
os.chmod(top / "a" / "b", 0)
os.chmod(top / "a", 0o500)
os.chmod(top, 0o500)
remove_tree(top)
assert not os.path.lexists(top)
"""


def test_folders_without_permissions_can_be_deleted(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", REMOVE, str(tmp_path)], check=True, cwd=root)


def test_an_absent_folder_is_deleted(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")
