"""Pulls over connections in memory, between real stores: what arrives, from whom, and what if things break."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from chunkstore.checkout import checkout
from chunkstore.codec import Group, compress, pack
from chunkstore.content import Content
from chunkstore.delta.kinship import Unit
from chunkstore.digest import Buffer, ChunkId, LayerId, chunk_id
from chunkstore.errors import DiskFull
from chunkstore.ingest import Imported
from chunkstore.manifest import load
from p2player import errors, manifests, swarming, transfer
from p2player.kin import Basis, Kin
from p2player.net.connection import Incoming
from p2player.proto import content_wire as wire
from p2player.proto import delta_wire, roster
from p2player.proto.swarm_events import Ask
from p2player.sources import Source
from p2player.transfer import HolderHint, PullReport, Relative, Transfers, group_starts
from tests.support.memory_content import MemoryContent
from tests.support.pullmesh import ME, Peer, PullMesh, open_mesh, put_part, put_tree
from tests.support.swarmnet import node

KEY = b"k" * 32
SCOPE = "5c" * 16


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries and patience in hundredths of a second, so that no test waits for them."""
    monkeypatch.setattr(roster, "PAUSE_S", 0.01)
    monkeypatch.setattr(swarming, "POLL_S", 0.05)
    for module in (swarming, manifests):
        monkeypatch.setattr(module, "PATIENCE_S", 0.2)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[PullMesh]:
    async with open_mesh(tmp_path / "mesh") as opened:
        yield opened


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 MB in files of many sizes."""
    folder = tmp_path_factory.mktemp("tree")
    rng = Random(3)
    for number, size in enumerate((10, 5_000, 70_000, 300_000, 1_200_000, 2_500_000)):
        (folder / f"file{number}").write_bytes(rng.randbytes(size))
    return folder


def transfers(mesh: PullMesh) -> Transfers:
    return Transfers(mesh.store, mesh, rng=Random(1))


def hints(*peers: Peer, complete: bool = True) -> Callable[[], Sequence[HolderHint]]:
    return lambda: [HolderHint(peer.node, 0.001, complete=complete) for peer in peers]


def assert_whole(mesh: PullMesh, imported: Imported, tree: Path, tmp_path: Path) -> None:
    """The layer is here, held, sound, and gives the same tree."""
    record = mesh.store.layer(imported.layer_id)
    assert record is not None
    assert record.held
    assert mesh.store.holding(imported.layer_id) == (imported.chunks, imported.chunks)
    assert mesh.store.verify() == []
    manifest = load(mesh.store, record.manifest_chunks, imported.layer_id)
    checkout(mesh.store, manifest, tmp_path / "out")
    for path in tree.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


async def test_a_layer_comes_whole_and_every_byte_is_accounted_for(mesh: PullMesh, tree: Path, tmp_path: Path) -> None:
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    told: list[tuple[int, int]] = []
    report = await transfers(mesh).pull_layer(
        imported.layer_id, hints(peer), progress=lambda done, total: told.append((done, total))
    )
    assert_whole(mesh, imported, tree, tmp_path)
    assert report.total == imported.size
    assert report.deduplicated + sum(report.sources.values()) == report.total
    assert report.sources == {peer.node: sum(imported.manifest.chunks().values())}
    assert report.total < report.transferred < 1.1 * report.total
    assert report.duplicates == 0
    assert report.seconds > 0
    assert told == sorted(told)
    assert told[-1] == (report.total, report.total)


async def test_a_layer_of_many_chunks_comes_by_the_slice(
    mesh: PullMesh, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "LOOK_CHUNKS", 3)
    monkeypatch.setattr(transfer, "MANY_CHUNKS", 1)
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    had = list(imported.content)[1::2]
    put_part(mesh.store, peer.store, imported.layer_id, had)
    report = await transfers(mesh).pull_layer(imported.layer_id, hints(peer))
    assert_whole(mesh, imported, tree, tmp_path)
    assert report.deduplicated >= sum(imported.content[chunk] for chunk in had)


async def test_two_holders_share_and_both_are_named(mesh: PullMesh, tmp_path: Path) -> None:
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "data").write_bytes(Random(1).randbytes(16 << 20))
    first, second = mesh.add(1), mesh.add(2)
    imported = put_tree(first.store, folder)
    put_tree(second.store, folder)
    report = await transfers(mesh).pull_layer(imported.layer_id, hints(first, second))
    assert_whole(mesh, imported, folder, tmp_path)
    assert min(report.sources[first.node], report.sources[second.node]) >= 0.2 * report.total
    assert report.duplicates < 0.01 * report.total


async def test_what_is_here_is_not_fetched_again(mesh: PullMesh, tree: Path) -> None:
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    await transfers(mesh).pull_layer(imported.layer_id, hints(peer))
    again = await transfers(mesh).pull_layer(imported.layer_id, list)
    assert again.transferred == 0
    assert again.deduplicated == again.total == imported.size
    assert again.sources == {}


async def test_a_pull_goes_on_where_the_last_one_ended(mesh: PullMesh, tree: Path, tmp_path: Path) -> None:
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    chunks = imported.manifest.chunks()
    half = list(chunks)[::2]
    put_part(mesh.store, peer.store, imported.layer_id, half)
    report = await transfers(mesh).pull_layer(imported.layer_id, hints(peer))
    assert_whole(mesh, imported, tree, tmp_path)
    assert not set(peer.asked) & set(half)
    assert report.sources[peer.node] == sum(chunks.values()) - sum(chunks[chunk] for chunk in half)


async def test_partial_holders_are_asked_what_they_have(mesh: PullMesh, tree: Path, tmp_path: Path) -> None:
    source, odd, even = mesh.add(1), mesh.add(2), mesh.add(3)
    imported = put_tree(source.store, tree)
    chunks = list(imported.manifest.chunks())
    put_part(odd.store, source.store, imported.layer_id, chunks[1::2])
    put_part(even.store, source.store, imported.layer_id, chunks[::2])
    report = await transfers(mesh).pull_layer(imported.layer_id, hints(odd, even, complete=False))
    assert_whole(mesh, imported, tree, tmp_path)
    assert set(report.sources) == {odd.node, even.node}
    assert not set(odd.asked) & set(chunks[::2])
    assert not set(even.asked) & set(chunks[1::2])


async def test_a_partial_holder_that_gets_more_meanwhile_is_asked_again(
    mesh: PullMesh, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarming, "PATIENCE_S", 10)
    source, growing = mesh.add(1), mesh.add(2)
    imported = put_tree(source.store, tree)
    chunks = list(imported.manifest.chunks())
    put_part(growing.store, source.store, imported.layer_id, chunks[:3])

    async def grow() -> None:
        await growing.wanted.wait()
        growing.store.add(source.store.groups(chunks))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(grow)
        await transfers(mesh).pull_layer(imported.layer_id, hints(growing, complete=False))
    assert_whole(mesh, imported, tree, tmp_path)


async def test_a_holder_that_lacks_what_it_claims_is_made_up_for(mesh: PullMesh, tree: Path, tmp_path: Path) -> None:
    source, boaster = mesh.add(1), mesh.add(2)
    imported = put_tree(source.store, tree)
    put_part(boaster.store, source.store, imported.layer_id, list(imported.manifest.chunks())[::3])
    await transfers(mesh).pull_layer(imported.layer_id, hints(boaster, source))
    assert_whole(mesh, imported, tree, tmp_path)


async def test_corrupt_data_never_enters_the_store_and_bars_its_sender(
    mesh: PullMesh, tree: Path, tmp_path: Path
) -> None:
    honest, liar = mesh.add(1), mesh.add(2, lies=True)
    imported = put_tree(honest.store, tree)
    put_tree(liar.store, tree)
    report = await transfers(mesh).pull_layer(imported.layer_id, hints(liar, honest))
    assert_whole(mesh, imported, tree, tmp_path)
    assert set(report.sources) == {honest.node}


async def test_only_liars_is_an_integrity_error_that_names_the_layer(mesh: PullMesh, tree: Path) -> None:
    liar = mesh.add(1, lies=True)
    imported = put_tree(liar.store, tree)
    with pytest.raises(errors.Integrity, match=imported.layer_id.hex()[:16]):
        await transfers(mesh).pull_layer(imported.layer_id, hints(liar))


@pytest.mark.parametrize("method", [delta_wire.LAYER_DELTA, wire.LAYER_MANIFEST])
async def test_a_false_manifest_is_found_out_and_the_next_holder_asked(
    mesh: PullMesh, tree: Path, tmp_path: Path, method: str
) -> None:
    honest, forger = mesh.add(1), mesh.add(2)
    imported = put_tree(honest.store, tree)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_bytes(b"another layer")
    other = put_tree(forger.store, tmp_path / "other")
    true_manifest = forger.handlers[method]
    if method == wire.LAYER_MANIFEST:
        for peer in (honest, forger):
            del peer.handlers[delta_wire.LAYER_DELTA]

    async def forge(call: Incoming) -> dict[str, Any]:
        call.body["layer"] = other.layer_id
        return await true_manifest(call)

    forger.handlers[method] = forge
    with pytest.raises(errors.Integrity):
        await transfers(mesh).pull_layer(imported.layer_id, hints(forger))
    assert mesh.store.layer(imported.layer_id) is None
    await transfers(mesh).pull_layer(imported.layer_id, hints(forger, honest))
    assert_whole(mesh, imported, tree, tmp_path)


Answer = Callable[[Peer, Sequence[ChunkId]], Iterable[Group]]


def unasked(peer: Peer, ids: Sequence[ChunkId]) -> Iterator[Group]:
    data = b"not what you asked for"
    yield pack([(chunk_id(data), data)])


def twice(peer: Peer, ids: Sequence[ChunkId]) -> Iterator[Group]:
    yield from peer.store.groups(ids)
    yield from peer.store.groups(ids)


@pytest.mark.parametrize("answer", [unasked, twice])
async def test_a_peer_that_sends_what_is_not_due_is_barred(
    mesh: PullMesh, tree: Path, tmp_path: Path, answer: Answer
) -> None:
    honest, pushy = mesh.add(1), mesh.add(2)
    imported = put_tree(honest.store, tree)
    put_tree(pushy.store, tree)

    async def push(call: Incoming) -> dict[str, Any]:
        pushy.wants += 1
        for group in answer(pushy, wire.read_want(call.body)[1]):
            await call.send_part(wire.group_header(group), group.payload)
        return {"missing": 0}

    pushy.handlers[wire.CHUNKS_WANT] = push
    await transfers(mesh).pull_layer(imported.layer_id, hints(pushy, honest))
    assert_whole(mesh, imported, tree, tmp_path)
    assert pushy.wants > 0
    assert mesh.store.missing([chunk_id(b"not what you asked for")])
    with pytest.raises(errors.Integrity):
        await transfers(mesh).pull_chunks(MemoryContent(), imported.manifest.chunks(), hints(pushy), scope=None)


async def test_a_holder_that_dies_costs_no_restart(mesh: PullMesh, tree: Path, tmp_path: Path) -> None:
    steady, dying = mesh.add(1), mesh.add(2)
    imported = put_tree(steady.store, tree)
    put_tree(dying.store, tree)
    dying.cut_after = 3
    report = await transfers(mesh).pull_layer(imported.layer_id, hints(dying, steady))
    assert_whole(mesh, imported, tree, tmp_path)
    assert sum(report.sources.values()) == sum(imported.manifest.chunks().values())
    assert report.duplicates <= 256 << 10, "what was under way when it died, at most"


async def test_the_only_holder_may_go_down_and_come_back(mesh: PullMesh, tree: Path, tmp_path: Path) -> None:
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    peer.cut_after = 2

    async def bring_back() -> None:
        await peer.down.wait()
        peer.cut_after = None
        await trio.sleep(0.02)
        peer.up = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bring_back)
        await transfers(mesh).pull_layer(imported.layer_id, hints(peer))
    assert_whole(mesh, imported, tree, tmp_path)
    assert peer.dials > 2


async def test_holders_that_cannot_be_reached_are_given_up_after_some_dials(mesh: PullMesh, tree: Path) -> None:
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    peer.up = False
    with pytest.raises(errors.Unreachable, match=imported.layer_id.hex()[:16]):
        await transfers(mesh).pull_layer(imported.layer_id, hints(peer))
    assert peer.dials == roster.ATTEMPTS


async def test_losing_the_only_holder_for_good_says_how_much_is_missing(mesh: PullMesh, tree: Path) -> None:
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    peer.cut_after = 2
    with pytest.raises(errors.Unreachable, match=r"\d+ of \d+ bytes are missing"):
        await transfers(mesh).pull_layer(imported.layer_id, hints(peer))
    have, total = mesh.store.holding(imported.layer_id)
    assert 0 < have < total


async def test_a_layer_that_nobody_holds_is_not_found(mesh: PullMesh, tree: Path) -> None:
    peer = mesh.add(1)
    for holders in (list, hints(peer)):
        with pytest.raises(errors.NotFound, match="abab"):
            await transfers(mesh).pull_layer(LayerId(b"\xab" * 32), holders)


async def test_chunks_that_nobody_holds_are_not_found(mesh: PullMesh, tree: Path) -> None:
    source, partial = mesh.add(1), mesh.add(2)
    imported = put_tree(source.store, tree)
    put_part(partial.store, source.store, imported.layer_id, list(imported.manifest.chunks())[:-3])
    with pytest.raises(errors.NotFound, match="bytes are missing"):
        await transfers(mesh).pull_layer(imported.layer_id, hints(partial, complete=False))


async def test_a_silent_holder_is_worked_around(mesh: PullMesh, tree: Path, tmp_path: Path) -> None:
    quick, silent = mesh.add(1), mesh.add(2)
    imported = put_tree(quick.store, tree)
    put_tree(silent.store, tree)
    silent.silent = trio.Event()
    with trio.fail_after(5):
        report = await transfers(mesh).pull_layer(imported.layer_id, hints(silent, quick))
    assert_whole(mesh, imported, tree, tmp_path)
    assert set(report.sources) == {quick.node}


async def test_two_pulls_of_one_layer_are_one(mesh: PullMesh, tree: Path) -> None:
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    service = transfers(mesh)
    reports: list[PullReport] = []
    told: list[int] = []

    async def pull() -> None:
        reports.append(
            await service.pull_layer(
                imported.layer_id, hints(peer), progress=lambda done, total: told.append(total - done)
            )
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull)
        nursery.start_soon(pull)
    assert len(peer.asked) == len(set(peer.asked))
    assert reports[0] is reports[1]
    assert told.count(0) >= 2


async def test_who_joined_a_pull_hears_of_its_failure(mesh: PullMesh) -> None:
    service = transfers(mesh)
    failures: list[str] = []

    async def pull() -> None:
        with pytest.raises(errors.NotFound) as caught:
            await service.pull_layer(LayerId(b"\xab" * 32), list)
        failures.append(caught.value.message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pull)
        nursery.start_soon(pull)
    assert len(failures) == 2
    assert failures[0] == failures[1]


async def test_who_joined_a_pull_takes_over_when_it_is_cancelled(mesh: PullMesh, tree: Path, tmp_path: Path) -> None:
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    peer.silent = trio.Event()
    service = transfers(mesh)
    leader = trio.CancelScope()

    async def lead() -> None:
        with leader:
            await service.pull_layer(imported.layer_id, hints(peer))

    async def follow() -> None:
        await service.pull_layer(imported.layer_id, hints(peer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        await peer.wanted.wait()
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        peer.silent.set()
        leader.cancel()
    assert leader.cancelled_caught
    assert_whole(mesh, imported, tree, tmp_path)


async def test_cancellation_keeps_what_was_verified(mesh: PullMesh, tmp_path: Path) -> None:
    tree = tmp_path / "big"
    tree.mkdir()
    (tree / "data").write_bytes(Random(1).randbytes(24 << 20))
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    with trio.CancelScope() as scope:
        await transfers(mesh).pull_layer(
            imported.layer_id,
            hints(peer),
            progress=lambda done, total: scope.cancel() if done > total / 4 else None,
        )
    assert scope.cancelled_caught
    have, total = mesh.store.holding(imported.layer_id)
    assert 0 < have < total
    here = set(imported.manifest.chunks()) - mesh.store.missing(imported.manifest.chunks())
    peer.asked.clear()
    await transfers(mesh).pull_layer(imported.layer_id, hints(peer))
    assert not here & set(peer.asked)
    assert_whole(mesh, imported, tree, tmp_path)


class Small(MemoryContent):
    """Content with room for some bytes only."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def add(self, groups: Iterable[Group]) -> int:
        groups = list(groups)
        self._room -= sum(group.raw_bytes for group in groups)
        if self._room < 0:
            raise DiskFull(Path("/disk"), 1, 0)
        return super().add(groups)


