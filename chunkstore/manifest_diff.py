"""What changed between two trees, path by path."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from chunkstore.entries import Entry, Kind
from chunkstore.manifest import Manifest


class Difference(StrEnum):
    """How a path differs from the older tree."""

    ADDED = "added"
    REMOVED = "removed"
    CONTENT = "content"
    """Other bytes, another symlink text, or another kind of file; attributes may differ as well."""
    ATTRIBUTES = "attributes"
    """The same content with another owner, mode, time, extended attribute, or hard link."""


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs, and how."""

    path: bytes
    what: Difference


def diff(old: Manifest, new: Manifest) -> list[Change]:
    """Compare two trees; changes are in bytewise order of path.

    A hard link is compared by what it leads to, so that removing a first name does not make its other names
    look rewritten.
    """
    changes: list[Change] = []
    for before, after in _pairs(old, new):
        if before is None:
            assert after is not None
            changes.append(Change(after.path, Difference.ADDED))
        elif after is None:
            changes.append(Change(before.path, Difference.REMOVED))
        elif before != after:
            what = _compare(old.resolve(before), new.resolve(after))
            if what is None and before.kind is not after.kind:
                what = Difference.ATTRIBUTES
            if what is not None:
                changes.append(Change(after.path, what))
    return changes


def _compare(before: Entry, after: Entry) -> Difference | None:
    if (before.kind, before.table, before.device) != (after.kind, after.table, after.device):
        return Difference.CONTENT
    if before.kind is Kind.SYMLINK and before.target != after.target:
        return Difference.CONTENT
    return None if replace(before, path=after.path) == after else Difference.ATTRIBUTES


def _pairs(old: Manifest, new: Manifest) -> Iterator[tuple[Entry | None, Entry | None]]:
    """Merge two ordered trees: entries with the same path together, others alone."""
    before, after = iter(old.entries), iter(new.entries)
    left, right = next(before, None), next(after, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left.path < right.path):
            yield left, None
            left = next(before, None)
        elif left is None or right.path < left.path:
            yield None, right
            right = next(after, None)
        else:
            yield left, right
            left, right = next(before, None), next(after, None)
