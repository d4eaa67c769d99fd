"""Migrations between real nodes on real engines, through the command line, watched by a client with one connection.

The nodes have a network namespace and an engine each; see `tests.support.contract.ground`. One service lives through
all tests of an engine: every refusal and every death must leave it running, with its memory, on one of the two nodes.
"""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from p2player.localmesh import LocalNode
from p2player.migration.preflight import RESERVE_BYTES
from tests.support import lethal_node
from tests.support.contract import engines, services, tampered_node
from tests.support.contract.ground import Ground
from tests.support.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

APP = "counter"
DIRTIED = 8 * 4096
"""What a counter writes in a second."""
REFUSED = 5
NOWHERE = {
    "runc": {"criu": "/nonexistent/criu"},
    "lxd": {"lxd_socket": "/nonexistent/socket"},
    "libvirt": {"libvirt_uri": "qemu+unix:///system?socket=/nonexistent/socket"},
}


@dataclass(frozen=True, slots=True)
class Stage:
    """The service, and where it may be."""

    ground: Ground

    def home(self) -> LocalNode:
        """Where it runs."""
        return self.ground.home(APP)

    def away(self) -> LocalNode:
        """Where it could go."""
        return self.ground.other(self.home())

    def migrate(self, source: LocalNode, *options: str) -> Any:
        """To the other node; the row, which must say that it is done."""
        row = source.json("migrate", APP, "--to", self.ground.other(source).name, *options)
        assert (row["state"], row["from"]) == ("done", source.name)
        return row

    def refused(self, *options: str, app: str = APP) -> str:
        """Ask for a migration that must be refused; why."""
        source, destination = self.home(), self.away()
        return refusal(source.cli("migrate", app, "--to", destination.name, *options))


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said that had to be refused, in the agreed form."""
    assert done.returncode == REFUSED, done
    assert done.stderr.startswith("p2player: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture(scope="module", params=engines.params("runc", "lxd", "libvirt", suffix="-ground"))
def stage(request: pytest.FixtureRequest, engine_home: Path) -> Iterator[Stage]:
    with engines.ground(request.param, engine_home) as ground:
        base, app = services.make_layers(ground.engine, ground.root / "layers")
        ground.north.must("layer", "add", str(base), "--name", "base", "--kind", "base")
        ground.north.must("layer", "add", str(app), "--name", "app", "--kind", "app")
        for name in ("base", "app"):
            ground.west.must("layer", "pull", name)
        create(ground, ground.north, APP, services.config(ground.engine))
        ground.north.must("app", "start", APP)
        yield Stage(ground)


def create(ground: Ground, node: LocalNode, name: str, config: str) -> None:
    path = ground.root / f"{name}.toml"
    path.write_text(config)
    words = ("--backend", ground.engine, "--base", "base", "--app", "app", "--config", str(path))
    node.must("app", "create", name, *words)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the service had in memory at some moment, and where it was."""

    stage: Stage
    node: LocalNode
    token: str
    count: int

    def is_at(self, node: LocalNode) -> None:
        """It runs on `node`, and goes on counting from there."""
        assert self.stage.home() is node
        token, count = self.stage.ground.tick(APP, node)
        assert (token, count >= self.count) == (self.token, True)


def memory(stage: Stage) -> Memory:
    home = stage.home()
    return Memory(stage, home, *stage.ground.tick(APP, home))


@pytest.fixture
def unharmed(stage: Stage) -> Iterator[Memory]:
    """The service as it is; after the test it must be on the same node as if nothing had happened."""
    before = memory(stage)
    yield before
    before.is_at(before.node)


def needs_tcp(stage: Stage) -> None:
    """The service listens, and not every CRIU can save sockets of TCP on every kernel."""
    problem = None if stage.ground.engine == "libvirt" else engines.criu_without_tcp()
    if problem:
        pytest.skip(f"{stage.ground.engine}: {problem}")


# It moves


def test_live_there_and_back_with_an_open_connection(stage: Stage) -> None:
    needs_tcp(stage)
    before = memory(stage)
    source, destination = before.node, stage.away()
    with stage.ground.caller() as caller:
        there = stage.migrate(source)
        caller.goes_on()
        before.is_at(destination)
        assert {source.name, "west"} <= there["sources"].keys()
        assert 0 < there["longest_freeze_s"] <= there["freeze_s"] < there["total_s"]

        back = stage.migrate(destination)
        caller.goes_on()
        before.is_at(source)
    first, second = (row["layers"]["instance"] for row in (there, back))
    assert second["transferred"] <= 0.05 * first["total"] + DIRTIED
    for layer in ("base", "app"):
        assert there["layers"][layer]["transferred"] > 0
        assert back["layers"][layer]["transferred"] == 0
    assert [row["node"] for row in destination.json("apps")] == [source.name]


def test_cold_it_starts_afresh(stage: Stage) -> None:
    before = memory(stage)
    destination = stage.away()
    stage.migrate(before.node, "--mode", "cold")
    assert stage.home() is destination
    assert stage.ground.tick(APP, destination)[0] != before.token


