"""A tar archive gives the layer of the folder it was made from, and a hostile one gives an error."""

import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from chunkstore.acltext import AclInvalid, acl_to_bytes
from chunkstore.entries import Kind
from chunkstore.importer import import_tree
from chunkstore.ingest import Imported
from chunkstore.manifest_diff import diff
from chunkstore.tarfiles import import_tar
from chunkstore.tree_errors import ManifestInvalid, SourceUnsupported, TreeChanged
from tests.support.memory_content import MemoryContent
from tests.support.trees import ROOT, Node, build, has_user_xattrs, may_make_devices

GNU_TAR = shutil.which("tar")
OLD = Node("file", mtime_ns=1_000_000_000 * 10**9)
TREE = Node(
    "folder",
    0o755,
    (1000, 50) if ROOT else (0, 0),
    children=(
        (
            b"b-file",
            Node("file", 0o4711, pieces=((70_000, 1), (4096 * 50, 0), (9, 2)), mtime_ns=1_700_000_000_123_456_789),
        ),
        (b"a-link", Node("hardlink", target=b"b-file")),
        (
            b"dir",
            Node("folder", 0o1777, mtime_ns=5 * 10**9 + 1, children=((b"\xff\n" + b"n" * 200, OLD), (b"empty", OLD))),
        ),
        (b"dir-x", Node("fifo", 0o600, mtime_ns=-(10**9) - 1)),
        (b"sym", Node("symlink", 0o777, target=b"/" + b"t" * 200)),
        ("größe".encode(), Node("file", 0, (2**31, 2**31))),
    ),
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    build(os.fsencode(tmp_path / "source"), TREE)
    if has_user_xattrs(tmp_path):
        os.setxattr(tmp_path / "source/dir", "user.a", b"\0\xff=\n")
        os.setxattr(tmp_path / "source/dir/empty", "user.empty", b"")
    if may_make_devices(tmp_path):
        os.mknod(tmp_path / "source/whiteout", stat.S_IFCHR, 0)
        os.mknod(tmp_path / "source/disk", stat.S_IFBLK | 0o660, os.makedev(8, 17))
        os.utime(tmp_path / "source", ns=(0, TREE.mtime_ns))
    return tmp_path / "source"


def exact(info: tarfile.TarInfo, path: Path) -> tarfile.TarInfo:
    """Add what Python's tarfile leaves out or rounds: nanoseconds and extended attributes."""
    status = path.lstat()
    sign, absolute = ("-", -status.st_mtime_ns) if status.st_mtime_ns < 0 else ("", status.st_mtime_ns)
    info.pax_headers = {"mtime": f"{sign}{absolute // 10**9}.{absolute % 10**9:09}"}
    for name in os.listxattr(path, follow_symlinks=False):
        value = os.getxattr(path, name, follow_symlinks=False)
        info.pax_headers["SCHILY.xattr." + name] = value.decode("utf-8", "surrogateescape")
    return info


def pack(source: Path, mode: str = "w") -> bytes:
    """The folder as a PAX archive, in an order that is not that of a manifest."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:  # type: ignore[call-overload]
        paths = sorted(source.rglob("*"), key=lambda path: (len(path.parts), path), reverse=False)
        for path in [*paths, source]:
            info = exact(archive.gettarinfo(path, str(Path("./") / path.relative_to(source)) or "."), path)
            if info.isreg():
                with path.open("rb") as file:
                    archive.addfile(info, file)
            else:
                archive.addfile(info)
    return buffer.getvalue()


def import_bytes(tmp_path: Path, data: bytes, store: MemoryContent | None = None) -> Imported:
    (tmp_path / "archive.tar").write_bytes(data)
    return import_tar(store or MemoryContent(), tmp_path / "archive.tar")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_an_archive_gives_the_layer_of_its_folder(tmp_path: Path, source: Path, mode: str) -> None:
    store = MemoryContent()
    expected = import_tree(store, source)
    chunks = len(store.chunks)
    imported = import_bytes(tmp_path, pack(source, mode), store)
    assert diff(expected.manifest, imported.manifest) == []
    assert imported == expected
    assert len(store.chunks) == chunks


@pytest.mark.skipif(GNU_TAR is None, reason="needs GNU tar")
@pytest.mark.parametrize(
    "options",
    [
        ["--format=posix"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
    ],
)
def test_archives_of_gnu_tar(tmp_path: Path, source: Path, options: list[str]) -> None:
    with (source / "sparse").open("wb") as file:
        for piece in range(60):
            file.seek(piece * 20_000 * 8)
            file.write(b"%d" % piece * 3000)
        file.truncate(20_000_000)
    assert GNU_TAR is not None
    xattrs = ["--xattrs", "--xattrs-include=*"]
    command: list[str | Path] = [
        GNU_TAR,
        *options,
        *xattrs,
        "--pax-option=delete=atime,delete=ctime",
        "-cf",
        tmp_path / "a.tar",
    ]
    subprocess.run([*command, "-C", source, "."], check=True)
    store = MemoryContent()
    imported = import_tar(store, tmp_path / "a.tar")
    expected = import_tree(store, source)
    assert diff(expected.manifest, imported.manifest) == []
    assert imported.layer_id == expected.layer_id


@pytest.mark.skipif(GNU_TAR is None, reason="needs GNU tar")
@pytest.mark.parametrize(
    "options", [["--format=gnu"], ["--format=gnu", "--sparse"], ["--format=v7"], ["--format=ustar"]]
)
def test_older_formats_lose_only_what_they_cannot_say(tmp_path: Path, options: list[str]) -> None:
    whole = 1_700_000_000 * 10**9
    pieces = tuple(piece for n in range(30) for piece in ((4096, n + 1), (4096 * 9, 0)))
    folder = Node("folder", 0o700, mtime_ns=whole, children=((b"in", Node("file", pieces=pieces, mtime_ns=whole)),))
    build(os.fsencode(tmp_path / "source"), Node("folder", 0o755, mtime_ns=whole, children=((b"dir", folder),)))
    assert GNU_TAR is not None
    subprocess.run([GNU_TAR, *options, "-cf", tmp_path / "a.tar", "-C", tmp_path / "source", "."], check=True)
    store = MemoryContent()
    assert import_tar(store, tmp_path / "a.tar").layer_id == import_tree(store, tmp_path / "source").layer_id


Member = tuple[str, dict[str, object]]


def archive(*members: Member, data: bytes = b"") -> bytes:
    """A small archive; `size` of a member counts bytes of `data`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, fields in members:
            info = tarfile.TarInfo(name)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data) if info.size else None)
    return buffer.getvalue()