async def test_a_full_disk_refuses_and_keeps_what_was_fetched(mesh: PullMesh, tree: Path) -> None:
    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    content = Small(2_000_000)
    with pytest.raises(errors.Refused, match="what was fetched is kept"):
        await transfers(mesh).pull_chunks(content, imported.manifest.chunks(), hints(peer), scope=None)
    assert content.chunks
    assert content.commits


async def test_chunks_can_be_repaired(mesh: PullMesh, tree: Path) -> None:
    first, second = mesh.add(1), mesh.add(2)
    imported = put_tree(first.store, tree)
    put_tree(second.store, tree)
    put_tree(mesh.store, tree)
    chunks = imported.manifest.chunks()
    lost = list(chunks)[3:9]
    mesh.store.forget(lost)
    report = await transfers(mesh).pull_chunks(mesh.store, chunks, hints(first, second), scope=None)
    assert mesh.store.holding(imported.layer_id) == (imported.chunks, imported.chunks)
    assert report.total - report.deduplicated == sum(chunks[chunk] for chunk in lost)
    assert sorted([*first.asked, *second.asked]) == sorted(lost)


def instance() -> tuple[MemoryContent, dict[ChunkId, int]]:
    """Content of a migration, under its key."""
    content, rng = MemoryContent(KEY), Random(5)
    wants: dict[ChunkId, int] = {}
    for _ in range(40):
        data = rng.randbytes(rng.randint(1, 60_000))
        name = chunk_id(data, KEY)
        content.add([pack([(name, data)])])
        wants[name] = len(data)
    return content, wants


