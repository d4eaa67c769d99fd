"""After a start of the node: migrations that have a journal go on, what they left is kept or wiped, apps are set free.

journal with records    its machine is made from them and goes on
a basis                 kept until it expires
anything else           left by a kill before the first record, or after the last: wiped
a damaged journal       left alone, and told: the app stays as it is until `app recover --force`
"""

from functools import partial
from pathlib import Path

from chunkstore.errors import StoreError
from p2player import errors
from p2player.appstate import AppState
from p2player.journal import Journal
from p2player.log import Log
from p2player.migration.basis import folders, wipe
from p2player.migration.desk import destination_work
from p2player.migration.destination import DestinationWork
from p2player.migration.driver import JOURNAL, Machine
from p2player.migration.register import Register
from p2player.migration.source import SourceWork
from p2player.planning import Experience
from p2player.proto.handoff import records
from p2player.proto.handoff.destination import DestinationMachine
from p2player.proto.handoff.fields import Malformed
from p2player.proto.handoff.machine import HandoffConfig, JournalUnlawful
from p2player.proto.handoff.source import SourceMachine


async def revive_all(register: Register, config: HandoffConfig, log: Log) -> None:
    """Take up everything in STATE/migrations, and every app that a lost migration holds."""
    parts = register.parts
    for folder in await parts.in_thread(lambda: list(folders(parts.root))):
        try:
            await _revive(register, config, folder)
        except (errors.P2PlayerError, JournalUnlawful, Malformed, StoreError, OSError) as error:
            log.error("cannot take up a migration", migration=folder.name, error=str(error))
    for record in [*parts.apps.records(), *parts.apps.staged()]:
        if register.of_app(record.id):
            continue
        try:
            await _set_free(register, record.id, record.state, log)
        except (errors.P2PlayerError, OSError) as error:
            log.error("cannot set an app free", app=record.name, error=str(error))


async def _revive(register: Register, config: HandoffConfig, folder: Path) -> None:
    parts = register.parts
    journal = await parts.in_thread(_open_journal, folder)
    if journal is None:
        if not await parts.in_thread(register.bases.load, folder):
            await parts.in_thread(wipe, folder)
        return
    try:
        entries = records.load(journal.records)
        machine = _machine(entries, config)
    except BaseException:
        journal.close()
        raise
    driver = register.admit(folder.name, machine, partial(_work, register, folder.name, machine))
    driver.adopt(journal)
    register.start(driver, machine.restart(register.clock.now()))


def _open_journal(folder: Path) -> Journal | None:
    """The journal in a migration's folder; None when nothing was ever written to it."""
    if not (folder / JOURNAL).exists():
        return None
    journal = Journal.open(folder / JOURNAL)
    if journal.records:
        return journal
    journal.close()
    return None


def _machine(entries: list[records.Record], config: HandoffConfig) -> Machine:
    if isinstance(entries[0], records.Begun):
        return SourceMachine.replay(entries, config, Experience().policy(None))
    return DestinationMachine.replay(entries, config)


def _work(register: Register, migration: str, machine: Machine, folder: Path) -> SourceWork | DestinationWork:
    if isinstance(machine, DestinationMachine):
        return destination_work(register, migration, machine, None, folder)
    row = partial(register.final_row, migration)
    return SourceWork(register.parts, migration, machine.offer, None, register.bases, Experience(), None, row)


async def _set_free(register: Register, app_id: str, state: AppState, log: Log) -> None:
    """An app that a migration holds of which nothing is left."""
    apps = register.parts.apps
    match state:
        case AppState.MIGRATING if await apps.engine_running(app_id):
            await apps.set_state(app_id, AppState.RUNNING)
        case AppState.MIGRATING:
            await apps.resume(app_id)
        case AppState.STAGED if not await apps.engine_running(app_id):
            await apps.discard(app_id)
        case AppState.SUSPENDED | AppState.IN_DOUBT:
            log.error("an app is held by a migration that is lost: see app recover", app=apps.record(app_id).name)
        case _:
            pass
