"""What commands print: JSON documents, aligned tables, and the progress of long work.

Results go to stdout, everything else to stderr. With `--json` stdout has one document and stderr stays quiet. Text
that came from other nodes is stripped of control characters before it reaches a terminal.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console

    from p2player.client import Watch

PLAIN_EVERY_S: Final = 5.0
BAR_EVERY_S: Final = 0.1
QUIET_EVERY_S: Final = 60.0
"""How often long work writes a line where there is no terminal."""

_WIDE = 4000

Column = tuple[str, Callable[[Mapping[str, Any]], str]]
"""A heading and what stands below it; a heading that starts with `>` aligns to the right."""


def document(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, sort_keys=False))


def line(text: str) -> None:
    """Print one line of a result."""
    click.echo(clean(text))


def note(text: str) -> None:
    """Say something beside the result, on stderr."""
    click.echo(f"p2player: {clean(text)}", err=True)


def clean(text: object) -> str:
    """`text` without control characters: those of a peer must not drive a terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], empty: str) -> None:
    """Print rows under headings; `empty` instead when there are none."""
    if not rows:
        note(empty)
        return
    console().print(grid(columns, rows))


def grid(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> Any:
    """The table as something that rich prints."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading, _ in columns:
        made.add_column(
            heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(Text(clean(cell(row))) for _, cell in columns))
    return made


def facts(pairs: Mapping[str, str]) -> None:
    """Print names and values, one pair a line."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        line(f"{name:<{width}}  {value}")


def console(*, err: bool = False) -> "Console":
    """A console that neither colours nor wraps what does not go to a terminal."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() else _WIDE
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


# How values are written


def field(name: str) -> Callable[[Mapping[str, Any]], str]:
    """A column with a field as it is; `-` when it is empty."""
    return lambda row: text(row.get(name))


def text(value: Any) -> str:
    """Any value in words."""
    if value is None or value in ("", [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def short_id(value: Any) -> str:
    """The first 12 digits of an id: enough to name it by."""
    return str(value)[:12] if value else "-"


def size(count: Any) -> str:
    """Bytes in the largest unit that leaves a number from 1 to 1023, as in `1.5 GiB`."""
    if isinstance(count, bool) or not isinstance(count, int | float):
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def seconds(value: Any) -> str:
    """A time as people say it: `0.043 s`, `12.3 s`, `3 min 20 s`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-"
    if value >= 3600:
        return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"
    if value >= 100:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{value:.3f} s" if value < 1 else f"{value:.1f} s"


# Long work


@contextmanager
def progress(title: str, *, quiet: bool = False) -> Iterator["Watch"]:
    """Show how far long work is: a bar on a terminal, a line now and then elsewhere, nothing when `quiet`.

    Yields:
        What to call with each new state, `{"progress": {"done", "total", "message"}}`.
    """
    if quiet:
        yield lambda _row: None
    elif sys.stderr.isatty():
        with _bar(title) as watch:
            yield watch
    else:
        yield _Lines(title)


def watch_every_s(*, quiet: bool) -> float:
    """How often what `progress` yields wants to be called, in seconds."""
    if quiet:
        return QUIET_EVERY_S
    return BAR_EVERY_S if sys.stderr.isatty() else PLAIN_EVERY_S


class _Lines:
    """Progress where there is no terminal: quick work says nothing, long work a line every few seconds."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._said_s = time.monotonic()

    def __call__(self, row: Mapping[str, Any]) -> None:
        now = time.monotonic()
        done, total, message = _progress(row)
        if now - self._said_s < PLAIN_EVERY_S or not (total or message):
            return
        self._said_s = now
        amount = f": {size(done)} of {size(total)}" if total else ""
        note(f"{self._title}: {message}{amount}" if message else f"{self._title}{amount}")


@contextmanager
def _bar(title: str) -> Iterator["Watch"]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(err=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def watch(row: Mapping[str, Any]) -> None:
            done, total, message = _progress(row)
            bar.update(task, completed=done, total=total or None, description=clean(message) or title)

        yield watch


def _progress(row: Mapping[str, Any]) -> tuple[int, int, str]:
    """How far a row says that it is; a migration's state goes for a message."""
    told = row.get("progress")
    known = told if isinstance(told, dict) else {}
    done, total = (count if isinstance(count, int) else 0 for count in (known.get("done"), known.get("total")))
    return done, total, str(known.get("message") or row.get("phase") or "")
