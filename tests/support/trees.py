"""Trees on disk for tests: built from a description, and looked at without the code under test."""

import errno
import hashlib
import os
import random
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

ROOT = os.geteuid() == 0
ORDINARY_USER = 65534
_READABLE = {} if ROOT else {"file": 0o400, "folder": 0o500}
"""What an ordinary user needs to import what they have made."""
SECOND = 10**9

Attributes = tuple[int, int, int, int, tuple[tuple[str, bytes], ...]]
"""mode, uid, gid, mtime_ns, xattrs"""


@dataclass(frozen=True)
class Node:
    """One file to be made. `pieces` of a regular file: (bytes, seed), where seed 0 means zeros."""

    kind: str
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    mtime_ns: int = 1_700_000_000_123_456_789
    pieces: tuple[tuple[int, int], ...] = ()
    target: bytes = b""
    xattrs: tuple[tuple[str, bytes], ...] = ()
    children: tuple[tuple[bytes, "Node"], ...] = field(default=())


def content(pieces: tuple[tuple[int, int], ...]) -> bytes:
    """The bytes of a regular file's pieces."""
    return b"".join(random.Random(seed).randbytes(size) if seed else bytes(size) for size, seed in pieces)


def build(path: bytes, node: Node) -> None:
    """Make `node` at `path`, which is absent. A hard link refers to a sibling that comes before it."""
    if node.kind == "folder":
        os.mkdir(path, 0o700)
        for name, child in node.children:
            build(os.path.join(path, name), child)
    elif node.kind == "file":
        with open(path, "wb") as file:
            for size, seed in node.pieces:
                if seed:
                    file.write(random.Random(seed).randbytes(size))
                else:
                    file.seek(size, os.SEEK_CUR)
            file.truncate()
    elif node.kind == "symlink":
        os.symlink(node.target, path)
    elif node.kind == "hardlink":
        os.link(os.path.join(os.path.dirname(path), node.target), path, follow_symlinks=False)
        return
    else:
        kinds = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "character": stat.S_IFCHR, "block": stat.S_IFBLK}
        os.mknod(path, kinds[node.kind] | 0o600, os.makedev(7, 3) if node.kind in ("character", "block") else 0)
    if ROOT:
        os.chown(path, *node.owner, follow_symlinks=False)
    if node.kind in ("file", "folder"):
        for xattr, value in node.xattrs:
            os.setxattr(path, xattr, value)
    if node.kind != "symlink":
        os.chmod(path, node.mode | _READABLE.get(node.kind, 0))
    os.utime(path, ns=(0, node.mtime_ns), follow_symlinks=False)


def snapshot(top: Path, *, owners: bool = True) -> dict[bytes, Any]:
    """Everything that a restored tree must have in common with the original, by path."""
    seen: dict[bytes, Any] = {}
    first_names: dict[tuple[int, int], bytes] = {}
    start = os.fsencode(top)
    ahead = [b""]
    while ahead:
        path = ahead.pop()
        full = os.path.join(start, path) if path else start
        status = os.lstat(full)
        detail: object = None
        if stat.S_ISDIR(status.st_mode):
            ahead += sorted((os.path.join(path, name) for name in os.listdir(full)), reverse=True)
        elif stat.S_ISREG(status.st_mode):
            with open(full, "rb") as file:
                detail = (status.st_size, hashlib.file_digest(file, "sha256").hexdigest())
        elif stat.S_ISLNK(status.st_mode):
            detail = os.readlink(full)
        elif not stat.S_ISFIFO(status.st_mode):
            detail = status.st_rdev
        link = None
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            link = first_names.setdefault((status.st_dev, status.st_ino), path)
        xattrs = {
            name: os.getxattr(full, name, follow_symlinks=False)
            for name in os.listxattr(full, follow_symlinks=False)
            if name.startswith(("user.", "security.capability", "system.posix_acl", "trusted.overlay."))
        }
        ids = (status.st_uid, status.st_gid) if owners else None
        seen[path] = (status.st_mode, ids, status.st_mtime_ns, detail, link, xattrs)
    return seen


def allocated(path: Path) -> int:
    """Bytes that the filesystem spends on a file."""
    return path.stat().st_blocks * 512