FOLDER = {"type": tarfile.DIRTYPE, "mode": 0o755}
LINK = {"type": tarfile.LNKTYPE}
SYMLINK = {"type": tarfile.SYMTYPE}


def test_implied_folders_and_odd_spellings(tmp_path: Path) -> None:
    imported = import_bytes(tmp_path, archive(("/a//./b/c", {}), ("./d/", FOLDER)))
    assert [entry.path for entry in imported.manifest.entries] == [b"", b"a", b"a/b", b"a/b/c", b"d"]
    implied = imported.manifest.find(b"a/b")
    assert implied is not None
    assert (implied.mode, implied.uid, implied.gid, implied.mtime_ns) == (0o755, 0, 0, 0)


def test_the_last_member_of_a_name_counts(tmp_path: Path) -> None:
    members: tuple[Member, ...] = (
        ("file", {"mode": 0o600}),
        ("link", {**LINK, "linkname": "file"}),
        ("file", {"mode": 0o644}),
        ("dir", {**FOLDER, "mode": 0o700}),
        ("dir/in", {}),
        ("dir", {**FOLDER, "mode": 0o750}),
    )
    found = {entry.path: entry for entry in import_bytes(tmp_path, archive(*members)).manifest.entries}
    assert (found[b"file"].mode, found[b"link"].mode) == (0o644, 0o600)
    assert found[b"link"].kind is Kind.REGULAR
    assert found[b"dir"].mode == 0o750
    assert b"dir/in" in found


def test_a_hard_link_before_its_first_name_in_order(tmp_path: Path) -> None:
    imported = import_bytes(tmp_path, archive(("z", {"mode": 0o600}), ("a", {**LINK, "linkname": "./z"})))
    assert [(e.path, e.kind, e.mode, e.target) for e in imported.manifest.entries[1:]] == [
        (b"a", Kind.REGULAR, 0o600, b""),
        (b"z", Kind.HARDLINK, 0, b"a"),
    ]


