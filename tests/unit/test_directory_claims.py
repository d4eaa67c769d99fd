"""Whose claims to an app may fence the copy here: those of nodes that are alive."""

from types import SimpleNamespace
from typing import Any, cast

from gossip.inventory import AppRow
from gossip.messages import NodeId
from p2player.directory import Directory

ME, LIVES, SILENT, DEAD = (NodeId(digit * 32) for digit in "0123")
APP = "a" * 32


def _row(app_id: str, epoch: int) -> AppRow:
    return AppRow(app_id, "game", "counter", "running", epoch, cast(Any, b"b" * 32), cast(Any, b"a" * 32), ())


def test_only_living_nodes_have_a_claim() -> None:
    inventories = {
        ME: SimpleNamespace(apps=(_row(APP, 1),)),
        LIVES: SimpleNamespace(apps=(_row("f" * 32, 9), _row(APP, 2))),
        DEAD: SimpleNamespace(apps=(_row(APP, 7),)),
    }
    ledger = SimpleNamespace(inventories=lambda: inventories)
    mesh = SimpleNamespace(me=ME, alive=lambda: [SimpleNamespace(id=LIVES), SimpleNamespace(id=SILENT)])
    nothing = cast(Any, None)
    directory = Directory(nothing, cast(Any, ledger), nothing, nothing, cast(Any, mesh), nothing, nothing)
    assert directory.claims(APP) == [(LIVES, 2)]
    assert directory.claims("e" * 32) == []
