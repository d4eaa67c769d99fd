"""Documents of the control API as a node answers them, and the form of what the command line says when it fails."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

OP = "/v1/operations/op1"
LAYER = "ab" * 32
STATUS = {
    "name": "north-1",
    "id": "0" * 32,
    "mesh": "shops",
    "site": "north",
    "address": "10.0.0.1:7420",
    "version": "0.1.0",
    "peers": {"alive": 2, "suspect": 0, "dead": 1, "left": 0},
}
PEERS: list[dict[str, Any]] = [
    {"name": "south-1", "site": "south", "address": "10.0.1.1:7420", "state": "alive", "rtt_ms": 12.345},
    {"name": "west-1", "site": "", "address": "10.0.2.1:7420", "state": "dead", "rtt_ms": None},
]
LAYERS = [
    {
        "id": LAYER,
        "name": "game",
        "kind": "app",
        "size": 5_000_000,
        "chunks": 100,
        "have_chunks": 25,
        "holders": ["north-1", "south-1"],
        "partial": {"west-1": 25},
    }
]
APP = {
    "name": "game",
    "id": "cd" * 16,
    "backend": "process",
    "node": "north-1",
    "state": "running",
    "epoch": 3,
    "base": LAYER,
    "app": LAYER,
    "addresses": ["10.0.0.5:8000"],
}
PULLED = {
    "id": LAYER,
    "name": "game",
    "seconds": 1.5,
    "bytes": {"total": 5_000_000, "deduplicated": 4_000_000, "transferred": 1_000_100, "duplicates": 0},
    "sources": {"south-1": 1_000_000},
}
ADDED = {"id": LAYER, "name": "game", "size": 5_000_000, "chunks": 100, "seconds": 0.5}
PLAN = {
    "app": "game",
    "from": "north-1",
    "to": "south-1",
    "mode": "live",
    "layers": {
        "base": {"total": 600_000_000, "transferred": 0},
        "app": {"total": 5_000_000, "transferred": 1_000_000},
        "instance": {"total": 4_000_000, "transferred": 4_000_000},
    },
    "total_s": 3.2,
    "freeze_s": 0.12,
    "refusals": [],
}
MIGRATION = {
    "id": "ef" * 16,
    "app": "game",
    "from": "north-1",
    "to": "south-1",
    "state": "done",
    "total_s": 3.3,
    "freeze_s": 0.13,
    "longest_freeze_s": 0.1,
    "bytes": {"total": 609_000_000, "deduplicated": 604_000_000, "transferred": 5_100_000},
    "sources": {"north-1": 5_000_000},
    "error": None,
}
BACKENDS = [
    {"name": "process", "available": True, "version": "1", "reason": ""},
    {"name": "lxd", "available": False, "version": "", "reason": "no LXD socket"},
]
STORE = {"chunks": 10, "layers": 2, "stored_bytes": 1 << 20, "free_bytes": 1 << 30}
VERIFIED = {"checked_bytes": 1 << 20, "damaged": [], "repaired": 0}
WARMED = {
    "placed": [{"node": "south-1", "id": LAYER, "size": 5_000_000, "transferred": 2048}],
    "nodes": ["south-1"],
}
ENROLLED = SimpleNamespace(name="north-1", mesh_name="shops")
DAMAGE = [{"chunk": "11" * 32, "layers": [{"id": LAYER, "name": "game"}, {"id": "22" * 32, "name": None}]}]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on stderr, which must be one line of the form of all errors; nothing may be on stdout."""
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"p2player: error: [^\n]+\n", said.err), said.err
    return said.err
