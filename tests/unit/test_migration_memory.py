"""What a migration leaves behind: rows, history, images in vaults, return bases."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chunkstore.vault import Vault
from p2player.errors import Refused
from p2player.migration import history, images, rows
from p2player.migration.basis import BasisShelf, folders, has_image, wipe
from p2player.migration.destination import _Sum
from p2player.migration.history import Entry, History
from p2player.migration.images import DestinationImages, SourceImages, size_of_tree
from p2player.migration.kept import read_image
from p2player.planning import Lesson
from p2player.proto.handoff.fields import Malformed
from p2player.proto.handoff.memory import Epitaph, Fate
from p2player.proto.handoff.messages import MAX_ROW_CHARS, Chunk
from p2player.proto.handoff.table import End

COUNTS = {"total": 3, "deduplicated": 1, "transferred": 2}
ROW: dict[str, Any] = {
    "id": "d" * 32,
    "app": "game",
    "app_id": "c" * 32,
    "from": "a",
    "to": "b",
    "mode": "live",
    "state": "done",
    "started_at": 1.0,
    "total_s": 2.0,
    "freeze_s": 0.5,
    "longest_freeze_s": 0.5,
    "rounds": 1,
    "bytes": COUNTS,
    "sources": {"a": 2},
    "layers": {"base": COUNTS, "app": COUNTS, "instance": COUNTS},
    "progress": {"done": 0, "total": 0, "message": "done"},
    "prediction": None,
    "warning": "",
    "error": None,
}


# -- rows


def test_a_row_survives_the_journey() -> None:
    assert rows.read_row(rows.write_row(ROW), "d" * 32) == ROW
    failed = {**ROW, "state": "failed", "error": {"code": "failed", "message": "no"}, "unknown": 1}
    read = rows.read_row(rows.write_row(failed), "d" * 32)
    assert read is not None
    assert "unknown" not in read


@pytest.mark.parametrize(
    "damage",
    [
        {"id": "e" * 32},
        {"state": "grant"},
        {"state": 5},
        {"sources": {"a": "x"}},
        {"layers": {}},
        {"bytes": [1]},
        {"error": {"code": 5, "message": "x"}},
        {"total_s": "1"},
    ],
)
def test_a_peer_cannot_make_up_a_row(damage: dict[str, Any]) -> None:
    assert rows.read_row(json.dumps({**ROW, **damage}), "d" * 32) is None


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 5000, "{}"])
def test_noise_is_no_row(text: str) -> None:
    assert rows.read_row(text, "d" * 32) is None


def test_a_long_row_travels_without_its_sources() -> None:
    long = {**ROW, "sources": {f"node-{n}" * 20: n for n in range(1000)}}
    text = rows.write_row(long)
    assert len(text) <= MAX_ROW_CHARS
    assert rows.read_row(text, "d" * 32) == {**ROW, "sources": {}}


# -- history


def entry(number: int, lesson: Lesson | None = None) -> Entry:
    return Entry({**ROW, "id": f"{number:032x}"}, "a" * 32, Epitaph(End.SOURCE, Fate.MOVED, number), lesson)


def add(kept: History, new: Entry) -> None:
    kept.write(new)
    kept.put(new)


def test_history_survives_a_restart(tmp_path: Path) -> None:
    kept, damage = History.open(tmp_path / "migrations")
    assert damage is None
    add(kept, entry(1, Lesson("c" * 32, "process", "b" * 32, engine_s=0.5)))
    add(kept, entry(2))
    kept.close()
    again, damage = History.open(tmp_path / "migrations")
    assert damage is None
    assert list(again) == [entry(1, Lesson("c" * 32, "process", "b" * 32, engine_s=0.5)), entry(2)]
    assert [lesson.engine_s for lesson in again.lessons()] == [0.5]
    assert again.get(f"{2:032x}") == entry(2)
    assert again.get("x") is None
    again.close()


def test_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 3)
    kept, _ = History.open(tmp_path)
    for number in range(10):
        add(kept, entry(number))
    assert [each.epitaph.epoch for each in kept] == [7, 8, 9]
    kept.close()
    assert len((tmp_path / "history").read_text().splitlines()) <= 6
    again, _ = History.open(tmp_path)
    assert [each.epitaph.epoch for each in again] == [7, 8, 9]
    add(again, entry(8))
    assert [each.epitaph.epoch for each in again] == [7, 9, 8]
    again.close()


def test_a_damaged_history_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "history").write_bytes(b"00000000 {}\n00000000 {}\n")
    kept, damage = History.open(tmp_path)
    assert damage is not None
    assert list(kept) == []
    assert (tmp_path / "history.damaged").exists()
    kept.close()


@pytest.mark.parametrize("key", ["row", "peer", "end", "fate", "epoch"])
def test_entries_of_another_form_are_skipped(key: str) -> None:
    document = entry(1).document()
    assert Entry.read(document) == entry(1)
    assert Entry.read({**document, key: None}) is None
    assert Entry.read({**document, key: ["x"]}) is None


# -- images and bases


def make_state(folder: Path) -> Path:
    folder.mkdir()
    (folder / "count").write_text("1")
    (folder / "bulk").write_bytes(b"".join(n.to_bytes(4) for n in range(100_000)))
    return folder


def make_source(folder: Path, state: Path) -> SourceImages:
    folder.mkdir()
    Vault.create(folder / "vault").close()
    return SourceImages(folder, state)


def bring(source: SourceImages, destination: DestinationImages, names: Any) -> int:
    """Copy what is missing; returns how many chunks."""
    missing = destination.vault.missing(names)
    destination.vault.add(source.vault.groups([name for name in names if name in missing]))
    return len(missing)


def test_rounds_move_what_changed(tmp_path: Path) -> None:
    state = make_state(tmp_path / "state")
    source = make_source(tmp_path / "source", state)
    (tmp_path / "there").mkdir()
    destination = DestinationImages(tmp_path / "there", source.vault.key)

    taken = source.take(final=False)
    assert (taken.fresh_bytes, taken.as_delta) == (400_001, False)
    assert not destination.unfold(taken.image)
    bring(source, destination, destination.first_wants(taken.image))
    assert not destination.lacking(taken.image).wants
    destination.place(taken.image, None)

    (state / "count").write_text("2")
    (state / "new").write_text("new")
    taken = source.take(final=True)
    assert (taken.fresh_bytes, taken.as_delta) == (4, True)
    assert taken.image.fresh == ()
    assert destination.unfold(taken.image), "its manifest needs no request"
    lacking = destination.lacking(taken.image)
    assert (sum(lacking.wants.values()), lacking.kin) == (4, None)
    assert bring(source, destination, lacking.wants) == 2
    final = tmp_path / "final"
    final.mkdir()
    destination.place(taken.image, final)
    assert {path.name: path.read_bytes() for path in final.iterdir()} == {
        path.name: path.read_bytes() for path in state.iterdir()
    }
    assert not list((tmp_path / "there" / "trees").iterdir())
    assert read_image(tmp_path / "there") == read_image(tmp_path / "source")
    source.close()
    destination.close()


def test_a_later_list_of_chunks_is_from_a_source_without_deltas(tmp_path: Path) -> None:
    state = make_state(tmp_path / "state")
    source = make_source(tmp_path / "source", state)
    (tmp_path / "there").mkdir()
    destination = DestinationImages(tmp_path / "there", source.vault.key)
    first = source.take(final=False).image
    bring(source, destination, destination.first_wants(first))
    destination.place(first, None)
    (state / "bulk").write_bytes(bytes(range(1, 251)) * 400)
    later = source.take(final=False).image
    fresh = (Chunk(b"f" * 32, 100),)
    assert set(destination.first_wants(replace(later, fresh=fresh))) == {b"f" * 32, *(c.id for c in later.manifest)}
    source.close()
    destination.close()


def test_an_old_image_at_the_destination_alone_spares_its_chunks(tmp_path: Path) -> None:
    state = make_state(tmp_path / "state")
    first = make_source(tmp_path / "first", state)
    first.take(final=True)
    first.close()

    (state / "count").write_text("22")
    back = make_source(tmp_path / "back", state)
    image = back.take(final=True).image
    (tmp_path / "seeded").mkdir()
    seeded = DestinationImages(tmp_path / "seeded", back.vault.key)
    told: list[tuple[int, int]] = []
    seeded.seed(tmp_path / "first", lambda done, total: told.append((done, total)))
    assert told[0] == (0, 400_001)
    assert not seeded.unfold(image), "the source has no such image"
    assert bring(back, seeded, seeded.first_wants(image)) == len(image.manifest)
    assert bring(back, seeded, seeded.lacking(image).wants) == 1
    seeded.place(image, tmp_path / "final")
    assert (tmp_path / "final" / "count").read_text() == "22"
    back.close()
    seeded.close()


def test_a_basis_that_cannot_be_read_seeds_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    destination = DestinationImages(tmp_path / "there", b"k" * 32)
    destination.seed(tmp_path / "absent")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "image").write_bytes(b"noise")
    destination.seed(tmp_path / "damaged")
    assert destination.vault.stored_bytes < 100
    with pytest.raises(Malformed):
        read_image(tmp_path / "damaged")
    destination.close()


def test_a_tree_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_MANIFEST_CHUNKS", 0)
    source = make_source(tmp_path / "source", make_state(tmp_path / "state"))
    with pytest.raises(Refused, match="too many files"):
        source.take(final=False)
    source.close()


def test_size_of_a_tree_counts_files_only(tmp_path: Path) -> None:
    state = make_state(tmp_path / "state")
    (state / "link").symlink_to("bulk")
    assert size_of_tree(state) == 400_001
    assert size_of_tree(tmp_path / "absent") == 0


def make_basis(root: Path, number: int) -> Path:
    folder = root / f"{number:032x}"
    Vault.create(folder / "vault").close()
    (folder / "image").write_bytes(b"x")
    return folder


def test_of_each_app_the_newest_basis_is_kept(tmp_path: Path) -> None:
    shelf = BasisShelf()
    one, two = make_basis(tmp_path, 1), make_basis(tmp_path, 2)
    assert has_image(one)
    shelf.keep(one, "c" * 32, 10, expires_at=100.0)
    shelf.keep(two, "c" * 32, 20, expires_at=200.0)
    assert not one.exists()
    found = shelf.find("c" * 32)
    assert found is not None
    assert (found.folder, found.size) == (two, 20)

    again = BasisShelf()
    assert again.load(two)
    assert not again.load(tmp_path)
    again.expire(now=199.0)
    assert again.find("c" * 32) is not None
    again.expire(now=200.0)
    assert again.find("c" * 32) is None
    assert not two.exists()


@pytest.mark.parametrize("note", [b"", b"[]", b"{", b'{"app_id": "x", "size": 1, "expires_at": 1}', b"[" * 4000])
def test_a_damaged_note_is_no_basis(tmp_path: Path, note: bytes) -> None:
    folder = make_basis(tmp_path, 1)
    (folder / "basis.json").write_bytes(note)
    assert not BasisShelf().load(folder)


def test_wiping_repeats(tmp_path: Path) -> None:
    folder = make_basis(tmp_path, 1)
    (tmp_path / "history").touch()
    assert list(folders(tmp_path)) == [folder]
    wipe(folder)
    wipe(folder)
    assert list(folders(tmp_path)) == []


def test_two_pulls_are_one_progress() -> None:
    told: list[tuple[int, int]] = []
    both = _Sum(lambda done, total: told.append((done, total)))
    one, two = both.part(), both.part()
    one(1, 10)
    two(5, 20)
    one(10, 10)
    assert told == [(1, 10), (6, 30), (15, 30)]
