"""What is known of a relative whose bytes only the other end holds: a fingerprint and a length for each fine piece.

Encoded, a piece takes 6 bytes of fingerprint and, unless it is of a page, about 2 of length: 0.6 % of any content.
First come the lengths, each a varint of `length << 1`, or of `length << 1 | 1` and a varint of how many further pieces
have it too; then the fingerprints. A fingerprint is the lower 48 bits of xxh3-64. Among the pieces of a unit and its
relative two fall together once in ten million units; whoever applies the patch finds that out by the chunk's digest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from xxhash import xxh3_64_intdigest

from chunkstore.delta.errors import BadPatch
from chunkstore.delta.finecuts import SECTOR_BYTES, SECTORS, sector_cuts
from chunkstore.delta.ops import put_varint, take_varint
from chunkstore.digest import Buffer

FINGERPRINT_BYTES: Final = 6
_LOW_BITS: Final = (1 << 8 * FINGERPRINT_BYTES) - 1
MAX_PIECES: Final = 1 << 16


def fingerprint(piece: Buffer) -> int:
    """48 bits that tell this piece from others, unless someone means to deceive."""
    return xxh3_64_intdigest(piece) & _LOW_BITS


@dataclass(frozen=True, slots=True)
class Signature:
    """The pieces of a relative, in order.

    Attributes:
        fingerprints: see `fingerprint`.
        lengths: of the pieces, in bytes; positive.
    """

    fingerprints: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def paged(self) -> bool:
        """Whether there are pages among the pieces."""
        return any(
            length == SECTOR_BYTES and sum(1 for _ in equal) >= SECTORS for length, equal in groupby(self.lengths)
        )

    def encode(self) -> bytes:
        """As sent to the other end; `decode` says how long that can get."""
        out = bytearray()
        put_varint(len(self.lengths), out)
        for length, equal in groupby(self.lengths):
            more = sum(1 for _ in equal) - 1
            put_varint(length << 1 | (more > 0), out)
            if more:
                put_varint(more, out)
        return bytes(out) + b"".join(number.to_bytes(FINGERPRINT_BYTES, "little") for number in self.fingerprints)

    @classmethod
    def decode(cls, data: Buffer, most_bytes: int) -> "Signature":
        """Read what `encode` wrote.

        Args:
            data: from a peer.
            most_bytes: bound of the relative's length, which the signature says itself.

        Raises:
            BadPatch: not a signature, of more than `MAX_PIECES`, or of a relative that is longer.
        """
        pieces, at = take_varint(data, 0)
        if pieces > MAX_PIECES or pieces > most_bytes:
            raise BadPatch(f"signature of {pieces} pieces")
        lengths: list[int] = []
        while len(lengths) < pieces:
            head, at = take_varint(data, at)
            more = 0
            if head & 1:
                more, at = take_varint(data, at)
            if not head >> 1 or more >= pieces - len(lengths):
                raise BadPatch("signature with an impossible length")
            lengths += [head >> 1] * (1 + more)
        if sum(lengths) > most_bytes or len(data) != at + pieces * FINGERPRINT_BYTES:
            raise BadPatch(f"signature of a relative of {sum(lengths)} bytes, {most_bytes} at most")
        numbers = bytes(data[at:])
        return cls(
            tuple(
                int.from_bytes(numbers[i : i + FINGERPRINT_BYTES], "little")
                for i in range(0, len(numbers), FINGERPRINT_BYTES)
            ),
            tuple(lengths),
        )


def sign(relative: Sequence[Buffer]) -> Signature:
    """The signature of chunks that follow each other.

    Raises:
        ValueError: more than `MAX_PIECES`, which 32 MiB never are unless they are cut into thousands of chunks.
    """
    fingerprints: list[int] = []
    lengths: list[int] = []
    for chunk in relative:
        view = memoryview(chunk)
        at = 0
        for length in sector_cuts(chunk):
            fingerprints.append(fingerprint(view[at : at + length]))
            lengths.append(length)
            at += length
    if len(lengths) > MAX_PIECES:
        raise ValueError(f"{len(lengths)} pieces, a signature holds {MAX_PIECES}")
    return Signature(tuple(fingerprints), tuple(lengths))
