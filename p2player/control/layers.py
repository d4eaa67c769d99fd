"""`/v1/layers`: add, pull, check out, pin, compare and remove layers; `/v1/warm`: place them ahead of need."""

from pathlib import Path
from typing import Any

from starlette.responses import Response

from p2player import errors
from p2player.control.endpoint import Call, Endpoint, Field, accepted, answer
from p2player.net.shaping import Shaper
from p2player.operations import Operation, Work

MIN_RATE = 1_000


def _start(call: Call, kind: str, work: Work) -> Response:
    operation = call.node.operations.start(kind, work)
    return accepted(operation.row(), f"/v1/operations/{operation.id}")


def _absolute(text: str, name: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise errors.Usage(f"{name!r} must be an absolute path")
    return path


async def _list(call: Call) -> Response:
    return answer(await call.node.layers.rows())


async def _add(call: Call) -> Response:
    path = _absolute(call.body["path"], "path")
    name, kind, takeover = call.body["name"], call.body.get("kind", "app"), call.body.get("takeover", False)

    async def work(operation: Operation) -> dict[str, Any]:
        return await call.node.layers.add(path, name, kind, takeover=takeover, operation=operation)

    return _start(call, "layer.add", work)


def _throttle(call: Call) -> Shaper | None:
    """The cap that a request puts on what it makes the node receive."""
    rate = call.body.get("limit_in")
    if rate is None:
        return None
    if rate < MIN_RATE:
        raise errors.Usage(f"'limit_in' is less than {MIN_RATE} bytes a second: nothing would work")
    return Shaper(rate)


async def _pull(call: Call) -> Response:
    throttle = _throttle(call)

    async def work(operation: Operation) -> dict[str, Any]:
        return await call.node.layers.pull(call.path["ref"], operation=operation, throttle_in=throttle)

    return _start(call, "layer.pull", work)


async def _checkout(call: Call) -> Response:
    directory, throttle = _absolute(call.body["dir"], "dir"), _throttle(call)

    async def work(operation: Operation) -> dict[str, Any]:
        return await call.node.layers.checkout(call.path["ref"], directory, operation=operation, throttle_in=throttle)

    return _start(call, "layer.checkout", work)


async def _remove(call: Call) -> Response:
    return answer(await call.node.layers.remove(call.path["ref"]))


async def _pin(call: Call) -> Response:
    return answer(await call.node.layers.pin(call.path["ref"], True))


async def _unpin(call: Call) -> Response:
    return answer(await call.node.layers.pin(call.path["ref"], False))


async def _diff(call: Call) -> Response:
    return answer(await call.node.layers.diff(call.path["a"], call.path["b"]))


async def _warm(call: Call) -> Response:
    wishes = {name: call.body[name] for name in ("to", "site", "copies") if name in call.body}
    if len(wishes) != 1:
        raise errors.Usage("say exactly one of 'to', 'site' and 'copies'")

    async def work(operation: Operation) -> dict[str, Any]:
        return await call.node.warmer.warm(call.body["target"], operation=operation, **wishes)

    return _start(call, "warm", work)


async def _warm_state(call: Call) -> Response:
    return answer(call.node.warmer.status())


async def _warm_auto(call: Call) -> Response:
    await call.node.warmer.set_auto(call.body["enabled"])
    return answer(call.node.warmer.status())


_LIMIT = Field("limit_in", int, "bytes a second that are received at most for this, besides the node's own cap")

ENDPOINTS = (
    Endpoint("GET", "/v1/layers", "The layers of the mesh and who holds them", _list, answers="a list of rows"),
    Endpoint(
        "POST",
        "/v1/layers",
        "Import a folder or tar file as a layer and name it",
        _add,
        (
            Field("path", str, "absolute path on the node's machine", required=True),
            Field("name", str, "the layer's name in the mesh", required=True),
            Field("kind", str, "app if left out", choices=("base", "app")),
            Field("takeover", bool, "take the name over from the node that owns it"),
        ),
        202,
        "the operation",
    ),
    Endpoint("POST", "/v1/layers/{ref}/pull", "Fetch a layer to this node", _pull, (_LIMIT,), 202, "the operation"),
    Endpoint(
        "POST",
        "/v1/layers/{ref}/checkout",
        "Write a layer's tree to a folder",
        _checkout,
        (Field("dir", str, "absolute path; absent or empty", required=True), _LIMIT),
        202,
        "the operation",
    ),
    Endpoint("DELETE", "/v1/layers/{ref}", "Drop a layer from this node, and its name if this node owns it", _remove),
    Endpoint("PUT", "/v1/layers/{ref}/pin", "Keep a layer whatever gc thinks", _pin),
    Endpoint("DELETE", "/v1/layers/{ref}/pin", "Let gc decide about a layer again", _unpin),
    Endpoint("GET", "/v1/layers/{a}/diff/{b}", "Compare the trees of two layers", _diff),
    Endpoint(
        "POST",
        "/v1/warm",
        "Place an app's layers, or one layer, ahead of need",
        _warm,
        (
            Field("target", str, "an app or a layer", required=True),
            Field("to", str, "a node"),
            Field("site", str, "every node of a site"),
            Field("copies", int, "as many nodes in all"),
        ),
        202,
        "the operation",
    ),
    Endpoint("GET", "/v1/warm", "Automatic warming: whether it is on, and what it holds", _warm_state),
    Endpoint(
        "PUT",
        "/v1/warm/auto",
        "Switch automatic warming on or off on this node",
        _warm_auto,
        (Field("enabled", bool, "on or off", required=True),),
    ),
)
