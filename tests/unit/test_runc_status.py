"""What a node makes of the run folder and the images of a container whose supervisor is gone."""

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import config, procfs, supervised
from backends.base import EngineSettings, EngineState, Workspace
from backends.command import RUN_MARK
from backends.procfs import ProcessId
from backends.runc import RuncBackend
from backends.rundir import Ended, Live, RunDir
from backends.saving import SAVING

RUN = "ab" * 16
NOBODY = ProcessId(1 << 22, 1)  # beyond the largest process id
WHOLE = "(00.1) Dumping finished successfully\n"
FAILED = "(00.1) Error (criu/cr-restore.c:1): Restoring FAILED.\n"
RESUMED = "(00.1) Restore finished successfully. Tasks resumed.\n"


@pytest.fixture
def app(tmp_path: Path) -> Workspace:
    """One that was killed by CRIU, or whose restore failed: its supervisor tells of no clean exit."""
    space = Workspace("ab" * 16, "box", tmp_path, config.parse('command = ["true"]'))
    for folder in (space.run_dir / "criu", space.state_dir):
        folder.mkdir(parents=True)
    RunDir(str(space.run_dir)).write_live(Live(RUN, procfs.boot_id(), NOBODY, NOBODY, 1.0, 2.0))
    ended(space, signal=9)
    return space


def ended(app: Workspace, *, code: int | None = None, signal: int | None = None) -> None:
    RunDir(str(app.run_dir)).write_ended(Ended(RUN, code, signal, asked=False, forced=False, left=()))


def intend(app: Workspace, intent: str) -> None:
    RunDir(str(app.run_dir)).write_intent(RUN, intent)


def images(place: Path, age: str) -> None:
    place.mkdir()
    (place / "descriptors.json").write_text(json.dumps(age))


def state(app: Workspace) -> EngineState:
    return RuncBackend(EngineSettings()).status(app).state


def saved(app: Workspace) -> str:
    return str(json.loads((app.state_dir / "images" / "descriptors.json").read_text()))


@pytest.mark.parametrize(
    ("new", "place", "old", "intent"),
    [
        ("final", "round", None, SAVING),
        ("final", None, None, SAVING),
        ("final", None, "round", SAVING),
        (None, "final", "round", SAVING),
        (None, "final", "round", supervised.SUSPENDED),
    ],
)
def test_a_whole_final_dump_counts_wherever_the_node_was_killed(
    app: Workspace, new: str | None, place: str | None, old: str | None, intent: str
) -> None:
    """Between each two steps of taking it: the old one put aside, the new one in its place, the note."""
    (app.run_dir / "criu" / "dump.log").write_text(WHOLE)
    intend(app, intent)
    places = {app.run_dir / "images.new": new, app.state_dir / "images": place, app.run_dir / "images.old": old}
    for folder, age in places.items():
        if age is not None:
            images(folder, age)
    for _ in range(2):
        assert state(app) is EngineState.SUSPENDED
        assert saved(app) == "final"
        assert not (app.run_dir / "images.new").exists()


@pytest.mark.parametrize(("code", "signal"), [(0, None), (None, 9)])
def test_one_that_ended_by_itself_while_a_dump_was_wanted_was_not_saved(
    app: Workspace, code: int | None, signal: int | None
) -> None:
    """Its images are those of a round of pre-copy."""
    intend(app, SAVING)
    ended(app, code=code, signal=signal)
    images(app.state_dir / "images", "round")
    assert state(app) is EngineState.EXITED


def test_the_dump_of_a_round_is_never_a_final_one(app: Workspace) -> None:
    images(app.state_dir / "images", "round")
    (app.run_dir / "criu" / "dump.log").write_text(WHOLE)
    assert state(app) is EngineState.EXITED


@pytest.mark.parametrize(
    ("run", "log", "there", "expected"),
    [
        (RUN, FAILED, True, EngineState.SUSPENDED),
        (RUN, "", True, EngineState.SUSPENDED),
        (RUN, FAILED, False, EngineState.EXITED),
        (RUN, RESUMED, True, EngineState.EXITED),
        ("another", FAILED, True, EngineState.EXITED),
        (None, FAILED, True, EngineState.EXITED),
    ],
)
def test_images_whose_restore_failed_count_as_before(
    app: Workspace, run: str | None, log: str, there: bool, expected: EngineState
) -> None:
    """Else the next try would start it afresh, and delete them."""
    if there:
        images(app.state_dir / "images", "final")
    if run is not None:
        (app.run_dir / "restoring").write_text(run)
    (app.run_dir / "criu" / "restore.log").write_text(log)
    assert state(app) is expected


def test_what_was_shelved_stays_so(app: Workspace) -> None:
    intend(app, supervised.SUSPENDED)
    assert state(app) is EngineState.SUSPENDED


# One that runs, whose node was killed in a dump


@pytest.fixture
def running(app: Workspace) -> Iterator[Workspace]:
    """It has a supervisor: this process, for want of a better one."""
    me = procfs.stat(os.getpid())
    assert me is not None
    RunDir(str(app.run_dir)).write_live(Live(RUN, procfs.boot_id(), me.process, me.process, 1.0, 2.0))
    (app.run_dir / "images.new").mkdir()
    (app.run_dir / "dumping").write_text(f"{RUN}.dump")
    yield app
    assert state(app) is EngineState.RUNNING


def intent(app: Workspace) -> str | None:
    return RunDir(str(app.run_dir)).intent(RUN)


@pytest.mark.parametrize("wanted", [None, SAVING])
def test_it_goes_on_after_a_dump_that_was_killed(running: Workspace, wanted: str | None) -> None:
    if wanted:
        intend(running, wanted)
    assert state(running) is EngineState.RUNNING
    assert not (running.run_dir / "dumping").exists()
    assert not (running.run_dir / "images.new").exists()
    assert intent(running) is None


def test_a_whole_final_dump_is_kept_while_its_container_ends(running: Workspace) -> None:
    intend(running, SAVING)
    (running.run_dir / "images.new/descriptors.json").write_text("[]")
    (running.run_dir / "criu/dump.log").write_text(WHOLE)
    assert state(running) is EngineState.RUNNING
    assert intent(running) == SAVING
    assert (running.run_dir / "images.new/descriptors.json").exists()
    assert not (running.run_dir / "dumping").exists()


def test_a_dump_that_goes_on_is_left_alone(running: Workspace) -> None:
    with open(running.run_dir / "dumping", "rb") as note:  # by this node
        fcntl.flock(note, fcntl.LOCK_EX)
        assert state(running) is EngineState.RUNNING
        assert (running.run_dir / "images.new").exists()
    with subprocess.Popen(["cat"], stdin=-1, env={RUN_MARK: f"{RUN}.dump"}) as criu:  # by CRIU, of another node
        assert state(running) is EngineState.RUNNING
        assert (running.run_dir / "images.new").exists()
        criu.kill()
    assert state(running) is EngineState.RUNNING
    assert not (running.run_dir / "images.new").exists()
