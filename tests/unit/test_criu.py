"""CRIU as the backends see it: which one, whether it works, what its logs say, and what another machine must have."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import criu
from backends.base import EngineSettings

LOG = """\
(00.000012) Version: 4.2.1 (gitid 0)
(00.010000) Warn  (criu/x.c:1): a warning
(00.039785) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.041000) Error (criu/files-ext.c:99): Can't dump file 5 of that type [20666] (/dev/fuse)
(00.041500) Error (criu/files-ext.c:99): Can't dump file 5 of that type [20666] (/dev/fuse)
(00.042000)      1: Error (criu/cr-dump.c:1725): Dump files (pid: 12) failed with -1\x1b
(00.050000) Error (criu/cr-dump.c:2111): Dumping FAILED.
"""


def program(folder: Path, *, version: str = "4.2.1", check: str = "exit 0", name: str = "criu") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo Version: {version} && exit\n{check}\n")
    path.chmod(0o755)
    return path


def test_a_log_is_told_in_one_line(tmp_path: Path) -> None:
    (log := tmp_path / "dump.log").write_text(LOG)
    reason = "Can't dump file 5 of that type [20666] (/dev/fuse); Dump files (pid: 12) failed with -1"
    assert criu.why(log) == reason
    assert criu.why(tmp_path / "none") == "CRIU left no log"
    log.write_text("")
    assert criu.why(log) == "no reason given"
    log.write_text("Segmentation fault\n")
    assert criu.why(log) == "Segmentation fault"


@given(st.binary(max_size=300))
def test_any_log_gives_a_short_line(data: bytes) -> None:
    reason = criu._reasons(data.decode(errors="replace"))
    assert reason
    assert len(reason) <= 400
    assert reason.isprintable()


def test_the_first_that_works_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "system").mkdir()
    broken = program(tmp_path / "system", version="3.17.1", check="echo 'Error (a.c:1): vdso: no'; exit 1")
    working = program(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'system'}:/usr/bin:/bin")
    monkeypatch.setattr(criu, "PREFIX", working)
    assert criu.check(broken) == criu.Checked(
        "3.17.1", f"CRIU 3.17.1 does not work on this kernel: vdso: no; {criu.HOW_TO_GET}"
    )
    assert criu.find(EngineSettings()) == working
    assert criu.find(EngineSettings(criu=broken)) == broken
    monkeypatch.setattr(criu, "PREFIX", tmp_path / "none")
    assert criu.find(EngineSettings()) == broken
    broken.unlink()
    assert criu.find(EngineSettings()) is None


def test_a_check_is_remembered_until_the_program_changes(tmp_path: Path) -> None:
    path = program(tmp_path, check=f"echo x >>{tmp_path}/asked")
    assert criu.check(path) == criu.check(path) == criu.Checked("4.2.1", None)
    assert (tmp_path / "asked").read_text() == "x\n"
    os.utime(path, (1, 1))
    criu.check(path)
    assert (tmp_path / "asked").read_text() == "x\nx\n"


def test_programs_that_are_no_criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in str(criu.check(tmp_path / "none").problem)
    (tmp_path / "text").write_text("not a program")
    assert "cannot be run" in str(criu.check(tmp_path / "text").problem)
    monkeypatch.setattr(criu, "_CHECK_TIMEOUT_S", 0.05)
    assert "does not end" in str(criu.check(program(tmp_path, check="exec sleep 5")).problem)


# Other machines


def test_this_machine_matches_itself(tmp_path: Path) -> None:
    path = program(tmp_path)
    facts = criu.facts(path)
    assert facts["criu"] == "4.2.1"
    assert criu.mismatches(path, facts) == []
    assert criu.mismatches(path, {}) == []
    assert all(len(value) < 1024 for value in facts.values())


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"cpu_vendor": "Other\nCPU"}, r"of the source of Other\?CPU"),
        ({"cpu_flags": "avx9000 amx_tall sse"}, "the processor here lacks amx_tall avx9000, which the source's has"),
        ({"cpu_flags": " ".join(f"avx9{n:03}" for n in range(50))}, "and 38 more, which"),
        ({"cpu_state_bytes": "7"}, "bytes of processor state, those of the source 7"),
        ({"criu": "4.10"}, r"CRIU 4\.2\.1 is older than the 4\.10"),
    ],
)
def test_what_lacks_here_is_named(tmp_path: Path, facts: dict[str, str], reason: str) -> None:
    found = criu.mismatches(program(tmp_path), facts)
    assert len(found) == 1
    assert re.search(reason, found[0])


def test_without_criu_no_memory_can_be_restored(tmp_path: Path) -> None:
    assert criu.mismatches(None, {}) == [f"criu is not installed; {criu.HOW_TO_GET}"]
    assert "does not work" in criu.mismatches(program(tmp_path, check="exit 1"), {})[0]


_names = st.sampled_from(["cpu_vendor", "cpu_flags", "cpu_state_bytes", "criu", "kernel", "x"])
_values = st.one_of(st.text(max_size=50), st.integers(), st.none(), st.lists(st.text(max_size=3), max_size=3))


@given(st.dictionaries(_names, _values))
def test_facts_of_a_peer_do_no_harm(facts: dict[str, object]) -> None:
    for reason in criu.mismatches(None, facts):  # type: ignore[arg-type]
        assert len(reason) < 1000
        assert reason.isprintable()


# How long a dump took


def varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data, value = data + bytes([value & 0x7F | 0x80]), value >> 7
    return data + bytes([value])


def test_the_time_of_a_dump_is_read_from_its_statistics(tmp_path: Path) -> None:
    path = tmp_path / "stats-dump"
    inner = b"\x08" + varint(1500) + b"\x10" + varint(98500) + b"\x18" + varint(3)
    outer = b"\x0a" + varint(len(inner)) + inner
    path.write_bytes(b"MAGICxyz" + len(outer).to_bytes(4, "little") + outer)
    assert criu.paused_s(path) == pytest.approx(0.1)
    assert criu.paused_s(tmp_path / "none") is None


@given(st.binary(max_size=60))
def test_statistics_that_make_no_sense_say_nothing(data: bytes) -> None:
    path = Path(f"/dev/shm/p2player-test-{os.getpid()}")
    path.write_bytes(b"MAGICxyz" + len(data).to_bytes(4, "little") + data)
    try:
        found = criu.paused_s(path)
    finally:
        path.unlink()
    assert found is None or found >= 0


# What cannot be saved


def here(**options: bool) -> list[str]:
    return criu.obstacles([os.getpid()], **options)


def test_plain_files_pipes_and_sockets_are_no_obstacles(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w"), open("/dev/null"), socket.socket(), socket.socket(socket.AF_UNIX):
        assert not [found for found in here() if "socket" in found or "file" in found]
    assert criu.obstacles([2**22 + 1]) == []


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: os.open("/dev/fuse", os.O_RDWR), "has /dev/fuse open: CRIU cannot save an open device"),
        (
            lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).detach(),
            "has a socket of the kind AF_VSOCK open: CRIU cannot save it",
        ),
    ],
)
def test_what_cannot_be_saved_is_named(make: Callable[[], int], reason: str) -> None:
    try:
        fd = make()
    except OSError as error:
        pytest.skip(f"not on this machine: {error}")
    try:
        assert [found for found in here() if found.endswith(f") {reason}")] != []
        assert here()[0].startswith(f"process {os.getpid()} (")
    finally:
        os.close(fd)


def test_a_connection_is_an_obstacle_where_it_is_not_to_be_saved() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        assert not [found for found in here() if "TCP" in found]
        assert [found for found in here(tcp_established=False) if "has a TCP connection open" in found]


def test_a_process_that_is_traced_is_told() -> None:
    script = "import ctypes, sys; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0), flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1) as traced:
        assert traced.stdout is not None
        assert traced.stdin is not None
        if traced.stdout.readline() == b"0\n":
            assert any("is traced by process" in found for found in criu.obstacles([traced.pid]))
        traced.stdin.close()
