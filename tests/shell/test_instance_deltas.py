"""Rounds of a migration over connections in memory: real vaults, images, serving and transfers; what the wire carries.

The memory image here is what a process of many small records looks like: pages of 4 KiB, most of them compressible by
half, of which one in a hundred differs in a few bytes from round to round.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
import trio

from chunkstore.codec import compress, compress_against
from chunkstore.delta.kinship import Unit
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.vault import Vault
from gossip.messages import NodeId
from p2player import errors
from p2player.kin import Kin
from p2player.migration.images import DestinationImages, SourceImages
from p2player.migration.kept import VAULT, read_image
from p2player.net.connection import Incoming
from p2player.net.link import UNKNOWN, LinkEstimate
from p2player.proto import content_wire, delta_wire
from p2player.proto.delta_wire import DeltaAsk
from p2player.proto.frames import MAX_PAYLOAD_BYTES, Buffer
from p2player.proto.handoff.messages import Image, Outline, Round, decode, encode
from p2player.transfer import HolderHint, PullReport, Transfers
from tests.support.images import criu_folder
from tests.support.pullmesh import ME, Peer, open_mesh
from tests.support.swarmnet import node

PAGE_BYTES = 4096
PAGES = 2048
SCOPE = "5c" * 16


def memory(rng: Random, pages: int) -> bytearray:
    """Pages of 64-byte records, half of each record noise."""
    image = bytearray(pages * PAGE_BYTES)
    for at in range(0, len(image), 64):
        image[at : at + 32] = b"%032d" % (at // 64)
        image[at + 32 : at + 64] = rng.randbytes(32)
    return image


def touch(rng: Random, image: bytearray) -> None:
    """Change eight bytes in one page of a hundred."""
    pages = len(image) // PAGE_BYTES
    for page in rng.sample(range(pages), pages // 100):
        at = page * PAGE_BYTES + rng.randrange(PAGE_BYTES - 8)
        image[at : at + 8] = rng.randbytes(8)


@dataclass
class Ends:
    """A source and a destination, and the sessions between them."""

    folder: Path
    peer: Peer
    source: SourceImages
    destination: DestinationImages
    transfers: Transfers
    told: list[int] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    async def round(self, *, final: Path | None = None) -> PullReport:
        """Take an image and pull it as a destination does."""
        taken = await trio.to_thread.run_sync(lambda: self.source.take(final=final is not None))
        message = encode(Round(1, 1, taken.image, final is not None))
        self.told.append(len(message))
        heard = decode(message)
        assert isinstance(heard, Round)
        return await self.pull(heard.image, final)

    async def pull(self, image: Image, final: Path | None = None) -> PullReport:
        images, report = self.destination, PullReport()
        if not images.unfold(image):
            report = await self.pull_wants(images.first_wants(image))
        lacking = images.lacking(image)
        report = report.merge(await self.pull_wants(lacking.wants, lacking.kin))
        images.place(image, final)
        return report

    async def pull_wants(self, wants: Mapping[ChunkId, int], kin: Kin | None = None) -> PullReport:
        hint, vault = HolderHint(self.peer.node, 0.02), self.destination.vault
        return await self.transfers.pull_chunks(vault, wants, lambda: [hint], scope=SCOPE, kin=kin)


@dataclass
class Call:
    """A request as a handler sees it; keeps what is sent."""

    body: Mapping[str, Any]
    peer: NodeId
    payload: bytes = b""
    parts: list[bytes] = field(default_factory=list)

    async def send_part(self, header: Mapping[str, Any], payload: Buffer) -> None:
        await trio.lowlevel.checkpoint()
        self.parts.append(bytes(payload))

    def link(self) -> LinkEstimate:
        return UNKNOWN


@pytest.fixture
async def ends(tmp_path: Path) -> AsyncIterator[Ends]:
    async with open_mesh(tmp_path / "mesh") as mesh:
        here, there = tmp_path / "source", tmp_path / "destination"
        Vault.create(here / VAULT).close()
        there.mkdir()
        (tmp_path / "state").mkdir()
        source = SourceImages(here, tmp_path / "state")
        destination = DestinationImages(there, source.vault.key)
        peer = mesh.add(1)
        peer.serving.expose(SCOPE, source.source, ME)
        yield Ends(tmp_path, peer, source, destination, Transfers(mesh.store, mesh, rng=Random(1)))
        source.close()
        destination.close()


def no_deltas(peer: Peer) -> None:
    """Make a node of an earlier version of it."""
    for method in (delta_wire.CHUNKS_DELTA, delta_wire.LAYER_DELTA):
        del peer.handlers[method]


async def two_rounds(ends: Ends) -> tuple[bytes, PullReport, PullReport]:
    rng = Random(5)
    image = memory(rng, PAGES)
    (ends.state / "pages").write_bytes(image)
    first = await ends.round()
    touch(rng, image)
    (ends.state / "pages").write_bytes(image)
    second = await ends.round(final=ends.folder / "final")
    return bytes(image), first, second


async def test_a_later_round_weighs_what_changed(ends: Ends) -> None:
    image, first, second = await two_rounds(ends)
    assert (ends.folder / "final" / "pages").read_bytes() == image
    changed = PAGES // 100
    assert first.transferred > 3 << 20
    assert second.total > 1 << 20, "chunks in which something changed"
    assert second.transferred < 150 * changed + 2000


async def test_an_older_source_sends_chunks_as_they_are(ends: Ends) -> None:
    no_deltas(ends.peer)
    image, _, second = await two_rounds(ends)
    assert (ends.folder / "final" / "pages").read_bytes() == image
    assert second.transferred > second.total // 3


async def test_an_older_source_has_no_outlines_either(ends: Ends) -> None:
    no_deltas(ends.peer)
    rng, content = Random(5), memory(Random(5), PAGES)
    for number in range(2):
        (ends.state / "pages").write_bytes(content)
        image = ends.source.take(final=number == 1).image
        await ends.pull(replace(image, outline=None), ends.folder / "final" if number else None)
        touch(rng, content)
    assert (ends.folder / "final" / "pages").stat().st_size == len(content)


async def test_a_bad_outline_costs_a_request(ends: Ends) -> None:
    content = memory(Random(5), PAGES)
    (ends.state / "pages").write_bytes(content)
    await ends.round()
    touch(Random(6), content)
    (ends.state / "pages").write_bytes(content)
    image = ends.source.take(final=True).image
    assert image.outline is not None
    others = [b"noise", compress(b"no manifest"), compress_against(b"another", b"0" * 64)]
    for frame in others:
        assert not ends.destination.unfold(replace(image, outline=Outline(image.outline.basis, frame)))
    assert not ends.destination.unfold(replace(image, outline=Outline(b"x" * 32, image.outline.frame)))
    report = await ends.pull(replace(image, outline=Outline(image.outline.basis, others[1])), ends.folder / "final")
    assert report.transferred < 20_000, "its chunks are deltas all the same"
    assert (ends.folder / "final" / "pages").read_bytes() == content


async def test_old_chunks_that_are_lost_are_no_basis(ends: Ends) -> None:
    content = memory(Random(5), PAGES)
    (ends.state / "pages").write_bytes(content)
    await ends.round()
    sealed = ends.folder / "destination" / VAULT / "sealed"
    noise = bytearray(sealed.read_bytes())
    noise[len(noise) // 4 : len(noise) // 2] = bytes(len(noise) // 4)
    sealed.write_bytes(noise)
    touch(Random(6), content)
    (ends.state / "pages").write_bytes(content)
    image = ends.source.take(final=True).image
    assert ends.destination.unfold(image)
    lacking = ends.destination.lacking(image)
    assert lacking.kin is not None
    await ends.pull_wants(lacking.wants, lacking.kin)
    assert not ends.destination.vault.missing(lacking.wants)


async def test_a_patch_that_is_larger_than_a_part_goes_as_chunks(ends: Ends) -> None:
    """4 MiB that became other noise take a few bytes more than 4 MiB as a patch."""
    rng, layers = Random(5), list[LayerId]()
    for _ in range(2):
        criu_folder(ends.state, [(1 << 32, PAGES, 4)], rng.randbytes(PAGES * PAGE_BYTES))
        layers.append(LayerId(ends.source.take(final=False).image.layer))
    old, new = (ends.source.source.chunks_of(layer) for layer in layers)
    lengths = {chunk: len(data) for chunk, data in ends.source.vault.read(list(new))}
    noise = tuple(at for at, chunk in enumerate(new) if lengths[chunk] == 256 << 10)[:16]
    call = Call(DeltaAsk(SCOPE, layers[1], layers[0], [Unit(noise, noise)], [b""]).body(), ME)
    assert await ends.peer.serving.handlers[delta_wire.CHUNKS_DELTA](cast(Incoming, call)) == {"missing": 0}
    assert len(old) == len(new) and len(noise) == 16
    assert max(map(len, call.parts)) <= MAX_PAYLOAD_BYTES
    assert sum(map(len, call.parts)) >= 4 << 20


# -- the way back


def kept(ends: Ends, content: bytearray) -> Path:
    """What an earlier migration, with another key, left of an image with these pages."""
    folder = ends.folder / "kept"
    Vault.create(folder / VAULT).close()
    state = ends.folder / "kept state"
    state.mkdir()
    (state / "pages").write_bytes(content)
    images = SourceImages(folder, state)
    images.take(final=True)
    images.close()
    return folder


async def test_the_way_back_is_a_delta_of_what_both_ends_kept(ends: Ends) -> None:
    content = memory(Random(5), PAGES)
    folder = kept(ends, content)
    ends.source.seed(folder)
    ends.destination.seed(folder)
    touch(Random(6), content)
    (ends.state / "pages").write_bytes(content)
    report = await ends.round(final=ends.folder / "final")
    assert (ends.folder / "final" / "pages").read_bytes() == content
    assert report.total > 1 << 20
    assert report.transferred < 150 * (PAGES // 100) + 2000


async def test_what_only_the_destination_kept_is_told_by_signatures(ends: Ends) -> None:
    content = memory(Random(5), PAGES)
    ends.destination.seed(kept(ends, content))
    touch(Random(6), content)
    (ends.state / "pages").write_bytes(content)
    report = await ends.round(final=ends.folder / "final")
    assert (ends.folder / "final" / "pages").read_bytes() == content
    assert report.total > 1 << 20
    changed_bytes = PAGES // 100 * PAGE_BYTES
    assert report.transferred < changed_bytes + report.total // 20, "whole pages, and signatures of the chunks"


# -- who may ask


async def test_deltas_of_an_instance_are_for_its_destination_alone(ends: Ends) -> None:
    await two_rounds(ends)
    newest = LayerId(read_image(ends.folder / "destination").layer)
    ask = DeltaAsk(SCOPE, newest, newest, [Unit((0,), (0,))], [b""])
    whole = delta_wire.manifest_ask(SCOPE, newest, [newest])
    handlers = ends.peer.serving.handlers
    for peer, scope in ((node(7), SCOPE), (ME, "77" * 16), (ME, content_wire.SHARED)):
        for method, body in ((delta_wire.CHUNKS_DELTA, ask.body()), (delta_wire.LAYER_DELTA, whole)):
            call = Call({**body, "scope": scope}, peer)
            with pytest.raises(errors.NotFound):
                await handlers[method](cast(Incoming, call))
            assert not call.parts
    call = Call(ask.body(), ME)
    assert await handlers[delta_wire.CHUNKS_DELTA](cast(Incoming, call)) == {"missing": 0}
    assert len(call.parts) == 1
    call = Call(whole, ME)
    assert await handlers[delta_wire.LAYER_DELTA](cast(Incoming, call)) == {"basis": newest}
    ends.peer.serving.withdraw(SCOPE)
    with pytest.raises(errors.NotFound):
        await handlers[delta_wire.CHUNKS_DELTA](cast(Incoming, Call(ask.body(), ME)))


async def test_images_before_the_last_three_are_forgotten(ends: Ends) -> None:
    (ends.state / "pages").write_bytes(b"1")
    layers = []
    for number in range(4):
        (ends.state / "pages").write_text(str(number))
        layers.append(LayerId(ends.source.take(final=False).image.layer))
    source = ends.source.source
    with pytest.raises(LayerUnknown):
        source.chunks_of(layers[0])
    with pytest.raises(LayerUnknown):
        source.manifest_of(layers[0])
    assert [len(source.chunks_of(layer)) for layer in layers[1:]] == [1, 1, 1]
