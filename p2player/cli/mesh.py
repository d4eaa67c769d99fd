"""Commands about the mesh and its nodes: init, invite, join, run, status, peers, leave, node, authority.

`init`, `join`, and `invite` while no node runs, work on the STATE folder itself, through `p2player.enrol`; the others
are requests to the running node.
"""

import sys

import click

from p2player.cli import output, parse
from p2player.cli.context import F, Group, Session, json_option, pass_session
from p2player.cli.output import field
from p2player.errors import Unreachable, Usage

DAY_S = 86400.0

PEERS = (
    ("NAME", field("name")),
    ("SITE", field("site")),
    ("ADDRESS", field("address")),
    ("STATE", field("state")),
    (">RTT", lambda row: "-" if row.get("rtt_ms") is None else f"{row['rtt_ms']:.1f} ms"),
)


def _identity_options(function: F) -> F:
    """What `init` and `join` say about the node."""
    for option in (
        click.option(
            "--advertise",
            metavar="HOST:PORT",
            callback=parse.address,
            help="Where others reach this node, if not where it listens: the outside of a NAT, say.",
        ),
        click.option(
            "--listen",
            metavar="HOST:PORT",
            callback=parse.address,
            help="One number for TCP and UDP; port 0 picks a free one and keeps it.  [default: 0.0.0.0:7420]",
        ),
        click.option("--site", metavar="SITE", help="Where the node stands, in your words."),
        click.option("--name", metavar="NODE", help="The node's name, unique in the mesh.  [default: the host name]"),
    ):
        function = option(function)
    return function


@click.command()
@click.option("--mesh", metavar="NAME", required=True, help="What the mesh is called.")
@_identity_options
@pass_session
def init(
    session: Session, mesh: str, name: str | None, site: str | None, listen: str | None, advertise: str | None
) -> None:
    """Make a new mesh, and this node its first.

    The node becomes the mesh's authority: it alone can let others in, so its STATE folder is worth a backup.

    \b
    Example:
      p2player init --mesh shops --name north-1 --site north
      p2player run
    """
    from p2player import enrol

    identity = enrol.init_mesh(session.state_dir, mesh=mesh, name=name, site=site, listen=listen, advertise=advertise)
    output.line(f"mesh {identity.mesh_name} made; node {identity.name} is its authority")
    output.note(f"state is in {session.state_dir}; next: p2player run, and p2player invite for each other node")


@click.command()
@click.option(
    "--ttl",
    metavar="DURATION",
    default="1h",
    show_default=True,
    callback=parse.duration(1.0, 30 * DAY_S),
    help="How long the token lets nodes in: 90s, 15m, 1h, 2d.",
)
@click.option(
    "--uses",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How many nodes it lets in.",
)
@pass_session
def invite(session: Session, ttl: float, uses: int) -> None:
    """Print a token that lets a node join.

    The token carries this authority's address and a secret: hand it over as you would a password. It works on the
    authority only, whether its node runs or not; to be used, the node must run.

    \b
    Example:
      p2player invite --ttl 15m
      p2player invite --uses 8 > token.txt
    """
    try:
        token = session.client.request("POST", "/v1/invites", {"ttl_s": ttl, "uses": uses}).document["token"]
    except Unreachable:
        if not (session.state_dir / "identity").exists():
            raise
        from p2player import enrol

        token = enrol.make_token(session.state_dir, ttl, uses)
    click.echo(token)


@click.command()
@click.argument("token")
@_identity_options
@pass_session
def join(
    session: Session, token: str, name: str | None, site: str | None, listen: str | None, advertise: str | None
) -> None:
    """Enrol this node in the mesh that TOKEN is from.

    TOKEN is what `p2player invite` printed; `-` reads it from standard input, which keeps it out of the process list.
    The authority's node must be running. A node whose certificate has expired is enrolled again, as what it was.

    \b
    Example:
      p2player join p2p1_... --name south-1 --site south
      ssh north-1 p2player invite | p2player join - --site south
    """
    from p2player import enrol

    if token == "-":
        token = sys.stdin.read(64 << 10).strip()
    if not token:
        raise Usage("the token is empty")
    identity = enrol.join_mesh(session.state_dir, token, name=name, site=site, listen=listen, advertise=advertise)
    output.line(f"node {identity.name} joined mesh {identity.mesh_name}")
    output.note(f"state is in {session.state_dir}; next: p2player run")


@click.command()
@click.option(
    "--limit-in", metavar="RATE", callback=parse.rate, help="Receive from peers no faster than this, all together."
)
@click.option("--limit-out", metavar="RATE", callback=parse.rate, help="Send to peers no faster than this.")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Lines for people or for machines, on stderr.")
@pass_session
def run(session: Session, limit_in: float | None, limit_out: float | None, log_format: str | None) -> int:
    """Run the node, in the foreground.

    It is ready when it says `p2player: ready node=... listen=... socket=...` on stderr; systemd is told, too. SIGTERM
    lets transfers end and stops it; applications keep running and are found again at the next start.

    RATE: 10M and 10MB/s are ten million bytes a second, 10MiB/s counts in 1024s, 100Mbit is in bits. Options go before
    the same settings in STATE/config.toml.

    \b
    Example:
      p2player run --limit-out 50Mbit
    """
    from p2player.daemon import run_node

    return run_node(session.state_dir, limit_in=limit_in, limit_out=limit_out, log_format=log_format)


@click.command()
@json_option
@pass_session
def status(session: Session, as_json: bool) -> None:
    """Show this node, and how many peers it sees."""
    document = session.client.get("/v1/status")
    if as_json:
        output.document(document)
        return
    peers = document.get("peers") or {}
    seen = ", ".join(f"{count} {state}" for state, count in peers.items() if count)
    shown = {key: output.text(document.get(key)) for key in ("name", "id", "mesh", "site", "address", "version")}
    output.facts({**shown, "peers": seen or "none"})


@click.command()
@json_option
@pass_session
def peers(session: Session, as_json: bool) -> None:
    """List the other nodes of the mesh."""
    rows = session.client.get("/v1/peers")
    if as_json:
        output.document(rows)
    else:
        output.table(PEERS, rows, "no other node is known")


@click.command()
@pass_session
def leave(session: Session) -> None:
    """Leave the mesh for good; the node stops.

    Others learn of it at once. What only this node holds is no longer to be had afterwards.
    """
    session.client.request("POST", "/v1/leave")
    output.line("left the mesh")


@click.group(cls=Group)
def node() -> None:
    """Shut a node out (not in this version)."""


@node.command()
@click.argument("name", metavar="NODE")
@pass_session
def revoke(session: Session, name: str) -> None:
    """Take a node's certificate away, and tell the whole mesh (not in this version)."""
    from p2player.client import path

    session.client.request("POST", path("v1", "nodes", name, "revoke"))
    output.line(f"node {name} is revoked")


@click.group(cls=Group)
def authority() -> None:
    """Let other nodes invite (not in this version)."""


@authority.command()
@click.argument("name", metavar="NODE")
@pass_session
def grant(session: Session, name: str) -> None:
    """Make a node an authority that can let others in (not in this version)."""
    from p2player.client import path

    session.client.request("POST", path("v1", "authorities", name))
    output.line(f"node {name} is an authority")