async def test_instance_content_comes_under_its_scope_and_key(mesh: PullMesh) -> None:
    peer = mesh.add(1)
    there, wants = instance()
    peer.serving.expose(SCOPE, Source(there), ME)
    here = MemoryContent(KEY)
    report = await transfers(mesh).pull_chunks(here, wants, hints(peer), scope=SCOPE)
    assert here.chunks == there.chunks
    assert report.sources == {peer.node: sum(wants.values())}
    assert not mesh.store.stats().chunks


@pytest.mark.parametrize("exposed_to", [None, node(7)], ids=["not exposed", "to somebody else"])
async def test_instance_content_does_not_exist_for_others(mesh: PullMesh, exposed_to: Any) -> None:
    peer = mesh.add(1)
    there, wants = instance()
    if exposed_to is not None:
        peer.serving.expose(SCOPE, Source(there), exposed_to)
    with pytest.raises(errors.NotFound):
        await transfers(mesh).pull_chunks(MemoryContent(KEY), wants, hints(peer), scope=SCOPE)


async def test_a_cap_of_one_pull_reaches_its_sessions(mesh: PullMesh, tree: Path) -> None:
    class Counting:
        async def spend(self, count: int) -> None:
            await trio.lowlevel.checkpoint()

    peer = mesh.add(1)
    imported = put_tree(peer.store, tree)
    cap = Counting()
    await transfers(mesh).pull_layer(imported.layer_id, hints(peer), throttle_in=cap)
    assert mesh.throttles
    assert all(throttle is cap for throttle in mesh.throttles)


