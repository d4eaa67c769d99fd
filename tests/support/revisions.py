"""Old and new versions of content, as patches meet them: made from a seed."""

import random
from collections.abc import Sequence

PAGE = 4096


def edited(old: bytes, rng: random.Random, edits: int, length: int) -> bytes:
    """With `edits` places of `length` bytes rewritten."""
    new = bytearray(old)
    for _ in range(edits):
        at = rng.randrange(len(new) - length)
        new[at : at + length] = rng.randbytes(length)
    return bytes(new)


def pages(rng: random.Random, count: int) -> list[bytes]:
    """Pages of memory: records of a few kinds with pointers and counters; some pages are empty."""
    found = []
    for _ in range(count):
        if rng.random() < 0.1:
            found.append(bytes(PAGE))
            continue
        words = (rng.randrange(1 << 40) if rng.random() < 0.4 else rng.randrange(200) for _ in range(PAGE // 8))
        found.append(b"".join(word.to_bytes(8, "little") for word in words))
    return found


def touched(page: bytes, rng: random.Random, words: int) -> bytes:
    """With some of its eight-byte words counted up by a little."""
    new = bytearray(page)
    for _ in range(words):
        at = rng.randrange(PAGE // 8) * 8
        value = int.from_bytes(new[at : at + 8], "little") + rng.randrange(1, 100)
        new[at : at + 8] = value.to_bytes(8, "little")
    return bytes(new)


def ram_records(pages: Sequence[bytes], first: int, block: bytes = b"") -> bytes:
    """As QEMU's migration stream carries them: from page number `first` on; `block` names the block at its begin."""
    out = bytearray()
    for number, page in enumerate(pages, first):
        empty = page == bytes(PAGE)
        named = block if number == first else b""
        flags = (0x02 if empty else 0x08) | (0 if named else 0x20)
        out += (number * PAGE | flags).to_bytes(8, "big")
        if named:
            out += bytes((len(named),)) + named
        out += b"\0" if empty else page
    return bytes(out)
