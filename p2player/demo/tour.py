"""The script of the demo: make a mesh, start a game, move it twice while it is played, and tell what was seen.

Every step is a command of the public CLI. The demo succeeds only if the players saw one world all the time, lost no
acknowledged move, and were served by the Python of the checked-out base.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from p2player import errors
from p2player.demo import base_layer
from p2player.demo.players import Player, Sight
from p2player.localmesh import LocalMesh, LocalNode

SITES = {"north-1": "north", "north-2": "north", "south-1": "south", "west-1": "west"}
ROUTE = ("north-1", "south-1", "west-1")
PLAYERS = ("ada", "bob", "cleo")
PLAY_S = 1.5
MEMORY = "/dev/shm"
NEEDED_BYTES = 4 << 30

_CONFIG = """\
command = ["{{base}}/bin/python3", "-B", "{{app}}/game_server.py", "{{state}}", "{port}"]
addresses = ["127.0.0.1:{port}"]

[env]
PYTHONHOME = "{{base}}"
PYTHONPATH = "{{base}}/packages"
LD_LIBRARY_PATH = "{{base}}/lib"

[hooks]
save = ["{{base}}/bin/python3", "-B", "{{app}}/save_hook.py", "{{state}}"]
"""


@dataclass(frozen=True, slots=True)
class Move:
    """One migration: what p2player reports, and what the players saw."""

    row: dict[str, Any]
    sight: Sight

    def fault(self, node: LocalNode) -> str | None:
        """Why this move does not count as one that the players survived; None if it does."""
        if self.row["state"] != "done":
            return f"the migration ended as {self.row['state']}: {self.row.get('error')}"
        if not self.sight.answers:
            return "no player got an answer afterwards"
        if self.sight.lost:
            return f"{self.sight.lost} acknowledged moves were lost"
        if len(self.sight.worlds) != 1:
            return f"the players saw {len(self.sight.worlds)} worlds"
        if not any(Path(python).is_relative_to(node.state.resolve()) for python in self.sight.pythons):
            return f"the server did not run from the base of {node.name}"
        return None


def run_demo(*, keep: Path | None = None) -> int:
    """Run the tour and print its table.

    Args:
        keep: an absent or empty folder for the nodes' state, kept afterwards; a temporary one is used and removed
            if left out.

    Returns:
        The exit code: 0 only if the game went on in every move.
    """
    console = Console(highlight=False, soft_wrap=True)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _folder(keep) as root, LocalMesh(root, name="demo") as mesh:
            return _tour(console, root, mesh)
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """End on SIGTERM as on Ctrl-C: everything that was started is ended on the way out."""
    raise KeyboardInterrupt


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    root = Path(tempfile.mkdtemp(prefix="p2player-demo-", dir=_roomy_memory())).resolve()
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _roomy_memory() -> str | None:
    """A file system in memory with room for the demo, where programs may run; None: the usual place.

    The tour writes and removes some gigabytes, and a busy disk can take a minute just for the removal.
    """
    with suppress(OSError, ValueError, IndexError):
        disk = os.statvfs(MEMORY)
        available_kib = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0])
        roomy = min(disk.f_bavail * disk.f_frsize, available_kib * 1024 // 2) >= NEEDED_BYTES
        if roomy and not disk.f_flag & os.ST_NOEXEC and os.access(MEMORY, os.W_OK | os.X_OK):
            return MEMORY
    return None


def _tour(console: Console, root: Path, mesh: LocalMesh) -> int:
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.1f} s[/]  {text}")

    for name, site in SITES.items():
        mesh.add(name, site)
    say(f"four nodes at three sites: {', '.join(f'{name} ({site})' for name, site in SITES.items())}")
    first = mesh.nodes[ROUTE[0]]

    base = base_layer.build(root / "layers" / "base")
    added = first.json("layer", "add", str(base), "--name", "python", "--kind", "base")
    rate = added["size"] / max(added["seconds"], 0.001) / 1e6
    say(f"base layer python: {_size(added['size'])}, {added['chunks']} chunks, imported at {rate:.0f} MB/s")
    game = _lay_out_game(root / "layers" / "game")
    added = first.json("layer", "add", str(game), "--name", "game")
    say(f"app layer game: {_size(added['size'])}")

    for name in ("north-2", "south-1"):
        first.must("warm", "python", "--to", name)
    say("base warmed to north-2 and south-1; west-1 has nothing yet")

    port = _free_port()
    config = root / "game.toml"
    config.write_text(_CONFIG.format(port=port))
    create = ("--backend", "process", "--base", "python", "--app", "game", "--config", str(config))
    first.must("app", "create", "world", *create)
    first.must("app", "start", "world")
    players = [Player(name, port) for name in PLAYERS]
    try:
        for player in players:
            player.start()
        time.sleep(PLAY_S)
        _taken(players)
        say(f"the game runs on {first.name}; {', '.join(PLAYERS)} play")
        moves = [_move(mesh, source, target, players, say) for source, target in pairwise(ROUTE)]
    finally:
        for player in players:
            player.stop()
    for move in moves:
        _report(console, mesh, move)
    console.print()
    return _verdict(console, mesh, moves, time.monotonic() - started)


def _lay_out_game(target: Path) -> Path:
    target.mkdir(parents=True)
    for name in ("game_server.py", "save_hook.py"):
        shutil.copy2(Path(__file__).with_name(name), target / name)
    return target


def _move(mesh: LocalMesh, source: str, target: str, players: list[Player], say: Any) -> Move:
    row = mesh.nodes[source].json("migrate", "world", "--to", target)
    time.sleep(PLAY_S)
    sight = _taken(players)
    say(f"{source} -> {target}: {row['state']} in {row['total_s']:.2f} s, players waited {sight.longest_gap_s:.2f} s")
    return Move(row, sight)


def _taken(players: list[Player]) -> Sight:
    """What all players saw since the last time, as one."""
    together = Sight()
    for player in players:
        seen = player.take()
        together.answers += seen.answers
        together.worlds |= seen.worlds
        together.pythons |= seen.pythons
        together.longest_gap_s = max(together.longest_gap_s, seen.longest_gap_s)
        together.lost += seen.lost
    return together


def _report(console: Console, mesh: LocalMesh, move: Move) -> None:
    """One migration: bytes per layer, where they came from, how long it took, and what the players saw."""
    row = move.row
    table = Table(
        title=f"{row['from']} -> {row['to']}", title_justify="left", title_style="bold", show_edge=False, pad_edge=False
    )
    table.add_column("layer", width=10)
    for name in ("total", "deduplicated", "transferred"):
        table.add_column(name, justify="right", width=13)
    for layer, counts in row["layers"].items():
        table.add_row(layer, *(_size(counts[key]) for key in ("total", "deduplicated", "transferred")))
    console.print()
    console.print(table)
    sources = ", ".join(f"{name} {_size(count)}" for name, count in row["sources"].items() if count)
    console.print(f"from       {sources or 'nobody: everything was there'}")
    console.print(
        f"time       {row['total_s']:.2f} s in all, frozen for {row['freeze_s']:.3f} s; "
        f"the players waited {move.sight.longest_gap_s:.3f} s"
    )
    fault = move.fault(mesh.nodes[row["to"]])
    went_on = (
        f"went on: {move.sight.answers} answers, no acknowledged move lost" if fault is None else f"BROKE: {fault}"
    )
    console.print(f"the game   {went_on}")


def _verdict(console: Console, mesh: LocalMesh, moves: list[Move], seconds: float) -> int:
    faults = [
        f"{move.row['from']} -> {move.row['to']}: {fault}"
        for move in moves
        if (fault := move.fault(mesh.nodes[move.row["to"]])) is not None
    ]
    if len({world for move in moves for world in move.sight.worlds}) != 1:
        faults.append("the world is another one than before")
    for fault in faults:
        print(f"p2player: error: {fault}", file=sys.stderr)
    if faults:
        return errors.Failed.exit_code
    answers = sum(move.sight.answers for move in moves)
    console.print(
        f"One world all the time: {answers} answers to {len(PLAYERS)} players over {len(moves)} moves; {seconds:.0f} s"
    )
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
