"""What a node writes down about each of its applications.

An `AppRecord` is the durable truth: what the application is, its epoch, and the state it is *meant* to be in. What is
really executing, the engine tells. `AppShelf` keeps records as STATE/apps/APPID/record.json, replaced atomically and
fsynced, so that a record read back is one that was written.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.config import MAX_ADDRESSES, is_address
from backends.folders import remove_tree
from chunkstore.digest import ID_BYTES, LayerId
from p2player.appstate import AppState
from p2player.errors import Refused, Usage

MAX_RECORD_BYTES = 512 * 1024
MAX_CONFIG_CHARS = 64 * 1024
MAX_TEXT = 255
MAX_REASON = 500
MAX_EPOCH = 2**53 - 1  # what every JSON reader can hold

_FORMAT = 1
_ID = re.compile(r"[0-9a-f]{32}")
_HEX_LAYER = re.compile(rf"[0-9a-f]{{{2 * ID_BYTES}}}")
_BACKEND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class BadRecord(Usage):
    """A record that came from a file or a peer is not one."""


@dataclass(frozen=True, slots=True)
class AppRecord:
    """One application as this node knows it.

    Attributes:
        id: 32 hex digits, the same wherever the application goes.
        config: the text of its configuration file.
        epoch: fencing number; only the holder of the highest one may run the application.
        created_s: seconds since the Unix epoch, where it was first created.
        reason: why it is in its state, where that needs telling; at most `MAX_REASON` characters.
    """

    id: str
    name: str
    backend: str
    base: LayerId
    app: LayerId
    config: str
    addresses: tuple[str, ...]
    epoch: int
    state: AppState
    created_s: float
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able values; layers in hex."""
        return {
            "format": _FORMAT,
            "id": self.id,
            "name": self.name,
            "backend": self.backend,
            "base": self.base.hex(),
            "app": self.app.hex(),
            "config": self.config,
            "addresses": list(self.addresses),
            "epoch": self.epoch,
            "state": self.state.value,
            "created_s": self.created_s,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, document: object) -> "AppRecord":
        """The opposite of `to_dict`, also for documents of a peer.

        Raises:
            BadRecord: a field is missing, of the wrong type, or out of bounds.
        """
        fields = _Fields(document)
        if fields.get("format", int) != _FORMAT:
            raise BadRecord(f"application record: unknown format {fields.get('format', int)}")
        addresses = fields.get("addresses", list)
        if len(addresses) > MAX_ADDRESSES or not all(isinstance(a, str) and is_address(a) for a in addresses):
            raise BadRecord("application record: bad addresses")
        epoch = fields.get("epoch", int)
        if not 1 <= epoch <= MAX_EPOCH:
            raise BadRecord("application record: bad epoch")
        try:
            state = AppState(fields.text("state"))
        except ValueError:
            raise BadRecord("application record: unknown state") from None
        created_s = float(fields.get("created_s", int | float))
        if not math.isfinite(created_s):
            raise BadRecord("application record: bad created_s")
        return cls(
            id=fields.text("id", _ID),
            name=fields.text("name", _NAME),
            backend=fields.text("backend", _BACKEND),
            base=LayerId(bytes.fromhex(fields.text("base", _HEX_LAYER))),
            app=LayerId(bytes.fromhex(fields.text("app", _HEX_LAYER))),
            config=fields.text("config", most=MAX_CONFIG_CHARS),
            addresses=tuple(addresses),
            epoch=epoch,
            state=state,
            created_s=created_s,
            reason=fields.text("reason", most=MAX_REASON),
        )


class _Fields:
    """Typed reads of a document that anybody may have written."""

    def __init__(self, document: object) -> None:
        if not isinstance(document, dict):
            raise BadRecord("application record: not a table")
        self._document: dict[Any, Any] = document

    def get(self, key: str, kind: Any) -> Any:
        value = self._document.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise BadRecord(f"application record: bad {key}")
        return value

    def text(self, key: str, pattern: re.Pattern[str] | None = None, most: int = MAX_TEXT) -> str:
        value: str = self.get(key, str)
        if len(value) > most or (pattern is not None and not pattern.fullmatch(value)):
            raise BadRecord(f"application record: bad {key}")
        return value


def check_name(name: str) -> str:
    """The name, when it may name an application.

    Raises:
        Usage: it may not.
    """
    if not _NAME.fullmatch(name):
        raise Usage(f"bad name {name!r}: use 1 to 63 letters, digits, dots, dashes and underscores")
    return name


class AppShelf:
    """The folder STATE/apps: one folder an application. Blocking; one thread at a time for one application."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, app_id: str) -> Path:
        return self._root / app_id

    def load(self) -> tuple[list[AppRecord], dict[str, str]]:
        """All records, and for each folder that cannot be read: why.

        A folder without a record is what a crash left of a creation or a removal, and is deleted. One with an
        unreadable record is left as it is: somebody's data may be in it.
        """
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        records: list[AppRecord] = []
        damaged: dict[str, str] = {}
        for folder in sorted(self._root.iterdir()):
            if not _ID.fullmatch(folder.name):
                continue
            try:
                record = self._read(folder / "record.json")
            except (OSError, BadRecord) as error:
                damaged[folder.name] = str(error)
            else:
                if record is None:
                    remove_tree(folder)
                elif record.id != folder.name:
                    damaged[folder.name] = "the record is of another application"
                else:
                    records.append(record)
        return records, damaged

    def write(self, record: AppRecord) -> None:
        """Make `record` durable, in place of the earlier one."""
        folder = self.folder(record.id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "record.json"
        first = not path.exists()
        new = folder / "record.json.new"
        with open(new, "w", encoding="utf-8") as file:
            json.dump(record.to_dict(), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
        _sync_folder(folder)
        if first:
            _sync_folder(self._root)

    def delete(self, app_id: str) -> None:
        """Forget an application and all its files; the record goes first, so a crash leaves what `load` deletes."""
        folder = self.folder(app_id)
        with contextlib.suppress(FileNotFoundError):
            (folder / "record.json").unlink()
            _sync_folder(folder)
        remove_tree(folder)

    def _read(self, path: Path) -> AppRecord | None:
        try:
            with open(path, "rb") as file:
                text = file.read(MAX_RECORD_BYTES)
        except FileNotFoundError:
            return None
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise BadRecord(f"{path}: not a readable record") from None
        return AppRecord.from_dict(document)


def clip(reason: str) -> str:
    """A reason that fits a record, on one line."""
    return " ".join(reason.split())[:MAX_REASON]


def moved(record: AppRecord, state: AppState, *, epoch: int | None = None, reason: str = "") -> AppRecord:
    """The record in another state.

    Raises:
        Refused: `epoch` is lower than the one on record.
    """
    if epoch is not None and not record.epoch <= epoch <= MAX_EPOCH:
        raise Refused(f"{record.name}: epoch {epoch} is below {record.epoch}")
    return replace(record, state=state, epoch=record.epoch if epoch is None else epoch, reason=clip(reason))


def unique(records: Iterable[AppRecord], text: str) -> AppRecord | None:
    """The record that `text` names: a name, an id, or the beginning of an id of at least 8 digits.

    Raises:
        Refused: several ids begin so.
    """
    found = list(records)
    for record in found:
        if text in (record.name, record.id):
            return record
    matches = [record for record in found if len(text) >= 8 and record.id.startswith(text)]
    if len(matches) > 1:
        raise Refused(f"{text} is ambiguous: {', '.join(record.name for record in matches)}")
    return matches[0] if matches else None


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
