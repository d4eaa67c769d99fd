"""Manifests survive encoding, have one encoding, and hostile bytes never get past the decoder."""

import contextlib
from typing import Any

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from chunkstore.digest import ChunkId
from chunkstore.entries import Entry, Extent, Kind, pack_extents
from chunkstore.manifest import Manifest
from chunkstore.manifest_diff import diff
from chunkstore.tree_errors import ManifestInvalid

BLOCK = 4096
FILES = (Kind.REGULAR, Kind.SYMLINK, Kind.CHARACTER, Kind.BLOCK, Kind.FIFO, Kind.SOCKET)

names = st.binary(min_size=1, max_size=6).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b".."))
ids = st.integers(0, 2**32 - 2)
chunk_ids = st.binary(min_size=32, max_size=32).map(ChunkId)
xattrs = st.dictionaries(st.sampled_from((b"user.a", b"user.b", b"security.capability")), st.binary(max_size=8)).map(
    lambda found: tuple(sorted(found.items()))
)

siblings = st.lists(names, max_size=4, unique=True)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Extents as an importer makes them: runs of data, whole blocks but for the last, with holes between."""
    extents: list[Extent] = []
    for blocks, hole in draw(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), max_size=4)):
        extents.append(Extent(blocks * BLOCK, draw(chunk_ids)))
        extents.append(Extent(hole * BLOCK, None))
    if draw(st.booleans()):
        extents.append(Extent(draw(st.integers(1, 2**20)), draw(chunk_ids)))
    return pack_extents(extents)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """Any possible tree."""

    def attributes() -> dict[str, Any]:
        return {
            "mode": draw(st.integers(0, 0o7777)),
            "uid": draw(ids),
            "gid": draw(ids),
            "mtime_ns": draw(st.integers(-(2**63) + 1, 2**63 - 1)),
            "xattrs": draw(xattrs),
        }

    found: dict[bytes, Entry] = {b"": Entry(b"", Kind.DIRECTORY, **attributes())}
    ahead = draw(st.lists(names, min_size=2, max_size=6, unique=True))
    while ahead:
        path = ahead.pop()
        kind = draw(st.sampled_from((Kind.DIRECTORY, *FILES)))
        entry = Entry(path, kind, **attributes())
        if kind is Kind.DIRECTORY:
            ahead += [path + b"/" + name for name in draw(siblings)]
        elif kind is Kind.REGULAR:
            entry = Entry(path, kind, **attributes(), table=draw(tables()))
        elif kind is Kind.SYMLINK:
            entry = Entry(path, kind, 0o777, target=draw(st.binary(min_size=1)).replace(b"\0", b"0"))
        elif kind in (Kind.CHARACTER, Kind.BLOCK):
            entry = Entry(path, kind, **attributes(), device=(draw(ids), draw(ids)))
        found[path] = entry
    first_names = [path for path, entry in found.items() if entry.kind in FILES]
    linked: bool = draw(st.booleans())
    if first_names and linked:
        target = draw(st.sampled_from(first_names))
        found.setdefault(b"\xff\xff", Entry(b"\xff\xff", Kind.HARDLINK, target=target))
    return Manifest(tuple(found[path] for path in sorted(found)))


@settings(max_examples=100, deadline=None)
@given(manifests())
def test_round_trip(manifest: Manifest) -> None:
    encoded = manifest.encode()
    decoded = Manifest.decode(encoded)
    assert decoded == manifest
    assert decoded.encode() == encoded
    assert decoded.size == sum(extent.length for entry in manifest.entries for extent in entry.extents)
    assert diff(manifest, decoded) == []


ID = ChunkId(b"c" * 32)
RICH = Manifest(
    (
        Entry(b"", Kind.DIRECTORY, 0o755, 1000, 1000, 1_700_000_000_123_456_789),
        Entry(b"a", Kind.REGULAR, 0o644, xattrs=((b"user.a", b"x"),), table=pack_extents([Extent(300, ID)])),
        Entry(b"b", Kind.HARDLINK, target=b"a"),
        Entry(b"c", Kind.SYMLINK, 0o777, target=b"../x"),
        Entry(b"d", Kind.CHARACTER, 0o600, device=(7, 3)),
        Entry(b"e", Kind.DIRECTORY, 0o700),
        Entry(b"e/f", Kind.REGULAR, table=pack_extents([Extent(BLOCK, ID), Extent(BLOCK, None), Extent(1, ID)])),
        Entry(b"e/g", Kind.FIFO),
    )
).encode()


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, len(RICH) - 1), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=3)
)
def test_damage_is_refused_or_means_another_tree(edits: list[tuple[int, int, bytes]]) -> None:
    encoded = bytearray(RICH)
    for at, length, replacement in edits:
        encoded[at : at + length] = replacement
    with contextlib.suppress(ManifestInvalid):
        assert Manifest.decode(bytes(encoded)).encode() == encoded


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with contextlib.suppress(ManifestInvalid):
        assert Manifest.decode(noise).encode() == noise


numbers = (0, 1, 2, 3, 4, 7, 0o755, -1, 2**63, 2**64 - 1, True, False, 0.5)
strings = ("", "a", b"", b"a", b"a/b", b"..", bytes(40))
others: tuple[Any, ...] = (None, [], [7, 3], [b"user.a", b"x"], [b"user.a"], [[]], {}, {"a": 1})
extensions = (msgpack.ExtType(5, b""), msgpack.Timestamp(1))
values = st.sampled_from((*numbers, *strings, *others, *extensions))
top_rows: st.SearchStrategy[Any] = st.just([b"", 1, 0o755, 0, 0, 0, [], None])
rows = st.lists(st.lists(values, min_size=3, max_size=8), max_size=3)


@settings(max_examples=200)
@given(top_rows | values, rows, st.integers(0, 4), st.integers(0, 4))
def test_well_formed_msgpack_that_is_no_manifest(top: Any, more: list[Any], count: int, size: int) -> None:
    encoded = b"".join(msgpack.packb(row) for row in [[b"p2player-manifest", 1, count, size], top, *more])
    with contextlib.suppress(ManifestInvalid):
        assert Manifest.decode(encoded).encode() == encoded