def block(data: bytes, at: int, field: bytes) -> bytes:
    """Change a field of the first header and make its checksum right."""
    head = bytearray(data[:512])
    head[at : at + len(field)] = field
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + data[512:]


ONE = archive(("file", {"size": 600}), data=b"x" * 600)


def extended(records: bytes, kind: bytes = b"x") -> bytes:
    """An extended header with these bytes as its records."""
    info = tarfile.TarInfo("pax")
    info.size, info.type = len(records), kind
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    while len(b"%d" % (size + len(b"%d" % size))) != len(b"%d" % size):
        size += 1
    return b"%d %s=%s\n" % (size + len(b"%d" % size), key, value)


SPARSE = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0") + record(b"GNU.sparse.realsize", b"600")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (archive(("../evil", {})), "leads outside"),
        (archive(("a/../../evil", {})), "leads outside"),
        (archive(("x" * 5000, {})), "too long"),
        (archive(("a", {**SYMLINK, "linkname": "/etc"}), ("a/passwd", {})), "no folder"),
        (archive(("a", {}), ("a/b", {})), "no folder"),
        (archive(("a", FOLDER), ("a", {})), "in place of a folder"),
        (archive(("a", {**LINK, "linkname": "b"})), "no file before it"),
        (archive(("a", FOLDER), ("b", {**LINK, "linkname": "a"})), "no file before it"),
        (archive(("a", {**LINK, "linkname": "../../etc/shadow"})), "leads outside"),
        (archive(("a", {**LINK, "linkname": "a"})), "no file before it"),
        (ONE[:1100], "cut off"),
        (ONE[:600], "cut off"),
        (ONE[:1536], "cut off"),
        (ONE[:700], "near file: it is cut off"),
        (ONE[:1536] + b"garbage" * 1000, "broken number|wrong checksum"),
        (block(ONE, 124, b"\xff" * 12), "size out of range"),
        (block(ONE, 124, b"\x80" + b"\xff" * 11), "size out of range"),
        (block(ONE, 124, b"99999999999\0"), "broken number"),
        (block(ONE, 156, b"M"), "type b'M'"),
        (block(ONE, 124, b"77777777777\0"), "cut off"),
        (extended(record(b"size", b"x")) + ONE, "broken number"),
        (extended(record(b"size", b"9" * 30)) + ONE, "broken number"),
        (extended(record(b"mtime", b"nan")) + ONE, "broken time"),
        (extended(b"9999 path=x\n") + ONE, "broken extended header"),
        (extended(b"5 path=x\n") + ONE, "broken extended header"),
        (extended(b"0 path=x\n") + ONE, "broken extended header"),
        (extended(b"path=x\n") + ONE, "broken"),
        (extended(b"1" * 60_000) + ONE, "broken"),
        (extended(record(b"path", b"a\0b")) + ONE, "leads outside"),
        (extended(b"", b"x") * 40 + ONE, "too many extended headers"),
        (extended(record(b"path", b"x")) + bytes(1024), "not there"),
        (block(extended(b""), 124, b"77777777777\0") + ONE, "too large"),
        (block(extended(b"", b"L"), 124, b"77777777777\0") + ONE, "too large"),
        (b"".join(extended(record(b"k%d" % n, b"v" * 2**20), b"g") for n in range(3)) + ONE, "too many global"),
        (extended(record(b"SCHILY.acl.access", b"user:nobody-here-at-all:rwx")) + ONE, "unknown here"),
        (extended(record(b"SCHILY.acl.access", b"u:99999999999:rwx")) + ONE, "no ACL entry|unknown here"),
        (extended(SPARSE) + ONE, "less data than it needs"),
        (extended(record(b"GNU.sparse.map", b"0,10,5,10")) + ONE, "broken map"),
        (extended(record(b"GNU.sparse.map", b"0,10,5")) + ONE, "broken map"),
        (extended(record(b"GNU.sparse.map", b"0,601")) + ONE, "broken map"),
        (
            extended(record(b"GNU.sparse.map", b"0,300,1000,400") + record(b"GNU.sparse.size", b"9999")) + ONE,
            "broken map",
        ),
        (b"\x1f\x8b\x08\0 not really compressed", "cannot be read"),
        (b"BZh9 not really compressed", "cannot be read"),
        (b"\xfd7zXZ\0 not really compressed", "cannot be read"),
    ],
)
def test_hostile_and_damaged_archives(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(SourceUnsupported, match=reason):
        import_bytes(tmp_path, data)


def test_a_checksum_over_signed_bytes(tmp_path: Path) -> None:
    """As some old programs wrote it."""
    head = bytearray(block(ONE, 0, b"\xff\xfe"))
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in head[:512])
    assert import_bytes(tmp_path, bytes(head)).manifest.entries[1].path == b"\xff\xfele"


