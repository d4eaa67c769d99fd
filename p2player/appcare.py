"""Care for applications that nobody is acting on: after a node start, and while they run.

At node start `adopt` brings record and engine together:

    record        engine            done
    running       executes          adopted
    running       ended by itself   failed: that happened while no node was looking
    running       gone otherwise    started again: the machine restarted, its supervisor was killed, or it had been told
                                    to end by something that was then called off
    migrating,    anything          left to their migration
    staged
    others        executes          stopped: it must not

Later `watch` looks at all running applications once a second, and treats one that is gone by the same rules. An
application that must be started again twice within a minute has failed.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import trio

from backends.base import EngineState, Status
from backends.errors import BackendError
from p2player.apphost import HostedApp, Surroundings
from p2player.appstate import AppState
from p2player.errors import P2PlayerError

WATCH_INTERVAL_S = 1.0
RESTART_PAUSE_S = 60.0


class Caretaker:
    """Adopts and watches.

    Args:
        apps: all applications of the node, as of now.
        watch_interval_s: seconds between two looks.
        restart_pause_s: an application gone again sooner than this after a restart has failed.
    """

    def __init__(
        self,
        apps: Callable[[], Iterable[HostedApp]],
        around: Surroundings,
        *,
        watch_interval_s: float,
        restart_pause_s: float,
    ) -> None:
        self._apps = apps
        self._around = around
        self._watch_interval_s = watch_interval_s
        self._restart_pause_s = restart_pause_s
        self._restarted_s: dict[str, float] = {}

    async def adopt_all(self) -> None:
        """Adopt every application, all at once."""
        async with trio.open_nursery() as nursery:
            for app in self._apps():
                nursery.start_soon(self._adopt, app)

    async def watch(self) -> None:
        """Look after running applications until cancelled."""
        looking: set[str] = set()
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._watch_interval_s)
                alive: dict[str, list[HostedApp]] = {}
                for app in self._apps():
                    if app.alive:
                        alive.setdefault(app.backend.name, []).append(app)
                for engine in alive.keys() - looking:  # the others hang, or are slow
                    nursery.start_soon(self._look, engine, alive[engine], looking, nursery)

    async def _look(self, engine: str, apps: list[HostedApp], looking: set[str], nursery: trio.Nursery) -> None:
        """One look at the applications of one engine, which is in `looking` meanwhile."""
        looking.add(engine)
        try:
            for app in await self._around.in_thread(engine, _not_running, apps):
                if not app.lock.locked():  # else somebody acts on it: perhaps this, after the last look
                    nursery.start_soon(self._look_after, app)
        finally:
            looking.discard(engine)

    async def _adopt(self, app: HostedApp) -> None:
        with _contained(app):
            async with app.lock:
                status = await app.status()
                match app.record.state:
                    case AppState.RUNNING | AppState.MIGRATING if status.state is EngineState.RUNNING:
                        app.alive = True
                        app.tell("adopted")
                    case AppState.RUNNING:
                        await self._settle(app, status)
                    case AppState.MIGRATING | AppState.STAGED:
                        pass
                    case state if status.executing:
                        await app.halt(app.record)
                        app.tell("warning", f"stopped: it was executing although {state.value}")

    async def _look_after(self, app: HostedApp) -> None:
        with _contained(app):
            async with app.lock:
                if app.alive and (status := await app.status()).state is not EngineState.RUNNING:
                    await self._settle(app, status)

    async def _settle(self, app: HostedApp, status: Status) -> None:
        """Decide about an application that shall run and does not."""
        app.alive = False
        if status.state is EngineState.EXITED and status.exit is not None and not status.exit.asked:
            await app.fail(f"ended by itself: {status.exit}", status.exit.code)
            return
        why = status.reason or "it had been told to end"
        now = time.monotonic()
        if now - self._restarted_s.get(app.record.id, float("-inf")) < self._restart_pause_s:
            await app.fail(f"{why}, within {self._restart_pause_s:.0f} s of a restart")
            return
        self._restarted_s[app.record.id] = now
        try:
            layout = await app.layout()
        except P2PlayerError as error:
            await app.fail(f"{why}, and its layers are not here: {error.message}")
            return
        begin = app.backend.resume if status.state is EngineState.SUSPENDED else app.backend.start
        await app.run(layout, begin, app.record)
        app.tell("restarted", why)


@contextmanager
def _contained(app: HostedApp) -> Iterator[None]:
    """The trouble of one application, or a full disk, must not end the care for the others."""
    try:
        yield
    except (P2PlayerError, OSError) as error:
        app.tell("warning", str(error))


def _not_running(apps: list[HostedApp]) -> list[HostedApp]:
    """Those that do not run any more, by their engines; one whose engine does not answer counts as running."""
    found = []
    for app in apps:
        try:
            if app.backend.status(app.workspace).state is not EngineState.RUNNING:
                found.append(app)
        except (BackendError, OSError):
            continue
    return found
