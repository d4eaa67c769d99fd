"""Whose rules of CRIU's packet filter are whose. With real iptables as root, in networks of their own."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import packetlock
from backends.packetlock import PacketLock, Rule, rules_of_dump

COMMAND = (
    "(00.1) \tRunning iptables [{tool} -w -t filter -I {chain} --protocol tcp -m mark ! --mark 0xC114 "
    "--source {source} --sport {sport} --destination {target} --dport {dport} -j DROP]\n"
)
IN4 = {"tool": "iptables", "chain": "INPUT", "source": "10.0.0.2", "sport": 4000, "target": "10.0.0.1", "dport": 80}
OUT4 = {"tool": "iptables", "chain": "OUTPUT", "source": "10.0.0.1", "sport": 80, "target": "10.0.0.2", "dport": 4000}
IN6 = {"tool": "ip6tables", "chain": "INPUT", "source": "fd00:0::2", "sport": 5, "target": "fd00::1", "dport": 80}


def log(folder: Path, *commands: dict[str, object]) -> Path:
    path = folder / "dump.log"
    path.write_text("(00.0) net: Lock network\n" + "".join(COMMAND.format(**command) for command in commands))
    return path


def test_a_dump_tells_of_its_rules_before_it_makes_them(tmp_path: Path) -> None:
    path = log(tmp_path, IN4, OUT4, IN6)
    assert rules_of_dump(path) == {
        Rule("iptables", "INPUT", "10.0.0.2", 4000, "10.0.0.1", 80),
        Rule("iptables", "OUTPUT", "10.0.0.1", 80, "10.0.0.2", 4000),
        Rule("ip6tables", "INPUT", "fd00::2", 5, "fd00::1", 80),
    }
    path.write_text(path.read_text()[:-20])  # CRIU was killed while it wrote
    assert len(rules_of_dump(path)) == 2
    assert rules_of_dump(tmp_path / "none") == set()


def test_other_rules_are_none_of_ours(tmp_path: Path) -> None:
    path = log(tmp_path, {**IN4, "tool": "rm"}, {**IN4, "source": "10.0.0"}, {**IN4, "dport": "http"})
    with open(path, "a") as file:
        file.write(COMMAND.format(**IN4).replace("0xC114", "0x1") + COMMAND.format(**IN4).replace("DROP", "ACCEPT"))
        file.write("Running iptables [iptables 'unclosed]\n")
    assert rules_of_dump(path) == set()


@given(st.text(max_size=80))
def test_any_line_can_be_read(text: str) -> None:
    packetlock._rule("iptables", text)


# Real rules


def in_network(network: Path, *command: str) -> str:
    words = ["nsenter", f"--net={network}", *command]
    return subprocess.run(words, capture_output=True, check=True, text=True).stdout


@pytest.fixture
def network() -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("iptables") is None:
        pytest.skip("needs root and iptables")
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield Path(f"/proc/{process.pid}/ns/net")
        process.kill()


def apply(network: Path, path: Path) -> None:
    """Do what CRIU does after it has written its log."""
    for line in path.read_text().splitlines():
        if match := packetlock._RUNNING.search(line):
            in_network(network, match[1], *match[2].split())


@pytest.mark.root
def test_two_that_are_saved_at_the_same_time_keep_their_own_rules(network: Path, tmp_path: Path) -> None:
    (one := tmp_path / "one").mkdir()
    (other := tmp_path / "other").mkdir()
    apply(network, log(one, IN4, OUT4, IN6))
    apply(network, log(other, {**IN4, "sport": 4001}))
    for _ in range(2):
        PacketLock(one / "dump.log", network, tmp_path / "none").release()
        rules = in_network(network, "iptables-save")
        assert "--sport 4001" in rules
        assert "4000" not in rules
        assert "DROP" not in in_network(network, "ip6tables-save")
    PacketLock(other / "dump.log", network, tmp_path / "none").release()
    assert "DROP" not in in_network(network, "iptables-save")


@pytest.mark.root
def test_a_network_of_its_own_is_opened_again(network: Path, tmp_path: Path) -> None:
    for tool in ("iptables", "ip6tables"):
        in_network(network, tool, "-N", "CRIU")
        in_network(network, tool, "-A", "CRIU", "-j", "DROP")
        for chain in ("INPUT", "OUTPUT"):
            in_network(network, tool, "-I", chain, "-j", "CRIU")
    lock = PacketLock(tmp_path / "dump.log", None, network)
    for _ in range(2):
        lock.open()
        for tool in ("iptables-save", "ip6tables-save"):
            assert "CRIU" not in in_network(network, tool)
