"""What the node asked of a container, kept in the run folder: LXD itself knows only that it runs or does not.

One file, replaced atomically. `used_at` is what LXD had for the time of the last start when a start was asked for: as
long as that has not changed, nothing of the application executed since.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from backends.base import Exit, Moment, Workspace
from backends.procfs import ProcessId

_NAME = "lxd.json"
_LOCK = "lxd.lock"
_MAX_BYTES = 16 << 10


class Phase(StrEnum):
    """The last that was asked, or became of it."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"  # with its memory
    SHELVED = "shelved"  # suspended without


@dataclass(frozen=True, slots=True)
class Note:
    """See the module.

    Attributes:
        boot: in which boot of the machine.
        init: the container's first process, as seen here.
        monitor: LXC's process that watches the container, and outlives it by a moment.
        started: when it began to run.
        used_at: see the module.
        memory: the start is one from saved memory.
        before: the note that a start replaced.
        exit: how it ended, where that is known.
        owner: the process that begins it; None when nobody does, or it was given up.
    """

    phase: Phase
    boot: str
    init: ProcessId | None = None
    monitor: ProcessId | None = None
    started: Moment | None = None
    used_at: str = ""
    memory: bool = False
    before: "Note | None" = None
    exit: Exit | None = None
    owner: ProcessId | None = None

    def to(self, phase: Phase, exit: Exit | None = None) -> "Note":
        """The same run, one step on."""
        return replace(self, phase=phase, exit=exit, before=None, owner=None)


def read(workspace: Workspace) -> Note | None:
    """The note; None when there is none, or the machine crashed while it was written."""
    try:
        with open(workspace.run_dir / _NAME, "rb") as file:
            return _note(json.loads(file.read(_MAX_BYTES)))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write(workspace: Workspace, note: Note | None) -> None:
    """Replace the note."""
    path = workspace.run_dir / _NAME
    if note is None:
        path.unlink(missing_ok=True)
        return
    workspace.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = Path(f"{path}.new")
    beside.write_text(json.dumps(asdict(note)))
    os.replace(beside, path)


@contextlib.contextmanager
def held(workspace: Workspace) -> Iterator[None]:
    """Hold the note, so that nobody who does the same changes it meanwhile; in whatever thread or process."""
    workspace.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(workspace.run_dir / _LOCK, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _note(document: dict[str, Any]) -> Note:
    before, started, exit = (document[name] for name in ("before", "started", "exit"))
    return Note(
        phase=Phase(document["phase"]),
        boot=str(document["boot"]),
        init=_process(document["init"]),
        monitor=_process(document["monitor"]),
        started=None if started is None else Moment(float(started["wall_s"]), float(started["monotonic_s"])),
        used_at=str(document["used_at"]),
        memory=bool(document["memory"]),
        before=None if before is None else _note(before),
        exit=None if exit is None else Exit(**exit),
        owner=_process(document.get("owner")),
    )


def _process(row: Any) -> ProcessId | None:
    return None if row is None else ProcessId(int(row[0]), int(row[1]))
