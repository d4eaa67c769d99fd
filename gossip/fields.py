"""Reading values out of something that another node encoded.

Every reader takes what msgpack made of a peer's bytes, checks its type and its bounds, and returns it with the type
that the rest of the code may rely on. Nothing else in the ledger looks into undecoded data, so that a hostile record
can only ever raise `Malformed`.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgpack

from gossip.errors import Malformed

MAX_INTEGER: Final = (1 << 53) - 1
"""The largest integer that every JSON reader keeps exactly: no count, size or version exceeds it."""

MAX_SITE_BYTES: Final = 64
MAX_NAME_BYTES: Final = 128
_SPARE_COLUMNS: Final = 16


def unpack(data: bytes, most_bytes: int) -> Any:
    """Decode one msgpack document of at most `most_bytes`.

    Raises:
        Malformed: it is longer than that, or no msgpack.
    """
    if len(data) > most_bytes:
        raise Malformed(f"{len(data)} bytes where {most_bytes} are allowed")
    try:
        return msgpack.unpackb(data, raw=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"not msgpack: {type(error).__name__}") from None


def pack(value: Any) -> bytes:
    """The msgpack encoding of plain values."""
    encoded = msgpack.packb(value, use_bin_type=True)
    assert isinstance(encoded, bytes)
    return encoded


def table(value: object) -> Mapping[Any, Any]:
    """A map; what its keys hold is read field by field, unknown keys are left for later versions."""
    if not isinstance(value, dict):
        raise Malformed("not a map")
    return value


def items(value: object, most: int) -> list[Any]:
    """A list of at most `most` things, of whatever form."""
    if not isinstance(value, list):
        raise Malformed("not a list")
    if len(value) > most:
        raise Malformed(f"{len(value)} rows where {most} are allowed")
    return value


def rows(value: object, columns: int, most: int) -> list[list[Any]]:
    """At most `most` lists with `columns` entries each; a later version may append a few more columns."""
    found = items(value, most)
    for row in found:
        if not isinstance(row, list) or not columns <= len(row) <= columns + _SPARE_COLUMNS:
            raise Malformed(f"not a row of {columns} columns")
    return found


def integer(value: object, low: int = 0, high: int = MAX_INTEGER) -> int:
    """An integer from `low` to `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Malformed(f"not an integer from {low} to {high}")
    return value


def number(value: object, high: float) -> float:
    """A finite number from 0 to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise Malformed(f"not a number from 0 to {high:g}")
    return float(value)


def truth(value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise Malformed("not a truth value")
    return value


def text(value: object, most_bytes: int, *, empty: bool = False) -> str:
    """Printable text of at most `most_bytes` in UTF-8: no control character reaches a terminal or a log from here."""
    if not isinstance(value, str) or len(value) > most_bytes:
        raise Malformed(f"not a text of at most {most_bytes} bytes")
    if not (value or empty) or not value.isprintable() or len(value.encode(errors="replace")) > most_bytes:
        raise Malformed(f"not a printable text of at most {most_bytes} bytes")
    return value


def raw(value: object, shortest: int, longest: int | None = None) -> bytes:
    """Bytes of a length from `shortest` to `longest`, or of exactly `shortest`."""
    longest = shortest if longest is None else longest
    if not isinstance(value, bytes) or not shortest <= len(value) <= longest:
        raise Malformed(f"not {shortest} to {longest} bytes")
    return value
