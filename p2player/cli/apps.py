"""Commands about applications: apps, backends, and app create, start, stop, rm, logs, recover, adopt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from p2player.cli import output, parse
from p2player.cli.context import Group, Session, json_option, pass_session
from p2player.cli.output import field, short_id
from p2player.errors import Failed, NotFound, Usage

MAX_CONFIG_BYTES = 256 << 10

APPS = (
    ("NAME", field("name")),
    ("ID", lambda row: short_id(row.get("id"))),
    ("BACKEND", field("backend")),
    ("NODE", field("node")),
    ("STATE", field("state")),
    (">EPOCH", field("epoch")),
    ("BASE", lambda row: short_id(row.get("base"))),
    ("APP", lambda row: short_id(row.get("app"))),
    ("ADDRESSES", field("addresses")),
)

_BACKENDS = (
    ("NAME", field("name")),
    ("AVAILABLE", field("available")),
    ("VERSION", field("version")),
    ("REASON", field("reason")),
)


@click.command()
@json_option
@pass_session
def apps(session: Session, as_json: bool) -> None:
    """List the applications of the mesh, and where they run."""
    _show(session.client.get("/v1/apps"), as_json)


@click.command()
@json_option
@pass_session
def backends(session: Session, as_json: bool) -> None:
    """List the engines that can run applications here.

    For those that cannot, the reason is told.
    """
    rows = session.client.get("/v1/backends")
    if as_json:
        output.document(rows)
    else:
        output.table(_BACKENDS, rows, "this node knows no backend")


@click.group(cls=Group)
def app() -> None:
    """Create, start and stop applications.

    An application runs on a base layer and an application layer; its own state stays with it when it moves. APP is its
    name or its id. Commands reach it on whatever node it is.
    """


_backend = click.option("--backend", metavar="B", required=True, help="What runs it: see `p2player backends`.")
_config = click.option("--config", metavar="FILE", callback=parse.absolute, help="Its settings, TOML.")


@app.command()
@click.argument("name", metavar="APP")
@_backend
@click.option("--base", metavar="LAYER", required=True, help="The layer that it runs on.")
@click.option("--app", "app_layer", metavar="LAYER", required=True, help="The layer with the application.")
@_config
@json_option
@pass_session
def create(
    session: Session, name: str, backend: str, base: str, app_layer: str, config: Path | None, as_json: bool
) -> None:
    """Create an application on this node, stopped.

    For the backend `process`, FILE says what to run; {base} and {app} are the checked-out layers, {state} its own
    folder:

    \b
      command = ["{base}/bin/python3", "{app}/server.py", "{state}"]
      addresses = ["10.0.0.5:8000"]
      [hooks]
      save = ["{app}/save.sh"]

    \b
    Example:
      p2player app create game --backend process --base debian-12 --app game --config game.toml
      p2player app start game
    """
    body = {"name": name, "backend": backend, "base": base, "app": app_layer, "config": _text(config)}
    row = session.client.request("POST", "/v1/apps", body).document
    _show_one(row, as_json, f"created {name}, id {row.get('id')}")


@app.command()
@click.argument("ref", metavar="APP")
@json_option
@pass_session
def start(session: Session, ref: str, as_json: bool) -> None:
    """Start an application where it is. Layers that are missing there are fetched first."""
    row = session.client.request("POST", _path(ref, "start")).document
    _show_one(row, as_json, f"{ref} is {row.get('state')} on {row.get('node')}")


@app.command()
@click.argument("ref", metavar="APP")
@json_option
@pass_session
def stop(session: Session, ref: str, as_json: bool) -> None:
    """Stop an application, keeping its state."""
    row = session.client.request("POST", _path(ref, "stop")).document
    _show_one(row, as_json, f"{ref} is {row.get('state')} on {row.get('node')}")


@app.command()
@click.argument("ref", metavar="APP")
@pass_session
def rm(session: Session, ref: str) -> None:
    """Remove a stopped application, and its state."""
    session.client.request("DELETE", _path(ref))
    output.line(f"removed {ref}")


@app.command()
@click.argument("ref", metavar="APP")
@json_option
@pass_session
def logs(session: Session, ref: str, as_json: bool) -> None:
    """Print the newest output of an application."""
    document = session.client.get(_path(ref, "logs"))
    if as_json:
        output.document(document)
        return
    text = str(document.get("text") or "")
    click.echo(text, nl=bool(text) and not text.endswith("\n"))


@app.command()
@click.argument("ref", metavar="APP")
@click.option("--force", is_flag=True, help="Without an answer: take it back here, though another copy may exist.")
@json_option
@pass_session
def recover(session: Session, ref: str, force: bool, as_json: bool) -> None:
    """Settle an application that a migration left `in_doubt`.

    Works on the side where it is suspended, and follows the other side's answer: it goes on here if it never ran
    there. With no answer it is refused. --force starts it here all the same; should the other side have it running,
    there are two copies until both sides see each other again, and the older one is stopped.
    """
    row = session.client.request("POST", _path(ref, "recover"), {"force": force}).document
    _show_one(row, as_json, f"{ref} is {row.get('state')} on {row.get('node')}")


@app.command()
@click.argument("name", metavar="APP")
@_backend
@click.option("--instance", metavar="ID", help="What the backend's engine calls it, if not APP.")
@click.option("--base", metavar="LAYER", help="The layer that it was made from; else APP-base is made of it.")
@click.option("--app-name", metavar="NAME", help="What the layer with the rest is to be called, if not APP.")
@_config
@json_option
@pass_session
def adopt(
    session: Session,
    name: str,
    backend: str,
    instance: str | None,
    base: str | None,
    app_name: str | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Make an application of an instance that an engine has.

    The instance must be stopped; it is taken apart into a base layer and
    an application layer, and stays as it is. Refused by backends whose
    instances do not exist before p2player makes them.

    \b
    Examples:
      p2player app adopt shop --backend lxd --instance shop-1
      p2player app adopt shop --backend lxd --base debian-12 --app-name shop-7
    """
    body = {
        "name": name,
        "backend": backend,
        "instance": instance,
        "base": base,
        "app_name": app_name,
        "config": _text(config),
    }
    wish = {key: value for key, value in body.items() if value is not None}
    row = session.work(f"adopting {name}", "POST", _path("adopt"), wish, quiet=as_json)
    _show_one(row, as_json, f"adopted {name}, id {row.get('id')}")


def _path(*parts: str) -> str:
    from p2player.client import path

    return path("v1", "apps", *parts)


def _text(config: Path | None) -> str | None:
    return None if config is None else _read(config)


def _read(path: Path) -> str:
    """The text of a settings file.

    Raises:
        NotFound, Failed, Usage: it is not there, cannot be read, or is no text of a sensible length.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        text = data.decode()
    except FileNotFoundError:
        raise NotFound(f"no file {path}") from None
    except OSError as error:
        raise Failed(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Usage(f"{path} is not UTF-8 text") from None
    if len(data) > MAX_CONFIG_BYTES:
        raise Usage(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
    return text


def _show(rows: Any, as_json: bool) -> None:
    if as_json:
        output.document(rows)
    else:
        output.table(APPS, rows, "the mesh has no applications; see: p2player app create --help")


def _show_one(row: Mapping[str, Any], as_json: bool, sentence: str) -> None:
    if as_json:
        output.document(row)
    else:
        output.line(sentence)
