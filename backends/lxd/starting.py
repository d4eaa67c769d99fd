"""Start a container, afresh or from its saved memory, and see it live."""

from dataclasses import replace

from backends import criu, procfs
from backends.base import AppLayout, Moment, Started
from backends.command import IN_CONTAINER, environment
from backends.errors import BackendError, ConfigError, StartFailed
from backends.lxd import bridge, ending, failing, inside, instance, predump, settings, volume
from backends.lxd.application import MONITOR_TIMEOUT_S, Application, await_monitor, until
from backends.lxd.daemon import StillAtWork
from backends.lxd.instance import Row
from backends.lxd.notes import Note, Phase

_TAIL_BYTES = 2048
_TAIL_LINES = 5
_RESTORED_AFTER_S = 0.05  # what lived before needs no second to prove itself
_SCRIPT_TIMEOUT_S = 2.0


def configuration(layout: AppLayout) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What LXD is to know of the container: its keys and its devices.

    Raises:
        ConfigError: this engine cannot run it.
    """
    table = settings.read(layout.config, layout.app_id)
    try:
        volume.check_layers(layout)
    except BackendError as error:
        raise ConfigError("", str(error)) from error
    variables = environment(layout, {}, IN_CONTAINER)
    return instance.configuration(layout.config, table, variables), bridge.devices(table)


def final_images(layout: AppLayout) -> bool:
    """Whether the instance layer has memory that may be restored."""
    images = volume.images_of(layout)
    return (images / "inventory.img").exists() and not (images / predump.MARK).exists()


def begin(app: Application, layout: AppLayout, healthy_after_s: float, *, memory: bool) -> Started:
    """Start the container, of which no copy runs.

    Raises:
        StartFailed: see `backends.base.Backend.start`.
    """
    config, devices = configuration(layout)
    container, place = app.container, app.volume
    try:
        volume.check_instance(layout)
        bridge.check(app.process, app.table)
        row = container.row()
        if not memory:
            place.unmount()
            place.forget_memory(layout)
        if row is None or not memory or not row.stateful:
            place.unmount()
            container.make(app.pool, config, devices)
            row = container.row()
        place.mount(layout)
        if not memory:
            app.take_log(place.seen / "rootfs")
        if not memory and layout.config.command:
            text = inside.script(
                instance.words(layout.config), environment(layout, {}, IN_CONTAINER), IN_CONTAINER.state
            )
            inside.write_script(place.seen / "rootfs", text)
    except (BackendError, OSError) as error:
        raise StartFailed(f"cannot start {layout.name}: {error}", executed=False) from error
    assert row is not None
    _execute(app, row, memory)
    running = connect(app, memory=memory)
    return _see_it_live(app, running, _RESTORED_AFTER_S if memory else healthy_after_s)


def connect(app: Application, *, memory: bool) -> Note:
    """Let packets through to a container that was started, and note that it runs.

    Raises:
        StartFailed: they cannot get through; it was ended again.
    """
    running = app.unnoted()
    if running.init is not None:
        try:
            app.connect(running.init)
        except BackendError as error:
            ending.stop(app)
            raise StartFailed(f"{app.name} was ended again: {error}", executed=True) from error
    running = replace(running, started=Moment.now())
    app.remember(running)
    if memory:
        bridge.remove_spare(app.process, app.table)
    return running


def _execute(app: Application, row: Row, memory: bool) -> None:
    """Have LXD start it."""
    before = app.note()
    if before is not None and before.phase is Phase.STARTING:
        before = before.before
    note = Note(
        Phase.STARTING,
        procfs.boot_id(),
        used_at=row.used_at,
        memory=memory,
        before=None if before is None else before.to(before.phase, before.exit),
    )
    app.begun(note)
    container, place = app.container, app.volume
    log = place.seen / volume.STATE / "restore.log"
    seen: list[str] = []

    def look() -> None:
        seen.extend(filter(None, [failing.end(log, container.name)]))

    def give_up() -> None:
        seen.append("its memory is not back in time")
        failing.give_up(log, container.name)

    try:
        if memory:
            container.restore(look, give_up, app.patience_s())
        else:
            container.start()
    except StillAtWork as error:
        ending.stop(app)
        raise StartFailed(f"{app.name}: {error}; it was ended", executed=True) from error
    except (BackendError, OSError) as error:
        try:
            after = container.row()
        except BackendError:
            app.remember(note)  # which nobody owns: if it runs, it will be connected
            raise
        if after is not None and not after.stopped:
            ending.stop(app)
            raise StartFailed(f"{app.name} started badly and was ended: {error}", executed=True) from error
        reason = seen[0] if seen else criu.why(log) if memory and log.exists() else str(error)
        place.tidy(app.workspace)
        # CRIU lets nothing execute before all is restored; of another start LXC may have got far enough.
        executed = not memory and (after is None or after.used_at != row.used_at)
        if not executed:
            app.remember(before)
        raise StartFailed(f"cannot start {app.name}: {reason}", executed=executed) from error


def _see_it_live(app: Application, note: Note, healthy_after_s: float) -> Started:
    init, at = note.init, note.started
    assert at is not None
    root = volume.root_of(app.workspace)
    if init is not None and not procfs.wait_end(init, healthy_after_s):
        if app.workspace.config.command:
            until(lambda: inside.main_process(root, init.pid) is not None, _SCRIPT_TIMEOUT_S)
        return Started(app.main_process(init), at)
    _await_stopped(app)
    await_monitor(note)
    tail = _last_lines(inside.tail(root, _TAIL_BYTES))
    if inside.absent(root):
        app.remember(None)
        raise StartFailed(f"cannot start {app.name}: {tail}", executed=False)
    ended = inside.ended(root)
    raise StartFailed(
        f"{app.name} ended within {healthy_after_s:g} s" + (f": {ended}" if ended else ""),
        executed=True,
        exit=ended,
        log_tail=tail,
    )


def _await_stopped(app: Application) -> None:
    """LXD learns of a container's end a moment later."""

    def stopped() -> bool:
        row = app.container.row()
        return row is None or row.stopped

    if not until(stopped, MONITOR_TIMEOUT_S):
        ending.stop(app)


def _last_lines(output: bytes) -> str:
    """The last few lines, as one line for an error message."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line][-_TAIL_LINES:])
