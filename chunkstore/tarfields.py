"""The fields and records of tar headers.

Sources: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header"; GNU tar manual, "Basic Tar Format".
"""

import re

Records = dict[bytes, bytes]
"""Extended records that apply to a member, by key."""

_TIME = re.compile(rb"(-?)(\d{1,11})(?:\.(\d*))?")
_KEEPS_EMPTY = b"SCHILY.xattr."
_SPARSE_KEYS = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")


class TarDamaged(Exception):
    """The archive breaks the format or a limit; the text says how."""


def text(field_bytes: bytes) -> bytes:
    """A field up to its first NUL."""
    return field_bytes.partition(b"\0")[0]


def number(field_bytes: bytes) -> int:
    """A numeric field: octal digits, or big-endian binary with the highest bit set.

    Raises:
        TarDamaged: it is neither.
    """
    if field_bytes[0] == 0xFF:
        return int.from_bytes(field_bytes, "big", signed=True)
    if field_bytes[0] & 0x80:
        return int.from_bytes(field_bytes, "big") & ~(0x80 << 8 * (len(field_bytes) - 1))
    digits = field_bytes.partition(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise TarDamaged("a header with a broken number")
    return int(digits or b"0", 8)


def plain(digits: bytes) -> int:
    """Decimal digits of a record.

    Raises:
        TarDamaged: they are no number below 10^19.
    """
    if not digits.isdigit() or len(digits) > 19:
        raise TarDamaged("a broken number")
    return int(digits)


def decimal(records: Records, key: bytes, otherwise: int) -> int:
    """The number of a record, or `otherwise` where there is none; raises like `plain`."""
    return plain(records[key]) if key in records else otherwise


def nanoseconds(record: bytes | None, seconds: int) -> int:
    """A time in decimal notation, exactly; from the header's whole `seconds` where there is no record.

    Raises:
        TarDamaged: it is no time.
    """
    if record is None:
        return seconds * 10**9
    found = _TIME.fullmatch(record)
    if found is None:
        raise TarDamaged("a broken time")
    sign, whole, fraction = found.groups()
    time_ns = int(whole) * 10**9 + int(((fraction or b"") + b"0" * 9)[:9])
    return -time_ns if sign else time_ns


def check_sum(block: bytes) -> None:
    """Compare a header with the checksum in it; some old programs summed signed bytes.

    Raises:
        TarDamaged: it is wrong.
    """
    claimed = number(block[148:156])
    others = block[:148] + b" " * 8 + block[156:]
    if sum(others) != claimed and sum(others) - 256 * sum(byte > 127 for byte in others) != claimed:
        raise TarDamaged("a header with a wrong checksum")


def update(records: Records, data: bytes) -> list[int]:
    """Take the records of an extended header.

    Returns:
        The numbers of a sparse file's map in format 0.0, which repeats its keys; otherwise nothing.

    Raises:
        TarDamaged: they are not what POSIX describes.
    """
    sparse_map: list[int] = []
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + 20)
        end = at + plain(data[at : max(at, space)])
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n":
            raise TarDamaged("a broken extended header")
        if key in _SPARSE_KEYS:
            sparse_map.append(plain(value))
        elif value or key.startswith(_KEEPS_EMPTY):
            records[key] = value
        else:
            records.pop(key, None)
        at = end
    return sparse_map
