"""How much a msgpack document would become, found out without building it.

Decoding multiplies: an empty list is one byte on the wire and eighty in memory, and a nest of unfinished lists reserves
room at every level. So a document of a peer is walked first, one step an item, and refused when it holds too many
items, is nested too deep, announces more than follows, or is no msgpack. What has passed costs about `ITEM_BYTES` an
item at most, on top of the bytes of its texts.

Extension types are refused: nothing here uses them.
"""

from typing import Final

ITEM_BYTES: Final = 96
"""What one item costs in memory, rounded up: an empty list or map, a small integer, its place in a list or a table."""

_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Bytes of the length of bin and str."""

_COUNTS: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Of array and map: bytes of the count, and items for each."""

_FIXED: Final = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8} | {
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
}
"""Bytes after the first one of nil, truth values and numbers."""


def _leaf_bytes(lead: int) -> int:
    """How many bytes follow the first one of an item; -1 where that does not say."""
    if lead <= 0x7F or lead >= 0xE0:
        return 0
    if 0xA0 <= lead <= 0xBF:
        return lead & 0x1F
    return _FIXED.get(lead, -1)


_LEAVES: Final = tuple(_leaf_bytes(lead) for lead in range(256))


class Unmeasurable(Exception):
    """The document is no msgpack, or over a bound."""


def measure(document: bytes, *, most_items: int, most_levels: int) -> int:
    """The number of items in a document: every value, key, list and map counts as one.

    Args:
        most_levels: of lists and maps within each other.

    Raises:
        Unmeasurable: there are more items or levels, or it is not one whole msgpack document.
    """
    at, end = 0, len(document)
    total = left = 1  # items that were announced so far, and how many of them are still to come on this level
    outer: list[int] = []  # how many are still to come on the levels around it
    try:
        while True:
            while not left:
                if not outer:
                    if at != end:
                        raise Unmeasurable("not one whole document")
                    return total
                left = outer.pop()
            left -= 1
            lead = document[at]
            at += 1
            size = _LEAVES[lead]
            if size >= 0:
                at += size
                continue
            if lead in _LENGTHS:
                width = _LENGTHS[lead]
                at += width + int.from_bytes(document[at : at + width])
                continue
            if lead <= 0x8F:
                inside = 2 * (lead & 0x0F)
            elif lead <= 0x9F:
                inside = lead & 0x0F
            elif lead in _COUNTS:
                width, each = _COUNTS[lead]
                inside = each * int.from_bytes(document[at : at + width])
                at += width
            else:
                raise Unmeasurable(f"type {lead:#04x} is not used")
            total += inside
            if total > most_items:
                raise Unmeasurable(f"more than {most_items} items")
            if len(outer) + 1 > most_levels:
                raise Unmeasurable(f"more than {most_levels} levels")
            outer.append(left)
            left = inside
    except IndexError:
        raise Unmeasurable("cut short") from None
