"""Long work: progress, results, errors, cancelling, and waiting for a change."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from chunkstore.errors import DiskFull
from p2player import errors
from p2player.log import Log
from p2player.operations import KEPT, Operation, Operations


@pytest.fixture
async def operations() -> AsyncIterator[Operations]:
    async with trio.open_nursery() as nursery:
        yield Operations(nursery, Log(level="error"))
        nursery.cancel_scope.cancel()


async def until_ended(operation: Operation) -> dict[str, Any]:
    while operation.state == "running":
        await operation.wait(5)
    return operation.row()


async def test_a_result_is_kept(operations: Operations, autojump_clock: MockClock) -> None:
    async def work(operation: Operation) -> dict[str, Any]:
        operation.progress(3, 10, "half-way")
        await trio.sleep(1)
        return {"answer": 42}

    operation = operations.start("test", work)
    assert operations.running()
    row = await until_ended(operations.get(operation.id))
    assert (row["state"], row["result"], row["error"]) == ("done", {"answer": 42}, None)
    assert row["progress"] == {"done": 3, "total": 10, "message": "half-way"}
    assert not operations.running()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("no layer x"), "not_found"),
        (DiskFull.__new__(DiskFull), "refused"),
        (ExceptionGroup("", [errors.Unreachable("gone")]), "unreachable"),
        (ZeroDivisionError("oops"), "failed"),
    ],
)
async def test_an_error_ends_the_work_and_is_told(
    operations: Operations, error: Exception, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def work(_: Operation) -> dict[str, Any]:
        raise error

    row = await until_ended(operations.start("test", work))
    assert (row["state"], row["error"]["code"]) == ("failed", code)


async def test_cancelling_ends_the_work(operations: Operations, autojump_clock: MockClock) -> None:
    cleaned = trio.Event()

    async def work(_: Operation) -> dict[str, Any]:
        try:
            await trio.sleep_forever()
        finally:
            cleaned.set()

    operation = operations.start("test", work)
    await trio.testing.wait_all_tasks_blocked()
    operation.scope.cancel()
    assert (await until_ended(operation))["state"] == "cancelled"
    assert cleaned.is_set()


async def test_a_watcher_wakes_at_a_change_or_in_time(operations: Operations, autojump_clock: MockClock) -> None:
    go = trio.Event()

    async def work(operation: Operation) -> dict[str, Any]:
        await go.wait()
        operation.tell()
        await trio.sleep_forever()

    operation = operations.start("test", work)
    started = trio.current_time()
    await operation.wait(7)
    assert trio.current_time() - started == pytest.approx(7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(operation.wait, 100)
        await trio.testing.wait_all_tasks_blocked()
        go.set()
    assert trio.current_time() - started < 8
    operation.scope.cancel()


async def test_changes_are_told_no_oftener_than_asked_but_the_end_at_once(
    operations: Operations, autojump_clock: MockClock
) -> None:
    async def work(operation: Operation) -> dict[str, Any]:
        for step in range(40):
            await trio.sleep(0.5)
            operation.done = step
            operation.tell()
        return {}

    operation = operations.start("test", work)
    started = trio.current_time()
    await operation.wait(60, every_s=5.2)
    assert trio.current_time() - started == pytest.approx(5.5)
    await operation.wait(60, every_s=50)
    assert trio.current_time() - started == pytest.approx(20)
    assert operation.state == "done"


async def test_old_ones_are_forgotten(operations: Operations) -> None:
    async def work(_: Operation) -> dict[str, Any]:
        return {}

    first = operations.start("test", work)
    await until_ended(first)
    for _ in range(KEPT + 2):
        await until_ended(operations.start("test", work))
    with pytest.raises(errors.NotFound):
        operations.get(first.id)


async def test_a_worker_thread_reports_and_is_cancelled(operations: Operations) -> None:
    async def work(operation: Operation) -> dict[str, Any]:
        report = operation.thread_progress("working")

        def labour() -> None:
            report(10, 10)
            operation_seen.append(operation.done)
            while True:
                report(10, 10)

        await trio.to_thread.run_sync(labour)
        return {}

    operation_seen: list[int] = []
    operation = operations.start("test", work)
    with trio.fail_after(10):
        while not operation_seen:
            await trio.sleep(0.01)
        operation.scope.cancel()
        assert (await until_ended(operation))["state"] == "cancelled"
    assert operation_seen == [10]