@contextmanager
def workplace() -> Iterator[Path]:
    """A temporary folder that a hypothesis example has for itself, whatever modes it sets in there."""
    with tempfile.TemporaryDirectory() as place:
        try:
            yield Path(place)
        finally:
            for folder, inner, _ in os.walk(place):
                for name in inner:
                    if not os.path.islink(os.path.join(folder, name)):
                        os.chmod(os.path.join(folder, name), 0o700)


def let_others_in(place: Path) -> None:
    """Open a temporary folder, and those above it, to other users."""
    for folder in (place, *place.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        os.chmod(folder, folder.stat().st_mode | 0o055)


def as_ordinary_user(function: Callable[[], str]) -> str:
    """Call a function in a child process that has given up root's rights (root only); gives what it returns."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        failed = 1
        try:
            os.setgroups([])
            os.setresgid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
            os.setresuid(ORDINARY_USER, ORDINARY_USER, ORDINARY_USER)
            os.write(write_end, function().encode())
            failed = 0
        except BaseException:  # the child must not return into the test runner
            os.write(write_end, traceback.format_exc().encode())
        finally:
            os._exit(failed)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, told
    return told


def may_make_devices(place: Path) -> bool:
    """Whether this process may make device nodes here."""
    try:
        os.mknod(place / "probe", stat.S_IFCHR, os.makedev(7, 3))
    except PermissionError:
        return False
    os.unlink(place / "probe")
    return True


def has_user_xattrs(place: Path) -> bool:
    """Whether this filesystem keeps extended attributes."""
    try:
        os.setxattr(place, "user.probe", b"")
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
            return False
        raise
    os.removexattr(place, "user.probe")
    return True


_ODD_NAMES = (b"new\nline", b"\xff\xfe not utf-8", "größe ☃".encode(), b"n" * 255, b"-rf", b" ", b"a.b", b"a-b", b"a")
_TARGETS = (b"..", b"/etc/passwd", b"../../../..", b"a", b"nowhere\n\xff", b"t" * 4000)

names = st.one_of(
    st.sampled_from(_ODD_NAMES),
    st.binary(min_size=1, max_size=12).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")),
)
times = st.integers(-SECOND * SECOND, 4 * SECOND * SECOND)
owners = st.tuples(st.sampled_from((0, 1000, 65534, 2**31)), st.sampled_from((0, 50, 2**31)))
pieces = st.lists(
    st.tuples(st.sampled_from((1, 100, 4096, 5000, 8192, 20_000, 70_000)), st.integers(0, 3)), max_size=5
).map(tuple)
xattrs = st.dictionaries(
    st.sampled_from(("user.a", "user.b", "user.n\u00e4me")), st.binary(max_size=40), max_size=2
).map(lambda found: tuple(sorted(found.items())))
modes = st.integers(0, 0o7777)


@st.composite
def folders(draw: st.DrawFn, depth: int = 3, least: int = 2) -> Node:
    """A folder with anything in it that the user of the test may make, devices aside."""
    children: dict[bytes, Node] = {}
    for name in draw(st.lists(names, min_size=least, max_size=5, unique=True)):
        kinds = ["file", "file", "symlink", "fifo", "socket", *(["folder"] * 3 if depth else [])]
        linkable = [other for other, node in children.items() if node.kind not in ("folder", "hardlink")]
        kind = draw(st.sampled_from([*kinds, "hardlink"] if linkable else kinds))
        mtime_ns, owner = draw(times), draw(owners)
        if kind == "folder":
            children[name] = draw(folders(depth - 1, 0))
        elif kind == "file":
            children[name] = Node(kind, draw(modes), owner, mtime_ns, draw(pieces), xattrs=draw(xattrs))
        elif kind == "symlink":
            children[name] = Node(kind, 0o777, owner, mtime_ns, target=draw(st.sampled_from(_TARGETS)))
        elif kind == "hardlink":
            children[name] = Node(kind, target=draw(st.sampled_from(linkable)))
        else:
            children[name] = Node(kind, draw(modes), owner, mtime_ns)
    return Node(
        "folder",
        draw(modes),
        draw(owners),
        draw(times),
        xattrs=draw(xattrs),
        children=tuple(children.items()),
    )
