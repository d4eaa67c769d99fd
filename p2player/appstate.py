"""The states of an application on one node, and which may follow which.

    staged      incoming: its content arrives; neither listed nor runnable
    stopped     may be started
    running     shall run: started again after the machine restarted
    migrating   as before, while a migration prepares to move it
    suspended   moved aside by a migration; only that migration may resume it or give it away
    in_doubt    given away, and the receiver has not answered yet: must not run here
    failed      ended by itself, or could not be started; the record tells why

`RULES` holds every change that is legal, named by what is done; whatever is not there is refused.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from p2player.errors import Refused


class AppState(StrEnum):
    """See the module."""

    STAGED = "staged"
    STOPPED = "stopped"
    RUNNING = "running"
    MIGRATING = "migrating"
    SUSPENDED = "suspended"
    IN_DOUBT = "in_doubt"
    FAILED = "failed"


class Rule(NamedTuple):
    """What is done takes an application from one of `sources` to `target`; None: it is gone."""

    sources: frozenset[AppState]
    target: AppState | None


def _rules() -> Mapping[str, Rule]:
    staged, stopped, running, migrating, suspended, in_doubt, failed = AppState
    table: list[tuple[str, set[AppState], AppState | None]] = [
        # users
        ("start", {stopped, failed}, running),
        ("stop", {running, failed}, stopped),
        ("remove", {stopped, failed}, None),
        # migrations
        ("suspend", {running, migrating}, suspended),
        ("resume", {running, migrating, suspended, in_doubt, failed}, running),
        ("restore", {staged, running}, running),
        ("discard", set(AppState), None),
        # migrations, where nothing but the record changes: `Apps.set_state`
        ("mark running", {running, migrating}, running),
        ("mark migrating", {migrating, running, stopped}, migrating),
        ("mark suspended", {suspended, in_doubt}, suspended),
        ("mark in_doubt", {in_doubt, suspended, migrating}, in_doubt),
        ("mark stopped", {stopped, migrating, in_doubt, staged}, stopped),
        ("mark failed", {failed, migrating, suspended, in_doubt, staged}, failed),
    ]
    return {done: Rule(frozenset(sources), target) for done, sources, target in table}


RULES = _rules()


def check(what: str, name: str, state: AppState) -> None:
    """Make sure that `what` may be done to the application `name`.

    Raises:
        Refused: not in its present state; the error names it.
    """
    rule = RULES.get(what)
    if rule is None or state not in rule.sources:
        raise Refused(f"cannot {what} {name}: it is {state.value}")
