"""What is remembered of a run of a machine, in one file of the run folder, replaced atomically.

A machine that ended is simply gone from libvirt: the note tells what had been asked of it. Nothing is fsynced: a host
that crashed has no running machines, and the boot id tells.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from backends import procfs
from backends.base import Exit, Moment
from backends.procfs import ProcessId

_NAME = "machine.json"
_MAX_BYTES = 4096


class Phase(StrEnum):
    """How far a run came.

    LOADING: libvirt was asked to make it, without executing it. RUNNING: it was executed. SAVING, STOPPING: libvirt was
    asked to. SAVED: it was suspended. ENDED: `exit` says how.
    """

    LOADING = "loading"
    RUNNING = "running"
    SAVING = "saving"
    SAVED = "saved"
    STOPPING = "stopping"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Note:
    """One run: since when, in which boot of the host, as which process of QEMU."""

    phase: Phase
    boot: str
    wall_s: float
    monotonic_s: float
    process: ProcessId | None = None
    exit: Exit | None = None

    @classmethod
    def fresh(cls, phase: Phase) -> "Note":
        """A run that begins now."""
        now = Moment.now()
        return cls(phase, procfs.boot_id(), now.wall_s, now.monotonic_s)

    @property
    def at(self) -> Moment:
        return Moment(self.wall_s, self.monotonic_s)

    @property
    def this_boot(self) -> bool:
        return self.boot == procfs.boot_id()

    def of(self, process: ProcessId | None) -> "Note":
        return replace(self, process=process)

    def now(self, phase: Phase, exit: Exit | None = None) -> "Note":
        """The same run, which came farther."""
        return replace(self, phase=phase, exit=exit)


def read(run_dir: Path) -> Note | None:
    """The latest run; None when there was none, or its note was torn by a crash of the host."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        with (run_dir / _NAME).open("rb") as file:
            document: dict[str, Any] = json.loads(file.read(_MAX_BYTES))
        process, exit = document["process"], document["exit"]
        return Note(
            phase=Phase(document["phase"]),
            boot=str(document["boot"]),
            wall_s=float(document["wall_s"]),
            monotonic_s=float(document["monotonic_s"]),
            process=None if process is None else ProcessId(*map(int, process)),
            exit=None if exit is None else Exit(**exit),
        )
    return None


def write(run_dir: Path, note: Note | None) -> None:
    """Replace the note; None takes it away."""
    path = run_dir / _NAME
    if note is None:
        path.unlink(missing_ok=True)
        return
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(asdict(note)))
    os.replace(new, path)
