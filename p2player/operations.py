"""Long work that a client starts, watches and may cancel: the resources under `/v1/operations`.

An operation runs in the node, not in the request that started it: a client that goes away loses nothing, and another
may ask how it went. Finished ones are kept for a while, a bounded number of them.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import trio

from p2player import errors, faults
from p2player.log import Log

KEPT = 256
MIN_TELL_S = 0.1

State = Literal["running", "done", "failed", "cancelled"]


@dataclass
class Operation:
    """One piece of long work.

    `progress` counts bytes where the work moves bytes; `message` names the present step.
    """

    kind: str
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    state: State = "running"
    done: int = 0
    total: int = 0
    message: str = ""
    result: dict[str, Any] | None = None
    error: errors.P2PlayerError | None = None
    started_at: float = field(default_factory=time.time)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _changed: trio.Event = field(default_factory=trio.Event)
    _ended: trio.Event = field(default_factory=trio.Event)
    _told_at: float = 0.0

    def row(self) -> dict[str, Any]:
        """The document of the API."""
        return {
            "id": self.id,
            "kind": self.kind,
            "state": self.state,
            "progress": {"done": self.done, "total": self.total, "message": self.message},
            "result": self.result,
            "error": None if self.error is None else {"code": self.error.code, "message": self.error.message},
        }

    def progress(self, done: int, total: int, message: str = "") -> None:
        """Note how far it is; wakes watchers at most ten times a second. Call it in the trio thread."""
        self.done, self.total = done, total
        if message:
            self.message = message
        now = time.monotonic()
        if now - self._told_at >= MIN_TELL_S:
            self._told_at = now
            self.tell()

    def tell(self) -> None:
        """Wake everyone in `wait`."""
        self._changed.set()
        self._changed = trio.Event()

    def end(self) -> None:
        """Wake everyone for good."""
        self._ended.set()
        self.tell()

    async def wait(self, seconds: float, every_s: float = 0.0) -> None:
        """Return when it ended, or `seconds` passed, or it changed; for a change not before `every_s` seconds."""
        if self.state != "running":
            return
        with trio.move_on_after(seconds):
            with trio.move_on_after(every_s):
                await self._ended.wait()
            if self.state == "running":
                await self._changed.wait()

    def thread_progress(self, message: str = "") -> Callable[[int, int], None]:
        """A callback for worker threads: reports into the trio thread, and raises `trio.Cancelled` once cancelled."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < MIN_TELL_S and done < total:
                return
            last = now
            trio.from_thread.check_cancelled()
            trio.from_thread.run_sync(self.progress, done, total, message)

        return report


Work = Callable[[Operation], Awaitable[dict[str, Any]]]


class Operations:
    """All operations of this node; lives in the node's nursery."""

    def __init__(self, nursery: trio.Nursery, log: Log) -> None:
        self._nursery = nursery
        self._log = log
        self._all: OrderedDict[str, Operation] = OrderedDict()

    def start(self, kind: str, work: Work) -> Operation:
        """Start `work` in the background; its return value becomes the result."""
        operation = Operation(kind)
        self._all[operation.id] = operation
        for old in [key for key, value in self._all.items() if value.state != "running"][:-KEPT]:
            del self._all[old]
        self._nursery.start_soon(self._run, operation, work)
        return operation

    def get(self, operation_id: str) -> Operation:
        """The operation of that id.

        Raises:
            NotFound: there is none, or it ended long ago.
        """
        try:
            return self._all[operation_id]
        except KeyError:
            raise errors.NotFound(f"no operation {operation_id}") from None

    def running(self) -> bool:
        """Whether anything is under way."""
        return any(operation.state == "running" for operation in self._all.values())

    async def _run(self, operation: Operation, work: Work) -> None:
        state: State = "cancelled"
        try:
            with operation.scope:
                # Whatever one piece of work meets must end that work and not the node.
                try:
                    operation.result = await work(operation)
                    state = "done"
                except Exception as error:
                    operation.error = faults.describe(error)
                    if not isinstance(error, errors.P2PlayerError):
                        self._log.failure(f"{operation.kind} failed", error)
                    state = "failed"
        finally:
            operation.state = state
            operation.end()
