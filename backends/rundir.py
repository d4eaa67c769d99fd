"""What the process backend and its shim tell each other, in files of the run folder.

    lock     held by the shim (flock) for as long as it lives: one application, one supervisor
    live     written by the shim before the application executes: who runs, since when, in which boot
    exit     written by the shim after the last process ended: how the application ended
    intent   written by the node before it asks an application to end, `stop` or `suspend`, or an engine to save and
             then end it, `save`; `suspended` afterwards, where its exit code does not tell that it went well

Each file is replaced atomically and names the run that it is about, so a file left from an earlier run says nothing of
this one. Nothing is fsynced: a machine that crashed has no running processes, and the boot id tells. Standard
library only, as the shim needs it.
"""

import contextlib
import json
import os
from typing import Any, NamedTuple

from backends.procfs import ProcessId

_MAX_BYTES = 4096


class Live(NamedTuple):
    """A run of the application: the supervisor, the main process, and when it was executed."""

    run: str
    boot: str
    shim: ProcessId
    app: ProcessId
    wall_s: float
    monotonic_s: float


class Ended(NamedTuple):
    """How the run ended. `asked`: the shim was told to stop it. `left`: processes that survived SIGKILL."""

    run: str
    code: int | None
    signal: int | None
    asked: bool
    forced: bool
    left: tuple[ProcessId, ...]


class RunDir:
    """The run folder of one application."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock_path = os.path.join(path, "lock")

    def write_live(self, live: Live) -> None:
        self._write("live", live._asdict())

    def live(self) -> Live | None:
        """The latest run; None when there was none."""
        document = self._read("live")
        try:
            return Live(
                run=str(document["run"]),
                boot=str(document["boot"]),
                shim=ProcessId(*map(int, document["shim"])),
                app=ProcessId(*map(int, document["app"])),
                wall_s=float(document["wall_s"]),
                monotonic_s=float(document["monotonic_s"]),
            )
        except (KeyError, TypeError, ValueError):
            return None  # absent, or torn by a crash of the machine: no process of it can be left

    def write_ended(self, ended: Ended) -> None:
        self._write("exit", ended._asdict())

    def ended(self, run: str) -> Ended | None:
        """How that run ended; None when nobody has said so."""
        document = self._read("exit")
        if document.get("run") != run:
            return None
        document["left"] = tuple(ProcessId(*process) for process in document["left"])
        return Ended(**document)

    def write_intent(self, run: str, intent: str) -> None:
        self._write("intent", {"run": run, "intent": intent})

    def clear_intent(self) -> None:
        """The application was not ended after all."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.path, "intent"))

    def intent(self, run: str) -> str | None:
        """What the node asked of that run, or None."""
        document = self._read("intent")
        return str(document["intent"]) if document.get("run") == run else None

    def _write(self, name: str, document: dict[str, Any]) -> None:
        path = os.path.join(self.path, name)
        with open(path + ".new", "w", encoding="ascii") as file:
            json.dump(document, file)
        os.replace(path + ".new", path)

    def _read(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError, ValueError):
            with open(os.path.join(self.path, name), "rb") as file:
                document = json.loads(file.read(_MAX_BYTES))
            if isinstance(document, dict):
                return document
        return {}