# It is refused, and nothing happened


def test_a_freeze_budget_that_cannot_be_met(stage: Stage, unharmed: Memory) -> None:
    with stage.ground.caller() as caller:
        assert "over the bound" in stage.refused("--max-freeze", "1ms")
        assert caller.longest_gap_s() < 1.0


def test_no_engine_at_the_destination(stage: Stage, unharmed: Memory) -> None:
    ground, away = stage.ground, stage.away()
    ground.configure(away, **NOWHERE[ground.engine])
    ground.restart(away)
    try:
        (probe,) = [row for row in away.json("backends") if row["name"] == ground.engine]
        assert not probe["available"]
        said = stage.refused()
        assert f"backend {ground.engine} cannot be used on {away.name}: " in said
        assert probe["reason"] in said
    finally:
        ground.configure(away)
        ground.restart(away)


def test_another_processor_at_the_source(stage: Stage, unharmed: Memory) -> None:
    ground, home = stage.ground, unharmed.node
    ground.restart(home, launcher=(sys.executable, tampered_node.__file__, ground.engine))
    try:
        said = stage.refused()
        assert "processor here" in said or "KVM" in said
        assert f"--mode cold moves {APP} without its memory" in said
    finally:
        ground.restart(home)


def test_no_room_at_the_destination(stage: Stage, unharmed: Memory) -> None:
    away = stage.away()
    place = away.state / "migrations"
    away.stop()
    room = f"size={RESERVE_BYTES - 1}"
    subprocess.run(away.wrap(["mount", "-t", "tmpfs", "-o", room, "tmpfs", str(place)]), check=True)
    try:
        stage.ground.restart(away)
        assert f"no room on {away.name}" in stage.refused()
    finally:
        away.stop()
        subprocess.run(away.wrap(["umount", str(place)]), check=True)
        stage.ground.restart(away)


def test_something_open_that_criu_cannot_save(stage: Stage) -> None:
    ground = stage.ground
    if ground.engine == "libvirt":
        pytest.skip("a virtual machine can be saved whatever runs in it")
    home = stage.home()
    before = "arping -I eth0 10.88.0.1 >/dev/null 2>&1 &"
    config = services.config(ground.engine, before=before, address="10.88.0.6", mac="02:88:00:00:00:06")
    create(ground, home, "packets", config)
    home.must("app", "start", "packets")
    try:
        token, count = ground.tick("packets", home)
        said = stage.refused(app="packets")
        assert "PACKET" in said
        assert ground.home("packets") is home
        after = ground.tick("packets", home)
        assert (after[0], after[1] >= count) == (token, True)
    finally:
        home.must("app", "stop", "packets")
        home.must("app", "rm", "packets")


def test_only_one_migration_at_a_time(stage: Stage) -> None:
    needs_tcp(stage)
    before = memory(stage)
    source, destination = before.node, stage.away()
    words = ("migrate", APP, "--to", destination.name)
    with ThreadPoolExecutor(2) as pool:
        codes = {done.returncode: done for done in pool.map(lambda _: source.cli(*words), range(2))}
    assert codes.keys() == {0, REFUSED}
    refusal(codes[REFUSED])
    before.is_at(destination)


# Somebody dies


def test_the_node_is_killed_while_the_app_runs(stage: Stage, unharmed: Memory) -> None:
    with stage.ground.caller() as caller:
        unharmed.node.kill()
        caller.goes_on()
        stage.ground.restart(unharmed.node)
        caller.goes_on()
        assert caller.longest_gap_s() < 1.0


def test_the_destination_dies_before_the_grant(stage: Stage, unharmed: Memory) -> None:
    needs_tcp(stage)
    ground, away = stage.ground, stage.away()
    ground.restart(away, launcher=(sys.executable, lethal_node.__file__, "destination:Ready:before"))
    done = unharmed.node.cli("migrate", APP, "--to", away.name)
    assert done.returncode != 0
    assert away.process is not None and away.process.wait(10) == -9
    unharmed.is_at(unharmed.node)
    ground.restart(away)
    assert unharmed.node.json("migrations")[0]["state"] == "failed"


def test_the_destination_dies_after_the_grant(stage: Stage) -> None:
    needs_tcp(stage)
    ground, before = stage.ground, memory(stage)
    source, away = before.node, stage.away()
    ground.restart(away, launcher=(sys.executable, lethal_node.__file__, "destination:Accepted:after"))
    with ThreadPoolExecutor(1) as pool:
        command = pool.submit(source.cli, "migrate", APP, "--to", away.name)
        assert away.process is not None and away.process.wait(60) == -9
        eventually(lambda: [row["state"] for row in source.json("apps") if row["name"] == APP] == ["in_doubt"])
        assert refusal(source.cli("app", "recover", APP))
        ground.restart(away)
        before.is_at(away)
        assert command.result().returncode == 0
    assert source.json("migrations")[0]["state"] == "done"
    assert "is not in doubt" in refusal(source.cli("app", "recover", APP))