def test_limits_of_manifests_hold_for_archives(tmp_path: Path) -> None:
    with pytest.raises(ManifestInvalid):
        import_bytes(tmp_path, extended(record(b"uid", b"9" * 15)) + ONE)
    with pytest.raises(ManifestInvalid):
        import_bytes(tmp_path, archive(("a", {**SYMLINK, "linkname": ""})))


def test_what_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(SourceUnsupported, match="no tar archive but a folder"):
        import_tar(MemoryContent(), tmp_path)
    with pytest.raises(SourceUnsupported, match="no tar archive but a file of no kind"):
        import_bytes(tmp_path, b"hello")


def test_every_cut_and_every_flip_of_a_header_is_an_error_or_a_tree(tmp_path: Path) -> None:
    members: tuple[Member, ...] = (("a", {"size": 600}), ("b", {**SYMLINK, "linkname": "x" * 150}), ("c", FOLDER))
    data = archive(*members, data=b"x" * 600)
    for end in range(0, -(-len(data.rstrip(b"\0")) // 512) * 512, 211):
        with pytest.raises(SourceUnsupported):
            import_bytes(tmp_path, data[:end])
    for at in range(0, 512, 11):
        for changed in (b"\xff", b"\0", b"7"):
            try:
                import_bytes(tmp_path, block(data, at, changed))
            except (SourceUnsupported, ManifestInvalid):
                continue


def test_a_sparse_member_costs_nothing(tmp_path: Path) -> None:
    records = record(b"GNU.sparse.map", b"5000000000,600") + record(b"GNU.sparse.size", b"10000000000")
    imported = import_bytes(tmp_path, extended(records) + ONE)
    entry = imported.manifest.find(b"file")
    assert entry is not None
    assert [extent.length for extent in entry.extents] == [4999999488, 4096, 10000000000 - 4999999488 - 4096]


def test_an_archive_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive(("file", {"size": 3 << 20}), data=os.urandom(3 << 20)))

    def touch(done: int, total: int) -> None:
        os.utime(path)

    with pytest.raises(TreeChanged, match=r"a\.tar"):
        import_tar(MemoryContent(), path, progress=touch)


def test_progress_counts_bytes_of_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive(("file", {"size": 5 << 20}), data=os.urandom(5 << 20)))
    told: list[tuple[int, int]] = []
    import_tar(MemoryContent(), path, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (path.stat().st_size,) * 2
    assert len(told) > 2


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ANY = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user::rw-,group::r--,other::---", acl((1, 6, ANY), (4, 4, ANY), (0x20, 0, ANY))),
        (
            "u::rwx\nu:1000:r-x\ng::r-x\nu:7:-w-\nm::rwx\no::r-x\n",
            acl((1, 7, ANY), (2, 2, 7), (2, 5, 1000), (4, 5, ANY), (0x10, 7, ANY), (0x20, 5, ANY)),
        ),
        ("user:lisa:rwx:502,group:0:r--", acl((2, 7, 502), (8, 4, 0))),
        ("user:root:r--  #effective:r--", acl((2, 4, 0))),
    ],
)
def test_acl_text(text: str, expected: bytes) -> None:
    assert acl_to_bytes(text) == expected


@pytest.mark.parametrize("text", ["x::rwx", "user", "user::rwz", "user::rrrr", "user:4294967295:r", "user:²:r", "::"])
def test_text_that_is_no_acl(text: str) -> None:
    with pytest.raises(AclInvalid):
        acl_to_bytes(text)


def test_acls_come_through_the_records_of_gnu_tar(tmp_path: Path) -> None:
    imported = import_bytes(
        tmp_path, extended(record(b"SCHILY.acl.access", b"user::rw-,user:7:r--,group::r--,mask::r--,other::r--")) + ONE
    )
    entry = imported.manifest.find(b"file")
    assert entry is not None
    assert [name for name, _ in entry.xattrs] == [b"system.posix_acl_access"]
