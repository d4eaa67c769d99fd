"""The memory of one container's processes, in images of CRIU: how they are made, and which of them count.

A dump is made aside, in `run/images.new`, and takes the place of `state/images` when it is whole. Of those that are
made to end the application, `run/images.old` keeps the one before until that is noted.

CRIU goes on when the node is killed. Whether a dump is under way is told by a note, which its node holds locked, and by
processes that bear its mark. A note that nobody holds, without such processes, is that of a dump that is over: it is
whole, or was killed in the middle and has left the application frozen, and its packets filtered.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from backends import criu, criuimages, procfs
from backends.base import Workspace
from backends.command import RUN_MARK
from backends.errors import BackendError
from backends.folders import remove_tree
from backends.packetlock import PacketLock
from backends.runccli import EngineFailed, Runc, end_marked, tail

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_MAX_MARK = 100
_ENDING = "Unfreezing tasks into 2"  # CRIU says so before it kills what it has saved
_WHOLE = "Dumping finished successfully"

_libc = ctypes.CDLL(None, use_errno=True)


class Dumps:
    """The images of one application, and the dump that is being made.

    Args:
        lock: the packet filter of its connections.
    """

    def __init__(self, workspace: Workspace, runc: Runc, lock: PacketLock) -> None:
        run = workspace.run_dir
        self.images = workspace.state_dir / "images"
        self.work = run / "criu"
        self._new = run / "images.new"
        self._old = run / "images.old"
        self._note = run / "dumping"
        self._runc = runc
        self._lock = lock

    def words(self, images: Path, *, tcp_established: bool) -> Sequence[str | Path]:
        """Arguments of runc for a dump or restore."""
        tcp = ["--tcp-established"] if tcp_established else []
        return ["--image-path", images, "--work-path", self.work, "--file-locks", *tcp]

    def make(
        self,
        container: str,
        run: str,
        *,
        leave_running: bool,
        tcp_established: bool,
        memory_bytes: Callable[[], int],
        ended: Callable[[], bool],
        undo: Callable[[], None],
        go_on: Callable[[], None],
    ) -> None:
        """Have the memory written to a new folder; the processes end unless `leave_running`.

        The packet filter then keeps their connections silent, until a restore or `release`. `forget` comes first.

        Args:
            container: what runc calls it.
            run: the run of the application that is saved.
            memory_bytes: how much there is to save, about.
            ended: whether the first process has ended.
            undo: takes back what CRIU did to the processes, before it is killed.
            go_on: lets the processes go on after a dump that failed, and calls `abandon`.

        Raises:
            EngineFailed: with CRIU's reason; the processes go on, unless they had ended.
        """
        self._new.mkdir(mode=0o700)
        leave = ["--leave-running"] if leave_running else []
        words = [*leave, *self.words(self._new, tcp_established=tcp_established), container]
        log = self.work / "dump.log"
        with self._noted(mark := f"{run}.dump"):
            try:
                self._runc.run(
                    "checkpoint",
                    *words,
                    mark=mark,
                    memory_bytes=memory_bytes,
                    spare=lambda: not leave_running and self._is_ending(ended),
                    undo=undo,
                )
            except EngineFailed as error:
                if not leave_running and self.is_whole():  # what failed came after CRIU
                    return
                reason = f"CRIU: {criu.why(log)}" if "criu failed" in str(error) else str(error)
                go_on()
                raise EngineFailed(reason) from error
            except (BackendError, OSError):
                go_on()
                raise

    def settle(
        self,
        *,
        ended: Callable[[], bool],
        undo: Callable[[], None],
        go_on: Callable[[], None],
        final: bool,
        interrupt: bool = False,
    ) -> bool:
        """See to a dump whose node was killed, unless it goes on still.

        Args:
            ended, undo, go_on: as for `make`.
            final: whether that node wanted the application to end, once it was saved.
            interrupt: end a dump that goes on.

        Returns:
            Whether there was one that is over and has not saved the application, which goes on.
        """
        with self._orphaned() as mark:
            if mark is None or (not interrupt and procfs.marked(RUN_MARK, mark)):
                return False
            end_marked(mark, lambda: final and self._is_ending(ended), undo)
            saved = final and self.is_whole()
            if not saved:
                go_on()
            self._note.unlink(missing_ok=True)
            return not saved

    def _is_ending(self, ended: Callable[[], bool]) -> bool:
        """Whether the dump under way has saved all and begun to end the processes."""
        return ended() or _ENDING in tail(self.work / "dump.log")

    def abandon(self) -> None:
        """The application goes on without having been saved: let its packets through, and remove the dump."""
        self._lock.open()
        self.forget()

    def forget(self) -> None:
        """Nothing is left of a dump that was not taken, or of one that another took the place of."""
        self._lock.release()
        remove_tree(self._new)
        remove_tree(self._old)
        (self.work / "dump.log").unlink(missing_ok=True)

    def release(self) -> None:
        """The memory is back in processes, or not wanted any more: remove what is left of it."""
        self.forget()
        remove_tree(self.images)

    def is_whole(self) -> bool:
        """Whether the dump that was begun last is whole, be it taken by `take_final` or not yet."""
        place = self._new if self._new.exists() else self.images
        return (place / "descriptors.json").exists() and _WHOLE in tail(self.work / "dump.log")

    def take_final(self) -> None:
        """Let a whole dump take the place of the earlier one, which is put aside. Idempotent.

        `images.new` is gone exactly when it was taken, so a node that was killed in between can tell.
        """
        if not self._new.exists():
            return
        if self.images.exists():
            remove_tree(self._old)
            self.images.rename(self._old)
        self._new.rename(self.images)

    def forget_old(self) -> None:
        """Remove what `take_final` put aside."""
        remove_tree(self._old)

    def take(self) -> None:
        """Let the new dump take the place of the earlier one, at once."""
        if self.images.exists():
            places = os.fsencode(self._new), os.fsencode(self.images)
            if _libc.renameat2(_AT_FDCWD, places[0], _AT_FDCWD, places[1], _RENAME_EXCHANGE) != 0:
                code = ctypes.get_errno()
                if code not in (errno.EINVAL, errno.ENOSYS):
                    raise OSError(code, os.strerror(code), str(self.images))
                remove_tree(self.images)  # a file system that cannot exchange
                self._new.rename(self.images)
            remove_tree(self._new)
        else:
            self._new.rename(self.images)

    def damage(self) -> str | None:
        """Why the images cannot be restored, as far as can be told at a glance."""
        return criuimages.damage(self.images)

    def paused_s(self) -> float | None:
        """How long the last dump kept the processes from executing; None when CRIU does not say."""
        return criu.paused_s(self.work / "stats-dump")

    @contextlib.contextmanager
    def _noted(self, mark: str) -> Iterator[None]:
        """Hold the note of a dump that is being made."""
        fd = os.open(self._note, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, mark.encode())
            try:
                yield
            finally:
                self._note.unlink(missing_ok=True)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _orphaned(self) -> Iterator[str | None]:
        """Hold the note of a dump whose node was killed, and tell its mark; None when there is none."""
        try:
            fd = os.open(self._note, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = None if os.fstat(fd).st_nlink == 0 else os.read(fd, _MAX_MARK).decode(errors="replace")
        except BlockingIOError:
            found = None
        try:
            yield found
        finally:
            os.close(fd)
