"""The bench of the published table, on the embedded backend: both methods move a counter that a client watches."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench import ssh
from bench.netlab import NetlabUnavailable, leftovers
from bench.netlab import tools as netlab_tools
from bench.paper.plan import OURS, PROCESS, RSYNC
from bench.paper.results import Results

pytestmark = [pytest.mark.real, pytest.mark.root]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def able() -> None:
    try:
        netlab_tools.check()
        ssh.need("rsync", "sshd", "ssh", "ssh-keygen")
    except (NetlabUnavailable, ssh.Missing, subprocess.CalledProcessError) as error:
        pytest.skip(str(error))


def bench(folder: Path, *options: str) -> list[str]:
    where = ("--folder", str(folder), "--results", str(folder / "paper.jsonl"))
    return [sys.executable, "-m", "bench.paper", "--platform", PROCESS, *where, *options]


def test_both_methods_move_an_application_and_a_bench_that_is_ended_goes_on_later(tmp_path: Path) -> None:
    command = bench(tmp_path, "--method", RSYNC, "--method", OURS)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while "[3/4" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["paper.jsonl"]
    assert not [name for name in os.listdir(leftovers.NAMESPACES) if name.startswith(f"p2lab-{process.pid}-")]

    ((cell, methods),) = Results(tmp_path / "paper.jsonl").of(None).items()
    assert not cell.present
    assert set(methods) == {RSYNC, OURS}
    for run in methods.values():
        assert run.whole
        assert run.gap_s is not None
        assert run.freeze_s < run.total_s
        assert 3.0 < run.mb < 3.7
    assert methods[OURS].figures["back_instance_bytes"] < 50_000
    assert methods[RSYNC].figures["engine_s"] > 0

    listed = subprocess.run(
        bench(tmp_path, "--list", "--any-code"), cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert "app layer absent, 50 Mbit/s: rsync-z\n" in listed
    assert "app layer present, 50 Mbit/s: rsync, rsync-z, p2player\n" in listed
