"""Builders of chunks, and ways to damage what is stored: shared by the tests of stores."""

import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chunkstore.codec import Group, open_group, pack_all
from chunkstore.content import Content
from chunkstore.digest import ChunkId, LayerId, chunk_id
from chunkstore.store import ChunkStore

Chunk = tuple[ChunkId, bytes]


@dataclass
class Clock:
    """A clock that stands still until it is told otherwise."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def make_chunks(seed: int, count: int, size: int = 2000, *, key: bytes | None = None) -> list[Chunk]:
    """Distinct chunks, half of whose bytes compress away."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        data = rng.randbytes(size - size // 2) + b"z" * (size // 2)
        found.append((chunk_id(data, key), data))
    return found


def noise_chunks(seed: int, count: int, size: int = 2000, *, key: bytes | None = None) -> list[Chunk]:
    """Distinct chunks that do not compress."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        data = rng.randbytes(size)
        found.append((chunk_id(data, key), data))
    return found


def ids_of(chunks: Iterable[Chunk]) -> list[ChunkId]:
    """Their names."""
    return [name for name, _ in chunks]


def groups_of(chunks: list[Chunk], per_group: int) -> Iterator[Group]:
    """Groups of so many chunks each."""
    for first in range(0, len(chunks), per_group):
        yield from pack_all(chunks[first : first + per_group])


def add_each(content: Content, chunks: list[Chunk], per_group: int) -> None:
    """Add groups of so many chunks one by one, so that packs of a small size are filled one by one too."""
    for group in groups_of(chunks, per_group):
        content.add([group])


def read_all(content: Content, ids: Iterable[ChunkId]) -> dict[ChunkId, bytes]:
    """What `content` has of these chunks; fails if one comes twice or unasked."""
    asked = list(ids)
    wanted = set(asked)
    found: dict[ChunkId, bytes] = {}
    for name, data in content.read(asked):
        assert name in wanted
        assert name not in found
        found[name] = bytes(data)
    return found


def serve_all(content: Content, ids: Iterable[ChunkId]) -> dict[ChunkId, bytes]:
    """What arrives at a peer that asks for these chunks; fails if a group is not worth its bytes."""
    wanted = set(ids)
    found: dict[ChunkId, bytes] = {}
    for group in content.groups(sorted(wanted)):
        new = {name: bytes(data) for name, data in open_group(group, content.key) if name in wanted}
        assert 4 * sum(map(len, new.values())) >= 3 * group.raw_bytes
        assert not new.keys() & found.keys()
        found.update(new)
    return found


def put_layer(store: ChunkStore, chunks: list[Chunk], *, tag: str = "layer", hold: bool = True) -> LayerId:
    """Record a layer of these chunks, with a manifest chunk of its own, which is stored."""
    encoded = b"manifest of " + tag.encode()
    manifest = (chunk_id(encoded), encoded)
    store.add(pack_all([manifest]))
    id = LayerId(chunk_id(b"layer " + tag.encode()))
    size = sum(len(data) for _, data in chunks)
    lengths = {name: len(data) for name, data in chunks}
    store.put_layer(id, size, [manifest[0]], len(encoded), lengths, hold)
    return id


def crash_copy(source: Path, target: Path) -> Path:
    """What a SIGKILL at this moment would leave of a folder."""
    shutil.copytree(source, target)
    return target


def flip(path: Path, offset: int, mask: int = 0x01) -> None:
    """Damage one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ mask]))
