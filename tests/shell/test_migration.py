"""The migration service on paper nodes: real journals, vaults and app records, in jumped time."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import trio
from trio.testing import MockClock

from backends.config import MAX_ADDRESS_BYTES, MAX_ADDRESSES, MAX_TEXT_BYTES
from backends.errors import StartFailed
from chunkstore.vault import Vault
from gossip.messages import NodeId
from p2player import errors
from p2player.appstate import AppState
from p2player.journal import Journal
from p2player.migration import fence, leftover
from p2player.migration import preflight as preflight_module
from p2player.migration.desk import MAX_INCOMING
from p2player.proto.handoff import messages, records, table
from p2player.proto.handoff.machine import HandoffConfig
from p2player.proto.handoff.records import Record
from p2player.proto.handoff.table import End, KillPoint
from tests.support.migrationmesh import (
    APP,
    BASE,
    CONFIG,
    Incoming,
    Killed,
    PaperMesh,
    PaperNode,
    executed,
    never_executed,
    paper_mesh,
)

QUICK = HandoffConfig(silence_s=5.0, patience_s=20.0)


@pytest.fixture
def jump() -> MockClock:
    """The clock of a test's run; `paper_mesh` moves it."""
    return MockClock()


def files(node: PaperNode) -> list[str]:
    """What is left of migrations on a node, but for the history."""
    root = node.root / "migrations"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != "history")


async def move(mesh: PaperMesh, source: str, destination: str, **wish: Any) -> dict[str, Any]:
    row = await mesh[source].migrations.start("game", destination, **wish)
    row = await mesh.ended(mesh[source], row["id"])
    await mesh.quiet()
    return row


def where(mesh: PaperMesh) -> list[tuple[str, str, int]]:
    """Who has the app: (node, state, epoch)."""
    return [
        (node.name, record.state.value, record.epoch)
        for node in mesh.nodes.values()
        for record in [*node.apps.records(), *node.apps.staged()]
    ]


# -- it moves


