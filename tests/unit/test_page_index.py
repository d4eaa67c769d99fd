"""Which chunks of shared layers have pages of a guest's memory."""

from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from chunkstore.delta.pageindex import PageIndex
from chunkstore.importer import import_tree
from tests.support.memory_content import MemoryContent
from tests.support.revisions import PAGE, ram_records


def pages(rng: Random, count: int) -> list[bytes]:
    return [rng.randbytes(PAGE) for _ in range(count)]


def index_of(folder: Path, files: dict[str, bytes]) -> tuple[PageIndex, MemoryContent, list[bytes]]:
    """The index of a layer of these files, its content, and its chunks in order."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    content = MemoryContent()
    manifest = import_tree(content, folder).manifest
    index = PageIndex()
    for _ in index.grow(manifest, content):
        pass
    held = {chunk: bytes(data) for chunk, data in content.read(list(manifest.chunks()))}
    return index, content, [held[chunk] for chunk in manifest.chunks()]


def test_pages_of_a_file_are_found_in_the_chunks_that_have_them(tmp_path: Path) -> None:
    """Its chunks are cut by content, so that most pages begin in the middle of one and some end in the next."""
    file = b"".join(pages(Random(1), 200))
    index, _, chunks = index_of(tmp_path, {"kernel": file})
    assert len(chunks) > 3
    starts = [sum(map(len, chunks[:at])) for at in range(len(chunks))]
    for number in range(200):
        page = file[number * PAGE :][:PAGE]
        found = index.positions(ram_records([page, page], 0, b"pc.ram"))
        held = b"".join(chunks[at] for at in sorted(found))
        assert page in held, f"page {number} of {starts}"
        assert len(found) <= 2


def test_chunks_are_cut_where_their_pages_are(tmp_path: Path) -> None:
    known = pages(Random(1), 200)
    index, _, chunks = index_of(tmp_path, {"kernel": b"".join(known)})
    for some in (range(len(chunks)), range(0, len(chunks), 2), range(1, len(chunks)), range(1, 2)):
        cuts, at = index.cuts(some), 0
        joined = b"".join(chunks[position] for position in some)
        assert sum(cuts) == len(joined)
        found = 0
        for length in cuts:
            found += joined[at : at + length] in known
            at += length
        whole = [page for page in known if page in joined]
        assert found == len(whole) > 0


def test_memory_that_has_little_of_the_layers_refers_to_nothing(tmp_path: Path) -> None:
    file = pages(Random(1), 64)
    index, *_ = index_of(tmp_path, {"disk": b"".join(file)})
    other = pages(Random(2), 64)
    assert index.positions(ram_records(other, 0, b"pc.ram")) == set()
    assert index.positions(ram_records([file[3], *other[1:]], 0, b"pc.ram")) == set(), "one page of 64 is no reason"
    assert index.positions(ram_records([*file[3:7], *other[4:]], 0, b"pc.ram"))
    assert index.positions(b"".join(file)) == set(), "this is no memory of a guest"


def test_no_more_is_looked_at_than_allowed(tmp_path: Path) -> None:
    known = pages(Random(1), 3000)
    (tmp_path / "disk").write_bytes(b"".join(known))
    (tmp_path / "same").write_bytes(b"".join(known))
    content = MemoryContent()
    manifest = import_tree(content, tmp_path).manifest
    index = PageIndex(max_pages=1500)
    assert len(list(index.grow(manifest, content))) == 2, "steps of a thousand pages"
    assert index.positions(ram_records(known[:64], 0, b"pc.ram"))
    assert not index.positions(ram_records(known[-64:], 0, b"pc.ram"))
    index = PageIndex()
    for _ in index.grow(manifest, content):
        pass
    assert index.positions(ram_records(known[-64:], 0, b"pc.ram"))


def test_empty_pages_are_nowhere(tmp_path: Path) -> None:
    index, *_ = index_of(tmp_path, {"disk": pages(Random(1), 1)[0] + bytes(PAGE - 1) + b"\1"})
    stored_zeros = b"\x08".rjust(8, b"\0") + bytes([2]) + b"pc" + bytes(PAGE)
    assert index.positions(stored_zeros * 2) == set()


def test_layers_are_numbered_one_after_the_other(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    index, content, chunks = index_of(first, {"disk": b"".join(pages(Random(1), 100))})
    (second / "disk").write_bytes(b"".join(pages(Random(2), 100)))
    manifest = import_tree(content, second).manifest
    for _ in index.grow(manifest, content):
        pass
    assert len(index.lengths) == len(chunks) + len(manifest.chunks())
    assert min(index.positions(ram_records(pages(Random(2), 8), 0, b"pc.ram"))) >= len(chunks)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.binary(max_size=20_000))
def test_any_chunk_may_be_looked_up(seed: int, chunk: bytes) -> None:
    index = PageIndex()
    rng = Random(seed)
    cut = bytearray(ram_records(pages(rng, 3), 0, b"pc.ram"))
    del cut[rng.randrange(len(cut)) :]
    assert index.positions(chunk) == index.positions(bytes(cut)) == set()
