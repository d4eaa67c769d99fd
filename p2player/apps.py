"""The applications of this node: what users and migrations may do with them.

    appstate     the states, and which change is legal
    apprecord    the durable record of an application
    apphost      one application: record and engine changed together
    appcare      adoption at node start, and the watch
    engines      the backends, and what may be asked of them without an application
    apps         this: all of them, by name and id

Operations of one application never overlap: each holds its lock. An operation that is cancelled while the engine works
ends that step first. Errors are those of `p2player.errors`, or OSError where a record cannot be written.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import trio

from backends import config as app_config
from backends.base import AppConfig, Backend, Checkpoint, EngineState, Probe, Started, Workspace
from backends.errors import ConfigError
from chunkstore.digest import LayerId
from p2player.appcare import RESTART_PAUSE_S, WATCH_INTERVAL_S, Caretaker
from p2player.apphost import (
    AppEvent,
    AppNotSaved,
    AppStartFailed,
    AppSuspendFailed,
    Checkout,
    HostedApp,
    Surroundings,
    told,
)
from p2player.apprecord import AppRecord, AppShelf, check_name, moved, unique
from p2player.appstate import AppState
from p2player.engines import Engines
from p2player.errors import NotFound, P2PlayerError, Refused

__all__ = ["AppEvent", "AppNotSaved", "AppRecord", "AppStartFailed", "AppState", "AppSuspendFailed", "Apps", "Checkout"]


class Apps:
    """All applications of one node.

    Args:
        root: the folder STATE/apps; read at once.
        backends: the engines by name.
        checkout: makes a layer a folder.
        on_change: told of every event, in the trio thread; must not block or raise.
    """

    def __init__(
        self,
        root: Path,
        backends: Mapping[str, Backend],
        checkout: Checkout,
        on_change: Callable[[AppEvent], None],
        *,
        watch_interval_s: float = WATCH_INTERVAL_S,
        restart_pause_s: float = RESTART_PAUSE_S,
    ) -> None:
        self._shelf = AppShelf(root)
        self._around = Surroundings(self._shelf, checkout, on_change)
        self.engines = Engines(backends)
        self._naming = trio.Lock()
        self._apps: dict[str, HostedApp] = {}
        self._care = Caretaker(
            lambda: list(self._apps.values()),
            self._around,
            watch_interval_s=watch_interval_s,
            restart_pause_s=restart_pause_s,
        )
        records, damaged = self._shelf.load()
        for record in records:
            try:
                self._apps[record.id] = self._host(record)
            except P2PlayerError as error:
                damaged[record.id] = error.message
        self.damaged: Mapping[str, str] = damaged
        """Folders whose application cannot be used, and why. They are left untouched."""

    # What there is

    def records(self) -> list[AppRecord]:
        """All applications by name, without those that are only staged."""
        listed = (app.record for app in self._apps.values())
        return sorted((r for r in listed if r.state is not AppState.STAGED), key=lambda record: record.name)

    def staged(self) -> list[AppRecord]:
        """Incoming applications."""
        return [app.record for app in self._apps.values() if app.record.state is AppState.STAGED]

    def find(self, name_or_id: str) -> AppRecord:
        """The application of that name, id, or unique beginning of an id (8 digits or more).

        Raises:
            NotFound: there is none.
            Refused: several ids begin so.
        """
        record = unique(self.records(), name_or_id)
        if record is None:
            raise NotFound(f"no application {name_or_id!r} on this node")
        return record

    def record(self, app_id: str) -> AppRecord:
        """The application of exactly that id, staged ones included.

        Raises:
            NotFound: there is none.
        """
        return self._get(app_id).record

    def layers_in_use(self) -> set[LayerId]:
        """Layers that applications need, staged ones included."""
        return {layer for app in self._apps.values() for layer in (app.record.base, app.record.app)}

    def state_path(self, app_id: str) -> Path:
        """The instance folder: what a migration moves."""
        return self._get(app_id).workspace.state_dir

    async def probe(self, backend: str) -> Probe | None:
        """Whether one backend can be used here; None for an unknown one."""
        return await self.engines.probe(backend)

    def has_guest_memory(self, backend: str) -> bool:
        """Whether an instance of that backend has the memory of a guest in it, with what that read of its disk."""
        return backend in self.engines and self.engines.get(backend).capabilities.guest_memory

    async def mismatches(self, backend: str, facts: Mapping[str, str]) -> list[str]:
        """Why that backend cannot restore here what was saved on a machine of those `facts`."""
        return await self.engines.mismatches(backend, facts)

    async def logs(self, app_id: str, max_bytes: int) -> bytes:
        """The end of the application's log."""
        app = self._get(app_id)
        return await self._around.in_thread(app.backend.name, app.backend.logs, app.workspace, max_bytes)

    async def engine_running(self, app_id: str) -> bool:
        """Whether the engine has an executing copy, whatever the record says. False for an unknown application."""
        app = self._apps.get(app_id)
        return app is not None and (await app.status()).executing

    # What users do

    async def create(self, name: str, backend: str, base: LayerId, app: LayerId, config: str) -> AppRecord:
        """Make a new application: epoch 1, stopped, its layers checked out.

        Raises:
            Usage: bad name, unknown backend, bad configuration.
            Refused: the name is taken, or the backend cannot be used here.
        """
        record = AppRecord(
            id=secrets.token_hex(16),
            name=check_name(name),
            backend=backend,
            base=base,
            app=app,
            config=config,
            addresses=_parse(config).addresses,
            epoch=1,
            state=AppState.STOPPED,
            created_s=time.time(),
        )
        hosted = self._host(record)
        await self._check_welcome(hosted)
        layout = await hosted.layout()
        async with self._naming:
            self._check_name_free(record)
            await hosted.create(layout)
            self._apps[record.id] = hosted
        hosted.tell("created")
        return record

    async def start(self, app_id: str) -> AppRecord:
        """Start a stopped or failed application; returns when it is healthy.

        Raises:
            AppStartFailed: it is `failed` now.
        """
        app = self._get(app_id)
        async with app.lock:
            app.check("start")
            # Memory that was saved and never ran again, as after a restore that failed, is not thrown away.
            saved = (await app.status()).state is EngineState.SUSPENDED
            begin = app.backend.resume if saved else app.backend.start
            await app.run(await app.layout(), begin, moved(app.record, AppState.RUNNING))
            app.tell("started")
            return app.record

    async def stop(self, app_id: str) -> AppRecord:
        """End a running application."""
        app = self._get(app_id)
        async with app.lock:
            app.check("stop")
            await app.halt(moved(app.record, AppState.STOPPED))
            app.tell("stopped")
            return app.record

    async def remove(self, app_id: str) -> None:
        """Delete a stopped or failed application with its instance folder."""
        app = self._get(app_id)
        async with app.lock:
            app.check("remove")
            await self._erase(app)
            app.tell("removed")

    # What migrations do

    async def set_state(self, app_id: str, state: AppState, epoch: int | None = None, *, reason: str = "") -> AppRecord:
        """Write down another state, and perhaps a higher epoch; durable on return. Touches no engine.

        A staged application becomes `stopped` so, when it was moved without running.

        Raises:
            Refused: the state may not follow the present one, the epoch is lower, or the application executes and the
                state says that it does not.
        """
        app = self._get(app_id)
        async with app.lock:
            app.check(f"mark {state.value}")
            await app.write(moved(app.record, state, epoch=epoch, reason=reason))
            app.tell("changed", reason)
            return app.record

    async def save(self, app_id: str) -> Checkpoint:
        """Bring the instance folder up to date while the application runs, for a pre-copy round.

        Raises:
            AppNotSaved: an engine that keeps its memory cannot; it runs on.
            Refused: it is not running.
            Failed: the `save` hook failed; the application runs on.
        """
        app = self._get(app_id)
        async with app.lock:
            return await app.save(await app.layout())

    async def obstacles(self, app_id: str) -> list[str]:
        """Why a running application cannot be saved as it is; empty for one that does not run."""
        app = self._get(app_id)
        async with app.lock:
            if not app.alive:
                return []
            return list(await self._around.in_thread(app.backend.name, app.backend.obstacles, await app.layout()))

    async def facts(self, app_id: str) -> Mapping[str, str]:
        """What a machine that is to restore a running application's memory must match; empty if it does not run."""
        app = self._get(app_id)
        async with app.lock:
            if not app.alive:
                return {}
            return await app.facts(await app.layout())

    async def suspend(self, app_id: str, *, memory: bool = True) -> Checkpoint:
        """End the application so that its instance folder is final; the record says `suspended`.

        When that fails and it runs as before, `after_restore` undoes what `before_suspend` may have done.

        Args:
            memory: when False only its files are kept, and it starts afresh.

        Raises:
            AppNotSaved: an engine that keeps its memory cannot; it runs as before.
            AppSuspendFailed: it was not suspended; when it does not run either, it is `failed` now.
        """
        app = self._get(app_id)
        async with app.lock:
            app.check("suspend")
            layout = await app.layout()
            try:
                return await app.suspend(layout, memory=memory)
            except AppSuspendFailed as error:
                failure = error
            if failure.running:
                await app.after_restore(layout)
                if memory and app.backend.capabilities.live:
                    raise AppNotSaved(failure.message) from failure
            raise failure

    async def resume(self, app_id: str) -> Started:
        """Let a suspended application continue here; one that runs is left alone. Then `after_restore` runs.

        Raises:
            AppStartFailed: it is `failed` now.
        """
        app = self._get(app_id)
        async with app.lock:
            app.check("resume")
            layout = await app.layout()
            started = await app.run(layout, await app.way_on(), moved(app.record, AppState.RUNNING))
            app.tell("resumed")
            await app.after_restore(layout)
            return started

    async def stage(self, record: AppRecord) -> Path:
        """Prepare for an application that is to come: a record that cannot run, and an empty instance folder.

        Done again for the same application, it starts over with an empty folder.

        Args:
            record: as the source has it; its state and reason do not count.

        Raises:
            Usage: its configuration is not accepted here.
            Refused: it is here already, its name is taken, or its backend cannot be used here.
        """
        hosted = self._host(replace(record, name=check_name(record.name), state=AppState.STAGED, reason=""))
        await self._check_welcome(hosted)
        async with self._naming:
            self._check_name_free(record)
            if record.id in self.damaged:
                raise Refused(f"{record.name} is on this node already, with a damaged record")
            before = self._apps.get(record.id, hosted)
            async with before.lock:
                if before.record.state is not AppState.STAGED:
                    raise Refused(f"{record.name} is on this node already: it is {before.record.state.value}")
                await hosted.stage()
                before.gone = before is not hosted
                self._apps[record.id] = hosted
        hosted.tell("staged")
        return hosted.workspace.state_dir

    async def restore(self, app_id: str, epoch: int) -> Started:
        """Run a staged application under `epoch`; returns when it is healthy. A copy that runs already is taken over.

        Raises:
            AppStartFailed: it did not start. It stays staged when nothing of it executed; else it is `failed` now,
                under `epoch`.
            Refused: the epoch is lower than the record's.
        """
        app = self._get(app_id)
        async with app.lock:
            app.check("restore")
            target = moved(app.record, AppState.RUNNING, epoch=epoch)
            record_first = app.record.state is not AppState.STAGED
            started = await app.run(await app.layout(), app.backend.restore, target, record_first=record_first)
            app.tell("restored")
            return started

    async def run_after_restore(self, app_id: str) -> str | None:
        """Run the `after_restore` hook. Returns a warning when it failed."""
        app = self._get(app_id)
        return await app.after_restore(await app.layout())

    async def discard(self, app_id: str) -> None:
        """Destroy the copy on this node with all its files, whatever its state. An unknown application is fine."""
        app = self._apps.get(app_id)
        if app is None:
            return
        async with app.lock:
            if not app.gone:
                await self._erase(app)
                app.tell("discarded")

    # What the node does

    async def adopt_all(self) -> None:
        """Bring records and engines together, once, before anything else happens; see `appcare`."""
        await self._care.adopt_all()

    async def watch(self) -> None:
        """Notice applications that end by themselves; runs until cancelled."""
        await self._care.watch()

    def _get(self, app_id: str) -> HostedApp:
        try:
            return self._apps[app_id]
        except KeyError:
            raise NotFound(f"no application {app_id} on this node") from None

    def _host(self, record: AppRecord) -> HostedApp:
        backend = self.engines.get(record.backend)
        folder = self._shelf.folder(record.id)
        return HostedApp(
            record, Workspace(record.id, record.name, folder, _parse(record.config)), backend, self._around
        )

    async def _erase(self, app: HostedApp) -> None:
        await app.erase()
        del self._apps[app.record.id]

    async def _check_welcome(self, app: HostedApp) -> None:
        """Look before layers are pulled; the name is looked at again when it is taken."""
        self._check_name_free(app.record)
        name = app.backend.name
        probe = await self.engines.probe(name)
        if probe is None or not probe.available:
            raise Refused(f"backend {name} cannot be used here: {probe.reason if probe else 'it is not known'}")

    def _check_name_free(self, record: AppRecord) -> None:
        for other in self._apps.values():
            if other.record.name == record.name and other.record.id != record.id:
                raise Refused(f"the name {record.name} is taken on this node")


def _parse(config: str) -> AppConfig:
    try:
        return app_config.parse(config)
    except ConfigError as error:
        raise told(error) from error
