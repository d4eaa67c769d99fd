"""What engines have to say in a migration: what stands against saving, what the other machine must match, cold mode."""

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import MockClock

from backends.base import Capabilities
from backends.errors import BackendError, SuspendFailed
from p2player import errors
from p2player.migration import ports, preflight
from p2player.proto.handoff import messages
from tests.support.migrationmesh import APP, BASE, CONFIG, PaperMesh, PaperNode, paper_mesh

MEMORY = Capabilities(live=True, cooperative=False, leave_running=True, root=False)


@pytest.fixture
def jump() -> MockClock:
    """The clock of a test's run; `paper_mesh` moves it."""
    return MockClock()


async def begin(mesh: PaperMesh) -> PaperNode:
    """An app whose memory moves runs on `a`, with more files than one goes without pre-copy for."""
    for node in mesh.nodes.values():
        node.engine.capabilities = MEMORY
    app = await mesh.new_app(mesh["a"])
    (mesh["a"].apps.state_path(app) / "more").write_bytes(bytes(range(256)) * 20_000)
    return mesh["a"]


async def move(mesh: PaperMesh, **wish: Any) -> dict[str, Any]:
    row = await mesh["a"].migrations.start("game", "b", **wish)
    row = await mesh.ended(mesh["a"], row["id"])
    await mesh.quiet()
    return row


def untouched(node: PaperNode) -> bool:
    """Nothing was done to the app."""
    record = node.apps.find("game")
    calls = {"suspend", "resume", "stop"} & set(node.engine.calls)
    return (record.state.value, record.epoch) == ("running", 1) and not calls and record.id in node.mesh.world.running


