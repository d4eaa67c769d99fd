"""What a destination looks at before anything moves: reasons to refuse an app, and what of it is here already.

    another migration     of this app is not over here
    the engine            cannot be used here
    names                 the app, or another one of its name, is here
    room                  the disk has not enough
    clocks                certificates and the life of a return basis rest on them
    ports                 what the app declares as its address is taken
    memory                could not be restored here: the engine compares the source's facts with its own

Memory comes last: where it alone is in the way, the app can still move without it, and the refusal says so.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

from chunkstore.digest import LayerId
from p2player.apprecord import AppRecord
from p2player.appstate import AppState
from p2player.migration import ports
from p2player.migration.basis import BasisShelf
from p2player.migration.parts import Parts
from p2player.proto.handoff import events
from p2player.proto.handoff.messages import Need, Offer

RESERVE_BYTES = 64 << 20
MAX_SKEW_S = 300.0


async def preflight(
    parts: Parts, offer: Offer, record: AppRecord | None, bases: BasisShelf, busy: str, now: float
) -> events.Checked:
    """Look for reasons to refuse an app, and at what of it is here already.

    Args:
        record: the app's, out of the offer.
        busy: why another migration stands in the way, if one does.
        now: what this machine's clock says.
    """
    me = parts.name(parts.members.me)
    base = await parts.in_thread(_need, parts, LayerId(offer.base), offer.base_bytes)
    app = await parts.in_thread(_need, parts, LayerId(offer.app), offer.app_bytes)
    refusals = [busy] if busy else []
    engine = await _against_engine(parts, offer.backend, me)
    refusals += [*engine, *_against_names(parts, offer, me)]
    # Chunks and tree of what is missing; chunks, last tree and new tree of the instance.
    needed = 2 * (base.missing + app.missing) + 3 * offer.instance_bytes
    refusals += await parts.in_thread(no_room, parts, needed)
    if offer.sent_at and abs(offer.sent_at - now) > MAX_SKEW_S:
        source = parts.name(offer.source)
        refusals.append(f"the clocks differ: it is {_time(offer.sent_at)} on {source} and {_time(now)} on {me}")
    if record is not None and offer.running and offer.network not in ("", ports.network_here()):
        taken = await parts.in_thread(ports.taken, record.addresses) if ports.in_host_network(record) else []
        refusals += [f"{address} is in use on {me}" for address in taken]
    if offer.moves_memory and not engine:
        found = await parts.apps.mismatches(offer.backend, offer.facts)
        refusals += advise_cold(found, offer.app_name, alone=not refusals)
    basis = bases.find(offer.app_id)
    return events.Checked(tuple(refusals), base, app, 0 if basis is None else basis.size)


def no_room(parts: Parts, needed: int) -> list[str]:
    """For a worker thread: why there is no room here for so many bytes; empty when there is."""
    wanted, free = needed + RESERVE_BYTES, _free_bytes(parts.root)
    if wanted <= free:
        return []
    me = parts.name(parts.members.me)
    return [f"no room on {me}: {wanted >> 20} MiB are needed, {free >> 20} MiB are free"]


def advise_cold(reasons: list[str], app: str, *, alone: bool) -> list[str]:
    """Why memory cannot move, with the way round it where nothing else is in the way."""
    advice = f"; --mode cold moves {app} without its memory" if alone else ""
    return [f"{reason.rstrip('.')}{advice}" for reason in reasons]


def is_obsolete(record: AppRecord, epoch: int) -> bool:
    """Whether this is what is left of a copy that lost to a higher epoch, and does not run."""
    return record.epoch < epoch and record.state in (AppState.STOPPED, AppState.FAILED)


async def _against_engine(parts: Parts, backend: str, me: str) -> list[str]:
    probe = await parts.apps.probe(backend)
    if probe is None:
        return [f"{me} has no backend {backend}"]
    return [] if probe.available else [f"backend {backend} cannot be used on {me}: {probe.reason}"]


def _against_names(parts: Parts, offer: Offer, me: str) -> list[str]:
    found = []
    for record in parts.apps.records():
        if record.id == offer.app_id and not is_obsolete(record, offer.epoch):
            found.append(f"{me} has {offer.app_name} already: it is {record.state.value}")
        elif record.id != offer.app_id and record.name == offer.app_name:
            found.append(f"{me} has another app of the name {offer.app_name}")
    return found


def _need(parts: Parts, layer: LayerId, size: int) -> Need:
    """For a worker thread: what is missing here of a layer that is `size` bytes large."""
    record = parts.stock.layer(layer)
    if record is None:
        return Need(size, size)
    return Need(record.size, min(sum(parts.stock.lacking(layer).values()), record.size))


def _free_bytes(folder: Path) -> int:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
