"""What every command stands on: where STATE is, the client, groups in a told order, and options that many share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from p2player.cli import output

if TYPE_CHECKING:
    from p2player.client import Client, Row

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Session:
    """One invocation of the command line.

    Attributes:
        given: what `--state-dir` or P2PLAYER_STATE said.
    """

    given: Path | None = None

    @cached_property
    def state_dir(self) -> Path:
        """The STATE folder; it need not exist."""
        if self.given is not None:
            return self.given
        import os

        from p2player.statedir import default_root

        return default_root(os.environ)

    @cached_property
    def client(self) -> "Client":
        """Talks to the node there."""
        from p2player.client import Client

        return Client(self.state_dir)

    def work(self, title: str, method: str, target: str, body: dict[str, Any] | None = None, *, quiet: bool) -> "Row":
        """Let the node do long work, and show how far it is; the result. Ctrl-C cancels it."""
        with output.progress(title, quiet=quiet) as watch:
            return self.client.work(method, target, body, watch, every_s=output.watch_every_s(quiet=quiet))


pass_session = click.make_pass_decorator(Session, ensure=True)


def json_option(function: F) -> F:
    """`--json`, as the parameter `as_json`."""
    option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
    return option(function)


class Group(click.Group):
    """A group whose help lists its commands in the order in which they were added: that of a user's day.

    Without a command it is a usage error, told in one line as all of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **kwargs})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in that order."""
        return list(self.commands)


class SectionedGroup(Group):
    """The root: its help puts the commands under headings, and a command's module is imported when it is wanted.

    Attributes:
        sections: names of commands by heading.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections: dict[str, list[str]] = {}
        self._modules: dict[str, str] = {}

    def add_section(self, heading: str, **modules: Sequence[str]) -> None:
        """Add commands below a heading: names of them by the module of this package that they are in."""
        for module, names in modules.items():
            self.sections.setdefault(heading, []).extend(names)
            self._modules.update(dict.fromkeys(names, module))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which they were added."""
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, from its module."""
        module = self._modules.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(f"p2player.cli.{module}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section as a list of names and first sentences."""
        width = max(map(len, self._modules))
        for heading, names in self.sections.items():
            with formatter.section(heading):
                commands = [(name, self.get_command(ctx, name)) for name in names]
                rows = [(f"{name:<{width}}", command.get_short_help_str(80)) for name, command in commands if command]
                formatter.write_dl(rows)
