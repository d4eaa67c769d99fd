"""Windows and units between any two layers keep their bounds, and cover what is asked."""

from hypothesis import given, settings
from hypothesis import strategies as st

from chunkstore.delta.kinship import RELATIVE_BYTES, RELATIVE_CHUNKS, UNIT_BYTES, Kinship
from chunkstore.digest import ChunkId
from chunkstore.entries import EXTENT, Entry, Extent, Kind, pack_extents
from chunkstore.manifest import Manifest

LENGTHS = (1, 9, 4096, 65536, 262144, 1 << 20)
PATHS = (b"a", b"b", b"lib1/x", b"lib2/x", b"log", b"log.1", b"so.1", b"so.2")

chunks = st.integers(0, 60).map(lambda n: Extent(LENGTHS[n % len(LENGTHS)], ChunkId(bytes([n]) * 32)))
holes = st.integers(1, 4).map(lambda n: Extent(n * 4096, None))
tables = st.lists(st.one_of(chunks, chunks, chunks, holes), min_size=1, max_size=30).map(pack_extents)
layers = st.dictionaries(st.sampled_from(PATHS), tables, max_size=5).map(
    lambda found: Manifest(
        (Entry(b"", Kind.DIRECTORY), *(Entry(path, Kind.REGULAR, table=found[path]) for path in sorted(found)))
    )
)


@settings(deadline=None, max_examples=300)
@given(layers, layers, st.data())
def test_windows_and_units_keep_their_bounds(new: Manifest, old: Manifest, data: st.DataObject) -> None:
    wanted, held = list(new.chunks().items()), list(old.chunks().items())
    missing = {chunk for chunk, _ in wanted if chunk not in old.chunks()}
    kinship = Kinship.between(new, old, missing)
    covered = 0
    for position, (chunk, length) in enumerate(wanted):
        window = kinship.window(position)
        assert len(set(window)) == len(window) <= RELATIVE_CHUNKS
        assert sum(held[old_position][1] for old_position in window) <= RELATIVE_BYTES
        assert not window or chunk in missing
        assert _in_one_file(old, {held[old_position][0] for old_position in window})
        assert kinship.covers(position) == bool(window)
        covered += length if window else 0
    assert kinship.covered_bytes == covered

    wants = data.draw(st.lists(st.sampled_from(range(len(wanted))), max_size=40, unique=True)) if wanted else []
    units = kinship.units(wants)
    assert [want for unit in units for want in unit.wants] == wants
    for unit in units:
        assert sum(wanted[want][1] for want in unit.wants) <= UNIT_BYTES
        assert sum(held[position][1] for position in unit.relative) <= RELATIVE_BYTES
        assert list(unit.relative) == sorted(set(unit.relative))
        assert set(unit.relative) == {position for want in unit.wants for position in kinship.window(want)}


@settings(deadline=None, max_examples=100)
@given(tables)
def test_the_same_path_gives_every_missing_chunk_a_window(table: bytes) -> None:
    old = Manifest((Entry(b"", Kind.DIRECTORY), Entry(b"f", Kind.REGULAR, table=table)))
    fresh = pack_extents([Extent(length, ChunkId(bytes([255 - at]) * 32)) for at, length in enumerate(LENGTHS)])
    new = Manifest((Entry(b"", Kind.DIRECTORY), Entry(b"f", Kind.REGULAR, table=fresh)))
    kinship = Kinship.between(new, old, list(new.chunks()))
    assert kinship.covered_bytes == (sum(LENGTHS) if old.chunks() else 0)


def _in_one_file(old: Manifest, chunks: set[ChunkId]) -> bool:
    """Whether one file of the layer has all of them."""
    return not chunks or any(
        chunks <= {chunk for length, chunk in EXTENT.iter_unpack(entry.table) if length > 0} for entry in old.entries
    )
