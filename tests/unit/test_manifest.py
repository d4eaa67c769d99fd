"""One encoding for each tree; all else is refused with a reason; versions of a layer share most of their chunks."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest

from chunkstore import manifest_codec
from chunkstore.chunker import MANIFEST, cut
from chunkstore.codec import pack_all
from chunkstore.digest import ChunkId, LayerId, chunk_id, layer_id
from chunkstore.entries import Entry, Extent, Kind, pack_extents
from chunkstore.errors import ChunkMissing
from chunkstore.manifest import Manifest, load, outline
from chunkstore.manifest_codec import MAX_MANIFEST_BYTES
from chunkstore.manifest_diff import Change, Difference, diff
from chunkstore.tree_errors import ManifestInvalid, printable
from tests.support.memory_content import MemoryContent

BLOCK = 4096
A, B = (ChunkId(letter * 32) for letter in (b"a", b"b"))
TOP = Entry(b"", Kind.DIRECTORY, 0o755)


def file(path: bytes, *extents: tuple[int, ChunkId | None], **more: Any) -> Entry:
    return Entry(path, Kind.REGULAR, 0o644, table=pack_extents(Extent(*extent) for extent in extents), **more)


def tree(*entries: Entry) -> Manifest:
    return Manifest((TOP, *entries))


EVERYTHING = tree(
    Entry(b"block", Kind.BLOCK, 0o660, 0, 6, device=(8, 2**20 - 1)),
    Entry(b"char", Kind.CHARACTER, device=(0, 0)),
    Entry(b"dir", Kind.DIRECTORY, 0o1777, 1000, 2**32 - 2, -1),
    Entry(b"dir-x", Kind.FIFO, 0o600),
    file(b"dir/empty"),
    file(b"dir/file", (5000, A), xattrs=((b"security.capability", b"\1"), (b"user.\xff\n", b""))),
    Entry(b"dir/link", Kind.SYMLINK, 0o777, target=b"../\xff\n"),
    file(b"dir/sparse", (BLOCK, A), (10 << 40, None), (1, B), mtime_ns=2**63 - 1),
    Entry(b"dir/\xff\n", Kind.HARDLINK, target=b"dir/link"),
    Entry(b"sock", Kind.SOCKET, 0o755),
    Entry(b"z", Kind.HARDLINK, target=b"char"),
)


def test_every_kind_survives() -> None:
    encoded = EVERYTHING.encode()
    assert Manifest.decode(encoded) == EVERYTHING
    assert EVERYTHING.size == 5000 + BLOCK + (10 << 40) + 1


def test_the_encoding_is_pinned() -> None:
    """If this fails, every layer in the world gets another name: do not adjust it."""
    assert layer_id(EVERYTHING.encode()).hex() == "ebbb17cca86d34a11ec6cd1d846ccfc2261865e314b3f340da22c63ea09606bb"


def test_chunks_are_distinct_and_in_order() -> None:
    manifest = tree(file(b"x", (BLOCK, B), (BLOCK, None), (7, A)), file(b"y", (7, A)))
    assert list(manifest.chunks().items()) == [(B, BLOCK), (A, 7)]


def test_one_chunk_cannot_have_two_lengths() -> None:
    with pytest.raises(ManifestInvalid, match="y: a chunk with two lengths"):
        tree(file(b"x", (8, A)), file(b"y", (7, A))).chunks()


def test_an_outline_is_of_the_whole_tree_and_as_strict() -> None:
    manifest = tree(file(b"x", (BLOCK, B), (BLOCK, None), (7, A)), file(b"y", (7, A)))
    found = outline(manifest.encode())
    assert (found.size, list(found.chunks.items())) == (manifest.size, list(manifest.chunks().items()))
    for damaged in (manifest.encode()[:-1], tree(file(b"x", (8, A)), file(b"y", (7, A))).encode()):
        with pytest.raises(ManifestInvalid):
            outline(damaged)


def test_find_and_resolve() -> None:
    link = EVERYTHING.find(b"dir/\xff\n")
    assert link is not None
    assert EVERYTHING.resolve(link).target == b"../\xff\n"
    assert EVERYTHING.find(b"dir/") is None
    assert EVERYTHING.find(b"zz") is None


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (Manifest(()), "0 entries"),
        (Manifest((file(b""),)), "top folder"),
        (Manifest((Entry(b"a", Kind.DIRECTORY),)), "top folder"),
        (tree(file(b"b"), file(b"a")), "order"),
        (tree(file(b"a"), file(b"a")), "twice"),
        (tree(TOP), "twice"),
        (tree(file(b"a/b")), "not in a folder"),
        (tree(file(b"a"), file(b"a/b")), "not in a folder"),
        (tree(Entry(b"a", Kind.SYMLINK, 0o777, target=b"/etc"), file(b"a/passwd")), "not in a folder"),
        (tree(Entry(b"a", Kind.DIRECTORY), Entry(b"b", Kind.HARDLINK, target=b"a")), "hard link"),
        (tree(file(b"/etc")), "not in a folder"),
        (tree(file(b"/")), "not in a folder"),
        (tree(Entry(b"a", Kind.DIRECTORY), file(b"a/")), "impossible name"),
        (tree(file(b"..")), "impossible name"),
        (tree(file(b".")), "impossible name"),
        (tree(Entry(b"a", Kind.DIRECTORY), file(b"a/..")), "impossible name"),
        (tree(file(b"a\0b")), "impossible name"),
        (tree(file(b"n" * 256)), "impossible name"),
        (tree(Entry(b"a", Kind.HARDLINK, target=b"b"), file(b"b")), "hard link"),
        (
            tree(file(b"a"), Entry(b"b", Kind.HARDLINK, target=b"a"), Entry(b"c", Kind.HARDLINK, target=b"b")),
            "hard link",
        ),
        (tree(Entry(b"a", Kind.SYMLINK, 0o777)), "symlink text"),
        (tree(Entry(b"a", Kind.SYMLINK, 0o777, target=b"a\0")), "symlink text"),
        (tree(Entry(b"a", Kind.SYMLINK, 0o755, target=b"a")), "0777"),
        (tree(Entry(b"a", Kind.SYMLINK, 0o777, target=b"a" * 4096)), "symlink text"),
        (tree(file(b"a", (0, A))), "impossible extent"),
        (tree(file(b"a", (2**20 + 1, A))), "impossible extent"),
        (tree(file(b"a", (BLOCK, None), (BLOCK, None))), "not maximal"),
        (tree(file(b"a", (5, A), (BLOCK, None))), "not aligned"),
        (tree(file(b"a", (5, None), (5, A))), "impossible extent"),
        (tree(replace(file(b"a"), table=bytes(39))), "torn"),
        (tree(replace(file(b"a"), table=(-BLOCK).to_bytes(8, "big", signed=True) + A)), "not aligned"),
        (tree(file(b"a", (2**62, None), (1, A)), file(b"b", (2**62, None))), "files of"),
        (tree(Entry(b"a", Kind.FIFO, 0o10000)), "out of range"),
        (tree(Entry(b"a", Kind.FIFO, uid=2**32 - 1)), "out of range"),
        (tree(Entry(b"a", Kind.FIFO, gid=-1)), "out of range"),
        (tree(Entry(b"a", Kind.FIFO, mtime_ns=2**63)), "out of range"),
        (tree(Entry(b"a", Kind.BLOCK, device=(2**32, 0))), "out of range"),
        (tree(file(b"a", xattrs=((b"user.b", b""), (b"user.a", b"")))), "out of order"),
        (tree(file(b"a", xattrs=((b"user.a", b""), (b"user.a", b"")))), "out of order"),
        (tree(file(b"a", xattrs=((b"", b""),))), "out of order"),
        (tree(file(b"a", xattrs=((b"user.a\0", b""),))), "out of order"),
        (tree(file(b"a", xattrs=((b"user.a", bytes(65537)),))), "impossible extended"),
        (tree(file(b"a", xattrs=((b"security.selinux", b"x"),))), "belongs to a machine"),
        (tree(file(b"a", xattrs=((b"security.capabilitz", b"x"),))), "belongs to a machine"),
        (tree(file(b"a", xattrs=((b"system.nfs4_acl", b"x"),))), "belongs to a machine"),
        (tree(file(b"a", xattrs=((b"trusted.overlay.origin", b"x"),))), "belongs to a machine"),
        (tree(file(b"a", xattrs=((b"trusted.other", b"x"),))), "belongs to a machine"),
        (tree(file(b"a", xattrs=((b"user", b"x"),))), "belongs to a machine"),
        (tree(file(b"a", xattrs=tuple((b"user.%04d" % n, b"") for n in range(1025)))), "more than 1024"),
        (tree(file(b"a", xattrs=tuple((b"user.%04d" % n, bytes(60000)) for n in range(18)))), "attributes of"),
    ],
)
def test_impossible_trees_are_neither_written_nor_read(manifest: Manifest, reason: str) -> None:
    with pytest.raises(ManifestInvalid, match=reason):
        manifest.encode()
    with pytest.raises(ManifestInvalid):
        Manifest.decode(unchecked(manifest))


def unchecked(manifest: Manifest) -> bytes:
    """What an encoder without any check would write."""
    rows: list[Any] = [[b"p2player-manifest", 1, len(manifest.entries), manifest_size(manifest)]]
    for entry in manifest.entries:
        if entry.kind is Kind.HARDLINK:
            rows.append([entry.path, 3, entry.target])
            continue
        details: dict[Kind, Any] = {
            Kind.REGULAR: entry.table,
            Kind.SYMLINK: entry.target,
            Kind.BLOCK: entry.device,
            Kind.CHARACTER: entry.device,
        }
        flat = [part for pair in entry.xattrs for part in pair]
        attributes = [entry.mode, entry.uid, entry.gid, entry.mtime_ns, flat]
        rows.append([entry.path, entry.kind.value, *attributes, details.get(entry.kind)])
    return b"".join(msgpack.packb(row, use_bin_type=True) for row in rows)


def manifest_size(manifest: Manifest) -> int:
    return min(
        sum(len(entry.table) // 40 and entry.size for entry in manifest.entries if len(entry.table) % 40 == 0), 2**63
    )


def test_the_unchecked_encoder_of_this_test_is_right() -> None:
    assert unchecked(EVERYTHING) == EVERYTHING.encode()


def row(*fields: Any) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


HEADER = row(b"p2player-manifest", 1, 1, 0)
ONE = row(b"", 1, 0o755, 0, 0, 0, [], None)


def test_the_smallest_manifest_by_hand() -> None:
    assert Manifest.decode(HEADER + ONE) == Manifest((TOP,))


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        HEADER,
        ONE,
        HEADER + ONE[:-1],
        HEADER + ONE + b"\xc0",
        HEADER + ONE + ONE,
        row(b"p2player-manifest", 2, 1, 0) + ONE,
        row(b"p2player-manifest", True, 1, 0) + ONE,
        row(b"p2player-manifest", 1, True, 0) + ONE,
        row(b"p2player-manifest", 1, 1, False) + ONE,
        row(b"p2player-manifest", 1, 2, 0) + ONE,
        row(b"p2player-manifest", 1, 1, 1) + ONE,
        row("p2player-manifest", 1, 1, 0) + ONE,
        row(b"other", 1, 1, 0) + ONE,
        HEADER + row("", 1, 0o755, 0, 0, 0, [], None),
        HEADER + row(b"", True, 0o755, 0, 0, 0, [], None),
        HEADER + row(b"", 1, 0o755, 0.0, 0, 0, [], None),
        HEADER + row(b"", 1, 0o755, False, 0, 0, [], None),
        HEADER + row(b"", 1, 0o755, 0, 0, 0, None, None),
        HEADER + row(b"", 1, 0o755, 0, 0, 0, {}, None),
        HEADER + row(b"", 1, 0o755, 0, 0, 0, [b"user.a"], None),
        HEADER + row(b"", 1, 0o755, 0, 0, 0, [b"user.a", 1], None),
        HEADER + row(b"", 1, 0o755, 0, 0, 0, [], b""),
        HEADER + row(b"", 8, 0o755, 0, 0, 0, [], None),
        HEADER + row(b"", -1, 0o755, 0, 0, 0, [], None),
        HEADER + row(b"", 1, 0o755, 0, 0, 2**64 - 1, [], None),
        HEADER + row(b"", 3, b""),
        HEADER + row(b"", 1, 2),
        HEADER + ONE.replace(b"\xcd\x01\xed", b"\xce\x00\x00\x01\xed"),  # the same number, longer
        HEADER + b"\xdc\x00\x08" + ONE[1:],  # the same array, longer
        HEADER + b"\xdd\xff\xff\xff\xff",
        HEADER + b"\xc6\xff\xff\xff\xff",
        HEADER + b"\xc7\x01\x05x",
        HEADER + b"\x91" * 100_000,
    ],
)
def test_other_encodings_are_refused(encoded: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        Manifest.decode(encoded)


def test_size_is_bounded_before_anything_is_parsed() -> None:
    with pytest.raises(ManifestInvalid, match="a manifest of"):
        Manifest.decode(bytes(MAX_MANIFEST_BYTES + 1))


def large_tree(count: int, seed: int) -> Manifest:
    rng = random.Random(seed)
    folders = [Entry(b"folder%03d" % number, Kind.DIRECTORY, 0o755) for number in range(count // 50)]
    files = [
        file(b"folder%03d/file%04d" % (n // 50, n), (1000 + n, ChunkId(rng.randbytes(32))), mtime_ns=10**18 + n)
        for n in range(count)
    ]
    return tree(*sorted((*folders, *files), key=lambda entry: entry.path))


def test_two_versions_share_most_chunks() -> None:
    old = large_tree(5000, 1)
    entries = list(old.entries)
    entries[2500] = replace(entries[2500], mtime_ns=5)
    del entries[700]
    new = Manifest(tuple(entries))
    had = {bytes(chunk) for chunk in cut(old.encode(), MANIFEST)}
    chunks = [bytes(chunk) for chunk in cut(new.encode(), MANIFEST)]
    fresh = [chunk for chunk in chunks if chunk not in had]
    assert len(chunks) > 20
    assert len(fresh) <= 6  # around two changes, and the header
    assert sorted(change.what for change in diff(old, new)) == [Difference.ATTRIBUTES, Difference.REMOVED]


def stored(manifest: Manifest, content: MemoryContent) -> tuple[list[ChunkId], LayerId]:
    encoded = manifest.encode()
    chunks = [(chunk_id(piece, content.key), piece) for piece in cut(encoded, MANIFEST)]
    content.add(pack_all(chunks))
    return [name for name, _ in chunks], layer_id(encoded, content.key)


@pytest.mark.parametrize("key", [None, b"k" * 32])
def test_load(key: bytes | None) -> None:
    manifest, content = large_tree(2000, 2), MemoryContent(key)
    chunks, layer = stored(manifest, content)
    assert load(content, chunks, layer) == manifest


def test_load_refuses_what_is_not_the_layer() -> None:
    content = MemoryContent()
    chunks, layer = stored(large_tree(2000, 2), content)
    with pytest.raises(ManifestInvalid, match="another digest"):
        load(content, list(reversed(chunks)), layer)
    with pytest.raises(ManifestInvalid, match="another digest"):
        load(content, chunks, LayerId(bytes(32)))
    with pytest.raises(ManifestInvalid, match="too large"):
        load(content, chunks[:1] * (MAX_MANIFEST_BYTES // 4096), layer)
    del content.chunks[chunks[3]]
    with pytest.raises(ChunkMissing) as caught:
        load(content, chunks, layer)
    assert caught.value.chunk_id == chunks[3]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: replace(f, mode=0o600), Difference.ATTRIBUTES),
        (lambda f: replace(f, mtime_ns=7), Difference.ATTRIBUTES),
        (lambda f: replace(f, xattrs=((b"user.a", b""),)), Difference.ATTRIBUTES),
        (lambda f: file(f.path, (7, B)), Difference.CONTENT),
        (lambda f: Entry(f.path, Kind.SYMLINK, 0o777, target=b"x"), Difference.CONTENT),
        (lambda f: Entry(f.path, Kind.HARDLINK, target=b"a"), Difference.ATTRIBUTES),
        (lambda f: f, None),
    ],
)
def test_diff_says_what_changed(change: Callable[[Entry], Entry], expected: Difference | None) -> None:
    one, other = file(b"a", (7, A)), file(b"b", (7, A))
    old, new = tree(one, other), tree(one, change(other))
    assert diff(old, new) == ([Change(b"b", expected)] if expected else [])


def test_diff_of_added_and_removed_paths() -> None:
    old = tree(file(b"a", (7, A)), Entry(b"m", Kind.HARDLINK, target=b"a"), file(b"x"))
    new = tree(file(b"b"), file(b"m", (7, A)), file(b"y"), file(b"z"))
    assert [(change.path, change.what.value) for change in diff(old, new)] == [
        (b"a", "removed"),
        (b"b", "added"),
        (b"m", "attributes"),
        (b"x", "removed"),
        (b"y", "added"),
        (b"z", "added"),
    ]


def test_a_changed_symlink_is_content() -> None:
    old, new = (tree(Entry(b"l", Kind.SYMLINK, 0o777, target=text)) for text in (b"a", b"b"))
    assert diff(old, new) == [Change(b"l", Difference.CONTENT)]


def test_paths_in_messages_are_one_printable_line() -> None:
    assert printable(b"a\nb\xff/\xc3\xa9") == "a\\nb\\xff/é"
    assert printable(b"") == "."


def test_what_is_written_to_the_last_byte_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = EVERYTHING.encode()
    monkeypatch.setattr(manifest_codec, "MAX_MANIFEST_BYTES", len(encoded))
    assert Manifest.decode(EVERYTHING.encode()) == EVERYTHING
    monkeypatch.setattr(manifest_codec, "MAX_MANIFEST_BYTES", len(encoded) - 1)
    with pytest.raises(ManifestInvalid, match="too large"):
        EVERYTHING.encode()
