"""Option values beyond plain text: durations, rates, addresses and paths, read when the command line is read.

The forms are those of `p2player.quantities` and `p2player.addresses`, so that an option and the same setting in
`config.toml` read alike. Each function here is a click callback, or makes one: a mistake is told together with the
option that it was made in.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from p2player.errors import Usage

YEAR_S: Final = 366 * 86400.0
MIN_RATE: Final = 1_000

Callback = Callable[[click.Context, click.Parameter, Any], Any]


def duration(least_s: float, most_s: float = YEAR_S) -> Callback:
    """Makes a callback for `300ms`, `90s`, `1h30m`, `2d`; a bare number is seconds.

    Args:
        least_s: the shortest duration that makes sense.
        most_s: the longest one.
    """

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
        from p2player.quantities import parse_duration

        seconds: float | None = _read(parse_duration, ctx, param, value)
        if seconds is not None and not least_s <= seconds <= most_s:
            raise click.BadParameter(f"{value!r} is not between {least_s:g} s and {most_s:g} s", ctx, param)
        return seconds

    return callback


def rate(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """A callback for bytes a second: `10M`, `1.5MB/s`, `100Mbit`."""
    from p2player.quantities import parse_rate

    bytes_per_s: int | None = _read(parse_rate, ctx, param, value)
    if bytes_per_s is not None and bytes_per_s < MIN_RATE:
        raise click.BadParameter(f"{value!r} is less than 1 kB/s: nothing would work", ctx, param)
    return bytes_per_s


def address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A callback for `HOST:PORT`."""
    from p2player.addresses import parse_address

    found = _read(parse_address, ctx, param, value)
    return None if found is None else str(found)


def absolute(ctx: click.Context, param: click.Parameter, value: str | None) -> Path | None:
    """A callback for paths: the node that uses one has another working directory. Links are not followed."""
    if value is None:
        return None
    if not value:
        raise click.BadParameter("an empty path", ctx, param)
    return Path(os.path.abspath(value))


def _read(parse: Callable[[str], Any], ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    try:
        return None if value is None else parse(value)
    except Usage as error:
        raise click.BadParameter(error.message, ctx, param) from None