async def test_an_empty_layer_needs_its_manifest_only(mesh: PullMesh, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    peer = mesh.add(1)
    imported = put_tree(peer.store, tmp_path / "empty")
    report = await transfers(mesh).pull_layer(imported.layer_id, hints(peer))
    assert (report.total, report.sources) == (0, {})
    assert report.transferred > 0
    assert_whole(mesh, imported, tmp_path / "empty", tmp_path)


def test_reports_add_up() -> None:
    one = PullReport(10, 4, 7, {node(1): 6}, 1.0, 1)
    two = PullReport(20, 5, 18, {node(1): 5, node(2): 10}, 2.0, 0)
    assert one.merge(two) == PullReport(30, 9, 25, {node(1): 11, node(2): 10}, 3.0, 1)


async def test_asks_end_where_an_importer_ends_its_groups(mesh: PullMesh, tmp_path: Path) -> None:
    folder = tmp_path / "big"
    folder.mkdir()
    for number in range(6):
        (folder / f"file{number}").write_bytes(Random(number).randbytes(2_000_000))
    imported = put_tree(mesh.store, folder)
    chunks = imported.manifest.chunks()
    firsts = {group.ids[0] for group in mesh.store.groups(list(chunks))}
    starts = group_starts(chunks, chunks)
    assert {chunk for chunk, start in zip(chunks, starts, strict=True) if start} == firsts


# Deltas


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path]:
    """Two versions of a folder: a large file with scattered edits and an insertion, one that stayed, a new one."""
    rng = Random(8)
    words = [rng.randbytes(rng.randint(2, 9)) for _ in range(3000)]
    old = b"".join(rng.choice(words) for _ in range(700_000))
    new = bytearray(old)
    for _ in range(12):
        at = rng.randrange(len(new))
        new[at : at + 300] = rng.randbytes(300)
    new[1000:1000] = b"inserted"
    folders = tmp_path / "old", tmp_path / "new"
    for folder, data in zip(folders, (old, bytes(new)), strict=True):
        folder.mkdir()
        (folder / "data").write_bytes(data)
        (folder / "same").write_bytes(words[0] * 50_000)
    (folders[1] / "fresh").write_bytes(rng.randbytes(100_000))
    return folders


