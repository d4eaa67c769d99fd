"""Sizes, rates and durations as people write them: `20GiB`, `80Mbit/s`, `1h30m`.

Used by the command line and by `config.toml`, so that a quantity reads the same in both. A number without a unit is
bytes, bytes a second, or seconds.
"""

import math
import re
from typing import Final

from p2player.errors import Usage

_DECIMAL: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY: Final = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_PREFIX: Final = _DECIMAL | _BINARY

_NUMBER: Final = r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,9})?)"
_SIZE: Final = re.compile(rf"{_NUMBER}\s*(?P<prefix>[kKmMgGtT]?i?)(?P<unit>B?)")
_RATE: Final = re.compile(rf"{_NUMBER}\s*(?P<prefix>[kKmMgGtT]?i?)(?:(?P<unit>B|bit)?(?:/s)?|(?P<bits>bps))")
_STEP: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d)\s*")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

MAX_BYTES: Final = 1 << 62


def parse_size(text: str) -> int:
    """Bytes: `4096`, `500MB` (decimal), `20GiB` (binary).

    Raises:
        Usage: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    scale = _PREFIX.get(match["prefix"].lower()) if match else None
    if match is None or scale is None:
        raise Usage(f"{text!r} is not a size: write 4096, 500MB or 20GiB")
    return _bounded(text, float(match["number"]) * scale if "." in match["number"] else int(match["number"]) * scale)


def parse_rate(text: str) -> int:
    """Bytes a second: `10MB/s`, `80Mbit/s`, `80Mbps`; without a unit bytes. Megabits are written `Mbit`, never `Mb`.

    Raises:
        Usage: it is no rate, or zero.
    """
    match = _RATE.fullmatch(text.strip())
    scale = _PREFIX.get(match["prefix"].lower()) if match else None
    if match is None or scale is None:
        raise Usage(f"{text!r} is not a rate: write 10MB/s or 80Mbit/s")
    per_byte = 8 if match["unit"] == "bit" or match["bits"] else 1
    rate = _bounded(text, float(match["number"]) * scale / per_byte)
    if rate < 1:
        raise Usage(f"{text!r} is not a rate: it is less than one byte a second")
    return rate


def parse_duration(text: str) -> float:
    """Seconds: `90`, `300ms`, `1h30m`, `10d`.

    Raises:
        Usage: it is no duration.
    """
    stripped = text.strip()
    if re.fullmatch(r"[0-9]{1,12}(?:\.[0-9]{1,9})?", stripped):
        return float(stripped)
    seconds, position = 0.0, 0
    while position < len(stripped) and (match := _STEP.match(stripped, position)):
        seconds += float(match[1]) * _SECONDS[match[2]]
        position = match.end()
    if not stripped or position < len(stripped):
        raise Usage(f"{text!r} is not a duration: write 300ms, 90s, 1h30m or 10d")
    return seconds


def _bounded(text: str, value: float) -> int:
    if not math.isfinite(value) or value > MAX_BYTES:
        raise Usage(f"{text!r} is too large")
    return int(value)
