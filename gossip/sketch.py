"""How alike two sets of chunks are, from a few hundred bytes each.

A sketch is the `k` smallest ids of a set, cut to 8 bytes: bottom-k sampling (Broder 1997, "On the resemblance and
containment of documents"; Cohen and Kaplan 2007). Chunk ids are hashes, so the smallest ones are a fair sample of the
set, and the same one on every node that sketches the same chunks. With k = 64 the error of `resemblance` is about
0.06.
"""

from collections.abc import Iterable
from heapq import nsmallest
from typing import Final

WORD_BYTES: Final = 8
DEFAULT_K: Final = 64
MAX_SKETCH_BYTES: Final = 128 * WORD_BYTES


def sketch(ids: Iterable[bytes], k: int = DEFAULT_K) -> bytes:
    """Sketch a set of ids.

    Args:
        ids: hashes of at least 8 bytes; repeats count once.
        k: how many to keep, at most 128.

    Returns:
        At most `8 * k` bytes.
    """
    if not 0 < k * WORD_BYTES <= MAX_SKETCH_BYTES:
        raise ValueError(f"k is {k}, not 1 to {MAX_SKETCH_BYTES // WORD_BYTES}")
    return b"".join(nsmallest(k, {id_[:WORD_BYTES] for id_ in ids}))


def resemblance(one: bytes, other: bytes) -> float:
    """Estimate the size of the intersection of two sketched sets over the size of their union, from 0 to 1.

    Sketches of different `k` may be compared: the union is sampled down to the smaller one.
    """
    left, right = set(_words(one)), set(_words(other))
    if not left or not right:
        return 0.0
    sample = nsmallest(min(len(left), len(right)), left | right)
    return sum(word in left and word in right for word in sample) / len(sample)


def _words(packed: bytes) -> list[bytes]:
    whole = len(packed) - len(packed) % WORD_BYTES
    return [packed[at : at + WORD_BYTES] for at in range(0, whole, WORD_BYTES)]