def related(mesh: PullMesh, old: Imported, *also_at: Peer) -> Transfers:
    async def relatives(layer: LayerId) -> Sequence[Relative]:
        return [Relative(old.layer_id, {peer.node for peer in also_at}.__contains__)]

    return Transfers(mesh.store, mesh, relatives=relatives, rng=Random(1))


@pytest.mark.parametrize("both", [True, False], ids=["both hold the basis", "only the puller does"])
async def test_a_new_version_comes_as_a_delta(
    mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path, both: bool
) -> None:
    peer = mesh.add(1)
    old = put_tree(mesh.store, versions[0])
    if both:
        put_tree(peer.store, versions[0])
    new = put_tree(peer.store, versions[1])
    report = await related(mesh, old, *([peer] if both else [])).pull_layer(new.layer_id, hints(peer))
    assert_whole(mesh, new, versions[1], tmp_path)
    assert report.total - report.deduplicated > 800_000
    assert report.transferred < 100_000 + (60_000 if both else 100_000)
    assert report.sources == {peer.node: report.total - report.deduplicated}


async def test_a_basis_that_the_peer_lost_costs_bytes_only(
    mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    peer = mesh.add(1)
    old = put_tree(mesh.store, versions[0])
    new = put_tree(peer.store, versions[1])
    report = await related(mesh, old, peer).pull_layer(new.layer_id, hints(peer))
    assert_whole(mesh, new, versions[1], tmp_path)
    assert report.transferred > 300_000


@pytest.mark.parametrize("spoil", ["flip", "cut", "swap"])
async def test_a_spoilt_patch_is_made_up_for_by_the_chunks_themselves(
    mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path, spoil: str
) -> None:
    peer = mesh.add(1)
    old = put_tree(mesh.store, versions[0])
    put_tree(peer.store, versions[0])
    new = put_tree(peer.store, versions[1])
    honest = peer.handlers[delta_wire.CHUNKS_DELTA]
    spoilt = []

    async def chunks_delta(call: Incoming) -> dict[str, Any]:
        send = call.send_part

        async def send_part(header: Any, payload: Any) -> None:
            data = bytearray(payload)
            spoilt.append(len(data))
            if spoil == "flip":
                data[len(data) // 2] ^= 1
            elif spoil == "cut":
                del data[len(data) // 2 :]
            else:
                data = bytearray(b"\0" * len(data))
            await send(header, bytes(data))

        call.send_part = send_part  # type: ignore[method-assign]
        return await honest(call)

    peer.handlers[delta_wire.CHUNKS_DELTA] = chunks_delta
    await related(mesh, old, peer).pull_layer(new.layer_id, hints(peer))
    assert spoilt
    assert_whole(mesh, new, versions[1], tmp_path)
    assert peer.wants


async def test_a_peer_that_knows_no_deltas_is_asked_for_chunks(
    mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    peer = mesh.add(1)
    old = put_tree(mesh.store, versions[0])
    new = put_tree(peer.store, versions[1])
    for method in (delta_wire.CHUNKS_DELTA, delta_wire.LAYER_DELTA):
        del peer.handlers[method]
    await related(mesh, old, peer).pull_layer(new.layer_id, hints(peer))
    assert_whole(mesh, new, versions[1], tmp_path)


async def test_two_holders_share_the_deltas(mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = mesh.add(1), mesh.add(2)
    old = put_tree(mesh.store, versions[0])
    for peer in (first, second):
        put_tree(peer.store, versions[0])
        new = put_tree(peer.store, versions[1])
    report = await related(mesh, old, first, second).pull_layer(new.layer_id, hints(first, second))
    assert_whole(mesh, new, versions[1], tmp_path)
    assert report.transferred < 200_000


class SomeDeltas:
    """All that an ask for deltas needs; one fails at once, the others succeed when `open` is set."""

    payload = b""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.asked: list[ChunkId] = []
        self.received = 0

    def pays(self, holder: HolderHint) -> bool:
        return True

    def costs(self, wants: Any) -> None:
        return None

    def units(self, chunks: Sequence[ChunkId]) -> Sequence[ChunkId]:
        self.asked += chunks
        return chunks

    def ask(self, *_: Any) -> "SomeDeltas":
        return self

    def body(self) -> dict[str, Any]:
        return {}

    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[None]:
        yield None

    async def receive(self, *_: Any) -> Sequence[ChunkId]:
        self.received += 1
        if self.received == 1:
            return self.asked[:1]
        await self.open.wait()
        return ()


async def test_one_patch_that_fails_ends_the_deltas_of_its_sender() -> None:
    deltas: Any = SomeDeltas()
    chunks = [chunk_id(bytes([number])) for number in range(3)]
    job = swarming.Job("chunks", MemoryContent(), "", dict.fromkeys(chunks, 1), kin=deltas)
    swarm = await swarming.schedule(job, Random(1))
    run = swarming.SwarmRun(job, swarm, list, deltas, Random(1), trio.CapacityLimiter(1))
    run._patches = deltas
    holder = swarming._Holder(HolderHint(node(1)))
    asks = [Ask(number, node(1), (chunk,)) for number, chunk in enumerate(chunks)]
    async with trio.open_nursery() as nursery:
        for ask in asks[:2]:
            nursery.start_soon(run._carry_deltas, holder, deltas, ask)
        while not holder.patches_failed:
            await trio.sleep(0.001)
        deltas.open.set()
    assert await run._carry_deltas(holder, deltas, asks[2]) == (chunks[2],)
    assert set(deltas.asked) == set(chunks[:2])


@pytest.mark.parametrize("error", [errors.Refused, errors.Failed, errors.Usage, errors.NotFound])
async def test_a_peer_that_does_not_make_deltas_is_asked_for_chunks(
    mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path, error: type[errors.P2PlayerError]
) -> None:
    peer = mesh.add(1)
    old = put_tree(mesh.store, versions[0])
    new = put_tree(peer.store, versions[1])

    async def chunks_delta(call: Incoming) -> dict[str, Any]:
        raise error("no")

    peer.handlers[delta_wire.CHUNKS_DELTA] = chunks_delta
    await related(mesh, old, peer).pull_layer(new.layer_id, hints(peer))
    assert_whole(mesh, new, versions[1], tmp_path)
    assert peer.dials == 2, "one for the manifest, one for the chunks"


@pytest.mark.parametrize("both", [True, False], ids=["both hold the basis", "only the puller does"])
async def test_what_is_not_here_of_the_basis_is_not_referred_to(
    mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path, both: bool
) -> None:
    peer = mesh.add(1)
    old = put_tree(mesh.store, versions[0])
    if both:
        put_tree(peer.store, versions[0])
    new = put_tree(peer.store, versions[1])
    shared = new.manifest.chunks()
    mesh.store.forget([chunk for chunk in old.manifest.chunks() if chunk not in shared][::6])
    del peer.handlers[wire.CHUNKS_WANT]
    report = await related(mesh, old, *([peer] if both else [])).pull_layer(new.layer_id, hints(peer))
    assert_whole(mesh, new, versions[1], tmp_path)
    assert report.transferred < 400_000


Lie = Callable[[Incoming, Peer], AsyncIterator[tuple[dict[str, Any], bytes]]]


async def a_patch_twice(call: Incoming, peer: Peer) -> AsyncIterator[tuple[dict[str, Any], bytes]]:
    yield {"unit": 0}, b"\0no patch"
    yield {"unit": 0}, b"\0no patch"


async def no_unit(call: Incoming, peer: Peer) -> AsyncIterator[tuple[dict[str, Any], bytes]]:
    yield {"unit": 1 << 20}, b"\0no patch"


async def nothing_for_ever(call: Incoming, peer: Peer) -> AsyncIterator[tuple[dict[str, Any], bytes]]:
    while True:
        yield {}, b""


async def chunks_and_their_patch(call: Incoming, peer: Peer) -> AsyncIterator[tuple[dict[str, Any], bytes]]:
    ask = delta_wire.DeltaAsk.read(call.body, bytes(call.payload))
    chunks = list(peer.store.layer_chunks(ask.layer))
    for group in peer.store.groups([chunks[ask.units[0].wants[0]]]):
        yield wire.group_header(group), bytes(group.payload)
    yield {"unit": 0}, b"\0no patch"


@pytest.mark.parametrize("lie", [a_patch_twice, no_unit, nothing_for_ever, chunks_and_their_patch])
async def test_a_peer_that_answers_nonsense_for_deltas_is_barred(
    mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path, lie: Lie
) -> None:
    honest, liar = mesh.add(1), mesh.add(2)
    old = put_tree(mesh.store, versions[0])
    for peer in (honest, liar):
        put_tree(peer.store, versions[0])
        new = put_tree(peer.store, versions[1])

    async def chunks_delta(call: Incoming) -> dict[str, Any]:
        async for header, payload in lie(call, liar):
            await call.send_part(header, payload)
        return {"missing": 0}

    liar.handlers[delta_wire.CHUNKS_DELTA] = chunks_delta
    with pytest.raises(errors.Integrity):
        await related(mesh, old, honest, liar).pull_layer(new.layer_id, hints(liar))
    assert not liar.wants
    await related(mesh, old, honest, liar).pull_layer(new.layer_id, hints(liar, honest))
    assert_whole(mesh, new, versions[1], tmp_path)


HUGE = b"\x28\xb5\x2f\xfd\xe0" + (1 << 32).to_bytes(8, "little") + b"\x01\0\0"


@pytest.mark.parametrize(
    ("frames", "basis"),
    [
        ([b"no frame"], b""),
        ([HUGE], b""),
        ([b"x" * 256 * 1024] * 20, b""),
        ([], b"b" * 32),
        ([compress(b"no manifest")], b""),
    ],
    ids=["garbage", "4 GiB", "too long", "another basis", "another manifest"],
)
async def test_a_holder_that_answers_nonsense_for_a_manifest_is_not_asked_again(
    mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path, frames: list[bytes], basis: bytes
) -> None:
    honest, liar = mesh.add(1), mesh.add(2)
    old = put_tree(mesh.store, versions[0])
    for peer in (honest, liar):
        new = put_tree(peer.store, versions[1])

    async def layer_delta(call: Incoming) -> dict[str, Any]:
        for frame in frames:
            await call.send_part({}, frame)
        return {"basis": basis}

    liar.handlers[delta_wire.LAYER_DELTA] = layer_delta
    with pytest.raises(errors.Integrity):
        await related(mesh, old).pull_layer(new.layer_id, hints(liar))
    await related(mesh, old).pull_layer(new.layer_id, hints(liar, honest))
    assert_whole(mesh, new, versions[1], tmp_path)


async def test_a_full_disk_refuses_deltas_too(mesh: PullMesh, versions: tuple[Path, Path]) -> None:
    peer = mesh.add(1)
    old = put_tree(mesh.store, versions[0])
    new = put_tree(peer.store, versions[1])
    content = Small(old.size + 100_000)
    content.add(mesh.store.groups(list(old.content)))
    wants = {chunk: length for chunk, length in new.content.items() if chunk in content.missing(new.content)}
    kin = Kin(new.layer_id, new.manifest, wants, Basis(old.layer_id, old.manifest, lambda _: False), {})
    with pytest.raises(errors.Refused, match="what was fetched is kept"):
        await transfers(mesh).pull_chunks(content, wants, hints(peer), scope=None, kin=kin)
    assert content.commits


async def test_a_basis_that_is_damaged_on_disk_costs_bytes_only(
    mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    peer = mesh.add(1)
    old = put_tree(mesh.store, versions[0])
    put_tree(peer.store, versions[0])
    new = put_tree(peer.store, versions[1])
    [pack_file] = (tmp_path / "mesh" / "me" / "packs").iterdir()
    with pack_file.open("r+b") as file:
        for at in range(300_000, old.size // 3, 1_000_000):
            file.seek(at)
            file.write(b"damage")
    assert mesh.store.verify()
    await related(mesh, old, peer).pull_layer(new.layer_id, hints(peer))
    record = mesh.store.layer(new.layer_id)
    assert record is not None
    have, total = mesh.store.holding(new.layer_id)
    assert have == total


async def test_a_basis_that_goes_while_the_manifest_comes_is_done_without(
    mesh: PullMesh, versions: tuple[Path, Path], tmp_path: Path
) -> None:
    peer = mesh.add(1)
    old = put_tree(mesh.store, versions[0])
    put_tree(peer.store, versions[0])
    new = put_tree(peer.store, versions[1])
    honest = peer.handlers[delta_wire.LAYER_DELTA]

    async def layer_delta(call: Incoming) -> dict[str, Any]:
        mesh.store.forget(old.manifest_chunks)
        return await honest(call)

    peer.handlers[delta_wire.LAYER_DELTA] = layer_delta
    await related(mesh, old, peer).pull_layer(new.layer_id, hints(peer))
    assert_whole(mesh, new, versions[1], tmp_path)


async def test_nothing_reads_on_in_the_content_of_a_pull_that_was_cancelled(
    mesh: PullMesh, versions: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = mesh.add(1)
    old = put_tree(mesh.store, versions[0])
    new = put_tree(peer.store, versions[1])
    reading, cancelled = trio.Event(), threading.Event()
    reads = 0
    honest = Kin.read

    def read(self: Kin, unit: Unit, content: Content) -> list[Buffer]:
        nonlocal reads
        reads += 1
        trio.from_thread.run_sync(reading.set)
        cancelled.wait(5)
        time.sleep(0.3)  # in a worker thread: long enough for a pull that does not wait for it to be over
        found = honest(self, unit, content)
        reads -= 1
        return found

    monkeypatch.setattr(Kin, "read", read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(related(mesh, old).pull_layer, new.layer_id, hints(peer))
        await reading.wait()
        nursery.cancel_scope.cancel()
        cancelled.set()
    assert reads == 0
