"""Any sequence of what can happen to a store, against a model that is a dict."""

import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chunkstore.codec import pack
from chunkstore.digest import ChunkId, LayerId, chunk_id
from chunkstore.store import ChunkStore, GcPolicy
from tests.support.content import (
    Clock,
    crash_copy,
    flip,
    groups_of,
    ids_of,
    make_chunks,
    put_layer,
    read_all,
    serve_all,
)

CHUNKS = make_chunks(7, 24, 200)
BYTES = dict(CHUNKS)
TAGS = {f"layer {n}": CHUNKS[4 * n : 4 * n + 9] for n in range(5)}
MANIFESTS = {tag: chunk_id(f"manifest of {tag}".encode()) for tag in TAGS}
BYTES |= {MANIFESTS[tag]: f"manifest of {tag}".encode() for tag in TAGS}
IDS = list(BYTES)

subsets = st.lists(st.sampled_from(CHUNKS), min_size=1, max_size=12, unique=True)
id_subsets = st.lists(st.sampled_from(IDS), min_size=1, max_size=8, unique=True)
tags = st.sampled_from(list(TAGS))
seeds = st.integers(0, 1 << 30)


class StoreMachine(RuleBasedStateMachine):
    """The store does what a dict of chunks, a dict of layers and some sets would do."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.generation = 0
        self.clock = Clock()
        self.here: set[ChunkId] = set()
        self.durable: set[ChunkId] = set()
        self.held: dict[str, bool] = {}
        self.leased: set[ChunkId] = set()
        self.young: set[ChunkId] = set()

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.root)

    @property
    def folder(self) -> Path:
        return self.root / f"{self.generation}"

    @initialize()
    def begin(self) -> None:
        self.open()

    def open(self) -> None:
        self.store = ChunkStore.open(self.folder, reserve_bytes=0, pack_bytes=2000, clock=self.clock)
        self.young = set()

    def layer(self, tag: str) -> LayerId:
        return LayerId(chunk_id(b"layer " + tag.encode()))

    def members(self, tag: str) -> set[ChunkId]:
        return {*ids_of(TAGS[tag]), MANIFESTS[tag]}

    def referred(self) -> set[ChunkId]:
        return set().union(*(self.members(tag) for tag in self.held))

    # -- what users do

    @rule(chunks=subsets, per_group=st.integers(1, 6))
    def add(self, chunks: list[tuple[ChunkId, bytes]], per_group: int) -> None:
        new = {name for name, _ in chunks} - self.here
        for group in groups_of(chunks, per_group):
            self.store.add([group])
        self.here |= new
        self.young |= new - self.referred()

    @rule(chunks=subsets)
    def add_counts_new_bytes(self, chunks: list[tuple[ChunkId, bytes]]) -> None:
        new = {name for name, _ in chunks} - self.here
        assert self.store.add([pack(chunks)]) == sum(len(BYTES[name]) for name in new)
        self.here |= new
        self.young |= new - self.referred()

    @rule()
    def commit(self) -> None:
        self.store.commit()
        self.durable = set(self.here)

    @rule(ids=id_subsets)
    def forget(self, ids: list[ChunkId]) -> None:
        self.store.forget(ids)
        self.here -= set(ids)
        self.durable -= set(ids)

    @rule(tag=tags, hold=st.booleans())
    def put_layer(self, tag: str, hold: bool) -> None:
        put_layer(self.store, TAGS[tag], tag=tag, hold=hold)
        self.here.add(MANIFESTS[tag])
        self.held[tag] = hold or self.held.get(tag, False)
        self.young -= self.members(tag)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def drop_layer(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(sorted(self.held)))
        self.store.drop_layer(self.layer(tag))
        self.held[tag] = False

    @rule(ids=id_subsets)
    def lease(self, ids: list[ChunkId]) -> None:
        self.store.lease(ids, 1e9, "lease")
        self.leased |= set(ids)

    @rule()
    def release(self) -> None:
        self.store.release("lease")
        self.leased = set()

    @rule()
    def age(self) -> None:
        self.clock.now += 3 * 3600
        self.young = set()

    @rule(rewrite_below=st.sampled_from([0.0, 0.7, 1.1]))
    def collect(self, rewrite_below: float) -> None:
        kept = self.leased | self.young
        kept |= set().union(*(self.members(tag) for tag, held in self.held.items() if held))
        report = self.store.collect(GcPolicy(rewrite_below=rewrite_below))
        assert report.chunks == len(self.here - kept)
        assert report.evicted == ()
        self.here &= kept
        self.durable &= kept
        self.held = {tag: held for tag, held in self.held.items() if held or MANIFESTS[tag] in self.here}

    # -- what happens to it

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.durable = set(self.here)
        self.open()

    @rule()
    def kill(self) -> None:
        before = self.folder
        self.generation += 1
        crash_copy(before, self.folder)
        self.store.close()
        shutil.rmtree(before)
        self.open()
        self.resync(at_least=self.here)

    @rule(seed=seeds)
    def power_cut(self, seed: int) -> None:
        """Of what was never committed, any part of the file contents may be gone."""
        rng = random.Random(seed)
        mark = self.store._index.mark
        before = self.folder
        self.generation += 1
        crash_copy(before, self.folder)
        self.store.close()
        shutil.rmtree(before)
        for path in sorted((self.folder / "packs").iterdir()):
            safe = (mark & 0xFFFFFFFF) if int(path.stem) == mark >> 32 else 0 if int(path.stem) > mark >> 32 else None
            if safe is not None and path.stat().st_size > safe:
                size = path.stat().st_size
                cut = rng.randint(safe, size)
                with path.open("r+b") as file:
                    if rng.random() < 0.5:
                        file.truncate(cut)
                    else:
                        file.seek(cut)
                        file.write(bytes(min(100, size - cut)))
        self.open()
        self.resync(at_least=self.durable)

    def resync(self, *, at_least: set[ChunkId]) -> None:
        """Take over what a recovery found. Chunks of unmarked records that were forgotten may be back; so be it."""
        found = set(IDS) - self.store.missing(IDS)
        assert found >= at_least
        self.here = found
        self.durable = set(found)

    @rule(seed=seeds)
    def damage(self, seed: int) -> None:
        """Flip a bit; verify finds whom it hurts, nobody is served wrong bytes, and forgetting makes it missing."""
        rng = random.Random(seed)
        paths = [path for path in sorted((self.folder / "packs").iterdir()) if path.stat().st_size]
        if not paths:
            return
        path = rng.choice(paths)
        self.store.commit()
        self.durable = set(self.here)
        flip(path, rng.randrange(path.stat().st_size), 1 << rng.randrange(8))
        damages = self.store.verify()
        hurt = {damage.chunk_id for damage in damages}
        for damage in damages:
            expected = {self.layer(tag) for tag in self.held if damage.chunk_id in self.members(tag)}
            assert set(damage.layers) == expected
        assert serve_all(self.store, IDS) == {name: BYTES[name] for name in self.here - hurt}
        self.store.forget(hurt)
        self.here -= hurt
        self.durable -= hurt
        assert self.store.verify() == []

    # -- what must hold at any time

    @rule(ids=id_subsets)
    def serve(self, ids: list[ChunkId]) -> None:
        assert serve_all(self.store, ids) == {name: BYTES[name] for name in ids if name in self.here}

    @rule()
    def verify(self) -> None:
        assert self.store.verify() == []

    @invariant()
    def everything_is_where_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.missing(IDS) == set(IDS) - self.here
        assert read_all(self.store, IDS) == {name: BYTES[name] for name in self.here}
        assert self.store.stats().chunks == len(self.here)
        assert {record.id: record.held for record in self.store.layers()} == {
            self.layer(tag): held for tag, held in self.held.items()
        }
        for tag in self.held:
            bits = [name in self.here for name, _ in TAGS[tag]]
            assert self.store.holding(self.layer(tag)) == (sum(bits), len(bits))
            bitmap = self.store.bitmap(self.layer(tag))
            assert [bool(bitmap[at >> 3] >> (at & 7) & 1) for at in range(len(bits))] == bits


StoreMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None, derandomize=True)
test_store = StoreMachine.TestCase
