"""Memory of a guest goes to where the layers of its disk are: real vaults, stores, serving and transfers."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from chunkstore.digest import ChunkId, LayerId
from chunkstore.importer import import_tree
from chunkstore.vault import Vault
from p2player import echo_serving
from p2player.errors import P2PlayerError
from p2player.net.connection import Incoming
from p2player.proto import echo_wire
from p2player.sources import Source
from p2player.transfer import HolderHint, PullReport, Transfers
from tests.support.images import libvirt_save, stream
from tests.support.pullmesh import ME, Peer, PullMesh, open_mesh, put_tree
from tests.support.revisions import PAGE

SCOPE = "5c" * 16
PAGES = 4096


@dataclass
class Guest:
    """Two nodes with the layers of a guest, and its memory in a vault at one of them.

    Three quarters of the memory are pages of the layers, in another order; the rest is noise, as the layers are.
    """

    mesh: PullMesh
    peer: Peer
    here: Vault
    there: Vault
    wants: dict[ChunkId, int]
    layers: list[LayerId]

    async def pull(self, layers: Sequence[LayerId] | None = None) -> PullReport:
        hint = HolderHint(self.peer.node, 0.02)
        transfers = Transfers(self.mesh.store, self.mesh, rng=Random(1))
        asked = self.layers if layers is None else layers
        return await transfers.pull_chunks(self.here, self.wants, lambda: [hint], scope=SCOPE, layers=asked)

    def arrived(self) -> bool:
        held = {chunk: bytes(data) for chunk, data in self.here.read(list(self.wants))}
        return held == {chunk: bytes(data) for chunk, data in self.there.read(list(self.wants))}


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[Guest]:
    rng = Random(3)
    trees = [tmp_path / "base", tmp_path / "app"]
    known: list[bytes] = []
    for tree in trees:
        tree.mkdir()
        some = [rng.randbytes(PAGE) for _ in range(PAGES // 2)]
        (tree / "kernel").write_bytes(b"".join(some))
        known += some
    rng.shuffle(known)
    memory = [rng.choice(known) if rng.random() < 0.75 else rng.randbytes(PAGE) for _ in range(PAGES)]
    state = tmp_path / "state"
    state.mkdir()
    block = b"pc.ram"
    saved = [(block, number * PAGE, page) for number, page in enumerate(memory)]
    (state / "memory.save").write_bytes(libvirt_save(stream([(block, PAGES * PAGE)], [saved])))
    async with open_mesh(tmp_path / "mesh") as mesh:
        peer = mesh.add(1)
        layers = [put_tree(store, tree).layer_id for store in (mesh.store, peer.store) for tree in trees][:2]
        there = Vault.create(tmp_path / "there")
        wants = import_tree(there, state).manifest.chunks()
        here = Vault.create(tmp_path / "here", there.key)
        peer.serving.expose(SCOPE, Source(there, layers=layers), ME)
        yield Guest(mesh, peer, here, there, wants, layers)
        here.close()
        there.close()


async def test_what_the_layers_have_does_not_cross_the_link(guest: Guest) -> None:
    report = await guest.pull()
    assert guest.arrived()
    assert report.total > PAGES * PAGE
    assert report.transferred < 0.3 * report.total
    assert guest.peer.serving.bytes_served > 0.2 * report.total


async def test_without_layers_all_of_it_does(guest: Guest) -> None:
    report = await guest.pull(())
    assert guest.arrived()
    assert report.transferred > 0.95 * report.total


async def test_layers_that_are_not_those_of_the_migration_are_not_looked_at(guest: Guest) -> None:
    report = await guest.pull(guest.layers[:1])
    assert guest.arrived()
    assert report.transferred > 0.95 * report.total


async def test_an_index_that_is_not_whole_is_of_use(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo_serving, "GROW_S", 0.0)
    report = await guest.pull()
    assert guest.arrived()
    assert report.transferred < 0.95 * report.total


async def test_a_node_of_an_earlier_version_sends_it_as_it_is(guest: Guest) -> None:
    del guest.peer.handlers[echo_wire.CHUNKS_ECHOES]
    report = await guest.pull()
    assert guest.arrived()
    assert report.transferred > 0.95 * report.total


async def test_a_source_without_the_layers_sends_it_as_it_is(guest: Guest) -> None:
    store = guest.peer.store
    for layer in guest.layers:
        store.forget(list(store.layer_chunks(layer)))
    report = await guest.pull()
    assert guest.arrived()
    assert report.transferred > 0.95 * report.total


async def test_a_destination_that_lost_its_layers_asks_for_it_as_it_is(guest: Guest) -> None:
    for layer in guest.layers:
        store = guest.mesh.store
        store.forget(list(store.layer_chunks(layer)))
    report = await guest.pull()
    assert guest.arrived()
    assert report.transferred > 0.95 * report.total


async def test_a_patch_of_something_else_costs_a_request(guest: Guest) -> None:
    serve = guest.peer.serving.handlers[echo_wire.CHUNKS_ECHOES]

    async def garbled(call: Incoming) -> dict[str, Any]:
        class Garbling:
            body, peer, payload, link = call.body, call.peer, call.payload, staticmethod(call.link)

            async def send_part(self, header: dict[str, Any], payload: bytes) -> None:
                if "unit" in header:
                    payload = payload[: len(payload) // 2] + bytes(len(payload) - len(payload) // 2)
                await call.send_part(header, payload)

        return await serve(Garbling())  # type: ignore[arg-type]

    guest.peer.handlers[echo_wire.CHUNKS_ECHOES] = garbled
    await guest.pull()
    assert guest.arrived()
    assert guest.peer.wants, "what the patches did not give was asked for again"


async def test_it_is_for_the_destination_alone(guest: Guest) -> None:
    guest.peer.serving.withdraw(SCOPE)
    with pytest.raises(P2PlayerError):
        await guest.pull()
    assert guest.here.missing(list(guest.wants)) == set(guest.wants)
