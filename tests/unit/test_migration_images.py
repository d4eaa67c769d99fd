"""Images of an instance folder: of one in use, and of one that must rest."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkstore.tree_errors import TreeChanged
from chunkstore.vault import Vault
from p2player.migration.images import SourceImages
from p2player.migration.kept import VAULT, manifest_of


@pytest.fixture
def images(tmp_path: Path) -> Iterator[SourceImages]:
    (tmp_path / "state").mkdir()
    (tmp_path / "migration").mkdir()
    Vault.create(tmp_path / "migration" / VAULT).close()
    made = SourceImages(tmp_path / "migration", tmp_path / "state")
    yield made
    made.close()


def test_pre_copy_takes_a_busy_folder_and_the_final_image_asks_for_rest(tmp_path: Path, images: SourceImages) -> None:
    log, gone = tmp_path / "state/log", tmp_path / "state/pid"
    log.write_bytes(b"line\n" * (1 << 20))
    gone.write_text("7")

    def busy(_done: int, _total: int) -> None:
        gone.unlink(missing_ok=True)
        with log.open("ab") as file:
            file.write(b"line\n")

    taken = images.take(final=False, progress=busy)
    paths = [entry.path for entry in manifest_of(images.vault, taken.image).entries]
    assert paths == [b"", b"log"]
    assert taken.image.size == 5 << 20
    with pytest.raises(TreeChanged, match="log kept changing"):
        images.take(final=True, progress=busy)
    assert images.take(final=True).image.size == log.stat().st_size
