"""The command line.

    mesh         init, invite, join, run, status, peers, leave, node, authority
    layers       layers, layer
    apps         apps, app, backends
    migrations   plan, migrate, migrations
    warming      warm
    store        store
    watch        top, events, demo
    context      what commands share: STATE, the client, groups, options
    parse        durations, rates, addresses, paths
    output       JSON, tables, progress

Commands parse, ask the node and print; they decide nothing. Results go to stdout, all else to stderr; every failure
is one line, `p2player: error: ...`, and an exit code of `p2player.errors`. Only click is imported at the start, as
commands and shell completion should answer at once: a command's module comes in when it is called, and everything else
when the command needs it.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from p2player import __version__
from p2player.cli import parse
from p2player.cli.context import SectionedGroup, Session
from p2player.errors import P2PlayerError, Usage

INTERRUPTED = 130
BROKEN_PIPE = 141


class _Root(SectionedGroup):
    def invoke(self, ctx: click.Context) -> object:
        """Run a command; Ctrl-C, or a reader of its output that goes away, ends it without a word."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered goes nowhere at exit
            ctx.exit(BROKEN_PIPE)
        return result


@click.group(cls=_Root, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state-dir",
    metavar="DIR",
    envvar="P2PLAYER_STATE",
    callback=parse.absolute,
    help="The node's folder.  [env: P2PLAYER_STATE; default: ~/.local/state/p2player]",
)
@click.version_option(__version__, message="p2player %(version)s")
@click.pass_context
def cli(ctx: click.Context, state_dir: Path | None) -> None:
    """Move running applications between edge sites.

    Every node keeps layers of applications in content-addressed chunks and tells the others what it holds; a
    migration pulls only what the destination lacks, from the nearest nodes that have it.

    \b
    A first day:
      p2player init --mesh shops            on the first node
      p2player run                          there, and on every node
      p2player invite                       prints a token for ...
      p2player join TOKEN                   ... the next node
      p2player layer add ./rootfs --name debian-12 --kind base
      p2player layer add ./game --name game
      p2player app create game --backend process --base debian-12 --app game --config game.toml
      p2player app start game
      p2player migrate game --to south-1

    \b
    Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 the node is not running or
    a peer cannot be reached, 5 refused, 6 integrity.
    """
    ctx.obj = Session(state_dir)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


cli.add_section("The mesh", mesh=("init", "invite", "join", "run", "status", "peers", "leave", "node", "authority"))
cli.add_section("Layers", layers=("layers", "layer"), warming=("warm",))
cli.add_section("Applications", apps=("apps", "app", "backends"))
cli.add_section("Moving them", migrations=("plan", "migrate", "migrations"))
cli.add_section("Looking after a node", store=("store",), watch=("top", "events"))
cli.add_section("Seeing it at work", watch=("demo",))


def execute(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; never raises.

    Args:
        arguments: without the program's name; `sys.argv` if left out.
    """
    try:
        code = cli.main(args=arguments, prog_name="p2player", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx is not None else "p2player"
        return _fail(Usage(f"{_sentence(error.format_message())} (see: {where} --help)"))
    except click.ClickException as error:
        return _fail(P2PlayerError(error.format_message()))
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except SystemExit as exit_:  # shell completion ends like this
        return exit_.code if isinstance(exit_.code, int) else 0
    except P2PlayerError as error:
        return _fail(error)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(P2PlayerError(f"{name}{error.strerror or error}"))
    except Exception as error:  # a user never sees a traceback
        return _fail(P2PlayerError(f"internal error: {type(error).__name__}: {error}"))
    return code if type(code) is int else 0


def main() -> NoReturn:
    """The console script.

    A command that only asked a node has nothing to put in order, and leaves without taking the interpreter apart, which
    takes a tenth of its time.
    """
    code = execute()
    if "trio" in sys.modules:
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or BROKEN_PIPE
    os._exit(code)


def _fail(error: P2PlayerError) -> int:
    from p2player.cli.output import clean

    click.echo(f"p2player: error: {clean(error.message)}", err=True)
    return error.exit_code


def _sentence(text: str) -> str:
    """Click's sentences in the form of ours: no capital at the start, no full stop at the end."""
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:]