async def test_an_app_moves_and_both_ends_tell_the_same(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a, b = mesh["a"], mesh["b"]
        app = await mesh.new_app(a)
        listening = a.events.open()
        row = await move(mesh, "a", "b")
        assert (row["state"], row["from"], row["to"], row["app"], row["app_id"]) == ("done", "a", "b", "game", app)
        assert row["error"] is None
        assert where(mesh) == [("b", "running", 2)]
        assert mesh.world.running == {app: "b"}
        assert b.migrations.rows() == a.migrations.rows() == [row]
        assert b.layers == {BASE, APP}
        assert row["layers"]["base"] == {"total": 1000, "deduplicated": 0, "transferred": 1100}
        assert row["layers"]["instance"]["total"] > 200_000
        assert row["bytes"]["transferred"] == sum(layer["transferred"] for layer in row["layers"].values())
        assert row["sources"] == {"a": row["bytes"]["total"]}
        assert 0 < row["freeze_s"] == row["longest_freeze_s"] < row["total_s"]
        assert set(row["prediction"]) >= {"total_error_s", "freeze_error_s", "transferred_error"}
        assert a.moves == [("site-a", "site-b")]
        assert a.migrations.states() == {"done": 1}
        assert not a.exposed
        seen = []
        with trio.move_on_after(1):
            async for event in listening:
                seen.append(event.data["state"])
        assert [state for n, state in enumerate(seen) if seen[:n][-1:] != [state]][-1] == "done"
        assert set(seen) <= {phase.value for phase in table.Phase}


async def test_large_state_is_precopied(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        mesh.goodput_bytes_s = 100e3
        app = await mesh.new_app(mesh["a"])
        (mesh["a"].apps.state_path(app) / "more").write_bytes(bytes(range(256)) * 20_000)
        row = await move(mesh, "a", "b")
        assert row["state"] == "done"
        assert row["rounds"] >= 2
        assert row["total_s"] > 1.0 > row["freeze_s"]
        rounds = [lacking for _, _, lacking in mesh["b"].pulls if lacking]
        assert rounds[0] > 100_000
        assert all(lacking < 20_000 for lacking in rounds[1:])
        assert "checkpoint" in mesh["a"].engine.calls
        assert (mesh["b"].apps.state_path(app) / "more").stat().st_size == 256 * 20_000
        assert not [name for name in files(mesh["b"]) if "trees" in name]


async def test_the_way_back_is_a_small_delta(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await mesh.new_app(mesh["a"])
        there = await move(mesh, "a", "b")
        plan = await mesh["b"].migrations.plan("game", "a")
        assert plan["layers"]["instance"]["transferred"] < there["layers"]["instance"]["transferred"] / 2
        back = await move(mesh, "b", "a")
        assert back["state"] == "done"
        assert where(mesh) == [("a", "running", 3)]
        instance = back["layers"]["instance"]
        assert instance["transferred"] < there["layers"]["instance"]["transferred"] / 20
        assert instance["deduplicated"] > instance["total"] * 0.95
        again = await move(mesh, "a", "b")
        assert again["layers"]["instance"]["transferred"] < 10_000
        for name in ("a", "b"):
            assert len([path for path in files(mesh[name]) if path.endswith("basis.json")]) == 1


class Pages:
    """A file of pages; each call changes eight bytes in one of a hundred."""

    def __init__(self, state: Path, pages: int) -> None:
        self._random = random.Random(7)
        self.path = state / "pages"
        self.content = bytearray(self._random.randbytes(pages * 4096))
        self.path.write_bytes(self.content)

    def __call__(self, state: Path) -> None:
        assert state == self.path.parent
        self.change()

    def change(self, path: Path | None = None) -> None:
        pages = len(self.content) // 4096
        for page in self._random.sample(range(pages), max(pages // 100, 1)):
            self.content[page * 4096 + 40 : page * 4096 + 48] = self._random.randbytes(8)
        (path or self.path).write_bytes(self.content)


async def test_rounds_weigh_what_changed_and_not_the_chunks_that_it_lies_in(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        mesh.goodput_bytes_s = 1e6
        app = await mesh.new_app(mesh["a"])
        pages = mesh["a"].engine.dirty = Pages(mesh["a"].apps.state_path(app), 1000)
        row = await move(mesh, "a", "b", max_freeze_s=0.5)
        assert row["state"] == "done"
        assert (mesh["b"].apps.state_path(app) / "pages").read_bytes() == pages.content
        first, *later = (lacking for _, _, lacking in mesh["b"].pulls if lacking)
        assert first > 4_000_000
        assert max(later) > 200_000, "much of the chunks"
        assert max(mesh["b"].pulled_bytes[1:]) < 2000, "little of the wire"
        assert row["layers"]["instance"]["transferred"] < first + 5000
        assert row["rounds"] <= 3

        plan = await mesh["b"].migrations.plan("game", "a")
        assert plan["layers"]["instance"]["transferred"] < first / 20
        mesh["b"].engine.dirty = lambda state: pages.change(state / "pages")
        back = await move(mesh, "b", "a")
        assert back["layers"]["instance"]["transferred"] < 10_000
        assert (mesh["a"].apps.state_path(app) / "pages").read_bytes() == pages.content


async def test_rounds_with_a_node_that_knows_no_deltas(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        mesh["a"].knows_deltas = False
        mesh.goodput_bytes_s = 1e6
        app = await mesh.new_app(mesh["a"])
        pages = mesh["a"].engine.dirty = Pages(mesh["a"].apps.state_path(app), 1000)
        assert (await move(mesh, "a", "b"))["state"] == "done"
        assert (mesh["b"].apps.state_path(app) / "pages").read_bytes() == pages.content
        assert max(mesh["b"].pulled_bytes[1:]) > 200_000


async def test_an_image_that_only_the_destination_kept_spares_bytes(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        app = await mesh.new_app(mesh["a"])
        pages = Pages(mesh["a"].apps.state_path(app), 1000)
        await move(mesh, "a", "b")
        (sealed,) = (mesh["b"].root / "migrations").glob("*/vault/sealed")
        sealed.write_bytes(b"noise" * 1000)
        pages.change(mesh["b"].apps.state_path(app) / "pages")
        back = await move(mesh, "b", "a")
        assert back["state"] == "done"
        assert back["layers"]["instance"]["transferred"] < 200_000, "signatures, and the changed pages"
        assert (mesh["a"].apps.state_path(app) / "pages").read_bytes() == pages.content


async def test_a_damaged_basis_costs_bytes_only(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await mesh.new_app(mesh["a"])
        await move(mesh, "a", "b")
        (sealed,) = (mesh["a"].root / "migrations").glob("*/vault/sealed")
        sealed.write_bytes(b"noise" * 1000)
        back = await move(mesh, "b", "a")
        assert back["state"] == "done"
        assert back["layers"]["instance"]["deduplicated"] == 0


async def restart(mesh: PaperMesh, node: PaperNode, **changes: Any) -> None:
    """Stop a node in good order and start it again, with other settings."""
    node.stop()
    await trio.sleep(1)
    for name, value in changes.items():
        setattr(node, name, value)
    await mesh.start(node)


async def test_without_a_return_basis_everything_is_wiped(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await restart(mesh, mesh["a"], return_basis_s=0.0)
        await mesh.new_app(mesh["a"])
        assert (await move(mesh, "a", "b"))["state"] == "done"
        assert files(mesh["a"]) == []
        assert files(mesh["b"])


async def test_a_basis_survives_a_restart_and_expires(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await restart(mesh, mesh["a"], return_basis_s=40.0)
        await mesh.new_app(mesh["a"])
        await move(mesh, "a", "b")
        await restart(mesh, mesh["a"])
        assert files(mesh["a"])
        await trio.sleep(75)
        assert files(mesh["a"]) == []
        assert files(mesh["b"])


async def test_cold(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await mesh.new_app(mesh["a"])
        row = await move(mesh, "a", "b", mode="cold")
        assert (row["state"], row["mode"], row["rounds"]) == ("done", "cold", 1)
        assert where(mesh) == [("b", "running", 2)]


async def test_a_stopped_app_moves_cold_and_stays_stopped(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        app = await mesh.new_app(mesh["a"], start=False)
        with pytest.raises(errors.Refused, match="--mode cold"):
            await mesh["a"].migrations.start("game", "b")
        row = await move(mesh, "a", "b", mode="cold")
        assert (row["state"], row["freeze_s"]) == ("done", 0.0)
        assert where(mesh) == [("b", "stopped", 2)]
        await mesh["b"].apps.start(app)


@pytest.mark.parametrize("filling", ['"', "\\", "\t", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{GRINNING FACE}"])
async def test_whatever_can_be_created_can_be_moved(tmp_path: Path, jump: MockClock, filling: str) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a = mesh["a"]
        address = "\N{LATIN SMALL LETTER E WITH ACUTE}" * (MAX_ADDRESS_BYTES // 2)
        config = f"{CONFIG}addresses = [{', '.join([repr(address)] * MAX_ADDRESSES)}]\n# "
        config += filling * ((MAX_TEXT_BYTES - len(config.encode())) // len(filling.encode()))
        with pytest.raises(errors.Usage, match="larger than"):
            await a.apps.create("game", "counter", BASE, APP, config + 4 * "x")
        app = await a.apps.create("game", "counter", BASE, APP, config)
        mesh.world.counts[app.id] = 0
        await a.apps.start(app.id)
        assert (await move(mesh, "a", "b"))["state"] == "done"
        await restart(mesh, mesh["b"])  # which reads the record again
        assert mesh["b"].apps.record(app.id).config == config


async def test_several_apps_move_at_once(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        names = [f"game-{n}" for n in range(4)]
        for name in names:
            await mesh.new_app(mesh["a"], name)
        ids = [(await mesh["a"].migrations.start(name, "b"))["id"] for name in names]
        states = [(await mesh.ended(mesh["a"], migration))["state"] for migration in ids]
        assert states == ["done"] * 4
        assert sorted(mesh.world.running.values()) == ["b"] * 4


# -- from elsewhere


async def test_any_node_may_start_watch_and_cancel(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", "c") as mesh:
        c = mesh["c"]
        await mesh.new_app(mesh["a"])
        plan = await c.migrations.plan("game", "b")
        assert (plan["from"], plan["to"], plan["refusals"]) == ("a", "b", [])
        row = await c.migrations.start("game", "b")
        assert (await mesh.ended(c, row["id"]))["state"] == "done"
        mesh.goodput_bytes_s = 20e3
        row = await c.migrations.start("game", "c")
        assert row["from"] == "b"
        await trio.sleep(1)
        prefix = row["id"][:12]
        assert (await c.migrations.cancel(prefix))["state"] == "cancelled"
        await mesh.quiet()
        assert where(mesh) == [("b", "running", 2)]


async def test_a_command_finds_an_app_that_has_just_moved(
    tmp_path: Path, jump: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with paper_mesh(tmp_path, "a", "b", "c") as mesh:
        c = mesh["c"]
        app = await mesh.new_app(mesh["a"])
        await move(mesh, "a", "b")
        heard_at, locate = trio.current_time() + 2.0, mesh.locate

        def late(ref: str) -> Any:
            return locate(ref) if trio.current_time() > heard_at else (mesh["a"].id, _row(mesh["a"], app))

        c.migrations._locate = late
        assert (await c.migrations.plan("game", "c"))["from"] == "b"

        def nobody(_ref: str) -> Any:
            raise errors.NotFound("nobody told yet")

        mesh["a"].migrations._locate = nobody
        for ref in ("game", app):
            assert (await mesh["a"].migrations.plan(ref, "c"))["from"] == "b"
        c.migrations._locate = lambda _ref: (mesh["a"].id, _row(mesh["a"], app))
        with pytest.raises(errors.NotFound):
            await c.migrations.start("game", "c")


async def test_the_destination_may_cancel(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        mesh.goodput_bytes_s = 20e3
        await mesh.new_app(mesh["a"])
        row = await mesh["a"].migrations.start("game", "b")
        await trio.sleep(1)
        assert (await mesh["b"].migrations.cancel(row["id"]))["state"] == "cancelled"
        await mesh.quiet()
        assert where(mesh) == [("a", "running", 1)]
        assert files(mesh["b"]) == []
        assert mesh["b"].migrations.rows()[0]["state"] == "cancelled"
        with pytest.raises(errors.Refused, match="is over"):
            await mesh["a"].migrations.cancel(row["id"])


async def test_unknown_migrations(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a") as mesh:
        for reference in ("0" * 32, "abc", "abcdef0123"):
            with pytest.raises(errors.NotFound):
                await mesh["a"].migrations.row(reference)
            with pytest.raises(errors.NotFound):
                await mesh["a"].migrations.cancel(reference)


async def test_a_row_is_waited_for(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await mesh.new_app(mesh["a"])
        row = await mesh["a"].migrations.start("game", "b")
        seen = [row["state"]]
        while seen[-1] != "done":
            seen.append((await mesh["a"].migrations.row(row["id"], wait_s=60.0))["state"])
        assert seen[0] == "preflight"
        order = [phase.value for phase in table.Phase]
        assert [order.index(state) for state in seen] == sorted(order.index(state) for state in seen)
        began = trio.current_time()
        await mesh["a"].migrations.row(row["id"], wait_s=60.0)
        assert trio.current_time() == began  # it is over: nothing to wait for


# -- refusals


async def test_what_cannot_be_begun(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", "c") as mesh:
        a = mesh["a"]
        app = await mesh.new_app(a)
        with pytest.raises(errors.NotFound):
            await a.migrations.start("nothing", "b")
        with pytest.raises(errors.NotFound):
            await a.migrations.start("game", "nowhere")
        with pytest.raises(errors.Refused, match="on a already"):
            await a.migrations.start("game", "a")
        assert (await a.migrations.plan("game", "a"))["refusals"] == ["game is on a already"]
        mesh["c"].stop()
        await trio.sleep(1)
        with pytest.raises(errors.Unreachable, match="not alive"):
            await a.migrations.start("game", "c")
        with pytest.raises(errors.Unreachable):
            await a.migrations.plan("game", "c")
        mesh.goodput_bytes_s = 20e3
        row = await a.migrations.start("game", "b")
        assert a.migrations.holds(app) and a.migrations.running()
        with pytest.raises(errors.Refused, match="not over"):
            await a.migrations.start("game", "b")
        with pytest.raises(errors.Refused):
            await a.apps.stop(app)
        await mesh.ended(a, row["id"])
        await mesh.quiet()
        assert not a.migrations.running()


async def test_preflight_names_every_reason(tmp_path: Path, jump: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a, b = mesh["a"], mesh["b"]
        app = await mesh.new_app(a)
        b.layers |= {BASE, APP}
        await mesh.new_app(b, start=False)
        b.engine.available = False
        monkeypatch.setattr(
            preflight_module, "_free_bytes", lambda path: 1 << 20 if b.root in path.parents else 1 << 40
        )
        monkeypatch.setattr(mesh, "locate", lambda _ref: (a.id, a.migrations and _row(a, app)))
        a.migrations._locate = mesh.locate
        refusals = (await a.migrations.plan("game", "b"))["refusals"]
        assert len(refusals) == 3
        for reason, refusal in zip(("not today", "another app of the name", "no room"), refusals, strict=True):
            assert reason in refusal
        row = await a.migrations.start("game", "b")
        row = await mesh.ended(a, row["id"])
        assert (row["state"], row["error"]["code"]) == ("failed", "refused")
        assert row["error"]["message"] == "; ".join(refusals)
        assert row["freeze_s"] == 0.0
        assert "suspend" not in a.engine.calls
        await mesh.quiet()
        assert b.migrations.rows() == []


def _row(node: PaperNode, app_id: str) -> Any:
    return type("Row", (), {"id": app_id, "epoch": 1})()


async def test_a_bound_that_the_plan_cannot_meet_is_refused_before_anything_is_suspended(
    tmp_path: Path, jump: MockClock
) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await mesh.new_app(mesh["a"])
        row = await move(mesh, "a", "b", max_freeze_s=0.02)
        assert (row["state"], row["error"]["code"]) == ("failed", "refused")
        assert "bound" in row["error"]["message"]
        assert "suspend" not in mesh["a"].engine.calls
        assert where(mesh) == [("a", "running", 1)]
        assert (await mesh["a"].migrations.plan("game", "b", max_freeze_s=0.02))["refusals"]


async def test_a_bound_on_an_unmeasured_link_is_settled_by_rounds(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        mesh.goodput_bytes_s = 1e6
        await mesh.new_app(mesh["a"])
        row = await move(mesh, "a", "b", max_freeze_s=0.5)
        assert row["state"] == "done"
        assert row["rounds"] >= 2
        assert row["longest_freeze_s"] < 0.5


async def test_a_final_transfer_over_the_bound_is_broken_off(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a, b = mesh["a"], mesh["b"]
        await mesh.new_app(a)
        pull = b.pull_chunks

        async def slow_at_last(*args: Any, **kwargs: Any) -> Any:
            if "suspend" in a.engine.calls:
                await trio.sleep(3.0)
            return await pull(*args, **kwargs)

        b.pull_chunks = slow_at_last  # type: ignore[method-assign]
        row = await move(mesh, "a", "b", max_freeze_s=0.5)
        assert (row["state"], row["error"]["code"]) == ("failed", "refused")
        assert where(mesh) == [("a", "running", 1)]
        assert 0.5 <= row["freeze_s"] < 1.5
        assert b.migrations.rows()[0]["freeze_s"] == row["freeze_s"]


# -- failures


async def test_an_app_that_does_not_suspend_runs_on(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        app = await mesh.new_app(mesh["a"])
        mesh["a"].engine.fail["suspend"] = [errors_suspend(running=True)]
        row = await move(mesh, "a", "b")
        assert row["state"] == "failed"
        assert "stubborn" in row["error"]["message"]
        assert where(mesh) == [("a", "running", 1)]
        assert mesh.world.running == {app: "a"}
        assert files(mesh["b"]) == files(mesh["a"]) == []


def errors_suspend(*, running: bool) -> Exception:
    from backends.errors import SuspendFailed

    return SuspendFailed("stubborn", running=running)


async def test_a_save_hook_that_fails_ends_pre_copy_only(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        from backends.errors import HookFailed

        app = await mesh.new_app(mesh["a"])
        (mesh["a"].apps.state_path(app) / "more").write_bytes(bytes(range(256)) * 20_000)
        mesh["a"].engine.fail["checkpoint"] = [HookFailed("save", "exit code 1")]
        row = await move(mesh, "a", "b")
        assert row["state"] == "done"
        assert row["rounds"] == 1


async def test_never_executed_there_means_it_runs_here_again(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await mesh.new_app(mesh["a"])
        mesh["b"].engine.fail["restore"] = [never_executed()]
        row = await move(mesh, "a", "b")
        assert row["state"] == "failed"
        assert "no such program" in row["error"]["message"]
        assert where(mesh) == [("a", "running", 3)]  # epoch 2 was granted, and is burnt
        assert files(mesh["b"]) == []
        assert (await move(mesh, "a", "b"))["state"] == "done"
        assert where(mesh) == [("b", "running", 4)]


async def test_executed_there_means_it_stays_there(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        app = await mesh.new_app(mesh["a"])
        mesh["b"].engine.fail["restore"] = [executed()]
        row = await move(mesh, "a", "b")
        assert row["state"] == "failed"
        assert "at the destination now" in row["error"]["message"]
        assert where(mesh) == [("b", "failed", 2)]
        await mesh["b"].apps.start(app)


async def test_a_defect_of_the_engine_does_not_leave_the_app_suspended(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await mesh.new_app(mesh["a"])
        mesh["a"].engine.fail["suspend"] = [ZeroDivisionError("a defect")]
        row = await move(mesh, "a", "b")
        assert row["state"] == "failed"
        assert "internal error" in row["error"]["message"]
        assert where(mesh) == [("a", "running", 1)]


async def test_a_destination_that_goes_away_is_given_up(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        mesh.goodput_bytes_s = 20e3
        await mesh.new_app(mesh["a"])
        row = await mesh["a"].migrations.start("game", "b")
        await trio.sleep(1)
        mesh["b"].stop()
        row = await mesh.ended(mesh["a"], row["id"])
        assert (row["state"], row["error"]["code"]) == ("failed", "unreachable")
        assert where(mesh)[0] == ("a", "running", 1)
        await mesh.start(mesh["b"])
        await mesh.quiet()
        assert where(mesh) == [("a", "running", 1)]
        assert files(mesh["b"]) == []


async def test_a_destination_that_cannot_be_reached_is_given_up_soon(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await mesh.new_app(mesh["a"])
        mesh["a"].lost = lambda _node, _method: True
        row = await mesh["a"].migrations.start("game", "b")
        row = await mesh.ended(mesh["a"], row["id"])
        assert (row["state"], row["error"]["code"]) == ("failed", "unreachable")
        assert row["total_s"] < 5.0
        assert where(mesh) == [("a", "running", 1)]


async def test_stopping_the_source_resumes_the_app_on_the_way_out(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        a, b = mesh["a"], mesh["b"]
        app = await mesh.new_app(a)
        b.pull_chunks = _never  # type: ignore[method-assign]
        await a.migrations.start("game", "b")
        while app in mesh.world.running:
            await trio.sleep(0.1)
        a.stop()
        await trio.sleep(1)
        assert mesh.world.running == {app: "a"}
        await mesh.start(a)
        await mesh.quiet()
        assert where(mesh) == [("a", "running", 1)]


async def _never(*_args: Any, **_kwargs: Any) -> Any:
    await trio.sleep_forever()


# -- kills


def lethal(node: PaperNode, point: KillPoint) -> None:
    """Kill `node` when it comes to that point, once."""

    def on_record(end: End, record: Record, when: Literal["before", "after"]) -> None:
        if KillPoint(end, type(record), when) == point:
            node.on_record = None
            node.engine.gone = True
            raise Killed

    node.on_record = on_record


def happy_points() -> list[KillPoint]:
    """The kill points of a migration that goes well."""
    roads_back = {
        records.Aborted,
        records.Returned,
        records.Forced,
        records.Refused,
        records.Superseded,
        records.Asked,
    }
    settled = (End.DESTINATION, records.Settled)
    return [p for p in table.kill_points() if p.record not in roads_back and (p.end, p.record) != settled]


@pytest.mark.parametrize("host", [False, True], ids=["node", "machine"])
@pytest.mark.parametrize("point", happy_points(), ids=str)
async def test_one_copy_survives_every_kill(tmp_path: Path, jump: MockClock, point: KillPoint, host: bool) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        a, b = mesh["a"], mesh["b"]
        app = await mesh.new_app(a)
        victim = a if point.end is End.SOURCE else b
        lethal(victim, point)
        await restart(mesh, victim)
        await a.migrations.start("game", "b")
        while victim.up:
            await trio.sleep(0.05)
        if host:
            victim.engine.die()
        await trio.sleep(2)
        await mesh.start(victim)
        await mesh.quiet()
        ((node, state, epoch),) = where(mesh)
        assert state == "running"
        assert mesh.world.running == {app: node}
        assert epoch == (2 if node == "b" else 1)
        rows = [mesh[name].migrations.rows() for name in ("a", "b")]
        for row in [row for told in rows for row in told]:
            assert row["state"] == ("done" if node == "b" else "failed")
        assert files(mesh["b" if node == "a" else "a"]) == [] or node == "b"


async def test_what_could_not_be_restored_after_a_restart_is_kept(tmp_path: Path, jump: MockClock) -> None:
    """Nobody knows whether the first try executed it, so it cannot go back: it waits here, and nothing deletes it."""
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        a, b = mesh["a"], mesh["b"]
        await mesh.new_app(a)
        lethal(b, KillPoint(End.DESTINATION, records.Accepted, "after"))
        await restart(mesh, b)
        await a.migrations.start("game", "b")
        while b.up:
            await trio.sleep(0.05)
        b.engine.fail["restore"] = [StartFailed("no such address", executed=False)]
        await mesh.start(b)
        await mesh.quiet()
        assert where(mesh) == [("b", "failed", 2)]
        assert b.apps.find("game").reason == "no such address"
        await restart(mesh, b)
        assert where(mesh) == [("b", "failed", 2)]
        await b.apps.start(b.apps.find("game").id)
        assert where(mesh) == [("b", "running", 2)]


async def test_restored_rows_keep_the_freeze(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        a = mesh["a"]
        await mesh.new_app(a)
        a.stop()
        await trio.sleep(1)
        lethal(a, KillPoint(End.SOURCE, records.Granted, "after"))
        await mesh.start(a)
        await a.migrations.start("game", "b")
        while a.up:
            await trio.sleep(0.05)
        await trio.sleep(30)
        await mesh.start(a)
        await mesh.quiet()
        (row,) = a.migrations.rows()
        assert row["state"] == "done"
        assert 30 < row["freeze_s"] < 40
        assert row["layers"]["base"]["transferred"] == 1100
        mesh["b"].stop()
        a.stop()
        await trio.sleep(1)
        await mesh.start(a)
        assert a.migrations.rows() == [row]


async def in_doubt(mesh: PaperMesh) -> str:
    """Bring the app into doubt: granted, and the destination away. Returns the migration's id."""
    a, b = mesh["a"], mesh["b"]
    await mesh.new_app(a)
    b.stop()
    await trio.sleep(1)
    lethal(b, KillPoint(End.DESTINATION, records.Accepted, "after"))
    await mesh.start(b)
    row = await a.migrations.start("game", "b")
    while b.up:
        await trio.sleep(0.05)
    await trio.sleep(10)
    return str(row["id"])


async def test_in_doubt_waits_for_the_answer(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        migration = await in_doubt(mesh)
        a = mesh["a"]
        (record,) = a.apps.records()
        assert record.state is AppState.IN_DOUBT
        assert not a.migrations.running()
        with pytest.raises(errors.Refused, match="cannot be cancelled"):
            await a.migrations.cancel(migration)
        with pytest.raises(errors.Refused, match="--force"):
            await a.migrations.recover(record.id, False)
        with pytest.raises(errors.Refused):
            await a.apps.start(record.id)
        await mesh.start(mesh["b"])
        assert (await a.migrations.recover(record.id, True)).state is AppState.IN_DOUBT  # the answer goes before force
        await mesh.quiet()
        assert where(mesh) == [("b", "running", 2)]
        with pytest.raises(errors.NotFound):
            await a.migrations.recover(record.id, False)


async def test_force_takes_it_back_and_the_other_copy_goes(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        migration = await in_doubt(mesh)
        a = mesh["a"]
        (record,) = a.apps.records()
        mesh["b"].engine.fail["restore"] = [never_executed()] * 3  # the exception that force is: see no second copy
        taken = await a.migrations.recover(record.id, True)
        assert (taken.state, taken.epoch) == (AppState.RUNNING, 3)
        await mesh.start(mesh["b"])
        await mesh.quiet()
        assert where(mesh) == [("a", "running", 3)]
        row = await a.migrations.row(migration)
        assert row["state"] == "failed"
        assert "by force at epoch 3" in row["error"]["message"]
        with pytest.raises(errors.Refused, match="not in doubt"):
            await a.migrations.recover(record.id, True)


async def test_a_lower_epoch_gives_way(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a, b = mesh["a"], mesh["b"]
        app = await mesh.new_app(a)
        record = a.apps.record(app)
        b.layers |= {BASE, APP}
        await b.apps.stage(record)
        await b.apps.set_state(app, AppState.STOPPED, 5)
        await trio.sleep(5)
        assert a.apps.record(app).state is AppState.STOPPED
        assert app not in mesh.world.running


async def test_only_a_claim_that_its_node_confirms_fences(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", "c") as mesh:
        a, b, c = mesh["a"], mesh["b"], mesh["c"]
        app = await mesh.new_app(a)
        record = a.apps.record(app)
        b.layers |= {BASE, APP}
        await b.apps.stage(record)
        await b.apps.set_state(app, AppState.STOPPED, fence.MAX_AHEAD + 2)  # too far ahead to be an epoch
        c.stop()
        a.claimed = {c.id: 5, b.id: 5}  # old: one is away, the other says something else when asked
        await trio.sleep(20)
        assert a.apps.record(app).state is AppState.RUNNING
        await mesh.start(c)
        await trio.sleep(20)
        assert a.apps.record(app).state is AppState.RUNNING  # c does not know of it
        answer: Any = c.migrations.handlers()["app.owned"]
        with pytest.raises(errors.Usage):
            await answer(Incoming(a.id, "a", "app.owned", {"app": ["x"]}, b""))
        answer = a.migrations.handlers()["app.owned"]
        assert await answer(Incoming(c.id, "c", "app.owned", {"app": app}, b"")) == {"epoch": 1, "state": "running"}
        call, answers = a.call, iter(({}, {"epoch": True}, {"epoch": "5"}, {"epoch": 2**53}, {"epoch": 1}))

        async def nonsense(node: NodeId, method: str, *args: Any, **kwargs: Any) -> Any:
            return next(answers, {}) if method == fence.OWNED else await call(node, method, *args, **kwargs)

        a.call = nonsense  # type: ignore[method-assign]
        await trio.sleep(20)
        assert next(answers, None) is None
        assert a.apps.record(app).state is AppState.RUNNING


async def test_an_app_that_moves_while_a_claim_is_asked_about_is_not_stopped(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a, b = mesh["a"], mesh["b"]
        app = await mesh.new_app(a)

        async def late(*_args: Any, **_kwargs: Any) -> dict[str, Any]:
            await a.apps.set_state(app, AppState.MIGRATING)
            return {"epoch": 5}

        a.call = late  # type: ignore[method-assign]
        a.claimed = {b.id: 5}
        await trio.sleep(5)
        assert a.apps.record(app).state is AppState.MIGRATING
        assert mesh.world.running == {app: "a"}


# -- what the disk does


@pytest.mark.parametrize(
    "kind", [records.Begun, records.Suspending, records.Granted, records.Committed, records.Aborted, records.Settled]
)
async def test_a_full_disk_at_the_source(
    tmp_path: Path, jump: MockClock, monkeypatch: pytest.MonkeyPatch, kind: type[Record]
) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        await mesh.new_app(mesh["a"])
        append, failures = Journal.append, [kind.__name__]

        def full(journal: Journal, record: Any) -> None:
            if str(journal.path).startswith(str(mesh["a"].root)) and record.get("t") in failures:
                failures.remove(record["t"])
                raise OSError(28, "No space left on device")
            append(journal, record)

        monkeypatch.setattr(Journal, "append", full)
        if kind is records.Aborted:
            mesh["a"].engine.fail["suspend"] = [errors_suspend(running=True)]
        row = await move(mesh, "a", "b")
        assert failures == []
        moved = kind in (records.Committed, records.Settled)
        assert row["state"] == ("done" if moved else "failed")
        ((node, state, _),) = where(mesh)
        assert (node, state) == ("b" if moved else "a", "running")


async def test_a_damaged_journal_is_left_alone_until_force(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        await in_doubt(mesh)
        a = mesh["a"]
        a.stop()
        await trio.sleep(1)
        (journal,) = (a.root / "migrations").glob("*/journal")
        journal.write_bytes(journal.read_bytes().replace(b"Suspending", b"Suspenders"))
        await mesh.start(a)
        (record,) = a.apps.records()
        assert record.state is AppState.IN_DOUBT
        assert journal.exists()
        with pytest.raises(errors.Refused, match=r"journal .* is lost"):
            await a.migrations.recover(record.id, False)
        assert (await a.migrations.recover(record.id, True)).epoch == 3


async def test_leftovers_are_cleared_at_the_start(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a, b = mesh["a"], mesh["b"]
        app = await mesh.new_app(a)
        await a.apps.set_state(app, AppState.MIGRATING)
        b.layers |= {BASE, APP}
        await b.apps.stage(a.apps.record(app))
        for node in (a, b):
            node.stop()
        await trio.sleep(1)
        Vault.create(a.root / "migrations" / ("0" * 32) / "vault").close()
        (a.root / "migrations" / "history").write_bytes(b"00000000 {}\n00000000 {}\n")
        for node in (a, b):
            await mesh.start(node)
        assert where(mesh) == [("a", "running", 1)]
        assert files(a) == ["history.damaged"]


# -- what peers send


async def said(node: PaperNode, peer: NodeId, body: dict[str, Any], payload: bytes) -> dict[str, Any]:
    handler: Callable[[Any], Any] = node.migrations.handlers()["handoff"]
    reply: dict[str, Any] = await handler(Incoming(peer, "x", "handoff", body, payload))
    return reply


async def test_hostile_messages_do_nothing(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", "c") as mesh:
        a, b, c = mesh["a"], mesh["b"], mesh["c"]
        mesh.goodput_bytes_s = 50e3
        await mesh.new_app(a)
        row = await a.migrations.start("game", "b")
        await trio.sleep(1)
        good, body = messages.encode(messages.Restored(2)), {"migration": row["id"]}
        for malformed in ({}, {"migration": 5}, {"migration": "x" * 32}):
            with pytest.raises(errors.Usage):
                await said(a, b.id, malformed, good)
        with pytest.raises(errors.Usage):
            await said(a, b.id, body, b"noise")
        with pytest.raises(errors.Refused, match="other nodes"):
            await said(a, c.id, body, good)
        with pytest.raises(errors.Usage, match="not for this end"):
            await said(a, b.id, body, messages.encode(messages.Commit()))
        assert await said(a, b.id, body, good) == {}  # nothing was granted: ignored
        grant = messages.Grant("0" * 32, 2, a.id, b.id)
        with pytest.raises(errors.Refused):
            await said(b, c.id, {"migration": "1" * 32}, messages.encode(grant))
        assert (await mesh.ended(a, row["id"]))["state"] == "done"
        await mesh.quiet()
        with pytest.raises(errors.Refused, match="other nodes"):
            await said(a, c.id, body, good)
        answer = messages.decode((await said(a, b.id, body, good))["answer"])
        assert answer == messages.Commit()
        answer = messages.decode((await said(a, c.id, {"migration": "2" * 32}, good))["answer"])
        assert answer == messages.Commit()


async def test_offers_that_contradict_themselves_are_refused(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", "c") as mesh:
        a, b, c = mesh["a"], mesh["b"], mesh["c"]
        app = await mesh.new_app(a)
        record = a.apps.record(app)
        offer = messages.Offer(
            1, app, "game", "counter", 1, a.id, b.id, BASE, APP, json.dumps(record.to_dict()).encode()
        )
        number = 0

        async def answered(peer: NodeId, **changes: Any) -> messages.Message:
            nonlocal number
            number += 1
            changed = replace(offer, **changes)
            reply = await said(b, peer, {"migration": f"{number:032x}"}, messages.encode(changed))
            return messages.decode(reply["answer"])

        for changes in ({"record": b"{}"}, {"record": b"\xff"}, {"epoch": 2}, {"app_name": "x"}, {"backend": "x"}):
            assert isinstance(failed := await answered(a.id, **changes), messages.Failed)
            assert failed.code == "usage"
        parties: list[tuple[NodeId, dict[str, Any]]] = [
            (c.id, {}),
            (a.id, {"source": c.id}),
            (a.id, {"destination": a.id}),
        ]
        for peer, others in parties:
            assert isinstance(failed := await answered(peer, **others), messages.Failed)
            assert failed.code == "refused"
        assert where(mesh) == [("a", "running", 1)]


async def test_one_peer_cannot_open_migrations_without_end(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a, b = mesh["a"], mesh["b"]
        b.lost = lambda _node, _method: True
        for number in range(MAX_INCOMING):
            grant = messages.Grant(f"{number:032x}", 2, a.id, b.id)
            assert await said(b, a.id, {"migration": f"{number:032x}"}, messages.encode(grant)) == {}
        app = await mesh.new_app(a)
        offer = await a.migrations._commands._offer(a.apps.record(app), b.id, messages.Mode.LIVE)
        reply = await said(b, a.id, {"migration": "f" * 32}, messages.encode(offer))
        failed = messages.decode(reply["answer"])
        assert isinstance(failed, messages.Failed)
        assert "migrations already" in failed.reason
        grant = messages.Grant(app, 2, a.id, b.id)  # `Failed` would void it, and b may own the app
        with pytest.raises(errors.Unreachable, match="migrations already"):
            await said(b, a.id, {"migration": "e" * 32}, messages.encode(grant))
        assert not (b.root / "migrations" / ("e" * 32)).exists()
        assert len(b.migrations.rows()) == MAX_INCOMING


async def test_a_node_that_will_not_hear_of_it_is_not_asked_again(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a = mesh["a"]
        await mesh.new_app(a)
        call = a.call

        async def deaf(node: NodeId, method: str, *args: Any, **kwargs: Any) -> Any:
            if method == "handoff":
                raise errors.NotFound("no such method: handoff")
            return await call(node, method, *args, **kwargs)

        a.call = deaf  # type: ignore[method-assign]
        row = await a.migrations.start("game", "b")
        row = await mesh.ended(a, row["id"])
        assert (row["state"], row["error"]["code"]) == ("failed", "not_found")
        assert row["total_s"] < 1.0
        assert where(mesh) == [("a", "running", 1)]


async def test_nonsense_from_a_peer_is_no_plan(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a = mesh["a"]
        await mesh.new_app(a)
        for reply in ({}, {"refusals": [], "base": [1], "app": [1, 1], "basis": 0}, {"refusals": "x"}):

            async def answer(*_args: Any, _reply: Any = reply, **_kwargs: Any) -> Any:
                return _reply

            a.call = answer  # type: ignore[method-assign]
            with pytest.raises(errors.Unreachable, match="nonsense"):
                await a.migrations.plan("game", "b")


async def test_messages_that_are_lost_are_said_again(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        rng = random.Random(7)
        mesh["a"].lost = mesh["b"].lost = lambda _node, _method: rng.random() < 0.25
        await mesh.new_app(mesh["a"])
        assert (await move(mesh, "a", "b"))["state"] == "done"


async def test_a_record_over_the_cap_is_a_failed_write(
    tmp_path: Path, jump: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        await mesh.new_app(mesh["a"])
        append, failures = Journal.append, ["Suspending"]

        def capped(journal: Journal, record: Any) -> None:
            if record.get("t") in failures:
                failures.remove(record["t"])
                raise ValueError("a record of 70000 bytes is over the cap")
            append(journal, record)

        monkeypatch.setattr(Journal, "append", capped)
        row = await move(mesh, "a", "b")
        assert row["error"]["message"] == "the journal cannot be written"
        assert where(mesh) == [("a", "running", 1)]


# -- what was lost


def damage(node: PaperNode, kind: type[Record]) -> Path:
    """Make a record of the one journal there unreadable; the journal's path."""
    (journal,) = (node.root / "migrations").glob("*/journal")
    before = journal.read_bytes()
    journal.write_bytes(before.replace(kind.__name__.encode(), b"x" * len(kind.__name__)) + b"00000000 {}\n")
    assert journal.read_bytes() != before
    return journal


async def test_a_damaged_journal_that_may_have_accepted_keeps_the_source_in_doubt(
    tmp_path: Path, jump: MockClock
) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        migration = await in_doubt(mesh)
        a, b = mesh["a"], mesh["b"]
        journal = damage(b, records.Ready)
        await mesh.start(b)
        await trio.sleep(60)
        (record,) = a.apps.records()
        assert record.state is AppState.IN_DOUBT
        assert journal.exists()
        assert b.migrations.rows() == []
        grant = messages.encode(messages.Grant(record.id, 2, a.id, b.id))
        offer = messages.encode(await a.migrations._commands._offer(record, b.id, messages.Mode.LIVE))
        for message in (grant, offer):
            with pytest.raises(errors.Failed, match="cannot read its journal"):
                await said(b, a.id, {"migration": migration}, message)
        assert (await a.migrations.recover(record.id, True)).epoch == 3


async def test_a_damaged_journal_that_refused_is_put_aside(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        a, b = mesh["a"], mesh["b"]
        await mesh.new_app(a)
        b.stop()
        await trio.sleep(1)
        lethal(b, KillPoint(End.DESTINATION, records.Refused, "after"))
        b.engine.fail["restore"] = [never_executed()]
        await mesh.start(b)
        row = await a.migrations.start("game", "b")
        while b.up:
            await trio.sleep(0.05)
        journal = damage(b, records.Ready)
        grant = messages.Grant(row["app_id"], 2, a.id, b.id)
        stranger = messages.Grant(row["app_id"], 2, b.id, b.id)
        assert leftover.look(journal.parent, grant) is leftover.Left.VOID
        for other in (stranger, replace(grant, epoch=3), replace(grant, app_id="f" * 32)):
            assert leftover.look(journal.parent, other) is leftover.Left.UNKNOWN
        await mesh.start(b)
        row = await mesh.ended(a, row["id"])
        await mesh.quiet()
        assert row["state"] == "failed"
        assert where(mesh) == [("a", "running", 3)]
        assert files(b) == []


async def test_a_journal_that_broke_off_is_not_written_on(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b", config=QUICK) as mesh:
        a, b = mesh["a"], mesh["b"]
        folder = b.root / "migrations" / ("1" * 32)
        folder.mkdir()
        journal = Journal.open(folder / "journal")
        grant = messages.Grant("0" * 32, 2, a.id, b.id)
        assert leftover.look(folder, grant) is leftover.Left.NOTHING
        journal.append(records.dump(records.Accepted(1.0, 2)))
        journal.close()
        before = (folder / "journal").read_bytes()
        with pytest.raises(errors.Failed):
            await said(b, a.id, {"migration": "1" * 32}, messages.encode(grant))
        assert (folder / "journal").read_bytes() == before


async def test_a_source_that_forgot_tells_of_its_higher_epoch(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a, b = mesh["a"], mesh["b"]
        app = await mesh.new_app(a)
        await a.apps.set_state(app, AppState.RUNNING, 3)

        async def answer(message: messages.Message) -> messages.Message:
            reply = await said(a, b.id, {"migration": "3" * 32}, messages.encode(message))
            return messages.decode(reply["answer"])

        assert await answer(messages.Restored(2, app_id=app)) == messages.Supersede(3)
        assert await answer(messages.Restored(3, app_id=app)) == messages.Commit()
        assert await answer(messages.Restored(2, app_id="f" * 32)) == messages.Commit()
        assert await answer(messages.Restored(2)) == messages.Commit()
