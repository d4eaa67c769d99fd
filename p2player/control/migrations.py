"""`/v1/migrations` and `/v1/plan`: move a running app, watch it move, or ask what it would take."""

from starlette.responses import Response

from p2player import errors
from p2player.control.endpoint import Call, Endpoint, Field, accepted, answer

_WISH = (
    Field("app", str, "the app", required=True),
    Field("to", str, "the node it is to run on", required=True),
    Field("mode", str, "live if left out", choices=("live", "cold")),
    Field("max_freeze_s", float, "refuse rather than freeze the app for longer"),
)


def _budget(call: Call) -> float | None:
    value: float | None = call.body.get("max_freeze_s")
    if value is not None and not 0 < value < 1e9:
        raise errors.Usage("'max_freeze_s' must be a positive number of seconds")
    return value


async def _plan(call: Call) -> Response:
    plan = await call.node.migrations.plan(
        call.body["app"], call.body["to"], mode=call.body.get("mode", "live"), max_freeze_s=_budget(call)
    )
    return answer(plan)


async def _start(call: Call) -> Response:
    row = await call.node.migrations.start(
        call.body["app"], call.body["to"], mode=call.body.get("mode", "live"), max_freeze_s=_budget(call)
    )
    return accepted(row, f"/v1/migrations/{row['id']}")


async def _list(call: Call) -> Response:
    return answer(call.node.migrations.rows())


async def _get(call: Call) -> Response:
    return answer(await call.node.migrations.row(call.path["id"], wait_s=call.wait_s()))


async def _cancel(call: Call) -> Response:
    return answer(await call.node.migrations.cancel(call.path["id"]))


ENDPOINTS = (
    Endpoint("POST", "/v1/plan", "What a migration would move and cost; nothing is done", _plan, _WISH),
    Endpoint("GET", "/v1/migrations", "Migrations, newest first", _list, answers="a list of rows"),
    Endpoint("POST", "/v1/migrations", "Move an app to another node", _start, _WISH, 202, "the migration's row"),
    Endpoint("GET", "/v1/migrations/{id}", "One migration; ?wait=SECONDS waits for a change", _get),
    Endpoint("DELETE", "/v1/migrations/{id}", "Cancel a migration that was not granted yet", _cancel),
)
