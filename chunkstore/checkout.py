"""A manifest and its chunks back into a folder, byte for byte and bit for bit.

Theory of operation
-------------------
The tree is written into a staging folder that nobody else can enter (`staging`), in an order in which nothing
spoils what was done before: folders, all with mode 0700; symlinks, devices, fifos and sockets; regular files
(`filewriter`), each with its attributes, times last; hard links; then the attributes of the folders, the
deepest first, since writing into a folder changes its time and its mode may forbid it. Then everything is
synced at once and renamed into place.

No path of a manifest can lead outside: the manifest is checked as a whole before anything is written, every
folder is reached by descriptor without following links (`beneath`), and every file is made anew with O_EXCL
and O_NOFOLLOW.

An ordinary user cannot set owners, make device nodes, or write `trusted.*`: those are left out and counted,
and all else is equal. /proc must be mounted.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chunkstore.attributes import AttributeWriter, handle
from chunkstore.beneath import Beneath
from chunkstore.content import Content
from chunkstore.entries import Entry, Kind
from chunkstore.filewriter import FileWriter
from chunkstore.leftovers import Leftovers, prune
from chunkstore.manifest import Manifest
from chunkstore.progress import Meter, Progress
from chunkstore.staging import open_staging
from chunkstore.tree_errors import writing

_NODES = {
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}


@dataclass(frozen=True, slots=True)
class CheckedOut:
    """What a checkout made.

    `files` counts everything but folders; `bytes` is the size of regular files, holes included. `skipped`
    counts what this user may not or this filesystem cannot do: owners, devices, trusted, capabilities, acls,
    xattrs.
    """

    files: int
    bytes: int
    skipped: Mapping[str, int]


def checkout(
    content: Content,
    manifest: Manifest,
    dest: Path,
    *,
    progress: Progress | None = None,
    reuse: Path | None = None,
) -> CheckedOut:
    """Write a tree to a folder: complete, or not at all.

    After an error, a cancellation or a kill, the staging folder stays beside `dest`, and the same call goes
    on from there: what is in it is verified and kept.

    Args:
        content: where the chunks are. It is read from other threads meanwhile. manifest: the tree. dest:
        absent, or an empty folder. progress: called with bytes done and bytes in total; may raise to cancel.
        reuse: a checkout of an older version on the same filesystem; data of unchanged files is reflinked or
        copied from there
            once it is verified, and needs no chunks.

    Raises:
        CheckoutRefused: `dest` cannot take a tree; nothing was written.
        ManifestInvalid: the manifest is not a possible tree; nothing was written. Or a chunk does not fit it.
        ContentMissing: a chunk is not stored here.
        CheckoutFailed: the system refused to write, for example because the disk is full.
    """
    size = manifest.check()
    with open_staging(dest, manifest) as staging:
        with writing(b""):
            if staging.resumed:
                prune(staging.root, manifest)
        writer = _TreeWriter(manifest, staging.root, staging.resumed)
        meter = Meter(progress, size)
        writer.make_folders()
        writer.make_nodes()
        older = _open_older(reuse)
        try:
            leftovers = None
            if staging.resumed or older is not None:
                leftovers = Leftovers(staging.root, content.key, resumed=staging.resumed, older=older)
            files = (entry for entry in manifest.entries if entry.kind is Kind.REGULAR)
            FileWriter(content, staging.root, writer.attributes, meter, leftovers).write(files)
        finally:
            if older is not None:
                older.close()
        writer.make_links()
        meter.finish()  # the last chance to cancel
        with writing(b""):
            root = staging.settle()
        writer.finish_folders(root)
        with writing(b""):
            staging.publish(writer.finish_top)
    return CheckedOut(writer.made, size, dict(writer.attributes.skipped))


class _TreeWriter:
    """Makes everything of a tree but the content of its regular files."""

    def __init__(self, manifest: Manifest, root: Beneath, resumed: bool) -> None:
        self.attributes = AttributeWriter(alike=not resumed)
        self.made = sum(entry.kind is not Kind.DIRECTORY for entry in manifest.entries)
        self._entries = manifest.entries
        self._root = root
        self._resumed = resumed
        self._not_made: set[bytes] = set()

    def make_folders(self) -> None:
        """All of them, open to nobody but us, parents first."""
        for entry in self._entries[1:]:
            if entry.kind is Kind.DIRECTORY:
                with writing(entry.path):
                    folder, name = self._root.locate(entry.path)
                    try:
                        os.mkdir(name, 0o700, dir_fd=folder)
                    except FileExistsError:
                        if not self._resumed:
                            raise

    def make_nodes(self) -> None:
        """Symlinks and special files, with their attributes."""
        for entry in self._entries:
            if entry.kind in (Kind.DIRECTORY, Kind.REGULAR, Kind.HARDLINK):
                continue
            with writing(entry.path):
                folder, name = self._root.locate(entry.path)
                try:
                    self._make_node(entry, folder, name)
                except PermissionError:
                    if entry.kind not in (Kind.CHARACTER, Kind.BLOCK):
                        raise
                    self._skip(entry)
                    continue
                with handle(name, folder) as file:
                    self.attributes.apply(file, entry, fresh=True)

    def make_links(self) -> None:
        """Further names of files that are finished."""
        for entry in self._entries:
            if entry.kind is not Kind.HARDLINK:
                continue
            if entry.target in self._not_made:
                self._skip(entry)
                continue
            with writing(entry.path):
                first_folder, first_name = self._root.locate(entry.target)
                folder, name = self._root.locate(entry.path)
                os.link(first_name, name, src_dir_fd=first_folder, dst_dir_fd=folder, follow_symlinks=False)

    def finish_folders(self, root: Beneath) -> None:
        """The attributes of every folder below the top, the deepest first."""
        for entry in reversed(self._entries[1:]):
            if entry.kind is Kind.DIRECTORY:
                with writing(entry.path):
                    self.attributes.apply(root.folder(entry.path), entry, fresh=not self._resumed)

    def finish_top(self, fd: int) -> None:
        """The attributes of the top folder, which may have been there before."""
        self.attributes.apply(fd, self._entries[0], fresh=False)

    def _make_node(self, entry: Entry, folder: int, name: bytes) -> None:
        if entry.kind is Kind.SYMLINK:
            os.symlink(entry.target, name, dir_fd=folder)
        else:
            os.mknod(name, _NODES[entry.kind] | 0o600, os.makedev(*entry.device), dir_fd=folder)

    def _skip(self, entry: Entry) -> None:
        self._not_made.add(entry.path)
        self.attributes.skipped["devices"] += 1
        self.made -= 1


def _open_older(reuse: Path | None) -> Beneath | None:
    if reuse is None:
        return None
    try:
        return Beneath(os.open(reuse, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:  # it only saves work
        return None
