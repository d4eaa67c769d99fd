"""Commands about layers: layers, and layer add, pull, checkout, rm, pin, unpin, diff."""

from pathlib import Path
from typing import Any

import click

from p2player.cli import output, parse
from p2player.cli.context import Group, Session, json_option, pass_session
from p2player.cli.output import field, short_id, size


def _share(row: Any) -> str:
    """How much of a layer is on this node."""
    total, have = row.get("chunks") or 0, row.get("have_chunks") or 0
    if have >= total:
        return "all"
    return f"{100 * have // total} %" if have else "-"


_LAYERS = (
    ("NAME", field("name")),
    ("ID", lambda row: short_id(row.get("id"))),
    ("KIND", field("kind")),
    (">SIZE", lambda row: size(row.get("size"))),
    (">HERE", _share),
    ("HOLDERS", field("holders")),
    ("PARTLY", lambda row: ", ".join(row.get("partial") or {}) or "-"),
    ("TAKEN FROM", field("taken_from")),
)

_REF = "NAME|ID"

_limit_in = click.option(
    "--limit-in",
    metavar="RATE",
    callback=parse.rate,
    help="Receive no faster than this; the node's own cap holds, too.",
)


def _capped(body: dict[str, Any], limit_in: float | None) -> dict[str, Any]:
    """The request's body, with the cap if there is one."""
    return body if limit_in is None else {**body, "limit_in": int(limit_in)}


@click.command()
@json_option
@pass_session
def layers(session: Session, as_json: bool) -> None:
    """List the layers of the mesh, and who holds them."""
    rows = session.client.get("/v1/layers")
    if as_json:
        output.document(rows)
        return
    columns = [
        column
        for column in _LAYERS
        if column[0] not in ("PARTLY", "TAKEN FROM") or any(column[1](row) != "-" for row in rows)
    ]
    output.table(columns, rows, "the mesh has no layers; see: p2player layer add --help")


@click.group(cls=Group)
def layer() -> None:
    """Add, fetch and remove layers.

    A layer is named by NAME, or by the first digits of its id, at least eight.
    """


@layer.command()
@click.argument("path", callback=parse.absolute)
@click.option("--name", metavar="NAME", required=True, help="Again on the same node: the next version.")
@click.option(
    "--kind",
    type=click.Choice(["base", "app"]),
    default="app",
    show_default=True,
    help="A guest system that many applications share, or one application with its data.",
)
@click.option("--takeover", is_flag=True, help="Take the name over from the node that owns it.")
@json_option
@pass_session
def add(session: Session, path: Path, name: str, kind: str, takeover: bool, as_json: bool) -> None:
    """Import PATH as a layer and give it a name; prints its id.

    PATH is a folder, a tar file or a disk image (qcow2, raw) on the
    node's machine. What did not change since the last time is not read
    again. Adding a name once more makes its next version; peers that have
    the one before fetch what changed.

    \b
    Examples:
      p2player layer add ./rootfs --name debian-12 --kind base
      p2player layer add game.tar --name game
      p2player layer add server.qcow2 --name server
    """
    body = {"path": str(path), "name": name, "kind": kind, "takeover": takeover}
    result = session.work(f"adding {name}", "POST", "/v1/layers", body, quiet=as_json)
    if as_json:
        output.document(result)
        return
    output.line(str(result.get("id")))
    if result.get("note"):
        output.note(str(result["note"]))
    output.note(
        f"{name}: {size(result.get('size'))}, {result.get('chunks')} chunks, {output.seconds(result.get('seconds'))}"
    )


@layer.command()
@click.argument("ref", metavar=_REF)
@_limit_in
@json_option
@pass_session
def pull(session: Session, ref: str, limit_in: float | None, as_json: bool) -> None:
    """Fetch a layer to this node, from whoever holds parts of it.

    What is here already, in whatever layer, is not fetched; what resembles something that is here comes as its
    difference. A pull that was interrupted goes on where it ended.

    \b
    Examples:
      p2player layer pull debian-12
      p2player layer pull debian-12 --limit-in 20Mbit
    """
    body = _capped({}, limit_in)
    result = session.work(f"pulling {ref}", "POST", _path(ref, "pull"), body or None, quiet=as_json)
    if as_json:
        output.document(result)
        return
    counts = result.get("bytes") or {}
    sources = {name: size(count) for name, count in (result.get("sources") or {}).items()}
    output.facts(
        {
            "layer": f"{output.text(result.get('name'))} {short_id(result.get('id'))}",
            "total": size(counts.get("total")),
            "deduplicated": size(counts.get("deduplicated")),
            "transferred": size(counts.get("transferred")),
            "sources": output.text(sources),
            "time": output.seconds(result.get("seconds")),
        }
    )


@layer.command()
@click.argument("ref", metavar=_REF)
@click.argument("directory", metavar="DIR", callback=parse.absolute)
@_limit_in
@json_option
@pass_session
def checkout(session: Session, ref: str, directory: Path, limit_in: float | None, as_json: bool) -> None:
    """Write a layer's files to DIR, which must be absent or empty.

    What is missing is pulled first. Without root, owners, devices and trusted attributes are left out, and counted.

    \b
    Example:
      p2player layer checkout game /srv/game
    """
    body = _capped({"dir": str(directory)}, limit_in)
    result = session.work(f"writing {ref}", "POST", _path(ref, "checkout"), body, quiet=as_json)
    if as_json:
        output.document(result)
        return
    time = output.seconds(result.get("seconds"))
    output.line(f"{directory}: {result.get('files')} files, {size(result.get('bytes'))}, {time}")
    skipped = {what: count for what, count in (result.get("skipped") or {}).items() if count}
    if skipped:
        output.note(f"left out for lack of privilege: {', '.join(f'{n} {what}' for what, n in skipped.items())}")


@layer.command()
@click.argument("ref", metavar=_REF)
@pass_session
def rm(session: Session, ref: str) -> None:
    """Drop a layer from this node, and its name if this node owns it.

    Refused while an application uses it. Other nodes keep what they hold; the space is freed by `p2player store gc`.
    """
    session.client.request("DELETE", _path(ref))
    output.line(f"removed {ref}")


@layer.command()
@click.argument("ref", metavar=_REF)
@pass_session
def pin(session: Session, ref: str) -> None:
    """Keep a layer on this node, however long it is not used."""
    session.client.request("PUT", _path(ref, "pin"))
    output.line(f"pinned {ref}")


@layer.command()
@click.argument("ref", metavar=_REF)
@pass_session
def unpin(session: Session, ref: str) -> None:
    """Let go of a pinned layer: it may be evicted when room is needed."""
    session.client.request("DELETE", _path(ref, "pin"))
    output.line(f"unpinned {ref}")


@layer.command()
@click.argument("old", metavar="A")
@click.argument("new", metavar="B")
@json_option
@pass_session
def diff(session: Session, old: str, new: str, as_json: bool) -> None:
    """Compare the files of two layers: what leads from A to B.

    Prints `+ path` for what was added, `- path` for what was removed, `~ path` for what is different.
    """
    found = session.client.get(_path(old, "diff", new))
    if as_json:
        output.document(found)
        return
    for sign, key in (("+", "added"), ("-", "removed"), ("~", "changed")):
        for change in found.get(key) or []:
            output.line(f"{sign} {_change(change)}")
    if found.get("truncated"):
        output.note("there are more changes than are shown")


def _path(*parts: str) -> str:
    from p2player.client import path

    return path("v1", "layers", *parts)


def _change(change: Any) -> str:
    if isinstance(change, dict):
        return f"{change.get('path')} ({change.get('what')})"
    return str(change)
