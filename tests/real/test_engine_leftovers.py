"""What tests of engines leave is found and ended, whatever became of the test. Needs root."""

import os
import secrets
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.contract import leftovers
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts and namespaces need root"),
]

LITTER = """
    import secrets, subprocess, sys
    from tests.support.contract import leftovers
    with leftovers.home() as folder:
        app_id = secrets.token_hex(16)
        name = leftovers.engine_name(app_id)
        (folder / "node" / "apps" / app_id).mkdir(parents=True)
        (folder / "mnt").mkdir()
        (folder / "disk").write_bytes(bytes(1 << 20))
        quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        sleepers = [
            subprocess.Popen(["sleep", "300"], start_new_session=True, cwd=folder, **quiet),
            subprocess.Popen(["sleep", "300"], start_new_session=True, env={"P2P_APP_ID": app_id}, **quiet),
            subprocess.Popen(["sh", "-c", "sleep 300; true", str(folder)], start_new_session=True, **quiet),
        ]
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder / "mnt"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder / "mnt"], check=True)
        loop = subprocess.check_output(["losetup", "--find", "--show", folder / "disk"], text=True).strip()
        subprocess.run(["ip", "netns", "add", name], check=True)
        print(folder, app_id, loop, *(sleeper.pid for sleeper in sleepers), flush=True)
        if sys.argv[1] == "stay":
            sleepers[0].wait()
"""


def litter(how: str) -> tuple[subprocess.Popen[str], Path, str, str, list[int]]:
    """A process that leaves one of everything, and what."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LITTER), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    folder, app_id, loop, *pids = process.stdout.readline().split()
    return process, Path(folder), app_id, loop, [int(pid) for pid in pids]


def nothing_is_left(folder: Path, app_id: str, loop: str, pids: list[int]) -> bool:
    mounts = Path("/proc/self/mountinfo").read_text()
    backing = Path("/sys/block") / Path(loop).name / "loop" / "backing_file"
    return not (
        folder.exists()
        or str(folder) in mounts
        or any(Path(f"/proc/{pid}/exe").exists() for pid in pids)
        or (backing.exists() and str(folder) in backing.read_text())
        or leftovers.of_application(app_id)
    )


def test_what_is_left_at_the_end_is_named_and_ended() -> None:
    process, folder, app_id, loop, pids = litter("leave")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    for thing in (*(f"process {pid}: " for pid in pids), str(folder / "mnt"), loop, leftovers.engine_name(app_id)):
        assert thing in said
    assert nothing_is_left(folder, app_id, loop, pids)


def test_a_killed_test_leaves_nothing() -> None:
    process, folder, app_id, loop, pids = litter("stay")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    eventually(lambda: nothing_is_left(folder, app_id, loop, pids), within_s=30)


def test_folders_of_the_living_are_left_alone() -> None:
    with leftovers.home() as mine:
        leftovers.sweep_dead()
        assert mine.is_dir()
        assert leftovers.find(mine) == []
        with subprocess.Popen(["sleep", "300"], cwd=mine) as sleeper:
            assert leftovers.find(mine) == [f"process {sleeper.pid}: sleep 300"]
            sleeper.kill()


def test_what_belongs_to_others_is_not_seen() -> None:
    other = secrets.token_hex(16)
    environment = {"P2P_APP_ID": other}
    with leftovers.home() as mine, subprocess.Popen(["sleep", "300"], env=environment) as sleeper:
        assert leftovers.find(mine) == []
        assert leftovers.processes_of(other) == [sleeper.pid]
        sleeper.kill()
