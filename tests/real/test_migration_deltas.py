"""A real migration of an app with a large state, of which little changes: what the rows tell of the bytes.

The program has 32 MiB that do not compress, in pages, and changes eight bytes in one page of a hundred when it is asked
to save, and when it ends.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from p2player.localmesh import LocalMesh, LocalNode

pytestmark = pytest.mark.real

PROGRAM = """
import os, random, signal, sys, time
path = os.path.join(os.environ["P2P_STATE"], "pages")
PAGES = 8192
if not os.path.exists(path):
    with open(path, "wb") as file: file.write(random.Random(1).randbytes(PAGES * 4096))
def work(*_):
    with open(path, "r+b") as file:
        for page in random.sample(range(PAGES), PAGES // 100):
            file.seek(page * 4096 + random.randrange(4088))
            file.write(os.urandom(8))
def end(*_):
    work()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, work)
while True:
    time.sleep(1)
"""
IMAGE_BYTES = 32 << 20


def make_app(node: LocalNode, folder: Path) -> None:
    base, app = folder / "base", folder / "app"
    base.mkdir()
    (base / "release").write_text("1")
    app.mkdir()
    (app / "main.py").write_text(PROGRAM)
    config = folder / "app.toml"
    config.write_text(
        f'command = ["{sys.executable}", "-I", "-S", "{{app}}/main.py"]\n'
        '[hooks]\nsave = ["sh", "-c", "kill -USR1 $P2P_PID; sleep 0.2"]\n'
    )
    node.must("layer", "add", str(base), "--name", "base", "--kind", "base")
    node.must("layer", "add", str(app), "--name", "app", "--kind", "app")
    node.must(
        *("app", "create", "game", "--backend", "process", "--base", "base", "--app", "app"),
        *("--config", str(config)),
    )
    node.must("app", "start", "game")


def instance_bytes(row: Any) -> int:
    transferred: int = row["layers"]["instance"]["transferred"]
    return transferred


def test_rounds_and_the_way_back_cost_what_changed(mesh: LocalMesh, tmp_path: Path) -> None:
    north, south = mesh.add("north", "north"), mesh.add("south", "south")
    make_app(north, tmp_path)
    there = north.json("migrate", "game", "--to", "south")
    back = south.json("migrate", "game", "--to", "north")
    again = north.json("migrate", "game", "--to", "south")
    assert there["state"] == back["state"] == again["state"] == "done"
    assert there["rounds"] >= 2
    assert IMAGE_BYTES < instance_bytes(there) < IMAGE_BYTES * 1.01
    for row in (back, again):
        assert instance_bytes(row) < IMAGE_BYTES / 200
