"""Cut a chunk into fine pieces that have a chance to occur in another version of it.

Theory of operation
-------------------
What the bytes are decides where they are cut; nothing but the chunk itself is looked at:

- The chunk is one sequence of RAM records of QEMU's migration stream: each page is a piece, and so is whatever lies
  between two pages (the words in front of them, zero pages). So a page is recognised wherever it moves to.
- All else is cut where its content says so (see `chunkstore.chunker`), every 1.3 KiB on average. That holds for the
  pages of other images and disks, too: what they have in common is found beyond page borders (CRIU dumps 16 %, an ext4
  image 20 % fewer bytes than with pieces of a page, for a quarter more time). Where time counts for more than bytes,
  and every chunk has the length of whole pages, the pieces are pages.

Where only fingerprints are compared, nothing finds out what is equal within a piece: there, chunks whose length is a
multiple of 4096 are cut into sectors, and pages of records as well. Measured against whole pages, signature and patch
together take half for memory and databases with scattered changes, and a tenth more where few pages changed.

Two ends may cut differently (another version of this module): that costs bytes, never correctness.

Source of the records: QEMU 7.2, migration/ram.c; a big-endian word of address and flags, the name of the block unless
it continues, then 4096 bytes or, if the page is filled with one byte, that byte.
"""

from collections.abc import Iterable
from typing import Final

from pyfastcdc import FastCDC

from chunkstore.digest import Buffer

PAGE_BYTES: Final = 4096
SECTOR_BYTES: Final = 1024
SECTORS: Final = PAGE_BYTES // SECTOR_BYTES

_SMALLEST, _AVERAGE, _LARGEST = 512, 1024, 4096
_CDC = FastCDC(_AVERAGE, min_size=_SMALLEST, max_size=_LARGEST)

_ZERO, _PAGE, _CONTINUE = 0x02, 0x08, 0x20
_KINDS = {_ZERO, _PAGE, _ZERO | _CONTINUE, _PAGE | _CONTINUE}
_WORD_BYTES = 8


def fine_cuts(chunk: Buffer, *, pages: bool = False) -> list[int]:
    """The lengths of the pieces, in order; they sum up to `len(chunk)`.

    Args:
        pages: whether to cut the chunk, whose length must be that of whole pages, into these.
    """
    if pages:
        return [PAGE_BYTES] * (len(chunk) // PAGE_BYTES)
    return record_cuts(chunk) or content_cuts(chunk)


def all_pages(chunks: Iterable[Buffer]) -> bool:
    """Whether every chunk has the length of whole pages."""
    return all(len(chunk) % PAGE_BYTES == 0 for chunk in chunks)


def sector_cuts(chunk: Buffer) -> list[int]:
    """Pages in sectors, and what lies between them; pieces by content where there are no pages."""
    if len(chunk) % PAGE_BYTES == 0:
        return [SECTOR_BYTES] * (len(chunk) // SECTOR_BYTES)
    cuts: list[int] = []
    for length in record_cuts(chunk):
        cuts += [SECTOR_BYTES] * SECTORS if length == PAGE_BYTES else [length]
    return cuts or content_cuts(chunk)


def content_cuts(chunk: Buffer) -> list[int]:
    """Pieces that end where their content says so."""
    if len(chunk) <= _SMALLEST:
        return [len(chunk)] if len(chunk) else []
    return [piece.length for piece in _CDC.cut_buf(chunk)]


def record_cuts(chunk: Buffer) -> list[int]:
    """The pages in a sequence of QEMU's RAM records, and what lies between them; none if the chunk is not just that."""
    lengths: list[int] = []
    at = between = 0  # `between`: where the pieces so far end
    while at < len(chunk):
        flags = int.from_bytes(chunk[at + 6 : at + _WORD_BYTES], "big") & (PAGE_BYTES - 1)
        if flags not in _KINDS or at + _WORD_BYTES > len(chunk):
            return []
        at += _WORD_BYTES
        if not flags & _CONTINUE:
            at += 1 + int.from_bytes(chunk[at : at + 1], "big")
        if flags & _ZERO:
            at += 1
        else:
            lengths += (at - between, PAGE_BYTES)
            at += PAGE_BYTES
            between = at
    if at != len(chunk):
        return []
    if at > between:
        lengths.append(at - between)
    return lengths
