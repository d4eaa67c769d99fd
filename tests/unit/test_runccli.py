"""Running runc: what it says, how long it may take, and the end of it and of CRIU when it takes longer."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import procfs, runccli
from backends.base import EngineSettings
from backends.command import RUN_MARK
from backends.runccli import EngineFailed, Runc, end_marked, limit_s


@pytest.fixture
def mark() -> Iterator[str]:
    """Of whatever a test starts."""
    mark = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield mark
    assert procfs.marked(RUN_MARK, mark) == []


def runc(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Runc:
    """One that runs a script in place of the real thing; `$4` is the file for its messages."""
    (folder / "runc").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "runc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    (folder / "run").mkdir()
    return Runc(folder / "run", EngineSettings(criu=Path("/bin/true")), None)


def test_it_fails_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"level": "error", "msg": "runc checkpoint failed: no such thing\nmore"})
    engine = runc(tmp_path, monkeypatch, f"printf %s '{line}' >$4; exit 1")
    with pytest.raises(EngineFailed, match=r"^no such thing$"):
        engine.run("checkpoint")
    engine = Runc(tmp_path / "run", EngineSettings(), None)
    (tmp_path / "runc").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(EngineFailed, match=r"^runc checkpoint: exit code 3$"):
        engine.run("checkpoint")
    assert engine.environment("x")[RUN_MARK] == "x"


def test_a_restore_gets_a_tmp_of_its_own_unless_that_hides_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = EngineSettings(criu=Path("/tmp/criu")), EngineSettings(criu=Path("/bin/true"))
    monkeypatch.setattr(runccli, "_TMP", Path("/tmp"))
    for run, settings in ((Path("/tmp/p1/run"), elsewhere), (Path("/run/p1"), here)):
        assert Runc(run, settings, None).restoring("x")[0] == "runc"
    monkeypatch.setattr(runccli, "_TMP", tmp_path / "tmp")
    assert Runc(tmp_path, elsewhere, None).restoring("x")[0] == "unshare"


def test_the_limit_grows_with_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    assert limit_s(0) == 600
    assert 1800 < limit_s(16 << 30) < 7200
    monkeypatch.setattr(runccli, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(runccli, "_SLOWEST", 1)
    runc(tmp_path, monkeypatch, "sleep 0.3").run("checkpoint", mark=mark, memory_bytes=lambda: 20)


@pytest.mark.parametrize("ending", ["exec sleep 60", "kill -9 $$"])
def test_what_takes_too_long_is_ended_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, ending: str
) -> None:
    """Also where runc itself was killed; CRIU would go on, and end the application after that was reported failed."""
    monkeypatch.setattr(runccli, "TIMEOUT_S", 0.2)
    engine = runc(tmp_path, monkeypatch, f"setsid sh -c 'sleep 1; touch {tmp_path}/ended; sleep 60' & {ending}")
    with pytest.raises(EngineFailed):
        engine.run("checkpoint", mark=mark, spare=lambda: False)
    assert procfs.marked(RUN_MARK, mark) == []
    assert not (tmp_path / "ended").exists()


def test_what_has_passed_the_point_of_no_return_is_let_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    monkeypatch.setattr(runccli, "TIMEOUT_S", 0.1)
    engine = runc(tmp_path, monkeypatch, f"sleep 0.3; touch {tmp_path}/done")
    held: list[set[str]] = []

    def spare() -> bool:
        found = [procfs.stat(process.pid) for process in procfs.marked(RUN_MARK, mark)]
        held.append({one.state for one in found if one is not None})
        return True

    engine.run("checkpoint", mark=mark, spare=spare)
    assert held == [{"T"}]  # nothing could happen between the question and the answer
    assert (tmp_path / "done").exists()


def test_a_family_that_grows_while_it_is_held_is_held_whole(mark: str) -> None:
    script = "while true; do sleep 60 & sleep 0.001; done"
    with subprocess.Popen(["sh", "-c", script], env={RUN_MARK: mark, "PATH": os.environ["PATH"]}) as grower:
        time_out = threading.Timer(20, grower.kill)
        time_out.start()
        assert not end_marked(mark)
        time_out.cancel()
        grower.wait()
    assert procfs.marked(RUN_MARK, mark) == []
