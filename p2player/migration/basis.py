"""Return bases: the final image of a finished migration, kept sealed for a while at both ends.

A folder STATE/migrations/ID without a journal is one: the vault with its key, the note of the final image, and
`basis.json`, which says whose it is and until when. The next migration of that app to or from this node seeds its own
vault with it (see `images`); either end may drop it at any time, and the next delta is then a full one. Of each app
only the newest is kept.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backends.folders import remove_tree
from chunkstore.vault import Vault
from p2player.migration.images import TREES
from p2player.migration.kept import IMAGE, VAULT
from p2player.proto.handoff.fields import Malformed, Real, Text, Whole
from p2player.statedir import write_atomic

NOTE = "basis.json"
MAX_NOTE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Basis:
    """One kept image of `size` bytes, in `folder`, until `expires_at` (seconds since the Unix epoch)."""

    folder: Path
    app_id: str
    size: int
    expires_at: float


class BasisShelf:
    """The bases of this node. Its methods block."""

    def __init__(self) -> None:
        self._kept: dict[str, Basis] = {}

    def load(self, folder: Path) -> bool:
        """Take up a folder that an earlier run of the node left; False when it is no basis."""
        basis = _read(folder)
        if basis is None:
            return False
        self._put(basis)
        return True

    def keep(self, folder: Path, app_id: str, size: int, expires_at: float) -> None:
        """Make a basis of a finished migration's folder."""
        note = {"app_id": app_id, "size": size, "expires_at": expires_at}
        write_atomic(folder / NOTE, json.dumps(note).encode())
        remove_tree(folder / TREES)
        self._put(Basis(folder, app_id, size, expires_at))

    def find(self, app_id: str) -> Basis | None:
        """The basis for an app, if one is kept."""
        return self._kept.get(app_id)

    def expire(self, now: float) -> None:
        """Wipe what has been kept long enough."""
        for basis in list(self._kept.values()):
            if basis.expires_at <= now:
                self.drop(basis.app_id)

    def drop(self, app_id: str) -> None:
        """Wipe the basis for an app, if one is kept."""
        basis = self._kept.pop(app_id, None)
        if basis is not None:
            wipe(basis.folder)

    def _put(self, basis: Basis) -> None:
        before = self._kept.get(basis.app_id)
        if before is not None and before.expires_at > basis.expires_at:
            before, basis = basis, before
        self._kept[basis.app_id] = basis
        if before is not None and before.folder != basis.folder:
            wipe(before.folder)


def wipe(folder: Path) -> None:
    """Destroy what a migration kept: the key first, then everything else."""
    Vault.destroy(folder / VAULT)
    remove_tree(folder)


def has_image(folder: Path) -> bool:
    """Whether a final image was noted in a migration's folder."""
    return (folder / IMAGE).is_file() and (folder / VAULT / "key").is_file()


def _read(folder: Path) -> Basis | None:
    try:
        with (folder / NOTE).open("rb") as file:
            note = json.loads(file.read(MAX_NOTE_BYTES))
        if not isinstance(note, dict):
            return None
        app_id = Text(32, hex_digits=32).load(note.get("app_id"))
        size, expires_at = Whole().load(note.get("size")), Real().load(note.get("expires_at"))
    except (OSError, ValueError, RecursionError, Malformed):
        return None
    return Basis(folder, app_id, size, expires_at)


def folders(root: Path) -> Iterator[Path]:
    """The folders of migrations, whatever is in them."""
    for place in sorted(root.iterdir()):
        if place.is_dir() and len(place.name) == 32:
            yield place
