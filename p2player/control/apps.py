"""`/v1/apps` and `/v1/backends`: create, adopt, start, stop, read the log of and remove applications."""

from typing import Any

from starlette.responses import Response

from p2player.control.endpoint import Call, Endpoint, Field, accepted, answer
from p2player.operations import Operation


async def _list(call: Call) -> Response:
    return answer(call.node.directory.rows())


async def _create(call: Call) -> Response:
    body = call.body
    row = await call.node.directory.create(
        body["name"], backend=body["backend"], base=body["base"], app=body["app"], config=body.get("config", "")
    )
    return answer(row, 201)


async def _start(call: Call) -> Response:
    return answer(await call.node.directory.start(call.path["ref"]))


async def _stop(call: Call) -> Response:
    return answer(await call.node.directory.stop(call.path["ref"]))


async def _recover(call: Call) -> Response:
    return answer(await call.node.directory.recover(call.path["ref"], force=call.body.get("force", False)))


async def _logs(call: Call) -> Response:
    return answer({"text": await call.node.directory.logs(call.path["ref"])})


async def _remove(call: Call) -> Response:
    return answer(await call.node.directory.remove(call.path["ref"]))


async def _adopt(call: Call) -> Response:
    body, adoption = call.body, call.node.adoption
    call.node.apps.engines.adopter(body["backend"])  # what is refused anyway needs no operation

    async def work(operation: Operation) -> dict[str, Any]:
        return await adoption.adopt(
            body["name"],
            backend=body["backend"],
            instance=body.get("instance", body["name"]),
            base=body.get("base"),
            layer_name=body.get("app_name"),
            config=body.get("config"),
            operation=operation,
        )

    operation = call.node.operations.start("app.adopt", work)
    return accepted(operation.row(), f"/v1/operations/{operation.id}")


async def _backends(call: Call) -> Response:
    return answer(await call.node.directory.backends())


ENDPOINTS = (
    Endpoint("GET", "/v1/apps", "The apps of the mesh and where they run", _list, answers="a list of rows"),
    Endpoint(
        "POST",
        "/v1/apps",
        "Create an app on this node",
        _create,
        (
            Field("name", str, "the app's name in the mesh", required=True),
            Field("backend", str, "see /v1/backends", required=True),
            Field("base", str, "a layer", required=True),
            Field("app", str, "a layer", required=True),
            Field("config", str, "the text of the app's TOML file"),
        ),
        201,
        "the app's row",
    ),
    Endpoint(
        "POST",
        "/v1/apps/adopt",
        "Make an app of an instance that an engine has, which is taken apart into layers",
        _adopt,
        (
            Field("name", str, "the app's name in the mesh", required=True),
            Field("backend", str, "whose instance it is", required=True),
            Field("instance", str, "what the engine calls it; the app's name if left out"),
            Field("base", str, "the layer that it was made from; one is made if left out"),
            Field("app_name", str, "the name of the layer with the rest; the app's name if left out"),
            Field("config", str, "the text of the app's TOML file; what the engine tells if left out"),
        ),
        202,
        "the operation; its result is the app's row",
    ),
    Endpoint("POST", "/v1/apps/{ref}/start", "Start an app", _start),
    Endpoint("POST", "/v1/apps/{ref}/stop", "Stop an app, keeping its state", _stop),
    Endpoint(
        "POST",
        "/v1/apps/{ref}/recover",
        "Resolve an app in doubt by the other node's answer",
        _recover,
        (Field("force", bool, "take it back without an answer: another copy may exist"),),
    ),
    Endpoint("GET", "/v1/apps/{ref}/logs", "The newest output of an app", _logs),
    Endpoint("DELETE", "/v1/apps/{ref}", "Remove a stopped app and its state", _remove),
    Endpoint("GET", "/v1/backends", "The engines of this machine", _backends, answers="a list of rows"),
)
