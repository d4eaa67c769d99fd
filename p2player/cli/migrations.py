"""Commands that move running applications: plan, migrate, migrations, and migrations cancel."""

from collections.abc import Mapping
from typing import Any

import click

from p2player.cli import output, parse
from p2player.cli.context import F, Group, Session, json_option, pass_session
from p2player.cli.output import field, seconds, short_id, size
from p2player.errors import Refused

_COUNTED = ("total", "transferred")

MIGRATIONS = (
    ("ID", lambda row: short_id(row.get("id"))),
    ("APP", field("app")),
    ("FROM", field("from")),
    ("TO", field("to")),
    ("STATE", field("state")),
    (">TOTAL", lambda row: seconds(row.get("total_s"))),
    (">FREEZE", lambda row: seconds(row.get("freeze_s"))),
    (">LONGEST", lambda row: seconds(row.get("longest_freeze_s"))),
    (">TRANSFERRED", lambda row: size((row.get("bytes") or {}).get("transferred"))),
    ("SOURCES", lambda row: ", ".join(name for name, count in (row.get("sources") or {}).items() if count) or "-"),
)

_LAYERS = (
    ("LAYER", field("layer")),
    (">TOTAL", lambda row: size(row.get("total"))),
    (">TO TRANSFER", lambda row: size(row.get("transferred"))),
)


def _wish_options(function: F) -> F:
    """Which application, where to, and how."""
    for option in (
        click.option(
            "--max-freeze",
            metavar="DURATION",
            callback=parse.duration(0.001, 86400.0),
            help="Refuse, before anything is suspended, if the last transfer would take longer: 300ms, 2s.",
        ),
        click.option(
            "--mode",
            type=click.Choice(["live", "cold"]),
            help="live keeps the service running while most of it moves; cold stops it first.  [default: live]",
        ),
        click.option("--to", metavar="NODE", required=True, help="The node that it shall run on."),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("app", metavar="APP")
@_wish_options
@json_option
@pass_session
def plan(session: Session, app: str, to: str, mode: str | None, max_freeze: float | None, as_json: bool) -> None:
    """Tell what a migration would move and take.

    Nothing is done. Exits 5 when the migration would be refused, after saying why.

    \b
    Example:
      p2player plan game --to south-1
    """
    document = session.client.request("POST", "/v1/plan", _wish(app, to, mode, max_freeze)).document
    if as_json:
        output.document(document)
    else:
        _show_plan(document)
    refusals = document.get("refusals") or []
    if refusals:
        raise Refused("; ".join(map(str, refusals)))


@click.command()
@click.argument("app", metavar="APP")
@_wish_options
@json_option
@pass_session
def migrate(session: Session, app: str, to: str, mode: str | None, max_freeze: float | None, as_json: bool) -> None:
    """Move a running application to another node.

    Waits until it runs there. Works from any node of the mesh. Until the destination has everything, whatever fails
    leaves the application running where it was. Ctrl-C stops waiting, not the migration.

    \b
    Example:
      p2player migrate game --to south-1
      p2player migrate game --to south-1 --max-freeze 300ms
    """
    from p2player.client import path, raise_failure

    answer = session.client.request("POST", "/v1/migrations", _wish(app, to, mode, max_freeze))
    row = answer.document
    location = answer.location or path("v1", "migrations", str(row.get("id")))
    try:
        with output.progress(f"moving {app} to {to}", quiet=as_json) as watch:
            row = session.client.follow(location, lambda state: watch({"phase": state.get("state"), **state}))
    except KeyboardInterrupt:
        _detached(str(row.get("id")))
        raise
    if as_json:
        output.document(row)
    else:
        output.table(MIGRATIONS, [row], "")
        _show_prediction(row)
    raise_failure(row)


@click.group(cls=Group, invoke_without_command=True)
@json_option
@click.pass_context
def migrations(ctx: click.Context, as_json: bool) -> None:
    """List the migrations, newest first; or cancel one.

    \b
    Example:
      p2player migrations
      p2player migrations cancel 5e1f09a2
    """
    if ctx.invoked_subcommand is not None:
        return
    rows = ctx.ensure_object(Session).client.get("/v1/migrations")
    if as_json:
        output.document(rows)
    else:
        output.table(MIGRATIONS, rows, "nothing was migrated yet")


@migrations.command()
@click.argument("migration", metavar="ID")
@pass_session
def cancel(session: Session, migration: str) -> None:
    """Cancel a migration, as long as the destination does not own the application yet."""
    from p2player.client import path

    row = session.client.request("DELETE", path("v1", "migrations", migration)).document
    output.line(f"migration {short_id(row.get('id'))} is {row.get('state')}")


def _wish(app: str, to: str, mode: str | None, max_freeze: float | None) -> dict[str, Any]:
    wish = {"app": app, "to": to, "mode": mode, "max_freeze_s": max_freeze}
    return {key: value for key, value in wish.items() if value is not None}


def _show_plan(plan: Mapping[str, Any]) -> None:
    layers = plan.get("layers") or {}
    rows = [{"layer": name, **counts} for name, counts in layers.items()]
    total = {key: sum(counts.get(key) or 0 for counts in layers.values()) for key in _COUNTED}
    output.line(f"{plan.get('app')}: {plan.get('from')} -> {plan.get('to')}, {plan.get('mode')}")
    output.table(_LAYERS, [*rows, {"layer": "all", **total}], "")
    output.line(f"about {seconds(plan.get('total_s'))} in all, {seconds(plan.get('freeze_s'))} of it suspended")


def _show_prediction(row: Mapping[str, Any]) -> None:
    """What was expected of a migration that went through."""
    told = row.get("prediction")
    if row.get("state") == "done" and isinstance(told, dict):
        amounts = f"{seconds(told.get('total_s'))} in all, {seconds(told.get('freeze_s'))} suspended"
        output.note(f"predicted were {amounts}, {size(told.get('transferred'))}")


def _detached(migration: str) -> None:
    output.note(f"migration {migration} goes on; follow it with: p2player migrations")
