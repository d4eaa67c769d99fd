"""Owners, modes, times and extended attributes: what of them a manifest keeps, and how a file gets them back.

Kept of the extended attributes: `user.*`, `security.capability`, POSIX ACLs, and overlayfs marks
(`trusted.overlay.*`) but for those that name something of the machine they were made on. The rest (SELinux
labels, for example) belongs to the machine and not to the tree.

The order in which attributes are given back is forced: changing the owner clears setuid bits and file
capabilities; `user.*` needs write permission, which the final mode may take away; an ACL rewrites the group
bits of the mode; and everything before touches the times. So: owner, extended attributes, mode, ACLs, times.
"""

import errno
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from chunkstore.entries import Entry, Kind, Xattrs

OpenFile = int | str
"""A descriptor open for reading or writing, or the /proc path of one that is not (see `handle`)."""

_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_CAPABILITY = b"security.capability"
_OVERLAY = b"trusted.overlay."
_OVERLAY_LOCAL = frozenset(_OVERLAY + name for name in (b"impure", b"nlink", b"origin", b"upper", b"uuid"))
_NO_SUPPORT = (errno.EOPNOTSUPP, errno.ENOSYS)
_NO_RIGHT = (errno.EPERM, errno.EACCES, errno.EINVAL)  # EINVAL: an owner unknown to this user namespace


def is_kept(name: bytes) -> bool:
    """Whether a manifest keeps the extended attribute of this name."""
    if name.startswith(b"user."):
        return True
    if name.startswith(_OVERLAY):
        return name not in _OVERLAY_LOCAL
    return name == _CAPABILITY or name in _ACLS


@contextmanager
def handle(name: bytes, folder: int) -> Iterator[str]:
    """Hold on to a file of any kind, also a symlink itself, without opening it; gives a path for system calls.

    Raises:
        OSError: there is no such file in the folder (a descriptor), or /proc is not mounted.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def read_xattrs(file: OpenFile) -> Xattrs:
    """The extended attributes that a manifest keeps, sorted by name.

    Raises:
        OSError: they cannot be read. A filesystem that has none is no error.
    """
    try:
        listed = os.listxattr(file)
    except OSError as error:
        if error.errno in _NO_SUPPORT:
            return ()
        raise
    if not listed:
        return ()
    found: list[tuple[bytes, bytes]] = []
    for name in sorted(filter(is_kept, map(os.fsencode, listed))):
        try:
            found.append((name, os.getxattr(file, name)))
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since it was listed
                raise
    return tuple(found)


def strip_acls(folder: int) -> None:
    """Free a folder of what it inherited, so that files made in it inherit nothing.

    Raises:
        OSError: a list could not be removed.
    """
    for name in _ACLS:
        try:
            os.removexattr(folder, name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, *_NO_SUPPORT):
                raise


class AttributeWriter:
    """Gives files the attributes of their entries, and counts what this process may not or this filesystem cannot do.

    `skipped` counts files, by what they lack: owners, trusted, capabilities, acls, xattrs.

    Args:
        alike: all regular files that are made are born with the same owner and mode: by one process, with one mode, in
            folders that were all made for this tree. Then one of them is looked at.
    """

    def __init__(self, *, alike: bool = False) -> None:
        self.skipped: Counter[str] = Counter()
        self._not_ours: set[tuple[int, int]] = set()
        self._alike = alike
        self._born: tuple[int, int, int] | None = None

    def apply(self, file: OpenFile, entry: Entry, *, fresh: bool) -> None:
        """Set every attribute of `entry`, the times last.

        Args:
            file: the finished file, folder, or node.
            fresh: whether this checkout made it; otherwise foreign extended attributes are removed first.

        Raises:
            OSError: the system refused for another reason than missing rights or support.
        """
        uid, gid, mode = self._present(file, entry, fresh)
        mode_is_set = mode == entry.mode
        if uid != entry.uid or gid != entry.gid:
            mode_is_set = False
            self._chown(file, entry.uid, entry.gid, gid)
        if not fresh:
            self._remove_foreign(file, entry)
        for name, value in entry.xattrs:
            if name not in _ACLS:
                self._set_xattr(file, name, value)
        if entry.kind is not Kind.SYMLINK and not mode_is_set:
            os.chmod(file, entry.mode)
        for name, value in entry.xattrs:
            if name in _ACLS:
                self._set_xattr(file, name, value)
        os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))

    def _present(self, file: OpenFile, entry: Entry, fresh: bool) -> tuple[int, int, int]:
        """Owner, group and mode of a file as it is."""
        as_the_others = self._alike and fresh and entry.kind is Kind.REGULAR
        if as_the_others and self._born is not None:
            return self._born
        status = os.stat(file)
        present = (status.st_uid, status.st_gid, status.st_mode & 0o7777)
        if as_the_others:
            self._born = present
        return present

    def _chown(self, file: OpenFile, uid: int, gid: int, present_gid: int) -> None:
        """Both, or at least the group, which an ordinary user may set to one of their own."""
        if (uid, gid) not in self._not_ours:
            try:
                os.chown(file, uid, gid)
                return
            except OSError as error:
                if error.errno not in _NO_RIGHT:
                    raise
            try:
                if gid != present_gid:
                    os.chown(file, -1, gid)
            except OSError as error:
                if error.errno not in _NO_RIGHT:
                    raise
                self._not_ours.add((uid, gid))
        self.skipped["owners"] += 1

    def _set_xattr(self, file: OpenFile, name: bytes, value: bytes) -> None:
        try:
            os.setxattr(file, name, value)
        except OSError as error:
            if error.errno not in (*_NO_SUPPORT, *_NO_RIGHT):
                raise
            self.skipped[_word(name)] += 1

    def _remove_foreign(self, file: OpenFile, entry: Entry) -> None:
        wanted = {name for name, _ in entry.xattrs}
        for name, _ in read_xattrs(file):
            if name not in wanted:
                os.removexattr(file, name)


def _word(name: bytes) -> str:
    """What the summary of a checkout calls an extended attribute."""
    if name.startswith(_OVERLAY):
        return "trusted"
    if name == _CAPABILITY:
        return "capabilities"
    return "acls" if name in _ACLS else "xattrs"