async def test_what_the_engine_cannot_save_is_refused_before_anything(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a = await begin(mesh)
        a.engine.against = ["process 7 has /dev/fuse open", "process 8 uses io_uring"]
        told = [f"{reason}; --mode cold moves game without its memory" for reason in a.engine.against]
        assert (await a.migrations.plan("game", "b"))["refusals"] == told
        with pytest.raises(errors.Refused, match="has /dev/fuse open; --mode cold moves game"):
            await a.migrations.start("game", "b")
        assert untouched(a) and a.migrations.rows() == [] and not a.migrations.holds(a.apps.find("game").id)
        assert "checkpoint" not in a.engine.calls

        assert (await a.migrations.plan("game", "b", mode="cold"))["refusals"] == []
        row = await move(mesh, mode="cold")
        assert (row["state"], row["mode"]) == ("done", "cold")
        assert a.engine.memory == [False]


async def test_facts_travel_and_mismatches_refuse(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a, b = await begin(mesh), mesh["b"]
        seen: list[Mapping[str, str]] = []

        def wrong(facts: Mapping[str, str]) -> list[str]:
            seen.append(facts)
            return ["this CPU lacks avx512f"] if "avx512f" in facts.get("cpu", "") else []

        b.engine.wrong = wrong
        a.engine.told = {"cpu": "sse2 avx512f", "memory_bytes": "3000000", "odd\udcff": "x", "long": "x" * 5000}
        plan = await a.migrations.plan("game", "b")
        refusal = "this CPU lacks avx512f; --mode cold moves game without its memory"
        assert plan["refusals"] == [refusal]
        assert seen == [{"cpu": "sse2 avx512f", "memory_bytes": "3000000"}]
        files = sum(path.stat().st_size for path in a.apps.state_path(a.apps.find("game").id).iterdir())
        assert plan["layers"]["instance"]["total"] == files + 3_000_000

        row = await move(mesh)
        assert (row["state"], row["error"]) == ("failed", {"code": "refused", "message": refusal})
        assert untouched(a) and row["freeze_s"] == 0.0

        cold = await a.migrations.plan("game", "b", mode="cold")
        assert (cold["refusals"], cold["layers"]["instance"]["total"]) == ([], files)
        assert len(seen) == 2
        a.engine.told = {"cpu": "sse2"}
        assert (await move(mesh))["state"] == "done"
        assert a.engine.memory == [True]


async def test_cold_is_not_advised_where_it_would_not_work(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a, b = await begin(mesh), mesh["b"]
        app = a.apps.find("game").id
        b.engine.wrong = lambda _facts: ["another kernel"]
        b.layers |= {BASE, APP}
        await mesh.new_app(b, start=False)
        assert (await a.migrations.plan(app, "b"))["refusals"] == [
            "b has another app of the name game",
            "another kernel",
        ]
        b.engine.available = False
        asked = b.engine.calls.count("mismatches")
        refusals = (await a.migrations.plan(app, "b"))["refusals"]
        assert refusals[0] == "backend counter cannot be used on b: not today" and len(refusals) == 2
        assert b.engine.calls.count("mismatches") == asked  # an engine that cannot be used is asked nothing


async def test_a_stopped_app_has_no_memory_to_compare(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a = await begin(mesh)
        await a.apps.stop(a.apps.find("game").id)
        a.engine.against = ["it is open"]
        assert (await a.migrations.plan("game", "b", mode="cold"))["refusals"] == []
        assert (await move(mesh, mode="cold"))["state"] == "done"
        assert not {"facts", "obstacles"} & set(a.engine.calls)
        assert "mismatches" not in mesh["b"].engine.calls


@pytest.mark.parametrize("fault", [BackendError("Error (criu/sockets.c:132): unsupported"), OSError(5, "I/O error")])
async def test_a_dump_that_fails_calls_it_off_with_the_engines_reason(
    tmp_path: Path, jump: MockClock, fault: Exception
) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a = await begin(mesh)
        a.engine.fail["checkpoint"] = [fault]
        row = await move(mesh)
        assert (row["state"], row["error"]["code"], row["freeze_s"]) == ("failed", "refused", 0.0)
        assert ("unsupported" in row["error"]["message"]) or ("I/O error" in row["error"]["message"])
        assert untouched(a)
        assert (await move(mesh))["state"] == "done"


async def test_a_suspend_that_the_engine_cannot_do_is_a_refusal(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a = await begin(mesh)
        a.engine.fail["suspend"] = [SuspendFailed("cannot dump a packet socket", running=True)]
        row = await move(mesh)
        assert row["error"] == {"code": "refused", "message": "cannot dump a packet socket"}
        assert a.apps.find("game").state.value == "running"
        a.engine.fail["suspend"] = [SuspendFailed("did not end", running=True)]
        assert (await move(mesh, mode="cold"))["error"] == {"code": "failed", "message": "did not end"}
        a.engine.fail["suspend"] = [SuspendFailed("it is gone", running=False)]
        row = await move(mesh)
        assert row["error"] == {"code": "failed", "message": "it is gone"}
        assert a.apps.find("game").state.value == "running"  # the migration started it again


async def test_a_source_without_room_for_images_is_refused(
    tmp_path: Path, jump: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a = await begin(mesh)
        a.engine.told = {"memory_bytes": str(100 << 20)}
        free = {"a": 270 << 20, "b": 1 << 40}
        monkeypatch.setattr(preflight, "_free_bytes", lambda path: free[path.parent.name])
        refusal = "no room on a: 269 MiB are needed, 268 MiB are free"
        assert (await a.migrations.plan("game", "b"))["refusals"] == []
        free["a"] = 268 << 20
        assert (await a.migrations.plan("game", "b"))["refusals"] == [refusal]
        with pytest.raises(errors.Refused, match=refusal):
            await a.migrations.start("game", "b")
        assert untouched(a) and [path.name for path in (a.root / "migrations").iterdir()] == ["history"]
        assert (await a.migrations.plan("game", "b", mode="cold"))["refusals"] == []


async def test_clocks_that_differ_are_named(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a = await begin(mesh)
        clock = a.migrations._register.clock
        wall = clock.wall
        clock.wall = lambda: wall() + 299
        assert (await a.migrations.plan("game", "b"))["refusals"] == []
        clock.wall = lambda: wall() - 400
        (refusal,) = (await a.migrations.plan("game", "b"))["refusals"]
        assert "the clocks differ: it is 2023-11-14 22:0" in refusal and "UTC on a and 2023-11-14 22:1" in refusal
        assert (await move(mesh))["error"]["code"] == "refused"


async def test_a_port_that_is_taken_there_is_named(
    tmp_path: Path, jump: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        async with paper_mesh(tmp_path, "a", "b") as mesh:
            a = await begin(mesh)
            app = a.apps._apps[a.apps.find("game").id]
            addresses = (f"127.0.0.1:{port}", "192.0.2.7:80", "http://game.example", "[::1]:0")
            app.record = replace(app.record, addresses=addresses)
            monkeypatch.setattr(ports, "in_host_network", lambda _record: True)
            assert (await a.migrations.plan("game", "b"))["refusals"] == []  # on one machine it is the app's own
            monkeypatch.setattr(ports, "network_here", lambda: "another boot")
            assert (await a.migrations.plan("game", "b"))["refusals"] == [f"127.0.0.1:{port} is in use on b"]
            monkeypatch.setattr(ports, "in_host_network", lambda _record: False)
            assert (await a.migrations.plan("game", "b"))["refusals"] == []


async def test_phases_rounds_and_moments_are_told(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        mesh.goodput_bytes_s = 1e6
        a = await begin(mesh)
        heard = {name: mesh[name].events.open() for name in "ab"}
        row = await move(mesh)
        told: dict[str, list[str]] = {"a": [], "b": []}
        for name, listening in heard.items():
            with trio.move_on_after(1):
                async for event in listening:
                    message = event.data["progress"]["message"]
                    if message not in told[name]:
                        told[name].append(message)
        rounds = [f"precopy, round {n}" for n in range(1, row["rounds"])]
        assert len(rounds) >= 2
        end = ["suspend", "final", "grant", "restore", "commit", "done"]
        assert [m for m in told["a"] if m != "restore"] == ["preflight", "plan", "sync", *rounds, *end[:3], *end[4:]]
        assert [m for m in told["b"] if m in ("sync", "precopy", "final", "ready", "restore", "commit", "done")] == [
            "sync", "precopy", "final", "ready", "restore", "commit", "done"
        ]  # fmt: skip
        lesson = a.migrations._history.lessons()[-1]
        assert lesson.pause_s == pytest.approx(0.01)
        assert lesson.engine_s is not None and lesson.health_s is not None
        assert lesson.engine_s < row["freeze_s"] - 0.01 * len(rounds)


async def test_layers_are_in_use_before_their_app_is_here(tmp_path: Path, jump: MockClock) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        await begin(mesh)
        seen = []
        b = mesh["b"]
        pull = b.pull_layer

        async def watched(*args: Any, **kwargs: Any) -> Any:
            seen.append((b.migrations.layers_in_use(), b.apps.layers_in_use()))
            return await pull(*args, **kwargs)

        b.pull_layer = watched  # type: ignore[method-assign]
        assert (await move(mesh))["state"] == "done"
        assert seen == [({BASE, APP}, set())] * 2
        assert b.migrations.layers_in_use() == set()
        assert b.apps.layers_in_use() == {BASE, APP}


async def test_a_neighbouring_version_knows_no_facts(
    tmp_path: Path, jump: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with paper_mesh(tmp_path, "a", "b") as mesh:
        a = await begin(mesh)
        encode = messages.encode

        def as_before(message: messages.Message) -> bytes:
            raw = msgpack.unpackb(encode(message))
            packed: bytes = msgpack.packb({k: v for k, v in raw.items() if k not in ("facts", "sent_at", "network")})
            return packed

        monkeypatch.setattr(messages, "encode", as_before)
        a.engine.told = {"cpu": "sse2"}
        row = await move(mesh)
        assert row["state"] == "done"
        assert "mismatches" in mesh["b"].engine.calls


def test_which_apps_bind_the_machines_ports() -> None:
    from chunkstore.digest import LayerId
    from p2player.apprecord import AppRecord
    from p2player.appstate import AppState

    def record(backend: str, config: str = CONFIG) -> AppRecord:
        layer = LayerId(bytes(32))
        return AppRecord("0" * 32, "game", backend, layer, layer, config, (), 1, AppState.STOPPED, 0.0)

    assert ports.in_host_network(record("process"))
    assert ports.in_host_network(record("runc"))
    assert not ports.in_host_network(record("runc", '[runc]\nnetwork = "none"\n'))
    assert not ports.in_host_network(record("runc", "no TOML"))
    assert not ports.in_host_network(record("lxd"))
    assert ports.network_here() == ports.network_here() != ""


def test_ports_of_this_machine_are_tried() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        asked = [f"127.0.0.1:{port}", f"0.0.0.0:{port}", f"192.0.2.1:{port}", f"localhost:{port}", "x", "127.0.0.1:0"]
        assert ports.taken(asked) == asked[:2]
    assert ports.taken(asked) == []
