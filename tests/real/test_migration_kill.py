"""Real nodes, killed at the steps of a migration: in the end one copy of the application runs, with all that it wrote.

The steps come from the table of the hand-off. The application counts, twice a second makes its count durable, and says
where it runs; its process is looked for in /proc, whatever the nodes tell.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2player.localmesh import COMMAND, LocalMesh, LocalNode
from p2player.proto.handoff import records
from p2player.proto.handoff.table import End, KillPoint, kill_points
from tests.support import lethal_node
from tests.support.waiting import eventually

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("migration_kill")]

PROGRAM = """
import os, signal, sys, time
path = os.path.join(os.environ["P2P_STATE"], "count")
count = int(open(path).read()) if os.path.exists(path) else 0
def save(*_):
    with open(path + ".new", "w") as file: file.write(str(count))
    os.replace(path + ".new", path)
def end(*_):
    save()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
bulk = os.path.join(os.environ["P2P_STATE"], "bulk")
if not os.path.exists(bulk):
    with open(bulk, "wb") as file: file.write(os.urandom(4 << 20))
while True:
    time.sleep(0.01)
    count += 1
    if count % 20 == 0: save()
"""

CALLED_OFF = {
    "source:Begun:before",
    "source:Begun:after",
    "source:Suspending:before",
    "source:Suspending:after",
    "source:Granted:before",
    "destination:Offered:after",
    "destination:Ready:before",
}
NOT_ON_THE_WAY = {
    records.Aborted,
    records.Returned,
    records.Forced,
    records.Refused,
    records.Superseded,
    records.Asked,
}
POINTS = [
    point
    for point in kill_points()
    if point.record not in NOT_ON_THE_WAY and (point.end, point.record) != (End.DESTINATION, records.Settled)
]


class Game:
    """The application, and the two nodes between which it moves."""

    def __init__(self, mesh: LocalMesh, folder: Path) -> None:
        self.mesh = mesh
        self.nodes = [mesh.add(name, name) for name in ("north", "south")]
        base, app = folder / "base", folder / "app"
        base.mkdir()
        (base / "release").write_text("1")
        app.mkdir()
        (app / "game.py").write_text(PROGRAM)
        config = folder / "game.toml"
        config.write_text(f'command = ["{sys.executable}", "-I", "-S", "{{app}}/game.py"]\n')
        north = self.nodes[0]
        north.must("layer", "add", str(base), "--name", "base", "--kind", "base")
        north.must("layer", "add", str(app), "--name", "app", "--kind", "app")
        north.must(
            *("app", "create", "game", "--backend", "process", "--base", "base", "--app", "app"),
            *("--config", str(config)),
        )
        north.must("app", "start", "game")

    def processes(self) -> list[Path]:
        """The state folders of every running copy, as the kernel knows them."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            states = [item[10:] for item in environment if item.startswith(b"P2P_STATE=")]
            here = [state for state in states if state.startswith(os.fsencode(self.mesh.root) + b"/")]
            if here and words[0] == os.fsencode(sys.executable) and any(w.endswith(b"/game.py") for w in words):
                found.append(Path(os.fsdecode(here[0])))
        return found

    def where(self) -> LocalNode | None:
        """The node whose copy runs, when exactly one does."""
        running = self.processes()
        assert len(running) <= 1, f"{len(running)} copies run"
        return next((node for node in self.nodes for state in running if state.is_relative_to(node.state)), None)

    def count(self) -> int:
        (state,) = self.processes()
        return int((state / "count").read_text())

    def home(self) -> LocalNode:
        """The node whose copy runs, as soon as one does and the nodes say so too."""

        def look() -> LocalNode | None:
            node = self.where()
            if node is None:
                return None
            told = [(row["node"], row["state"]) for row in node.json("apps")]
            return node if told == [(node.name, "running")] else None

        return eventually(look, within_s=60)

    def settled(self) -> None:
        """Neither node has a migration open."""
        eventually(lambda: not any(list((n.state / "migrations").glob("*/journal")) for n in self.nodes), within_s=60)


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Game]:
    folder = tmp_path_factory.mktemp("kill")
    root = folder / "mesh"
    root.mkdir()
    with LocalMesh(root, name="kill") as mesh:
        yield Game(mesh, folder)


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_one_copy_survives(game: Game, point: KillPoint) -> None:
    source = game.home()
    (destination,) = [node for node in game.nodes if node is not source]
    victim = source if point.end is End.SOURCE else destination
    before = game.count()

    victim.stop()
    victim.launcher = (sys.executable, lethal_node.__file__, str(point))
    victim.start()
    victim.launcher = COMMAND
    eventually(lambda: _sees(source, destination), within_s=30)
    began_at = time.time()
    command = threading.Thread(target=source.cli, args=("migrate", "game", "--to", destination.name))
    command.start()
    eventually(lambda: victim.process is not None and victim.process.poll() is not None, within_s=30)
    game.where()
    time.sleep(0.5)
    game.where()
    victim.start()

    home = game.home()
    game.settled()
    command.join()
    assert game.count() >= before
    assert len(game.processes()) == 1
    if str(point) in CALLED_OFF:
        assert home is source
    elif str(point) != "destination:Offered:before":  # if it is back soon enough, the offer is heard again
        assert home is destination
    told = {row["state"] for node in game.nodes for row in node.json("migrations") if row["started_at"] >= began_at}
    assert told <= {"done" if home is destination else "failed"}
    assert told or point.record is records.Begun  # killed before anything was written


def test_without_a_kill(game: Game) -> None:
    source = game.home()
    (destination,) = [node for node in game.nodes if node is not source]
    eventually(lambda: _sees(source, destination), within_s=30)
    before = game.count()
    row = source.json("migrate", "game", "--to", destination.name)
    assert row["state"] == "done"
    assert game.home() is destination
    assert game.count() >= before
    assert 0 < row["freeze_s"] < row["total_s"]
    assert row["layers"]["instance"]["total"] > 4 << 20
    game.settled()
    assert destination.json("migrations")[0] == source.json("migrations")[0] == row


def _sees(node: LocalNode, other: LocalNode) -> bool:
    return any(row["name"] == other.name and row["state"] == "alive" for row in node.json("peers"))
