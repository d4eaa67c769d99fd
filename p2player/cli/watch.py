"""Commands that show what happens: top, events, demo."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from p2player.cli import output, parse
from p2player.cli.apps import APPS
from p2player.cli.context import Session, json_option, pass_session
from p2player.cli.mesh import PEERS
from p2player.cli.migrations import MIGRATIONS

if TYPE_CHECKING:
    from rich.console import Group

_RECENT = 5
_TOLD_OF_A_MOVE = ("id", "app", "from", "to", "freeze_s", "longest_freeze_s", "error", "warning")


@click.command()
@click.option(
    "--interval",
    metavar="DURATION",
    default="1s",
    show_default=True,
    callback=parse.duration(0.1, 3600.0),
    help="How often to look.",
)
@pass_session
def top(session: Session, interval: float) -> None:
    """Watch nodes, applications and migrations.

    The view is refreshed in place until Ctrl-C. Where there is no terminal, one look is printed.
    """
    view = _view(session)
    if not sys.stdout.isatty():
        output.console().print(view)
        return
    from rich.live import Live

    with Live(view, console=output.console(), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(_view(session), refresh=True)


@click.command()
@json_option
@pass_session
def events(session: Session, as_json: bool) -> None:
    """Print what happens at this node, until Ctrl-C.

    Each event is one line; with --json, one document.
    """
    for kind, data in session.client.events():
        if as_json:
            click.echo(json.dumps({"event": kind, **data}))
        else:
            click.echo(_event_line(kind, data))


@click.command()
@click.option("--keep", metavar="DIR", callback=parse.absolute, help="Keep the nodes' folders here; absent or empty.")
def demo(keep: Path | None) -> int:
    """Watch a running game move between four nodes.

    They all run on this machine, and the game moves between them while it is played. Needs no node, no root and
    nothing installed; takes under a minute. Everything that was started is ended.
    """
    from p2player.demo import run_demo

    return run_demo(keep=keep)


def _view(session: Session) -> "Group":
    """One look at the mesh, as something that rich prints."""
    from rich.console import Group
    from rich.text import Text

    from p2player.client import ENDED

    client = session.client
    status, peers = client.get("/v1/status"), client.get("/v1/peers")
    apps, migrations = client.get("/v1/apps"), client.get("/v1/migrations")
    alive = (status.get("peers") or {}).get("alive", 0)
    head = f"{status.get('name')} of mesh {status.get('mesh')}, {alive} peers alive, {time.strftime('%H:%M:%S')}"
    moving = [row for row in migrations if row.get("state") not in ENDED]
    ended = [row for row in migrations if row.get("state") in ENDED][:_RECENT]
    parts: list[Any] = [Text(output.clean(head), style="bold")]
    for columns, rows in ((PEERS, peers), (APPS, apps), (MIGRATIONS, [*moving, *ended])):
        if rows:
            parts += [Text(""), output.grid(columns, rows)]
    return Group(*parts)


def _event_line(kind: str, data: Mapping[str, Any]) -> str:
    """`12:03:44 layer.pulled id=... transferred=...`"""
    at = data.get("at")
    moment = time.localtime(at) if isinstance(at, int | float) and abs(at) < 1e11 else time.localtime()
    told = _move(data) if kind == "migration.changed" else data
    values = " ".join(f"{key}={_plain(value)}" for key, value in told.items() if key != "at")
    return output.clean(f"{time.strftime('%H:%M:%S', moment)} {kind} {values}".rstrip())


def _move(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a migration's row what fits on a line: how far it is, and what is known of its cost."""
    found = row.get("progress")
    progress: Mapping[str, Any] = found if isinstance(found, dict) else {}
    told = {key: row[key] for key in _TOLD_OF_A_MOVE if row.get(key)}
    told["phase"] = progress.get("message") or row.get("state")
    if progress.get("total"):
        told["done"], told["total"] = progress.get("done"), progress["total"]
    return told


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value)
