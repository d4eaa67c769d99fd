"""Turn a tree that is a checkout of one image into the next image, by touching only what changed.

The final image of a migration is put in place while the app is suspended, so what counts is the time for little
changes in much data. Changed files are checked out into a scratch folder beside the tree and moved over by rename;
removed ones are removed; folders in which anything happened get their attributes anew, the deepest first. The tree
belongs to nobody but the migration: nothing runs in it yet, and a kill in between costs the migration, not the app.

Hard links and device nodes are left to a full checkout, and so is a change of more than half of the content.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from backends.folders import remove_tree
from chunkstore.attributes import AttributeWriter
from chunkstore.beneath import Beneath
from chunkstore.checkout import checkout
from chunkstore.content import Content
from chunkstore.entries import Entry, Kind
from chunkstore.manifest import Manifest
from chunkstore.manifest_diff import Change, Difference, diff
from chunkstore.staging import sync_filesystem

MAX_CHANGES = 10_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFT_ALONE = (Kind.HARDLINK, Kind.CHARACTER, Kind.BLOCK)


def patch(content: Content, old: Manifest, new: Manifest, tree: Path, scratch: Path) -> bool:
    """Make `tree`, which is `old`, into `new`; durable when this returns.

    Args:
        content: has the chunks of whatever changed.
        scratch: an absent folder on the same filesystem; absent again afterwards.

    Returns:
        False when a full checkout is the better way: the tree was not touched.

    Raises:
        StoreError, OSError: it is neither the one nor the other now.
    """
    changes = diff(old, new)
    plan = _Plan(old, new, changes)
    if not plan.pays():
        return False
    try:
        checkout(content, plan.scratch_manifest(), scratch)
        with Beneath(os.open(tree, _FOLDER)) as there, Beneath(os.open(scratch, _FOLDER)) as fresh:
            plan.carry_out(there, fresh)
            sync_filesystem(there.root)
    finally:
        remove_tree(scratch)
    return True


class _Plan:
    """What is to be done to get from one manifest to the other."""

    def __init__(self, old: Manifest, new: Manifest, changes: list[Change]) -> None:
        self._old = {entry.path: entry for entry in old.entries}
        self._new = {entry.path: entry for entry in new.entries}
        self._size = new.size
        gone = {Difference.REMOVED}
        self.removed = [c.path for c in changes if c.what in gone or self._changes_nature(c.path)]
        self.made = [c.path for c in changes if c.what not in gone and self._new[c.path].kind is not Kind.DIRECTORY]
        self.folders = [
            c.path
            for c in changes
            if c.what not in gone and self._new[c.path].kind is Kind.DIRECTORY and not self._is_folder(c.path)
        ]
        changed = {c.path for c in changes if c.what not in gone}
        above = {c.path.rpartition(b"/")[0] for c in changes if c.path}
        self.touched = sorted(
            path for path in changed | above if path in self._new and self._new[path].kind is Kind.DIRECTORY
        )

    def _is_folder(self, path: bytes) -> bool:
        return path in self._old and self._old[path].kind is Kind.DIRECTORY

    def _changes_nature(self, path: bytes) -> bool:
        """Whether a folder becomes something else, or something else a folder."""
        if path not in self._old or path not in self._new:
            return False
        return self._is_folder(path) != (self._new[path].kind is Kind.DIRECTORY)

    def pays(self) -> bool:
        """Whether this is less work than a full checkout, and within what is done here."""
        entries: Iterable[Entry] = (*self._old.values(), *self._new.values())
        if any(entry.kind in _LEFT_ALONE for entry in entries):
            return False
        moved = sum(self._new[path].size for path in self.made)
        return moved <= self._size // 2 and len(self.removed) + len(self.made) + len(self.folders) <= MAX_CHANGES

    def scratch_manifest(self) -> Manifest:
        """The files that are made, and the folders that lead to them, which everybody here may write to."""
        paths = {b""}
        for path in self.made:
            while path not in paths:
                paths.add(path)
                path = path.rpartition(b"/")[0]
        return Manifest(tuple(self._opened(self._new[path]) for path in sorted(paths)))

    @staticmethod
    def _opened(entry: Entry) -> Entry:
        return replace(entry, mode=0o700, xattrs=()) if entry.kind is Kind.DIRECTORY else entry

    def carry_out(self, there: Beneath, fresh: Beneath) -> None:
        """Change the tree; `fresh` has what is made."""
        for path in self.touched:
            if self._is_folder(path):
                _open_up(there.folder(path))
        for path in {path.rpartition(b"/")[0] for path in self.removed}:
            _open_up(there.folder(path))
        for path in sorted(self.removed, reverse=True):
            folder, name = there.locate(path)
            if self._is_folder(path):
                os.rmdir(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
        there.forget()  # a folder may have made room for another of the same name
        for path in self.folders:
            folder, name = there.locate(path)
            os.mkdir(name, 0o700, dir_fd=folder)
        for path in self.made:
            source, name = fresh.locate(path)
            target, _ = there.locate(path)
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
        attributes = AttributeWriter()
        for path in reversed(self.touched):
            attributes.apply(there.folder(path), self._new[path], fresh=False)


def _open_up(folder: int) -> None:
    """Give the owner every right to a folder; its mode is set anew at the end."""
    mode = os.fstat(folder).st_mode
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        os.fchmod(folder, stat.S_IMODE(mode) | stat.S_IRWXU)
