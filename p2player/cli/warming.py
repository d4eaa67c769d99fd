"""The command that places layers ahead of need: warm."""

from typing import Any

import click

from p2player.cli import output
from p2player.cli.context import Session, json_option, pass_session
from p2player.cli.output import short_id, size
from p2player.errors import Usage


@click.command()
@click.argument("target", metavar="[APP|LAYER]", required=False)
@click.option("--to", metavar="NODE", help="To this node.")
@click.option("--site", metavar="SITE", help="To every node of this site.")
@click.option("--copies", metavar="N", type=click.IntRange(1, 1000), help="To as many nodes of the mesh in all.")
@click.option("--auto", type=click.Choice(["on", "off"]), help="Let this node fetch what its site uses most, or not.")
@json_option
@pass_session
def warm(
    session: Session,
    target: str | None,
    to: str | None,
    site: str | None,
    copies: int | None,
    auto: str | None,
    as_json: bool,
) -> None:
    """Place layers where they will be needed.

    Places the layers of APP, or one LAYER. With --copies, nodes that have it already count; the others are chosen
    from different sites, with the most free disk and the least load first. Without arguments: tell whether automatic
    warming is on, and what it holds.

    \b
    Example:
      p2player warm debian-12 --copies 3
      p2player warm game --to south-1
      p2player warm --auto on
    """
    places = {"to": to, "site": site, "copies": copies}
    place = {name: value for name, value in places.items() if value is not None}
    if auto is not None:
        if target is not None or place:
            raise Usage("--auto stands alone")
        document = session.client.request("PUT", "/v1/warm/auto", {"enabled": auto == "on"}).document
        _show_auto(document or {"auto": auto == "on"}, as_json)
    elif target is None:
        if place:
            raise Usage("say which APP or LAYER to warm")
        _show_auto(session.client.get("/v1/warm"), as_json)
    else:
        if len(place) != 1:
            raise Usage("say exactly one of --to NODE, --site SITE and --copies N")
        result = session.work(f"warming {target}", "POST", "/v1/warm", {"target": target, **place}, quiet=as_json)
        _show_result(target, result, as_json)


def _show_result(target: str, result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.document(result)
        return
    placed = result.get("placed") or []
    moved = sum(copy.get("transferred") or 0 for copy in placed)
    output.line(
        f"{target} is on {output.text(result.get('nodes'))}: {len(placed)} copies made, {size(moved)} transferred"
    )


def _show_auto(document: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.document(document)
        return
    shown = {}
    for key, value in document.items():
        label = key.removesuffix("_bytes").replace("_", " ")
        shown[label] = size(value) if key.endswith("_bytes") else _told(value)
    output.facts(shown)


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(short_id, value)) or "-"
    return output.text(value)
