"""The rows of `/v1/migrations`: one document a migration, the same at both ends once it is over."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from p2player.planning import errors_of
from p2player.proto.handoff.destination import DestinationMachine
from p2player.proto.handoff.fields import Malformed
from p2player.proto.handoff.machine import Outcome
from p2player.proto.handoff.messages import MAX_ROW_CHARS, Pulled
from p2player.proto.handoff.source import SourceMachine
from p2player.proto.handoff.table import OVER, Phase

MAX_SOURCES_TOLD = 64

Name = Callable[[str], str]
"""What a node (its id) is called."""


def of_source(
    migration: str, machine: SourceMachine, name: Name, now: float, spoken_bytes: int, *, final: bool = False
) -> dict[str, Any]:
    """The row as the source sees it.

    Args:
        spoken_bytes: of the hand-off's own messages; they count as the instance layer's.
        final: as it will be once nothing is open but acknowledgements.
    """
    tally, offer = machine.tally, machine.offer
    outcome = machine.expected_outcome if final else machine.outcome
    phase = machine.phase if outcome is None else outcome.phase
    instance = replace(tally.instance, transferred=tally.instance.transferred + spoken_bytes)
    total_s = (machine.ended_at if machine.ended_at is not None else now) - tally.started_at
    row = {
        "id": migration,
        "app": offer.app_name,
        "app_id": offer.app_id,
        "from": name(offer.source),
        "to": name(offer.destination),
        "mode": offer.mode.value,
        "state": phase.value,
        "started_at": round(tally.started_at, 3),
        "total_s": round(max(total_s, 0.0), 3),
        "freeze_s": round(tally.freeze_s, 3),
        "longest_freeze_s": round(tally.longest_freeze_s, 3),
        "rounds": tally.rounds,
        **_bytes(tally.base, tally.app, instance, name),
        "progress": _progress(machine.progress, phase, machine.round),
        "prediction": None,
        "warning": machine.warning,
        "error": _error(outcome),
    }
    if tally.prediction is not None:
        row["prediction"] = errors_of(
            tally.prediction,
            total_s=row["total_s"],
            freeze_s=row["freeze_s"],
            transferred=row["bytes"]["transferred"],
        )
    return row


def of_destination(
    migration: str, machine: DestinationMachine, pulled: Mapping[str, Pulled], name: Name, now: float
) -> dict[str, Any]:
    """The row as the destination sees it; the source's, as soon as that told its final one.

    Args:
        pulled: what came so far, by layer: base, app, instance.
    """
    told = read_row(machine.row, migration)
    if told is not None and machine.outcome is not None:
        return told
    offer = machine.offer
    nothing = Pulled()
    return {
        "id": migration,
        "app": offer.app_name if offer is not None else machine.app_id,
        "app_id": machine.app_id,
        "from": name(machine.parties.source),
        "to": name(machine.parties.destination),
        "mode": offer.mode.value if offer is not None else "live",
        "state": machine.phase.value,
        "started_at": round(machine.began_at, 3),
        "total_s": round(max(now - machine.began_at, 0.0), 3),
        "freeze_s": 0.0,
        "longest_freeze_s": 0.0,
        "rounds": 0,
        **_bytes(pulled.get("base", nothing), pulled.get("app", nothing), pulled.get("instance", nothing), name),
        "progress": _progress(machine.progress, machine.phase),
        "prediction": None,
        "warning": "",
        "error": _error(machine.outcome),
    }


def write_row(row: Mapping[str, Any]) -> str:
    """A row as it travels; without its sources where it would be too long."""
    text = json.dumps(row)
    return text if len(text) <= MAX_ROW_CHARS else json.dumps({**row, "sources": {}})


def read_row(text: str, migration: str) -> dict[str, Any] | None:
    """The inverse, for what a peer sent; None when it is no row of that migration that is over."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.get("id") != migration:
        return None
    try:
        _check(row)
        told = {key: row[key] for key in _FORM}
        if len(json.dumps(told, allow_nan=False)) > MAX_ROW_CHARS:  # short forms of numbers grow when written anew
            return None
    except (Malformed, ValueError, RecursionError):
        return None
    return told


_COUNTS = {"total": int, "deduplicated": int, "transferred": int}
_NUMBER = (int, float)
_FORM: dict[str, Any] = {
    "id": str,
    "app": str,
    "app_id": str,
    "from": str,
    "to": str,
    "mode": str,
    "state": str,
    "started_at": _NUMBER,
    "total_s": _NUMBER,
    "freeze_s": _NUMBER,
    "longest_freeze_s": _NUMBER,
    "rounds": int,
    "bytes": _COUNTS,
    "sources": dict,
    "layers": {"base": _COUNTS, "app": _COUNTS, "instance": _COUNTS},
    "progress": {"done": int, "total": int, "message": str},
    "prediction": (dict, type(None)),
    "warning": str,
    "error": (dict, type(None)),
}


def _check(row: dict[str, Any]) -> None:
    _check_form(row, _FORM)
    if row["state"] not in OVER or not all(isinstance(count, int) for count in row["sources"].values()):
        raise Malformed("not a final row")
    if row["error"] is not None:
        _check_form(row["error"], {"code": str, "message": str})


def _check_form(value: Any, form: Any) -> None:
    if not isinstance(form, dict):
        if not isinstance(value, form):
            raise Malformed("not a row")
        return
    if not isinstance(value, dict):
        raise Malformed("not a row")
    for key, inner in form.items():
        if key not in value:
            raise Malformed("not a row")
        _check_form(value[key], inner)


def _bytes(base: Pulled, app: Pulled, instance: Pulled, name: Name) -> dict[str, Any]:
    layers = {"base": base, "app": app, "instance": instance}
    counts = {layer: _counts(pulled) for layer, pulled in layers.items()}
    sources: dict[str, int] = {}
    for pulled in layers.values():
        for node, count in pulled.sources.items():
            sources[name(node)] = sources.get(name(node), 0) + count
    largest = sorted(sources.items(), key=lambda item: -item[1])[:MAX_SOURCES_TOLD]
    return {
        "bytes": {key: sum(layer[key] for layer in counts.values()) for key in _COUNTS},
        "sources": dict(largest),
        "layers": counts,
    }


def _counts(pulled: Pulled) -> dict[str, int]:
    return {"total": pulled.total, "deduplicated": pulled.deduplicated, "transferred": pulled.transferred}


def _progress(progress: tuple[int, int], phase: Phase, round_: int = 0) -> dict[str, Any]:
    done, total = (0, 0) if phase in OVER else progress
    return {"done": done, "total": total, "message": f"{phase.value}, round {round_}" if round_ else phase.value}


def _error(outcome: Outcome | None) -> dict[str, str] | None:
    if outcome is None or not outcome.reason:
        return None
    return {"code": outcome.code or "failed", "message": outcome.reason}
