"""Sparse files in tar archives: maps of where data goes, and the logical bytes that they describe.

Source: GNU tar manual, "Storing Sparse Files".
"""

from collections.abc import Callable

from chunkstore.tarfields import TarDamaged, number

MAX_REGIONS = 1 << 18
MAX_SIZE = 2**63 - 1

_PAIR_BYTES = 24

Regions = list[tuple[int, int]]
"""(start, end) of data in a file, in order and not overlapping."""


class SparseData:
    """Gives the logical bytes of a sparse file whose pieces are stored one after another."""

    def __init__(self, regions: Regions, take: Callable[[int], bytes]) -> None:
        self._regions = iter(regions)
        self._take = take
        self._start, self._end = next(self._regions, (MAX_SIZE, MAX_SIZE))

    def read_at(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`, gaps as zeros; calls must ascend without overlap."""
        data = bytearray(length)
        while self._start < offset + length:
            end = min(self._end, offset + length)
            data[self._start - offset : end - offset] = self._take(end - self._start)
            self._start = end
            if self._start == self._end:
                self._start, self._end = next(self._regions, (MAX_SIZE, MAX_SIZE))
        return bytes(data)


def regions(numbers: list[int], size: int, stored: int) -> Regions:
    """Turn a map, numbers in pairs of offset and length, into regions.

    Args:
        numbers: the map.
        size: bytes of the file when it is restored.
        stored: bytes of its data in the archive.

    Raises:
        TarDamaged: the map does not fit, or has too many pieces.
    """
    if len(numbers) % 2 or len(numbers) > 2 * MAX_REGIONS:
        raise TarDamaged("a broken map of a sparse file")
    found: Regions = []
    previous = total = 0
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        if start < previous or length < 0 or start + length > size:
            raise TarDamaged("a broken map of a sparse file")
        if length:
            found.append((start, start + length))
        previous = start + length
        total += length
    if total > stored or not 0 <= size <= MAX_SIZE:
        raise TarDamaged("a broken map of a sparse file")
    return found


def map_fields(data: bytes) -> list[int]:
    """The map in a GNU header or its continuation: pairs of 12-byte fields up to an empty one."""
    numbers: list[int] = []
    for at in range(0, len(data), _PAIR_BYTES):
        if not data[at]:
            break
        numbers += (number(data[at : at + 12]), number(data[at + 12 : at + 24]))
    return numbers
