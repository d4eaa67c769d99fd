"""Layers between real nodes: pull from several holders, kills on either side, damage and repair."""

import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from p2player import errors
from p2player.localmesh import LocalMesh, LocalNode
from tests.real.conftest import make_tree
from tests.support.waiting import eventually

pytestmark = pytest.mark.real


def layer_row(node: LocalNode, name: str) -> dict[str, Any] | None:
    return next((row for row in node.json("layers") if row["name"] == name), None)


def sees_holders(node: LocalNode, name: str, *holders: str) -> Any:
    def look() -> bool:
        row = layer_row(node, name)
        return row is not None and row["holders"] == sorted(holders)

    return eventually(look)


def differences(original: Path, copy: Path) -> str:
    """What rsync would change, every attribute and content compared; only what an ordinary user can restore."""
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    flags = "-aHAXnc" if os.geteuid() == 0 else "-rlptHAXnc"
    command = ["rsync", flags, "--delete", "--itemize-changes", f"{original}/", f"{copy}/"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def start_pull(node: LocalNode, name: str) -> tuple[threading.Thread, list[subprocess.CompletedProcess[str]]]:
    results: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: results.append(node.cli("layer", "pull", name, "--json")))
    thread.start()
    return thread, results


def stored(node: LocalNode) -> int:
    return int(node.json("store", "stats")["chunks"])


def test_a_layer_travels_and_comes_out_the_same(mesh: LocalMesh, big_tree: Path, tmp_path: Path) -> None:
    one, two, three = (mesh.add(name, name) for name in ("one", "two", "three"))
    added = one.json("layer", "add", str(big_tree), "--name", "big")
    assert added["size"] >= 25 << 20
    assert eventually(lambda: layer_row(three, "big"))["holders"] == ["one"]

    pulled = two.json("layer", "pull", "big")
    assert pulled["id"] == added["id"]
    assert pulled["sources"].keys() == {"one"}
    assert pulled["bytes"]["transferred"] >= 24 << 20
    two.must("layer", "checkout", "big", str(tmp_path / "copy"))
    assert differences(big_tree, tmp_path / "copy") == ""
    sees_holders(three, "big", "one", "two")

    shared = three.json("layer", "pull", "big")
    sources = shared["sources"]
    assert sources.keys() == {"one", "two"}
    assert min(sources.values()) >= 0.2 * sum(sources.values())

    again = three.json("layer", "pull", added["id"][:12])
    assert again["bytes"]["transferred"] == 0


def test_an_unknown_layer_is_asked_for_and_then_not_found(mesh: LocalMesh) -> None:
    one = mesh.add("one")
    done = one.cli("layer", "pull", "nowhere")
    assert (done.returncode, done.stdout) == (errors.NotFound.exit_code, "")
    assert done.stderr.startswith("p2player: error: ")
    assert done.stderr.count("\n") == 1


def test_a_killed_holder_does_not_stop_a_pull(mesh: LocalMesh, big_tree: Path) -> None:
    one = mesh.add("one", "here", "--limit-out", "6MB/s")
    two = mesh.add("two", "here", "--limit-out", "6MB/s")
    three = mesh.add("three")
    one.must("layer", "add", str(big_tree), "--name", "big")
    two.must("layer", "pull", "big")
    sees_holders(three, "big", "one", "two")
    thread, results = start_pull(three, "big")
    eventually(lambda: stored(three) > 20)
    two.kill()
    thread.join(60)
    (done,) = results
    assert done.returncode == 0, done.stderr
    row = eventually(lambda: layer_row(three, "big"))
    assert row["have_chunks"] == row["chunks"]


def test_a_killed_puller_goes_on_where_it_was(mesh: LocalMesh, big_tree: Path) -> None:
    one = mesh.add("one")
    two = mesh.add("two", "here", "--limit-in", "8MB/s")
    one.must("layer", "add", str(big_tree), "--name", "big")
    sees_holders(two, "big", "one")
    thread, results = start_pull(two, "big")
    eventually(lambda: stored(two) > 60)
    two.kill()
    thread.join(30)
    assert results[0].returncode == errors.Unreachable.exit_code
    two.start()
    kept = stored(two)
    assert kept > 30
    sees_holders(two, "big", "one")
    pulled = two.json("layer", "pull", "big")
    missing = pulled["bytes"]["total"] - pulled["bytes"]["deduplicated"]
    assert missing < pulled["bytes"]["total"] - (2 << 20)
    assert missing <= pulled["bytes"]["transferred"] < 1.02 * missing + (64 << 10)
    assert two.cli("store", "verify").returncode == 0


def test_damage_is_found_named_and_mended(mesh: LocalMesh, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 4, seed=2)
    one, two = mesh.add("one"), mesh.add("two")
    one.must("layer", "add", str(tree), "--name", "precious")
    two.must("layer", "pull", "precious")
    pack = max((two.state / "store").rglob("*.pack"), key=lambda path: path.stat().st_size)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0x40]))
    found = two.cli("store", "verify")
    assert found.returncode == errors.Integrity.exit_code
    assert "precious" in found.stdout + found.stderr
    mended = two.cli("store", "verify", "--repair")
    assert mended.returncode == 0, mended.stderr
    assert two.cli("store", "verify").returncode == 0
    two.must("layer", "checkout", "precious", str(tmp_path / "copy"))
    assert differences(tree, tmp_path / "copy") == ""


def test_a_dead_node_is_noticed_and_taken_back(mesh: LocalMesh) -> None:
    one, two, three = mesh.add("one"), mesh.add("two"), mesh.add("three")

    def state() -> str:
        return str(next(row["state"] for row in one.json("peers") if row["name"] == "two"))

    eventually(lambda: len(one.json("peers")) == 2 and state() == "alive")
    two.kill()
    eventually(lambda: state() == "dead", within_s=30)
    assert three.json("status")["peers"]["alive"] >= 1
    two.start()
    eventually(lambda: state() == "alive", within_s=30)


def test_gc_frees_what_was_removed_and_nothing_else(mesh: LocalMesh, tmp_path: Path) -> None:
    one = mesh.add("one")
    first, second = make_tree(tmp_path / "first", 3, seed=3), make_tree(tmp_path / "second", 3, seed=4)
    one.must("layer", "add", str(first), "--name", "first")
    one.must("layer", "add", str(second), "--name", "second")
    before = one.json("store", "stats")["stored_bytes"]
    one.must("layer", "rm", "first")
    freed = one.json("store", "gc")["freed_bytes"]
    assert freed >= 2 << 20
    assert one.json("store", "stats")["stored_bytes"] <= before - (2 << 20)
    one.must("layer", "checkout", "second", str(tmp_path / "copy"))
    assert differences(second, tmp_path / "copy") == ""


def test_sigterm_ends_a_node_in_good_order(mesh: LocalMesh) -> None:
    one = mesh.add("one")
    assert one.process is not None
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(20) == 0
    assert not (one.state / "control.sock").exists()
    assert one.cli("status").returncode == errors.Unreachable.exit_code
