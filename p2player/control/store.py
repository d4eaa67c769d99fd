"""`/v1/store`: what this node stores, and keeping it sound."""

from typing import Any

from starlette.responses import Response

from p2player.control.endpoint import Call, Endpoint, Field, accepted, answer
from p2player.operations import Operation


async def _stats(call: Call) -> Response:
    return answer(await call.node.upkeep.stats())


async def _verify(call: Call) -> Response:
    repair = call.body.get("repair", False)

    async def work(operation: Operation) -> dict[str, Any]:
        return await call.node.upkeep.verify(repair=repair, operation=operation)

    operation = call.node.operations.start("store.verify", work)
    return accepted(operation.row(), f"/v1/operations/{operation.id}")


async def _gc(call: Call) -> Response:
    operation = call.node.operations.start("store.gc", call.node.upkeep.collect)
    return accepted(operation.row(), f"/v1/operations/{operation.id}")


ENDPOINTS = (
    Endpoint("GET", "/v1/store", "Chunks, layers and bytes on this node", _stats),
    Endpoint(
        "POST",
        "/v1/store/verify",
        "Read everything back and compare digests",
        _verify,
        (Field("repair", bool, "fetch what is damaged from peers"),),
        202,
        "the operation",
    ),
    Endpoint("POST", "/v1/store/gc", "Free what nothing refers to", _gc, status=202, answers="the operation"),
)
