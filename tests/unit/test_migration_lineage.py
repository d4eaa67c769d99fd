"""What is known of a migration's last images, and how the next one's manifest is told by them."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from chunkstore.codec import decompress_against
from chunkstore.digest import ChunkId, LayerId
from chunkstore.errors import LayerUnknown
from chunkstore.importer import import_tree
from chunkstore.manifest import load_encoded
from chunkstore.vault import Vault
from p2player.migration import lineage
from p2player.migration.kept import VAULT, note_image, read_image, reseal
from p2player.migration.lineage import KEPT_IMAGES, Ancestor, Lineage, PackedIds
from p2player.proto.delta_wire import MAX_WHOLE_MANIFEST_BYTES
from p2player.proto.handoff.messages import MAX_OUTLINE_BYTES, Chunk, Image, Outline


def ids(count: int) -> list[ChunkId]:
    return [ChunkId(bytes([number]) * 32) for number in range(count)]


def take(vault: Vault, state: Path, seed: int, files: int = 20) -> Ancestor:
    """An image of some files, of which the first differs by the seed."""
    state.mkdir(exist_ok=True)
    for number in range(files):
        (state / str(number)).write_bytes(Random(0 if number else seed).randbytes(1000))
    imported = import_tree(vault, state)
    return Ancestor.of(imported.layer_id, imported.manifest, imported.manifest_chunks, imported.manifest_size)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.create(tmp_path / VAULT) as opened:
        yield opened


def test_packed_ids_are_a_sequence() -> None:
    packed = PackedIds(ids(5))
    assert list(packed) == ids(5)
    assert (len(packed), packed[0], packed[-1], list(packed[1:4:2])) == (5, ids(5)[0], ids(5)[4], ids(5)[1:4:2])
    assert len(PackedIds([])) == 0
    for at in (5, -6):
        with pytest.raises(IndexError):
            packed[at]


def test_the_last_images_are_known_and_no_others(vault: Vault, tmp_path: Path) -> None:
    assert Lineage(vault).newest is None
    known = Lineage(vault)
    images = [take(vault, tmp_path / "state", seed) for seed in range(KEPT_IMAGES + 1)]
    for image in images:
        known.add(image)
    assert known.newest == images[-1]
    source = known.source()
    with pytest.raises(LayerUnknown):
        source.chunks_of(images[0].layer)
    with pytest.raises(LayerUnknown):
        source.manifest_of(LayerId(b"x" * 32))
    for image in images[1:]:
        assert list(source.chunks_of(image.layer)) == list(image.chunks)
        assert source.manifest_of(image.layer) == (image.manifest_chunks, image.manifest_size)


def test_an_image_that_did_not_change_displaces_none(vault: Vault, tmp_path: Path) -> None:
    known = Lineage(vault)
    first, second = take(vault, tmp_path / "state", 1), take(vault, tmp_path / "state", 2)
    for image in (first, second, second):
        known.add(image)
    assert known.source().chunks_of(first.layer)


def test_an_outline_is_what_manifests_differ_in(vault: Vault, tmp_path: Path) -> None:
    known = Lineage(vault)
    first = take(vault, tmp_path / "state", 1)
    assert known.outline(first) is None, "there is nothing to tell it by"
    known.add(first)
    second = take(vault, tmp_path / "state", 2)
    outline = known.outline(second)
    assert outline is not None
    assert outline.basis == first.layer
    assert len(outline.frame) < second.manifest_size / 4
    old, new = (load_encoded(vault, image.manifest_chunks, image.layer) for image in (first, second))
    assert decompress_against(outline.frame, old, 1 << 20) == new


def test_a_large_outline_is_not_told(vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Lineage(vault)
    known.add(take(vault, tmp_path / "state", 1))
    second = take(vault, tmp_path / "state", 2)
    monkeypatch.setattr(lineage, "MAX_OUTLINE_BYTES", 10)
    assert known.outline(second) is None
    monkeypatch.setattr(lineage, "MAX_OUTLINE_BYTES", MAX_OUTLINE_BYTES)
    monkeypatch.setattr(lineage, "MAX_WHOLE_MANIFEST_BYTES", second.manifest_size - 1)
    assert known.outline(second) is None
    monkeypatch.setattr(lineage, "MAX_WHOLE_MANIFEST_BYTES", MAX_WHOLE_MANIFEST_BYTES)
    assert known.outline(second) is not None


# -- taken over from an earlier migration


def leave(folder: Path, state: Path, seed: int = 1) -> None:
    """What a finished migration leaves."""
    with Vault.create(folder / VAULT) as vault:
        image = take(vault, state, seed)
        manifest = tuple(Chunk(name, len(data)) for name, data in vault.read(image.manifest_chunks))
        note_image(folder, Image(image.layer, 20_000, manifest, manifest, Outline(image.layer, b"frame")))


def test_both_ends_give_a_kept_image_the_same_names(tmp_path: Path) -> None:
    leave(tmp_path / "kept", tmp_path / "state")
    key = b"k" * 32
    found = []
    for end in ("source", "destination"):
        with Vault.create(tmp_path / end, key) as vault:
            resealed = reseal(tmp_path / "kept", vault)
            assert resealed is not None
            image, manifest = resealed
            assert not vault.missing([*image.chunks, *image.manifest_chunks])
            assert list(manifest.chunks()) == list(image.chunks)
            assert load_encoded(vault, image.manifest_chunks, image.layer) == manifest.encode()
            assert image.layer != read_image(tmp_path / "kept").layer
            found.append((image.layer, image.manifest_chunks, list(image.chunks)))
    assert found[0] == found[1]


def test_a_note_has_neither_list_nor_outline(tmp_path: Path) -> None:
    leave(tmp_path / "kept", tmp_path / "state")
    note = read_image(tmp_path / "kept")
    assert (note.fresh, note.outline) == ((), None)


def test_a_kept_image_that_is_not_whole_is_no_basis(tmp_path: Path) -> None:
    leave(tmp_path / "kept", tmp_path / "state")
    sealed = tmp_path / "kept" / VAULT / "sealed"
    damaged = bytearray(sealed.read_bytes())
    damaged[200] ^= 1
    sealed.write_bytes(damaged)
    with Vault.create(tmp_path / "new") as vault:
        assert reseal(tmp_path / "kept", vault) is None
        assert reseal(tmp_path / "absent", vault) is None
