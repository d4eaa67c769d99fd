"""One application's machine together with what is remembered of it: where it stands, and how it ended."""

import signal
import time

from backends import procfs
from backends.base import EngineState, Exit, Started, Status, Workspace
from backends.errors import BackendError, StopFailed
from backends.libvirt import console, disks, ending, notes, savefile
from backends.libvirt.connection import Connection
from backends.libvirt.domain import name_of
from backends.libvirt.machine import Seen, VirtualMachine
from backends.libvirt.notes import Note, Phase

_GONE_S = 10.0
_LOOK_S = 0.02


class Instance:
    """Joins what libvirt says, the note in the run folder and the files in the state folder."""

    def __init__(self, connection: Connection, workspace: Workspace) -> None:
        self.workspace = workspace
        self.machine = VirtualMachine(connection, workspace.app_id, workspace.state_dir / disks.INSTANCE)
        self._connection = connection

    @property
    def name(self) -> str:
        return self.workspace.name

    @property
    def called(self) -> str:
        """What libvirt calls it."""
        return name_of(self.workspace.app_id)

    def note(self) -> Note | None:
        return notes.read(self.workspace.run_dir)

    def remember(self, note: Note | None) -> None:
        notes.write(self.workspace.run_dir, note)

    def look(self) -> Seen:
        """As `VirtualMachine.look`; what is left of one that crashed is cleared away first, and one that came late."""
        seen = self.machine.look()
        if seen is Seen.HELD and self._came_late():
            self.destroy()
            return Seen.GONE
        if seen is not Seen.CRASHED:
            return seen
        self.destroy()
        note = self.note()
        if note is not None:
            self.remember(note.now(Phase.ENDED, Exit(None, signal.SIGABRT)))
        return Seen.GONE

    def never_let_go(self) -> bool:
        """Whether a machine that is held was loaded by a node that was killed then."""
        note = self.note()
        return note is not None and note.phase is Phase.LOADING

    def _came_late(self) -> bool:
        """Whether a machine that is held was loaded after the load was given up: what executed once has a note."""
        note = self.note()
        return note is None or not note.this_boot or note.phase in (Phase.ENDED, Phase.SAVED)

    def status(self) -> Status:
        """Ask libvirt; of a machine that is gone, find out how it ended, and note that."""
        seen = self.look()
        console.trim(self.workspace.run_dir)
        if seen is Seen.GONE:
            note = self.note()
            return Status(EngineState.ABSENT) if note is None else self._end_of(note)
        if seen is Seen.HELD and self.never_let_go():
            return Status(EngineState.SUSPENDED)
        note = self.running_note()
        return Status(EngineState.RUNNING, None if note.process is None else note.process.pid, note.at)

    def running_note(self) -> Note:
        """The note of a machine that is there, also when a killed node had no time to write it."""
        note = self.note()
        if note is None or note.phase in (Phase.ENDED, Phase.SAVED):
            found = Note.fresh(Phase.RUNNING)
        elif note.phase is Phase.LOADING:
            found = note.now(Phase.RUNNING)
        else:
            found = note
        if found.process is None:
            found = found.of(self.machine.process())
        if found != note:
            self.remember(found)
        return found

    def started(self) -> Started:
        """What `start` and the like return for a machine that runs."""
        note = self.running_note()
        return Started(0 if note.process is None else note.process.pid, note.at)

    def saved(self) -> str | None:
        """The description of the machine whose memory can be continued; None when there is no such memory.

        Also gives the file its name, where a node was killed before it could.
        """
        if savefile.description(self._connection, savefile.new_path_of(self.workspace)) is not None:
            savefile.accept(self.workspace)
        return savefile.description(self._connection, savefile.path_of(self.workspace))

    def destroy(self) -> None:
        """End the machine at once.

        Raises:
            StopFailed: it is there still.
        """
        try:
            self.machine.destroy()
            problem = "" if self.wait_gone() else "it is there still"
        except BackendError as error:
            problem = str(error)
        if problem:
            found = self.machine.process()
            raise StopFailed(f"{self.name} cannot be ended: {problem}", () if found is None else (found.pid,))

    def wait_gone(self) -> bool:
        """QEMU ended: wait until libvirtd has noticed, too. False when it takes too long."""
        deadline = time.monotonic() + _GONE_S
        while self.machine.look() is not Seen.GONE:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)
        return True

    def wait_end(self, timeout_s: float) -> None:
        """Return after `timeout_s`, or when it ended or crashed."""
        note = self.running_note()
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0 and self.machine.look() in (Seen.EXECUTING, Seen.HELD):
            if note.process is None:
                time.sleep(min(left_s, _LOOK_S))
            elif procfs.wait_end(note.process, min(left_s, 0.5)):
                self.wait_gone()

    def _end_of(self, note: Note) -> Status:
        """The status of a machine that is gone."""
        if note.phase in (Phase.SAVING, Phase.LOADING) and self.saved() is not None:
            found = note.now(Phase.SAVED)
        elif note.phase in (Phase.RUNNING, Phase.SAVING) and note.this_boot:
            found = note.now(Phase.ENDED, _exit_of(ending.reason(self._connection.uri, self.called, note.wall_s)))
        elif note.phase is Phase.STOPPING:
            found = note.now(Phase.ENDED, Exit(0, None, asked=True))
        else:
            found = note
        if found != note:
            self.remember(found)
        if found.phase is Phase.SAVED:
            return Status(EngineState.SUSPENDED, started=found.at, exit=found.exit)
        if found.exit is not None and (found.this_boot or found.exit.asked):
            return Status(EngineState.EXITED, started=found.at, exit=found.exit)
        why = "it is gone, and libvirt does not say why" if found.this_boot else "the machine restarted"
        return Status(EngineState.LOST, started=found.at, reason=why)


def _exit_of(reason: str | None) -> Exit | None:
    """What libvirt's word for an end means; None when that is unknown."""
    match reason:
        case "shutdown":
            return Exit(0, None)
        case "destroyed":
            return Exit(None, signal.SIGKILL)
        case "crashed" | "failed":
            return Exit(None, signal.SIGABRT)
    return None
