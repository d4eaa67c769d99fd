"""Commands about this node's store: store stats, verify, gc."""

from collections.abc import Mapping
from typing import Any

import click

from p2player.cli import output
from p2player.cli.context import Group, Session, json_option, pass_session
from p2player.cli.output import size
from p2player.errors import Integrity

_NAMED = 8


@click.group(cls=Group)
def store() -> None:
    """Look after what this node stores."""


@store.command()
@json_option
@pass_session
def stats(session: Session, as_json: bool) -> None:
    """Show how much is stored, and how much room is left."""
    document = session.client.get("/v1/store")
    if as_json:
        output.document(document)
        return
    output.facts({_label(key): _amount(key, value) for key, value in document.items()})


@store.command()
@click.option("--repair", is_flag=True, help="Fetch what is damaged from other nodes.")
@json_option
@pass_session
def verify(session: Session, repair: bool, as_json: bool) -> None:
    """Read everything back and compare it with its digests.

    Exits 6 when damage is found and not mended, and names the layers that it is in.

    \b
    Example:
      p2player store verify --repair
    """
    result = session.work("verifying", "POST", "/v1/store/verify", {"repair": repair}, quiet=as_json)
    damaged = result.get("damaged") or []
    left = len(damaged) - int(result.get("repaired") or 0)
    if as_json:
        output.document(result)
    else:
        for damage in damaged:
            output.line(f"damaged: chunk {str(damage.get('chunk'))[:16]} of {_layers_of(damage)}")
        mended = f", {result.get('repaired')} mended" if damaged and repair else ""
        output.line(f"{size(result.get('checked_bytes'))} checked, {len(damaged)} chunks damaged{mended}")
    if left > 0:
        affected = list(dict.fromkeys(_layers_of(damage) for damage in damaged))
        more = f" and {len(affected) - _NAMED} more" if len(affected) > _NAMED else ""
        hint = "" if repair else "; p2player store verify --repair fetches it again"
        raise Integrity(f"{left} chunks are damaged, in {', '.join(affected[:_NAMED])}{more}{hint}")


@store.command()
@json_option
@pass_session
def gc(session: Session, as_json: bool) -> None:
    """Free what nothing refers to.

    When the disk is above its high watermark, layers that were not used for long and are neither pinned nor in use
    go, too.
    """
    result = session.work("collecting", "POST", "/v1/store/gc", quiet=as_json)
    if as_json:
        output.document(result)
        return
    evicted = result.get("evicted")
    names = [str(row.get("name") or row.get("id", "")[:12]) for row in evicted] if evicted else []
    gone = f", evicted {output.text(names)}" if names else ""
    output.line(f"{size(result.get('freed_bytes'))} freed, {result.get('chunks')} chunks{gone}")


def _layers_of(damage: Mapping[str, Any]) -> str:
    layers = damage.get("layers") or []
    return ", ".join(str(layer.get("name") or str(layer.get("id"))[:12]) for layer in layers) or "no layer"


def _label(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ")


def _amount(key: str, value: Any) -> str:
    return size(value) if key.endswith("_bytes") else output.text(value)
